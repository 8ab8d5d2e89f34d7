"""Augmentation of image and mask together: drawn as a plan, then applied to the pixels that the crop shows.

Images are resized as in the code of each method's authors (`Resampling`), masks by the pixel at the centre.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from seedbed.benchmark.training import colour_jitter
from seedbed.benchmark.training.resampling import Resampling, Span, averaging, linear, nearest
from seedbed.datasets.base import IGNORE_INDEX

MEAN_COLOUR = (123.674995, 116.27999, 103.52999)
"""ImageNet's mean colour, RGB in 0..255, which pads images. With ImageNet's normalisation it is exactly 0."""
BLOCK = 30_000
"""Pixels that are jittered at once: few enough for the processor's cache, and for `malloc` to reuse memory instead
of asking the system for new pages."""
Size = tuple[int, int]
"""Height and width in pixels."""


@dataclass(frozen=True)
class Plan:
    """What is drawn for one example."""

    rows: Span
    columns: Span
    """Of the image before it is flipped."""
    flip: bool
    jitter: colour_jitter.Steps

    @property
    def size(self) -> Size:
        """Height and width of the resized image."""
        return self.rows.length, self.columns.length

    def place(self, crop: NDArray[Any]) -> NDArray[Any]:
        """Return the view of a crop (..., crop, crop) to which the part that it shows is written, unflipped."""
        place = crop[..., self.rows.place, self.columns.place]
        return place[..., ::-1] if self.flip else place


@dataclass(frozen=True)
class Augmentation:
    """Resize, flip, colour jitter, then a random crop, or the image at a random place in a padded one."""

    resize: Callable[[Size, Generator], Size]
    """Draws the size to which an image is resized."""
    crop: int
    resampling: Resampling
    jitter: colour_jitter.Strengths | None = None
    floats: bool = False
    """Whether resized values keep their fractions, where colours are not jittered."""
    black: bool = False
    """Whether padding is black, and not the mean colour."""
    corner: bool = False
    """Whether padding is only at the bottom and right."""
    unknown: int = IGNORE_INDEX
    """The padding of masks."""

    def plan(self, size: Size, generator: Generator) -> Plan:
        """Draw the augmentation of an image of (height, width) pixels."""
        height, width = self.resize(size, generator)
        flip = bool(torch.rand((), generator=generator) < 0.5)
        jitter = colour_jitter.draw(self.jitter, generator) if self.jitter else ()
        rows, columns = self._span(height, generator), self._span(width, generator)
        if flip:
            columns = Span(width, width - columns.start - columns.size, columns.size, columns.before)
        return Plan(rows, columns, flip, jitter)

    def image(self, image: NDArray[np.uint8], plan: Plan) -> Tensor:
        """Return the crop float32 (3, crop, crop), RGB in 0..255, of an image uint8 (H, W, 3).

        The image may be smaller than the one that the plan was drawn for.
        """
        crop = np.zeros((3, self.crop, self.crop), np.float32)
        if not self.black:
            crop += np.array(MEAN_COLOUR, np.float32)[:, None, None]
        place = plan.place(crop)
        resized = None if self.resampling == "linear" else averaging(image, plan.size, self.resampling)
        mean = 0.0
        if plan.jitter:
            # OpenCV's linear mixes few pixels, so the colours of the image are nearly those of the resized one.
            mean = colour_jitter.mean_grey(image.transpose(2, 0, 1) if resized is None else resized, plan.jitter)
        step = max(1, BLOCK // plan.columns.size)
        for top in range(0, plan.rows.size, step):
            rows = plan.rows.part(top, step)
            if resized is None:
                block = linear(image, rows, plan.columns)
                if plan.jitter or not self.floats:
                    np.rint(block, out=block)
            else:
                block = resized[:, rows.shown, plan.columns.shown].astype(np.float32, order="C")
            colour_jitter.apply(block, plan.jitter, mean)
            place[:, top : top + step] = block
        return torch.from_numpy(crop)

    def mask(self, mask: NDArray[Any], plan: Plan, covered: Size) -> Tensor:
        """Return the crop (..., crop, crop) of a mask (..., H, W), or of other values at the image's pixels.

        `covered` is the image's height and width, as far as its pixels reach: those of an image that was decoded
        at a smaller size may reach beyond the mask.
        """
        crop = np.full((*mask.shape[:-2], self.crop, self.crop), self.unknown, mask.dtype)
        plan.place(crop)[...] = nearest(mask, plan.rows, plan.columns, covered)
        return torch.from_numpy(crop)

    def _span(self, length: int, generator: Generator) -> Span:
        size, room = min(length, self.crop), max(0, self.crop - length)
        start = _whole(length - size + 1, generator)
        return Span(length, start, size, 0 if self.corner else _whole(room + 1, generator))


def classification(long_side: tuple[int, int], crop: int, jitter: colour_jitter.Strengths | None) -> Augmentation:
    """Return PSA's augmentation (docs/methods.md): longer side U[low, high], flip, colour jitter, crop or pad.

    What is padded has the mean colour.
    """
    return Augmentation(partial(_long_side, *long_side), crop, "bicubic", jitter)


def squares(side: int, crop: int) -> Augmentation:
    """Return ACoL's augmentation (docs/methods.md, Splitting vs. Merging): side × side pixels, flip, random crop.

    The aspect ratio is not kept.
    """
    return Augmentation(partial(_square, side), crop, "bilinear")


def segmentation(
    scale: tuple[float, float],
    base: int,
    crop: int,
    jitter: colour_jitter.Strengths | None = None,
    resampling: Resampling = "linear",
) -> Augmentation:
    """Return DeepLab's augmentation (docs/methods.md): longer side `base` · U[low, high], flip, crop or pad.

    What is padded has the mean colour in the image and 255 in the mask. "linear" resizes floats, as
    deeplab-pytorch and RRM do, and so rounds nothing.
    """
    resize = partial(_long_side, base * scale[0], base * scale[1])
    return Augmentation(resize, crop, resampling, jitter, floats=True)


def scaled_crops(scales: Sequence[float], base: int, crop: int) -> Augmentation:
    """Return ICD's augmentation (docs/methods.md): one of some scales, flip, crop, or pad at the bottom and right.

    `base` is the longer side in pixels at scale 1, 0 the image's own. Resized values are rounded.
    """
    return Augmentation(partial(_scale, scales, base), crop, "linear", corner=True)


def unscaled(base: int, crop: int, jitter: colour_jitter.Strengths | None) -> Augmentation:
    """Return the augmentation of PSA's affinity network (docs/methods.md): flip, colour jitter, crop or pad.

    Its masks are probabilities float32 (L, H, W). Padding is black in the image and 0 in the probabilities.
    `base` is the longer side of the image in pixels, 0 its own.
    """
    return Augmentation(partial(_scale, (1.0,), base), crop, "bicubic", jitter, black=True, unknown=0)


def _long_side(low: float, high: float, size: Size, generator: Generator) -> Size:
    """Return a size whose longer side is uniform in [low, high]."""
    return _scaled(size, float(torch.empty(()).uniform_(low, high, generator=generator)) / max(size))


def _scale(scales: Sequence[float], base: int, size: Size, generator: Generator) -> Size:
    """Return the size at one of some scales; `base` is the longer side in pixels at scale 1, 0 its own."""
    scale = scales[_whole(len(scales), generator)]
    return _scaled(size, scale * base / max(size) if base else scale)


def _square(side: int, size: Size, generator: Generator) -> Size:
    return side, side


def _scaled(size: Size, factor: float) -> Size:
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _whole(limit: int, generator: Generator) -> int:
    """Draw one of 0 … limit − 1."""
    return int(torch.randint(limit, (), generator=generator))
