"""The analysis of a board: differences between rows, Pareto fronts, average ranks and figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from seedbed.leaderboard.analysis.average_rank import AverageRank, average_ranks
from seedbed.leaderboard.analysis.grouping import rows_by_scope, searches
from seedbed.leaderboard.analysis.pairwise import Comparison, GroupAnalysis, Resampled, compare, resample
from seedbed.leaderboard.analysis.ranking import Board, Group
from seedbed.leaderboard.data.measures import Measure
from seedbed.leaderboard.data.per_image import ImageStatistics
from seedbed.leaderboard.data.snapshot import Run
from seedbed.leaderboard.figures import pareto as cost
from seedbed.leaderboard.figures.budget import budget_figure
from seedbed.leaderboard.figures.classes import class_figure
from seedbed.leaderboard.figures.importance import importance_figures
from seedbed.leaderboard.figures.intervals import interval_figure
from seedbed.leaderboard.figures.style import Figure, stems
from seedbed.leaderboard.tables.columns import group_title

__all__ = ["Analysis", "AverageRank", "Comparison", "Figure", "GroupAnalysis", "analyse"]


@dataclass(frozen=True)
class Analysis:
    """Analysis of a board's numbers."""

    groups: tuple[GroupAnalysis, ...]
    """In the order of the board's groups."""
    average_ranks: tuple[AverageRank, ...]
    sentences: tuple[str, ...]
    """Which rows cannot be told apart, the Pareto fronts, and the data sets of the average ranks."""
    figures: tuple[Figure, ...]
    images_without: tuple[str, ...] = ()
    """Rows with a number but without usable per-image statistics, with the reason."""


def analyse(
    board: Board, runs: Sequence[Run], images: ImageStatistics | None, *, resamples: int = 2000, seed: int = 0
) -> Analysis:
    """Return the analysis of the board that was made of `runs`. The same input gives the same result.

    Without per-image statistics there are no intervals and no comparisons.
    """
    confirmed = _confirmed(board, runs)
    by_cell = searches(runs)

    def resampled_by(group: Group, members: Sequence[tuple[Run, ...]], measure: Measure) -> Resampled:
        if images is None:
            return Resampled({}, {}, {}, seed)
        return resample(replace(group, measure=measure), members, images, resamples, seed)

    members = list(zip(board.groups, confirmed, strict=True))
    resampled = [resampled_by(group, runs_of_rows, group.measure) for group, runs_of_rows in members]
    groups = tuple(
        compare(group, drawn, {m.name: resampled_by(group, runs_of_rows, m) for m in group.measure.beside()})
        for (group, runs_of_rows), drawn in zip(members, resampled, strict=True)
    )
    averages, over = average_ranks(board.groups, resampled) if images is not None else ([], "")
    figures: list[Figure | None] = []
    for group, analysis, stem in zip(board.groups, groups, stems(board.groups), strict=True):
        cells = by_cell.get(group.scope, {})
        figures += [interval_figure(group, analysis, stem), *cost.cost_figures(group, stem)]
        figures += [budget_figure(group, cells, stem), *importance_figures(group, cells, stem)]
        figures.append(class_figure(group, stem))
    sentences = [*_sentences(board, groups), *([over] if over else [])]
    if images is None and board.groups:
        sentences.append("Per-image statistics are missing, so no rows are compared.")
    return Analysis(
        groups,
        tuple(averages),
        tuple(sentences),
        tuple(figure for figure in figures if figure is not None),
        tuple(
            f"{_prefix(board, group)}{group.rows[index].name}: {reason}"
            for group, drawn in zip(board.groups, resampled, strict=True)
            for index, reason in drawn.without.items()
        ),
    )


def _confirmed(board: Board, runs: Sequence[Run]) -> list[list[tuple[Run, ...]]]:
    """Return the confirming runs of each row of each group."""
    lines = {
        (scope, line.method, line.refiner, line.settings): line.confirm
        for scope, found in rows_by_scope(runs).items()
        for line in found
    }
    return [
        [lines[group.scope, row.method, row.refiner, row.settings] for row in group.rows] for group in board.groups
    ]


def _sentences(board: Board, groups: Sequence[GroupAnalysis]) -> Iterator[str]:
    for group, analysis in zip(board.groups, groups, strict=True):
        for sentence in (*_apart(group, analysis), *cost.sentences(group)):
            yield f"{_prefix(board, group)}{sentence}"


def _apart(group: Group, analysis: GroupAnalysis) -> Iterator[str]:
    """Yield which ranked rows cannot be told apart from the first, and the number of such pairs."""
    ranked = {index for index, row in enumerate(group.rows) if row.rank is not None}
    pairs = [c for c in analysis.comparisons if {c.first, c.second} <= ranked]
    if not pairs:
        return
    first = min(ranked, key=lambda index: (group.rows[index].rank or 0, index))
    near = [
        c.second if c.first == first else c.first for c in pairs if c.together and first in (c.first, c.second)
    ]
    name = group.rows[first].name
    if near:
        listed = "; ".join(group.rows[index].name for index in near)
        yield f"{name}, which is ranked first, cannot be told apart from: {listed}."
    else:
        yield f"{name}, which is ranked first, is told apart from every other row."
    together = sum(c.together for c in pairs)
    over = "95 %, over images and random seeds"
    yield f"{together} of {len(pairs)} pairs of ranked rows cannot be told apart ({over})."


def _prefix(board: Board, group: Group) -> str:
    return f"{group_title(group)}: " if len(board.groups) > 1 else ""
