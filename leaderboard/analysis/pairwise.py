"""Compares the rows of a group in the same resamples of its images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from seedbed.benchmark.evaluation.bootstrap import (
    Interval,
    Values,
    draw_images,
    interval_of,
    over_seeds,
    rank_intervals,
    resampled,
)
from seedbed.benchmark.evaluation.per_image import ratios
from seedbed.leaderboard.analysis.ranking import Group
from seedbed.leaderboard.analysis.summary import Summary
from seedbed.leaderboard.data.per_image import ImageStatistics
from seedbed.leaderboard.data.snapshot import Run

TOLERANCE = 1e-9
"""Allowed difference between the recorded number and the one recomputed from its images: the sums are the same."""


@dataclass(frozen=True)
class Comparison:
    """Row `first` minus row `second` of a group, by its measure, as fractions."""

    first: int
    second: int
    """Places in `group.rows`."""
    difference: float
    """Mean over the seeds that both have."""
    image_low: float
    image_high: float
    image_p: float
    """95 % interval and two-sided p over images."""
    seed_low: float | None
    seed_high: float | None
    seed_p: float | None
    """Over images and seeds; None with fewer than two seeds in common."""
    together: bool
    """Whether the two cannot be told apart: the wider of the intervals includes 0."""


@dataclass(frozen=True)
class GroupAnalysis:
    """Intervals and comparisons of the numbers of a group."""

    intervals: Mapping[int, tuple[float, float]]
    """95 % interval of each row's number over images and seeds (images only for one seed), by its place."""
    comparisons: tuple[Comparison, ...]
    """Every pair of rows with numbers, statistics of images, and a seed in common."""
    rank_intervals: Mapping[int, tuple[int, int]]
    """95 % interval of each ranked row's rank; empty if one of the ranked rows lacks statistics."""
    beside: Mapping[str, Mapping[int, tuple[float, float]]] = field(default_factory=dict)
    """Intervals of other measures that follow from the same statistics, by the measure's name."""


@dataclass(frozen=True)
class Resampled:
    """The numbers of a group's rows in the same resamples of its images, by the rows' places and by seed."""

    points: Mapping[int, Mapping[int, float]]
    """On all images."""
    values: Mapping[int, Mapping[int, Values]]
    """(resamples,) each."""
    without: Mapping[int, str]
    """Why a row with a number is missing here."""
    seed: int

    def row(self, row: int) -> Values:
        """Return the row's mean (resamples,), which varies with images and, from two seeds on, with seeds."""
        points = self.points[row]
        by_seed = np.stack([self.values[row][seed] for seed in points], axis=1)
        if len(points) < 2:
            return by_seed[:, 0]
        # Rows with the same numbers (a search that found nothing better) have the same interval.
        twin = next(other for other, found in self.points.items() if found == points)
        return over_seeds(by_seed, list(points.values()), twin, self.seed)


def resample(
    group: Group, runs: Sequence[Sequence[Run]], images: ImageStatistics, resamples: int, seed: int
) -> Resampled:
    """Return the rows of a group resampled; `runs` are the confirming runs of each of its rows."""
    numbered = {
        i: runs[i] for i, row in enumerate(group.rows) if isinstance(row.values[group.measure.name], Summary)
    }
    metric = group.measure.metric
    counted = Counter(images.runs[run.key].ids for of in numbered.values() for run in of if run.key in images.runs)
    ids = counted.most_common(1)[0][0] if counted else ()
    points: dict[int, dict[int, float]] = {}
    values: dict[int, dict[int, Values]] = {}
    without: dict[int, str] = {}
    drawn = (
        draw_images(len(ids), resamples, seed, group.scope.dataset) if ids else np.zeros((resamples, 0), np.uint16)
    )
    for index, members in numbered.items():
        reasons = [reason for run in members if (reason := _lacks(run, group, images, ids))]
        if reasons:
            without[index] = "; ".join(dict.fromkeys(reasons))
            continue
        counts = {run.seed: images.runs[run.key].counts for run in members}
        parts = {seed: ratios(metric, ids, count) for seed, count in sorted(counts.items())}
        points[index] = {seed: own.value() for seed, own in parts.items()}
        values[index] = {seed: resampled(own, drawn) for seed, own in parts.items()}
    return Resampled(points, values, without, seed)


def _lacks(run: Run, group: Group, images: ImageStatistics, ids: tuple[str, ...]) -> str:
    """Return why the images of a run cannot be used; empty if they can."""
    if run.key not in images.runs:
        return images.without.get(run.key, "its per-image statistics were not collected")
    own, recorded = images.runs[run.key], group.measure.of(run)
    if own.ids != ids:
        return "its images are not those of the other rows"
    counted = ratios(group.measure.metric, ids, own.counts).value()
    if recorded is None or not abs(counted - recorded) <= TOLERANCE:
        return f"its images give {group.measure.title} {counted:.6f}, and {recorded} was recorded"
    return ""


def intervals_of(resampled: Resampled) -> dict[int, tuple[float, float]]:
    """Return the 95 % interval of each row's number, by its place."""
    return {index: _within(interval_of(resampled.row(index)), 0.0) for index in resampled.points}


def compare(group: Group, resampled: Resampled, beside: Mapping[str, Resampled]) -> GroupAnalysis:
    """Return intervals, comparisons and intervals of ranks of a group's rows.

    `beside` are its rows resampled by other measures, by the measure's name.
    """
    rows = {index: resampled.row(index) for index in resampled.points}
    ranked = [index for index, row in enumerate(group.rows) if row.rank is not None]
    pairs = (_compared(first, second, resampled) for first, second in combinations(rows, 2))
    ranks: Mapping[int, tuple[int, int]] = {}
    if ranked and rows.keys() >= set(ranked):
        ranks = dict(zip(ranked, rank_intervals(np.stack([rows[i] for i in ranked], axis=1)), strict=True))
    return GroupAnalysis(
        intervals_of(resampled),
        tuple(pair for pair in pairs if pair is not None),
        ranks,
        {name: intervals_of(other) for name, other in beside.items()},
    )


def _compared(first: int, second: int, resampled: Resampled) -> Comparison | None:
    seeds = [seed for seed in resampled.points[first] if seed in resampled.points[second]]
    if not seeds:
        return None
    one, other = resampled.values[first], resampled.values[second]
    differences = np.stack([one[seed] - other[seed] for seed in seeds], axis=1)
    points = [resampled.points[first][seed] - resampled.points[second][seed] for seed in seeds]
    by_image = interval_of(differences.mean(axis=1))
    by_seed = interval_of(over_seeds(differences, points, 0, resampled.seed)) if len(seeds) > 1 else None
    low, high = _within(by_seed or by_image, -1.0)
    return Comparison(
        first,
        second,
        sum(points) / len(points),
        *by_image,
        seed_low=None if by_seed is None else low,
        seed_high=None if by_seed is None else high,
        seed_p=None if by_seed is None else by_seed.p,
        together=low <= 0 <= high,
    )


def _within(interval: Interval, low: float) -> tuple[float, float]:
    """Return the interval within what the number can be: Student's t with few seeds reaches beyond."""
    return max(low, interval.low), min(1.0, interval.high)
