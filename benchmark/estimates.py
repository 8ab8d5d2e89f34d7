"""Intervals of the numbers of a study: a paired bootstrap over images and seeds, or Student's t over seeds.

The bootstrap draws images with replacement, and seeds with replacement where there are several; numbers that are
compared get the same draws, so what they share cancels. Three seeds are few: their part of an interval is rough.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmark.ratios import Ratios

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A 95 % interval, and the two-sided p of the hypothesis that the number is 0."""

    low: float
    high: float
    p: float


def over_images(ratios: Mapping[int, Ratios]) -> Estimate:
    """Return the interval of the mean over seeds of a number, given its parts by seed."""
    return _estimate(_draws(ratios))


def difference_over_images(first: Mapping[int, Ratios], second: Mapping[int, Ratios]) -> Estimate:
    """Return the interval of first − second, which have the same seeds and images."""
    return _estimate(_draws(first) - _draws(second))


def over_seeds(values: Sequence[float]) -> Estimate | None:
    """Return the interval of the mean of some numbers by Student's t; None for fewer than two."""
    from scipy.stats import t

    if len(values) < 2:
        return None
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(t.ppf((1 + LEVEL) / 2, len(values) - 1)) * error
    if error == 0:
        return Estimate(mean, mean, 1.0 if mean == 0 else 0.0)
    return Estimate(mean - half, mean + half, float(2 * t.sf(abs(mean) / error, len(values) - 1)))


def difference_over_seeds(first: Sequence[float], second: Sequence[float]) -> Estimate | None:
    """Return the interval of first − second, paired by seed; None for fewer than two seeds."""
    return over_seeds([a - b for a, b in zip(first, second, strict=True)])


def _draws(ratios: Mapping[int, Ratios]) -> NDArray[np.float64]:
    """Return the number of each resample, (RESAMPLES,). Always the same draws for as many images and seeds."""
    seeds = sorted(ratios)
    images = len(ratios[seeds[0]].ids)
    random = np.random.default_rng(0)
    weights = random.multinomial(images, np.full(images, 1 / images), RESAMPLES).astype(np.float64)
    values = np.stack([_values(ratios[seed], weights) for seed in seeds])
    chosen = random.integers(len(seeds), size=(len(seeds), RESAMPLES))
    return np.take_along_axis(values, chosen, axis=0).mean(0)


def _values(ratios: Ratios, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    top, bottom = weights @ ratios.top, weights @ ratios.bottom
    present = bottom > 0
    shares = np.divide(top, bottom, where=present, out=np.zeros_like(top))
    counted = present.sum(1)
    return np.divide(shares.sum(1), counted, where=counted > 0, out=np.full(len(shares), np.nan))


def _estimate(draws: NDArray[np.float64]) -> Estimate:
    # A resample may hold no image of the only class that counts.
    draws = draws[np.isfinite(draws)]
    low, high = np.quantile(draws, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    smaller = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return Estimate(float(low), float(high), min(1.0, 2 * (1 + smaller) / (1 + len(draws))))
