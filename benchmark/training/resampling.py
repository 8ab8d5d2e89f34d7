"""Resizing of images and masks, of which only a crop is wanted.

Pixel i of `new` pixels has its centre at (i + ½) · old / new of `old` pixels, as in Pillow and OpenCV.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

Resampling = Literal["bicubic", "bilinear", "linear"]
"""Pillow's bicubic (PSA, IRN, SC-CAM) or bilinear (ACoL), which average over all pixels when they shrink, or
OpenCV's linear (deeplab-pytorch, RRM, ICD), which always mixes the four pixels around a centre."""


@dataclass(frozen=True)
class Span:
    """What a crop shows of one axis of the resized image, in pixels."""

    length: int
    """Of the whole resized axis."""
    start: int
    size: int
    before: int
    """Padding before what is shown."""

    @property
    def shown(self) -> slice:
        """The part of the resized axis."""
        return slice(self.start, self.start + self.size)

    def part(self, first: int, size: int) -> Span:
        """Return up to `size` pixels of those that are shown, from the `first` on."""
        return replace(self, start=self.start + first, size=min(size, self.size - first))

    @property
    def place(self) -> slice:
        """Its place in the crop."""
        return slice(self.before, self.before + self.size)


def averaging(
    pixels: NDArray[np.uint8], size: tuple[int, int], mode: Literal["bicubic", "bilinear"]
) -> NDArray[np.uint8]:
    """Return an image uint8 (H, W, 3) resized to `size` by a filter of Pillow, uint8 (3, h, w).

    These are torch's filters, which differ from Pillow's by one grey level in less than 1 % of the values. They
    resize a whole image faster than Pillow resizes a crop.
    """
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    if image.shape[1:] != size:
        image = F.interpolate(image[None], size, mode=mode, antialias=True)[0]
    resized: NDArray[np.uint8] = image.numpy()
    return resized


def linear(pixels: NDArray[np.uint8], rows: Span, columns: Span) -> NDArray[np.float32]:
    """Return the crop, float32 (3, h, w), of an image uint8 (H, W, 3) that is resized by OpenCV's linear."""
    above, below, down = _neighbours(rows, pixels.shape[0])
    left, right, across = _neighbours(columns, pixels.shape[1])
    first = left[0]
    seen = pixels[:, first : right[-1] + 1]
    mixed = _mixed(seen[above].astype(np.float32), seen[below], down[:, None, None])
    planes = np.ascontiguousarray(mixed.transpose(2, 0, 1))
    return _mixed(planes.take(left - first, 2), planes.take(right - first, 2), across)


def nearest(mask: NDArray[Any], rows: Span, columns: Span, covered: tuple[int, int]) -> NDArray[Any]:
    """Return the crop (..., h, w) of a mask (..., H, W) that is resized by the pixel whose centre is nearest.

    `covered` is the height and width that are resized; pixels beyond the mask repeat its edge.
    """
    picked = [
        _centres(span, length).astype(np.intp).clip(max=side - 1)
        for span, length, side in zip((rows, columns), covered, mask.shape[-2:], strict=True)
    ]
    return mask[..., picked[0][:, None], picked[1]]


def _centres(span: Span, length: int) -> NDArray[np.float32]:
    """Return where the centres of the pixels that are shown lie on an axis of `length` pixels."""
    centres = np.arange(span.start, span.start + span.size, dtype=np.float32) + np.float32(0.5)
    return centres * (np.float32(length) / np.float32(span.length))


def _neighbours(span: Span, length: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Return the pixels before and after each centre, and the weight of the latter."""
    positions = np.maximum(_centres(span, length) - np.float32(0.5), np.float32(0))
    before = positions.astype(np.intp)
    return before, np.minimum(before + 1, length - 1), positions - before.astype(np.float32)


def _mixed(first: NDArray[np.float32], second: NDArray[Any], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return first + weight · (second − first)."""
    mixed = second - first
    mixed *= weight
    mixed += first
    return mixed
