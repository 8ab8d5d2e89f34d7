"""Intervals of the numbers of a study: a paired bootstrap over images and seeds, or Student's t over seeds.

Compared numbers use the same resamples of images, so what they share cancels. Seeds are not resampled, because
three are too few; the leaderboard does the same (benchmark/evaluation/bootstrap.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from seedbed.benchmark.evaluation.bootstrap import LEVEL, Interval, draw_images, interval_of, resampled
from seedbed.benchmark.evaluation.bootstrap import over_seeds as varied_by_seeds
from seedbed.benchmark.evaluation.per_image import Ratios

RESAMPLES = 2000


def over_images(ratios: Mapping[int, Ratios]) -> Interval:
    """Return the interval of the mean over seeds of a ratio, given its parts by seed."""
    return _interval([ratios[seed] for seed in sorted(ratios)], None)


def difference_over_images(first: Mapping[int, Ratios], second: Mapping[int, Ratios]) -> Interval:
    """Return the interval of first − second, which must have the same seeds and images."""
    seeds = sorted(first)
    return _interval([first[seed] for seed in seeds], [second[seed] for seed in seeds])


def over_seeds(values: Sequence[float]) -> Interval | None:
    """Return the interval of the mean of numbers by Student's t; None for fewer than two."""
    from scipy.stats import t

    if len(values) < 2:
        return None
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(t.ppf((1 + LEVEL) / 2, len(values) - 1)) * error
    if error == 0:
        return Interval(mean, mean, 1.0 if mean == 0 else 0.0)
    return Interval(mean - half, mean + half, float(2 * t.sf(abs(mean) / error, len(values) - 1)))


def difference_over_seeds(first: Sequence[float], second: Sequence[float]) -> Interval | None:
    """Return the interval of first − second, paired by seed; None for fewer than two seeds."""
    return over_seeds([a - b for a, b in zip(first, second, strict=True)])


def _interval(first: Sequence[Ratios], second: Sequence[Ratios] | None) -> Interval:
    """Return the interval of the mean over seeds of `first`, minus `second` if given."""
    drawn = draw_images(len(first[0].ids), RESAMPLES, 0)
    by_seed = np.stack([resampled(ratios, drawn) for ratios in first], axis=1)
    points = [ratios.value() for ratios in first]
    if second is not None:
        by_seed -= np.stack([resampled(ratios, drawn) for ratios in second], axis=1)
        points = [own - ratios.value() for own, ratios in zip(points, second, strict=True)]
    values = varied_by_seeds(by_seed, points, 0, 0) if len(points) > 1 else by_seed[:, 0]
    # A resample may hold no image of the only class that counts.
    return interval_of(values[np.isfinite(values)])
