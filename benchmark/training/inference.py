"""Multi-scale inference with flips over a split: batches of equal-sized images, one pass over the files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from seedbed.benchmark.pipeline.stage import Context
from seedbed.benchmark.progress import progress_bar
from seedbed.benchmark.training.augmentation import MEAN_COLOUR
from seedbed.benchmark.training.precision import INFERENCE_LAYOUT, autocast
from seedbed.datasets.base import SplitView

PIXELS_A_BATCH = {"cpu": 2**15, "cuda": 16 * 500 * 500}
"""Approximate number of pixels of a batch at scale 1. Larger ones leave a CPU's caches and are slower."""


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Return an RGB image uint8 (3, H, W) resized to `size` (h, w) by Pillow's bicubic filter."""
    if tuple(image.shape[-2:]) == size:
        return image
    pixels = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    return torch.from_numpy(np.array(pixels.resize(size[::-1], Image.Resampling.BICUBIC))).permute(2, 0, 1)


def resized(height: int, width: int, long_side: int) -> tuple[int, int]:
    """Return (height, width) with the longer side `long_side` pixels; the size itself if `long_side` is 0."""
    if long_side == 0:
        return height, width
    factor = long_side / max(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))


def multi_scale(
    forward: Callable[[Tensor], Tensor],
    view: SplitView,
    *,
    scales: Sequence[float],
    flip: bool,
    long_side: int,
    grid: Callable[[str, int, int], tuple[int, int]],
    ctx: Context,
    label: str,
    activation: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Yield (id, mean of the network's maps over scales and flips) for every image of the split.

    Each image is resized to `long_side`, then by each scale (`resize_image`) and flipped. Each map is
    resized (bilinear, align_corners=False) to `grid`, passed through `activation`, un-flipped, and averaged. Maps
    are float32 (C, grid height, grid width) on `ctx.device`. Images come grouped by size, in a fixed order.
    Networks run in the precision of `ctx`; maps are resized, activated and averaged in float32.

    Args:
        forward: Maps images float32 (B, 3, h, w), RGB in 0..255, to maps (B, C, h', w').
        view: The split.
        scales: Factors of the image size.
        flip: Whether to add each scale's mirror image.
        long_side: Longer image side in pixels at scale 1; 0: the image's own size.
        grid: Maps (id, height, width) of an image at scale 1 to the size of its map.
        ctx: How to run.
        label: Title of the progress bar.
        activation: Applied to each resized map (1, C, grid height, grid width).
    """
    groups: dict[tuple[int, int], list[str]] = defaultdict(list)
    for image_id in view.ids:
        groups[resized(*view.size(image_id), long_side)].append(image_id)
    batches = []
    for (height, width), ids in sorted(groups.items()):
        batch = max(1, PIXELS_A_BATCH[ctx.device.partition(":")[0]] // (height * width))
        batches += [ids[start : start + batch] for start in range(0, len(ids), batch)]
    loader = torch.utils.data.DataLoader(
        _Images(view, long_side, scales),
        batch_sampler=batches,
        num_workers=ctx.workers,
        pin_memory=ctx.device != "cpu",
    )
    with progress_bar(label, len(view)) as bar:
        for ids, pyramid in zip(batches, loader, strict=True):
            size = resized(*view.size(ids[0]), long_side)
            sizes = [grid(image_id, *size) for image_id in ids]
            yield from zip(ids, _fused(forward, activation, pyramid, flip, sizes, ctx), strict=True)
            bar.advance(len(ids))


def padded_images(
    view: SplitView, long_side: int, least: int, multiple: int, ctx: Context, label: str
) -> Iterator[tuple[str, Tensor, tuple[int, int]]]:
    """Yield (id, image, (h, w)) for every image of the split; images are float32 (1, 3, H', W') on `ctx.device`.

    Images are RGB in 0..255. Each is resized to h × w by `long_side` (0: its own size), then padded at the bottom
    and right with the mean colour: both sides to at least `least` pixels and a multiple of `multiple`.
    """
    loader = torch.utils.data.DataLoader(
        _Images(view, long_side, (1.0,)),
        batch_sampler=[[image_id] for image_id in view.ids],
        num_workers=ctx.workers,
        pin_memory=ctx.device != "cpu",
    )
    with progress_bar(label, len(view)) as bar:
        for image_id, (image,) in zip(view.ids, loader, strict=True):
            height, width = image.shape[-2:]
            sides = [-(-max(least, side) // multiple) * multiple for side in (height, width)]
            yield image_id, pad(image.to(ctx.device, non_blocking=True).float(), *sides), (height, width)
            bar.advance()


def pad(images: Tensor, height: int, width: int) -> Tensor:
    """Return images float32 (B, 3, H, W) padded at the bottom and right with the mean colour to height × width."""
    colour = torch.tensor(MEAN_COLOUR, device=images.device)[:, None, None]
    padded = colour.expand(len(images), 3, height, width).contiguous()
    padded[..., : images.shape[-2], : images.shape[-1]] = images
    return padded


@torch.inference_mode()
def _fused(
    forward: Callable[[Tensor], Tensor],
    activation: Callable[[Tensor], Tensor] | None,
    pyramid: Sequence[Tensor],
    flip: bool,
    sizes: Sequence[tuple[int, int]],
    ctx: Context,
) -> list[Tensor]:
    """Return the mean map of each image of a batch; `pyramid` has the batch (B, 3, h, w) at each scale."""
    sums: list[Tensor | None] = [None] * len(sizes)
    for images in pyramid:
        scaled = images.to(ctx.device, non_blocking=True).float()
        if flip:
            scaled = torch.cat([scaled, scaled.flip(-1)])
        with autocast(ctx):
            maps = forward(scaled.contiguous(memory_format=INFERENCE_LAYOUT)).float()
        for index, target in enumerate(sizes):
            single = _on_grid(maps[index, None], target, activation)
            if flip:
                single = single + _on_grid(maps[len(sizes) + index, None], target, activation).flip(-1)
            before = sums[index]
            sums[index] = single if before is None else before + single
    count = len(pyramid) * (2 if flip else 1)
    return [total / count for total in sums if total is not None]


def one_value_per(pixels: int) -> Callable[[str, int, int], tuple[int, int]]:
    """Return a `grid` for `multi_scale` with one value per square of `pixels` × `pixels` pixels of the image."""
    return lambda _, height, width: (-(-height // pixels), -(-width // pixels))


def _on_grid(maps: Tensor, size: tuple[int, int], activation: Callable[[Tensor], Tensor] | None) -> Tensor:
    maps = F.interpolate(maps, size, mode="bilinear", align_corners=False)
    return (maps if activation is None else activation(maps))[0]


class _Images(torch.utils.data.Dataset[list[Tensor]]):
    """Images by id: resized to `long_side`, then by each scale; one uint8 (3, h, w) per scale."""

    def __init__(self, view: SplitView, long_side: int, scales: Sequence[float]) -> None:
        self.view, self.long_side, self.scales = view, long_side, scales

    def __getitem__(self, image_id: str) -> list[Tensor]:
        image = torch.from_numpy(self.view.image(image_id)).permute(2, 0, 1)
        height, width = resized(image.shape[1], image.shape[2], self.long_side)
        image = resize_image(image, (height, width))
        sizes = [(max(1, round(height * scale)), max(1, round(width * scale))) for scale in self.scales]
        return [resize_image(image, size) for size in sizes]
