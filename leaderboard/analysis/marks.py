"""Marks the best number of a column and, in the ranking column, the rows that cannot be told apart from the first.

Per-image statistics exist only for the number that ranks. In its column every ranked row is marked whose paired
difference from the first row has a 95 % interval that includes 0. In the other columns the highest is marked.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from seedbed.leaderboard.analysis.pairwise import GroupAnalysis
from seedbed.leaderboard.analysis.ranking import Board, Group

FIRST_ALONE = "Per-image statistics are missing, so only the first row is marked."


def mark(board: Board, analyses: Sequence[GroupAnalysis]) -> Board:
    """Return the board with the rows marked that cannot be told apart from the first of their group."""
    groups = (_marked(group, own) for group, own in zip(board.groups, analyses, strict=True))
    return replace(board, groups=tuple(groups))


def _marked(group: Group, analysis: GroupAnalysis) -> Group:
    ranked = [index for index, row in enumerate(group.rows) if row.rank is not None]
    if len(ranked) < 2:
        return group
    # Ranked rows come first, the best of them at the top.
    first = ranked[0]
    together = {pair.second: pair.together for pair in analysis.comparisons if pair.first == first}
    rows = tuple(
        replace(row, marked=row.marked | {group.measure.name}) if together.get(index) else row
        for index, row in enumerate(group.rows)
    )
    return replace(group, rows=rows, caveat=_caveat(group, analysis, ranked, together))


def _caveat(group: Group, analysis: GroupAnalysis, ranked: Sequence[int], compared: Collection[int]) -> str:
    """Return why some ranked rows were not compared with the first; empty if all were."""
    first, *others = ranked
    missing = [index for index in ranked if index not in analysis.intervals]
    if first in missing or set(missing) == set(others):
        return FIRST_ALONE
    unpaired = [index for index in others if index not in compared and index not in missing]
    parts = [f"per-image statistics are missing: {_names(group, missing)}"] if missing else []
    parts += [f"no random seed in common: {_names(group, unpaired)}"] if unpaired else []
    return f"Not compared with the first row, so not marked ({'; '.join(parts)})." if parts else ""


def _names(group: Group, rows: Sequence[int]) -> str:
    return "; ".join(group.rows[index].name for index in rows)
