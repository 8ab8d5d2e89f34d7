"""What can be said of the differences between the rows of a leaderboard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from leaderboard.figures import Figure
from leaderboard.standing import Board


@dataclass(frozen=True)
class Comparison:
    """Two rows of a group, by their indices; differences are fractions, first − second."""

    first: int
    second: int
    difference: float
    image_low: float
    image_high: float
    image_p: float
    seed_low: float | None
    seed_high: float | None
    seed_p: float | None
    together: bool
    """Whether the two cannot be told apart."""


@dataclass(frozen=True)
class GroupAnalysis:
    """Intervals of 95 % by the indices of the group's rows, fractions, and intervals of their ranks."""

    intervals: Mapping[int, tuple[float, float]]
    comparisons: tuple[Comparison, ...]
    rank_intervals: Mapping[int, tuple[int, int]]


@dataclass(frozen=True)
class AverageRank:
    """The mean rank of a method with a refiner over several data sets."""

    method: str
    refiner: str
    mean: float
    low: float
    high: float
    datasets: int


@dataclass(frozen=True)
class Analysis:
    """The analysis of a whole leaderboard; `groups` are those of the board, in its order."""

    groups: tuple[GroupAnalysis, ...]
    average_ranks: tuple[AverageRank, ...]
    sentences: tuple[str, ...]
    figures: tuple[Figure, ...]
    images_without: tuple[str, ...] = ()


def analyse(board: Board, snapshot_table: Any, images: Any, *, resamples: int = 2000, seed: int = 0) -> Analysis:
    """Return an analysis that says nothing."""
    return Analysis(tuple(GroupAnalysis({}, (), {}) for _ in board.groups), (), (), ())
