"""Multi-scale inference against the loop of IRN's code: `python -m tests.performance.inference`

Both read photographs of scikit-image from JPEG files and end with normalised maps of two classes at stride 4, of
scales 1, 0.5, 1.5 and 2, each with its mirror image. The networks have random weights; IRN's loop also makes the
maps at full size that its code stores.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from skimage import data
from torch import Tensor, nn

from seedbed.benchmark.pipeline.stage import Context
from seedbed.benchmark.training.inference import multi_scale, one_value_per
from seedbed.datasets.base import Split, SplitView
from seedbed.datasets.io.images import decode_image, image_size
from seedbed.methods.backbones.base import IMAGENET_MEAN, IMAGENET_STD
from seedbed.methods.cam import CamNetwork, normalised_maps
from tests.helpers.measurement import Row, least_seconds, print_table

BACKBONES = ("squeezenet", "resnet50")
PHOTOGRAPHS, LONG_SIDE = ("chelsea", "coffee"), 224
SCALES, CELL, TAGS = (1.0, 0.5, 1.5, 2.0), 4, (1, 2)


class Photographs:
    """Photographs in a folder, with what inference reads of a split."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ids = folder, PHOTOGRAPHS
        for name in self.ids:
            picture = Image.fromarray(getattr(data, name)())
            picture.thumbnail((LONG_SIDE, LONG_SIDE))
            picture.save(self.path(name))

    def __len__(self) -> int:
        return len(self.ids)

    def path(self, image_id: str) -> Path:
        """Return the file of a photograph."""
        return self.folder / f"{image_id}.jpg"

    def size(self, image_id: str) -> tuple[int, int]:
        """Return (height, width)."""
        return image_size(self.path(image_id))

    def image(self, image_id: str) -> NDArray[np.uint8]:
        """Return the image (H, W, 3)."""
        return decode_image(self.path(image_id))


def ours(network: CamNetwork, images: Photographs, ctx: Context) -> dict[str, NDArray[Any]]:
    """Return the maps by id, as InferCam makes them."""
    maps = multi_scale(
        network.maps,
        cast(SplitView, images),
        scales=SCALES,
        flip=True,
        long_side=0,
        grid=one_value_per(CELL),
        ctx=ctx,
        label="inference",
    )
    return {name: normalised_maps(found, TAGS, images.size(name)).scores for name, found in maps}


@torch.no_grad()
def irn(network: CamNetwork, images: Photographs) -> dict[str, NDArray[Any]]:
    """Return the maps by id as IRN's make_cam.py computes them: one image at a time."""
    network = copy.deepcopy(network)
    network.backbone.normalise = nn.Identity()  # type: ignore[assignment]
    found = {}
    for name in images.ids:
        picture = Image.open(images.path(name)).convert("RGB")
        maps = []
        for scale in SCALES:
            size = round(picture.width * scale), round(picture.height * scale)
            pixels = np.asarray(picture.resize(size, Image.Resampling.BICUBIC))
            normalised = np.empty_like(pixels, np.float32)
            for channel in range(3):
                normalised[..., channel] = (pixels[..., channel] / 255.0 - IMAGENET_MEAN[channel]) / IMAGENET_STD[
                    channel
                ]
            image = normalised.transpose(2, 0, 1)
            pair = network.maps(torch.from_numpy(np.stack([image, image[..., ::-1]])))
            maps.append(pair[0] + pair[1].flip(-1))
        grid = -(-picture.height // CELL), -(-picture.width // CELL)
        small, full = summed(maps, grid), summed(maps, (picture.height, picture.width))
        present = [tag - 1 for tag in TAGS]
        small, full = (m[present] / (m[present].amax((1, 2), keepdim=True) + 1e-5) for m in (small, full))
        found[name] = small.numpy()
    return found


def summed(maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Return the sum of maps (C, h, w) resized to one size."""
    resized = [F.interpolate(m[None], size, mode="bilinear", align_corners=False)[0] for m in maps]
    return torch.stack(resized).sum(0)


def rows() -> Iterator[Row]:
    """Measure both for each backbone. Raises AssertionError if their maps differ."""
    with tempfile.TemporaryDirectory() as folder:
        images = Photographs(Path(folder))
        ctx = Context(0, Split.TRAIN, Path(folder))
        for backbone in BACKBONES:
            torch.manual_seed(0)
            network = CamNetwork(backbone, 20, 16, 0.0, pretrained=True).eval()
            tasks = {"ours": partial(ours, network, images, ctx), "irn": partial(irn, network, images)}
            least = least_seconds(tasks, rounds=2)
            theirs = irn(network, images)
            for name, maps in ours(network, images, ctx).items():
                np.testing.assert_allclose(maps, theirs[name], rtol=0, atol=0.01)
            own, reference = (least[name] / len(images) for name in ("ours", "irn"))
            what = f"Multi-scale inference, {backbone}, {LONG_SIDE} pixels"
            yield Row(what, "s an image", own, "IRN's loop", reference)


if __name__ == "__main__":
    print_table({"inference": rows})
