"""Mean, spread and comparison of a few numbers."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """Mean and standard deviation (n−1) of `count` values; one value has no deviation."""

    mean: float
    std: float | None
    count: int


def summarise(values: Sequence[float]) -> Summary:
    """Return mean and standard deviation of at least one value."""
    return Summary(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def paired_gain(before: Mapping[int, float], after: Mapping[int, float]) -> Summary | None:
    """Summarise the differences after − before, seed by seed; None unless both have the same seeds."""
    if not after or before.keys() != after.keys():
        return None
    return summarise([after[seed] - before[seed] for seed in sorted(after)])


def highest(column: Mapping[int, Summary]) -> set[int]:
    """Return which entries of a column have the highest mean.

    A column with a single entry has no mark.
    """
    if len(column) < 2:
        return set()
    best = max(summary.mean for summary in column.values())
    return {index for index, summary in column.items() if summary.mean == best}
