"""Colour jitter: brightness, contrast, saturation and hue by random factors, in random order.

The operations are those of torchvision's `ColorJitter` on uint8: each cuts its result to whole numbers in 0..255.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

Strengths = tuple[float, float, float, float]
"""Greatest changes of brightness, contrast and saturation, as factors 1 ± x, and of hue, in turns up to ½."""
Steps = tuple[tuple[str, float], ...]
"""Names of operations with their factors, in the order in which they are applied."""
Planes = NDArray[np.float32]
"""An image (3, H, W) of whole numbers in 0..255."""
SAMPLE = 10_000
"""About how many pixels the mean grey is taken from."""


def draw(strengths: Strengths, generator: torch.Generator) -> Steps:
    """Draw the order and the factors: uniform in [max(0, 1 − x), 1 + x], that of hue in [−x, x]."""
    order = torch.randperm(4, generator=generator).tolist()
    ranges = [(max(0.0, 1 - x), 1 + x) for x in strengths[:3]] + [(-strengths[3], strengths[3])]
    factors = [float(torch.empty(1).uniform_(*limits, generator=generator)) for limits in ranges]
    names = ("brightness", "contrast", "saturation", "hue")
    return tuple((names[i], factors[i]) for i in order)


def mean_grey(image: NDArray[np.uint8], steps: Steps) -> float:
    """Return the mean grey of an image (3, H, W) after the steps before contrast, which changes around it.

    It is that of every n-th pixel of every n-th row.
    """
    every = max(1, math.isqrt(image.shape[1] * image.shape[2] // SAMPLE))
    planes = image[:, ::every, ::every].astype(np.float32, order="C")
    names = [name for name, _ in steps]
    apply(planes, steps[: names.index("contrast")], 0)
    return float(grey(planes).mean(dtype=np.float64))


def apply(planes: Planes, steps: Steps, mean: float) -> None:
    """Jitter a part of an image in place; `mean` is the mean grey of the whole image."""
    for name, factor in steps:
        if name == "brightness":
            blend(planes, 0, factor)
        elif name == "contrast":
            blend(planes, mean, factor)
        elif name == "saturation":
            blend(planes, grey(planes), factor)
        else:
            turn_hue(planes, factor)


def grey(planes: Planes) -> Planes:
    """Return the grey values (H, W), cut to whole numbers."""
    weighted = planes[0] * np.float32(0.2989)
    weighted += planes[1] * np.float32(0.587)
    weighted += planes[2] * np.float32(0.114)
    return np.floor(weighted, out=weighted)


def blend(planes: Planes, base: float | Planes, factor: float) -> None:
    """Multiply the distance from `base`, a value or (H, W), by the factor, in place."""
    planes *= np.float32(factor)
    planes += base * np.float32(1 - factor)
    np.clip(planes, 0, 255, out=planes)
    np.floor(planes, out=planes)


def turn_hue(planes: Planes, shift: float) -> None:
    """Turn the hue of HSV by `shift` turns in [−½, ½], in place.

    A third of a turn permutes the channels. The rest, up to a sixth, turns towards a next channel N. With
    t = 6·|rest|·(high − low), high and low the greatest and the least value of the pixel, each channel rises by as
    much as N is below low + t, and falls by as much as N is above high − t, within [low, high]. This is HSV's
    piecewise linear hue, without computing it.
    """
    thirds = round(3 * shift)
    rest = shift - thirds / 3
    if thirds:
        planes[:] = np.roll(planes, thirds, 0)
    red, green, blue = planes
    high, low = np.maximum(red, green), np.minimum(red, green)
    np.maximum(high, blue, out=high)
    np.minimum(low, blue, out=low)
    rising = high - low
    rising *= np.float32(6 * abs(rest))
    falling = high - rising
    rising += low
    for channel, towards in zip(planes, planes[[1, 2, 0] if rest > 0 else [2, 0, 1]], strict=True):
        ahead = channel - towards
        turned = ahead + rising
        np.maximum(turned, channel, out=turned)
        np.minimum(turned, high, out=turned)
        ahead += falling
        np.minimum(ahead, channel, out=ahead)
        np.maximum(ahead, low, out=ahead)
        turned += ahead
        turned -= channel
        # As torchvision turns floats in [0, 1] into uint8.
        np.multiply(turned, np.float32(255.999 / 255), out=channel)
    np.floor(planes, out=planes)
