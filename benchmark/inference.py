"""Multi-scale inference with flips over a split: batches of equal-sized images, one pass over the files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmark.stage import Context
from datasets.base import SplitView
from datasets.transforms import normalise

PIXELS_A_BATCH = {"cpu": 2 * 500 * 500, "cuda": 32 * 500 * 500}
"""Images of a batch hold about so many pixels at scale 1."""


def resized(height: int, width: int, long_side: int) -> tuple[int, int]:
    """Return the size at which an image is worked on: its longer side `long_side` pixels, 0 for its own size."""
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
) -> Iterator[tuple[str, Tensor]]:
    """Yield (id, mean of the network's maps over scales and flips) for every image of the split.

    `forward` maps normalised images (B, 3, h, w) to maps (B, C, h', w'). Each image is resized to `long_side`,
    then (bicubic) by each scale, and flipped; each map is resized (bilinear, align_corners=False) to the size
    that `grid(id, h, w)` gives for the image at scale 1, un-flipped, and averaged (docs/methods.md, CAM sums, and
    normalises afterwards). Maps are float32 (C, grid h, grid w) on `ctx.device`. Images come grouped by size,
    in a fixed order.
    """
    groups: dict[tuple[int, int], list[str]] = defaultdict(list)
    for image_id in view.ids:
        groups[resized(*view.size(image_id), long_side)].append(image_id)
    batches = []
    for (height, width), ids in sorted(groups.items()):
        batch = max(1, PIXELS_A_BATCH[ctx.device.partition(":")[0]] // (height * width))
        batches += [ids[start : start + batch] for start in range(0, len(ids), batch)]
    loader = torch.utils.data.DataLoader(
        _Images(view, long_side),
        batch_sampler=batches,
        num_workers=ctx.workers,
        pin_memory=ctx.device != "cpu",
    )
    with ctx.reporter.bar(label, len(view)) as bar:
        for ids, images in zip(batches, loader, strict=True):
            sizes = [grid(image_id, *images.shape[-2:]) for image_id in ids]
            yield from zip(ids, _fused(forward, images, scales, flip, sizes, ctx.device), strict=True)
            bar.advance(len(ids))


def padded_images(
    view: SplitView, long_side: int, least: int, multiple: int, ctx: Context, label: str
) -> Iterator[tuple[str, Tensor, tuple[int, int]]]:
    """Yield (id, image, (h, w)) for every image of the split: normalised float32 (1, 3, H', W') on `ctx.device`.

    The image is resized to `long_side` (0: its own size), which makes it h × w, and padded at the bottom and right
    with 0, the mean colour: both sides to at least `least` pixels and a multiple of `multiple`.
    """
    loader = torch.utils.data.DataLoader(
        _Images(view, long_side),
        batch_sampler=[[image_id] for image_id in view.ids],
        num_workers=ctx.workers,
        pin_memory=ctx.device != "cpu",
    )
    with ctx.reporter.bar(label, len(view)) as bar:
        for image_id, image in zip(view.ids, loader, strict=True):
            height, width = image.shape[-2:]
            down, right = (-(-max(least, side) // multiple) * multiple - side for side in (height, width))
            yield image_id, F.pad(image.to(ctx.device, non_blocking=True), (0, right, 0, down)), (height, width)
            bar.advance()


@torch.inference_mode()
def _fused(
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    scales: Sequence[float],
    flip: bool,
    sizes: Sequence[tuple[int, int]],
    device: str,
) -> list[Tensor]:
    images = images.to(device, non_blocking=True)
    height, width = images.shape[-2:]
    sums: list[Tensor | None] = [None] * len(sizes)
    for scale in scales:
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        scaled = images
        if size != (height, width):
            scaled = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
        if flip:
            scaled = torch.cat([scaled, scaled.flip(-1)])
        if device != "cpu":
            scaled = scaled.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cuda", torch.bfloat16, enabled=device != "cpu"):
            maps = forward(scaled)
        maps = maps.float()
        for index, target in enumerate(sizes):
            single = F.interpolate(maps[index, None], target, mode="bilinear", align_corners=False)[0]
            if flip:
                mirrored = maps[len(sizes) + index, None]
                single = single + F.interpolate(mirrored, target, mode="bilinear", align_corners=False)[0].flip(-1)
            before = sums[index]
            sums[index] = single if before is None else before + single
    count = len(scales) * (2 if flip else 1)
    return [total / count for total in sums if total is not None]


class _Images(torch.utils.data.Dataset[Tensor]):
    """Images by id, normalised, resized to `long_side` (bicubic, antialiased)."""

    def __init__(self, view: SplitView, long_side: int) -> None:
        self.view, self.long_side = view, long_side

    def __getitem__(self, image_id: str) -> Tensor:
        image = normalise(torch.from_numpy(self.view.image(image_id).copy()).permute(2, 0, 1))
        size = resized(image.shape[-2], image.shape[-1], self.long_side)
        if size != tuple(image.shape[-2:]):
            image = F.interpolate(image[None], size, mode="bicubic", antialias=True, align_corners=False)[0]
        return image
