"""The paired bootstrap: how much a number, a difference or a rank varies with images and seeds.

Images are resampled with replacement, the same ones for all numbers (Efron and Tibshirani 1993, An Introduction to
the Bootstrap, chapter 13), and the mIoU of a resample is that of its summed confusions, not a mean over images.
Variation over seeds is Student's t: two or three values are too few to resample (docs/protocol.md, Statistics).
Nothing here knows of runs or tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seedbed.benchmark.evaluation.metrics import mean_of_known, ratio
from seedbed.benchmark.evaluation.per_image import Ratios

LEVEL = 0.95
CHUNK = 256
"""Resamples per matrix product, so that 40,000 images need 80 MB."""
Values = NDArray[np.float64]


class Interval(NamedTuple):
    """A 95 % interval, and the two-sided p of the hypothesis that the true value is 0."""

    low: float
    high: float
    p: float


def draw_images(images: int, resamples: int, seed: int, name: str = "") -> NDArray[np.uint16]:
    """Return (resamples, images): how often each image is in each resample of `images` images.

    `name` is that of the data set: each has its own draws.
    """
    generator = np.random.default_rng([seed, images, *name.encode()])
    drawn = np.empty((resamples, images), np.uint16)
    for start in range(0, resamples, CHUNK):
        part = drawn[start : start + CHUNK]
        part[:] = generator.multinomial(images, np.full(images, 1 / images), size=len(part))
    return drawn


def resampled(ratios: Ratios, drawn: NDArray[np.uint16]) -> Values:
    """Return a number (resamples,) on each resample; NaN if none of its classes has anything to count."""
    # Whole numbers below 2⁵³ are exact in float64, so neither the order nor the number of threads matters.
    parts = (drawn[start : start + CHUNK].astype(np.float64) for start in range(0, len(drawn), CHUNK))
    return np.concatenate([mean_of_known(ratio(part @ ratios.top, part @ ratios.bottom)) for part in parts])


def over_seeds(by_seed: Values, points: Sequence[float], row: int, seed: int) -> Values:
    """Return resampled means (resamples,) that vary with images and with seeds.

    `by_seed` (resamples, seeds) are the resampled numbers, or differences, of each seed, and `points` (seeds,)
    those of all images. s/√n · T is added to the mean over seeds: s is the standard deviation (n−1) of `points`,
    and T is Student's t with n−1 degrees of freedom, in a random order for each `row`. Needs at least two seeds.
    """
    from scipy.special import stdtrit

    resamples, seeds = by_seed.shape
    # Evenly spread quantiles in a random order: free draws from the wide tails would move the limits.
    quantiles = stdtrit(seeds - 1, (np.arange(resamples) + 0.5) / resamples)
    order = np.random.default_rng([seed, resamples, seeds, row]).permutation(resamples)
    return by_seed.mean(axis=1) + np.std(points, ddof=1) / np.sqrt(seeds) * quantiles[order]


def interval_of(resampled: Values) -> Interval:
    """Return the percentile interval of resampled differences, and p.

    p is 2 · (1 + count)/(1 + resamples) and at most 1, where count is the number of resamples at or beyond 0, on
    the side with fewer (Davison and Hinkley 1997, Bootstrap Methods and their Application, section 4.2).
    """
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    fewer = min(int((resampled <= 0).sum()), int((resampled >= 0).sum()))
    return Interval(float(low), float(high), min(1.0, 2 * (1 + fewer) / (1 + len(resampled))))


def ranks_of(numbers: ArrayLike) -> NDArray[np.int64]:
    """Return the rank (…, rows) of each of some numbers (…, rows), 1 for the highest; equal ones share it."""
    from scipy.stats import rankdata

    return rankdata(-np.asarray(numbers, np.float64), "min", axis=-1).astype(np.int64)


def rank_intervals(resampled: Values) -> list[tuple[int, int]]:
    """Return the 95 % interval of each row's rank, of resampled numbers (resamples, rows)."""
    limits = np.quantile(
        ranks_of(resampled), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0, method="inverted_cdf"
    ).astype(int)
    return [(int(low), int(high)) for low, high in limits.T]
