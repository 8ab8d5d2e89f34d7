"""The average rank of a method over data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from seedbed.benchmark.evaluation.bootstrap import LEVEL, ranks_of
from seedbed.leaderboard.analysis.grouping import SETTINGS
from seedbed.leaderboard.analysis.pairwise import Resampled
from seedbed.leaderboard.analysis.ranking import Group, Row
from seedbed.leaderboard.analysis.summary import Summary


@dataclass(frozen=True)
class AverageRank:
    """The average rank of a method and refiner among those that are ranked in every data set."""

    method: str
    refiner: str
    mean: float
    low: float
    high: float
    """95 % interval over images and random seeds, resampled independently per data set."""
    datasets: int


def average_ranks(groups: Sequence[Group], resampled: Sequence[Resampled]) -> tuple[list[AverageRank], str]:
    """Return the average ranks, best first, and a sentence that names their data sets; both may be empty.

    Only groups under equal conditions are combined: the conditions with most data sets, then most rows. All
    rows have the same kind of settings: the one with more rows in all these groups, else `best`.
    """
    conditions: dict[tuple[str, ...], list[int]] = {}
    for index, group in enumerate(groups):
        if any(row.rank is not None for row in group.rows):
            conditions.setdefault(_conditions(group), []).append(index)
    if not conditions:
        return [], ""
    chosen = max(conditions.values(), key=lambda places: (len(places), sum(len(groups[i].rows) for i in places)))
    options = [(settings, [_ranked(groups[index], settings) for index in chosen]) for settings in SETTINGS]
    settings, lines = max(options, key=lambda option: (len(_common(option[1])), option[0] == "best"))
    common = _common(lines)
    if not common:
        return [], ""
    datasets = ", ".join(groups[index].scope.data for index in chosen)
    what = f"Average ranks are among rows at {settings} settings over the data sets {datasets}"
    lacking = [
        groups[index].rows[line[name]].name
        for index, line in zip(chosen, lines, strict=True)
        for name in common
        if line[name] not in resampled[index].points
    ]
    if lacking:
        return [], f"{what}; there are none, because per-image statistics are missing: {', '.join(lacking)}."
    points = np.array([_points(groups[index], line, common) for index, line in zip(chosen, lines, strict=True)])
    drawn = [
        ranks_of(np.stack([resampled[index].row(line[name]) for name in common], axis=1))
        for index, line in zip(chosen, lines, strict=True)
    ]
    low, high = np.quantile(np.mean(drawn, axis=0), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    found = [
        AverageRank(*name, float(mean), float(low[i]), float(high[i]), len(chosen))
        for i, (name, mean) in enumerate(zip(common, points.mean(axis=0), strict=True))
    ]
    return sorted(found, key=lambda rank: (rank.mean, rank.method, rank.refiner)), f"{what}."


def _conditions(group: Group) -> tuple[str, ...]:
    return *group.scope._replace(dataset="", classes=""), group.measure.name


def _ranked(group: Group, settings: str) -> dict[tuple[str, str], int]:
    """Return the places of the ranked rows at some settings, by method and refiner."""
    return {
        (row.method, row.refiner): index
        for index, row in enumerate(group.rows)
        if row.rank is not None and row.at(settings)
    }


def _common(lines: Sequence[dict[tuple[str, str], int]]) -> list[tuple[str, str]]:
    """Return the methods and refiners that are in all lines."""
    return sorted(set.intersection(*map(set, lines)))


def _points(group: Group, line: dict[tuple[str, str], int], common: Sequence[tuple[str, str]]) -> list[int]:
    return ranks_of([_mean(group, group.rows[line[name]]) for name in common]).tolist()


def _mean(group: Group, row: Row) -> float:
    value = row.values[group.measure.name]
    assert isinstance(value, Summary), "a ranked row has a number"
    return value.mean
