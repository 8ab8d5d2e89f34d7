"""Comparisons and average ranks as tables, and all comparisons as CSV."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from seedbed.leaderboard.analysis.pairwise import Comparison, GroupAnalysis
from seedbed.leaderboard.analysis.ranking import NOTHING, Board, Group
from seedbed.leaderboard.analysis.result import Analysis
from seedbed.leaderboard.tables.columns import group_title, percent_limits, points, ranked_by, scope_names
from seedbed.leaderboard.tables.table import Column, Table, text_columns, text_table, unrounded

FACTS = (
    "p is two-sided, from the paired bootstrap, and not corrected for the number of comparisons. Two rows cannot "
    "be told apart if the interval over images and random seeds includes 0; with fewer than two random seeds in "
    "common, the interval over images alone."
)

DIFFERENCE = (
    "Difference",
    "95 % over images",
    "p",
    "95 % over images and random seeds",
    "p",
    "Told apart",
)
"""Titles of the columns that show a difference of two rows."""


def against_the_first(group: Group, analysis: GroupAnalysis) -> Table | None:
    """Return how far the first row of a group is before each other one, in points; None without comparisons."""
    if not analysis.comparisons:
        return None
    first = analysis.comparisons[0].first
    return text_table(
        text_columns("Row", *DIFFERENCE),
        [
            (group.rows[pair.second].name, *_difference(pair))
            for pair in analysis.comparisons
            if pair.first == first
        ],
        f"Differences from {group.rows[first].name}, in points of {group.measure.title}",
    )


def all_pairs(group: Group, analysis: GroupAnalysis) -> Table:
    """Return every comparison of a group, first − second, in points."""
    return text_table(
        [Column("First"), *text_columns("Second", *DIFFERENCE)],
        [
            (group.rows[pair.first].name, group.rows[pair.second].name, *_difference(pair))
            for pair in analysis.comparisons
        ],
        f"Differences of {ranked_by(group)}, first − second, in points",
    )


def _difference(pair: Comparison) -> tuple[str, ...]:
    over_seeds = None if pair.seed_low is None or pair.seed_high is None else (pair.seed_low, pair.seed_high)
    return (
        points(pair.difference),
        percent_limits((pair.image_low, pair.image_high)),
        _p(pair.image_p),
        percent_limits(over_seeds),
        NOTHING if pair.seed_p is None else _p(pair.seed_p),
        "no" if pair.together else "yes",
    )


def _p(p: float) -> str:
    return f"{p:.3f}"


def average_table(analysis: Analysis) -> Table | None:
    """Return the average ranks; None if there are none."""
    if not analysis.average_ranks:
        return None
    return text_table(
        text_columns("Method", "Average rank", "95 %", "Data sets"),
        [
            (
                f"{rank.method} + {rank.refiner}",
                f"{rank.mean:.2f}",
                f"{rank.low:.2f} … {rank.high:.2f}",
                str(rank.datasets),
            )
            for rank in analysis.average_ranks
        ],
        "Average rank over data sets",
    )


def comparisons(board: Board, analysis: Analysis) -> str:
    """Return every comparison as CSV, one per line: `first` minus `second`, unrounded fractions."""
    header = [
        *scope_names(board),
        "measure",
        *(f"{which}_{name}" for which in ("first", "second") for name in ("method", "refiner", "settings")),
        *("difference", "image_low", "image_high", "image_p", "seed_low", "seed_high", "seed_p", "together"),
    ]
    return unrounded(header, _rows(board, analysis))


def _rows(board: Board, analysis: Analysis) -> Iterator[list[object]]:
    for group, own in zip(board.groups, analysis.groups, strict=True):
        for pair in own.comparisons:
            rows = (group.rows[pair.first], group.rows[pair.second])
            names = [name for row in rows for name in (row.method, row.refiner, row.settings)]
            over_images = [pair.difference, pair.image_low, pair.image_high, pair.image_p]
            over_seeds = [pair.seed_low, pair.seed_high, pair.seed_p]
            scope = [getattr(group.scope, name) for name in scope_names(board)]
            yield [*scope, group.measure.name, *names, *over_images, *over_seeds, str(pair.together).lower()]


def comparison_tables(board: Board, analysis: Analysis) -> Iterator[Table]:
    """Yield all tables, those of groups with the group's title if there are several groups."""
    for group, own in zip(board.groups, analysis.groups, strict=True):
        if (table := against_the_first(group, own)) is not None:
            several = len(board.groups) > 1
            yield replace(table, title=f"{table.title} ({group_title(group)})") if several else table
    if (table := average_table(analysis)) is not None:
        yield table
