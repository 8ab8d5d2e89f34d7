"""The leaderboard for a terminal: the main numbers of each group, and the remarks about its rows."""

from __future__ import annotations

import textwrap

from seedbed.leaderboard.analysis.ranking import Board, Group, Row
from seedbed.leaderboard.analysis.summary import Summary
from seedbed.leaderboard.tables import terminal
from seedbed.leaderboard.tables.columns import (
    EMPTY,
    GAIN,
    MEASURED,
    METHOD,
    RANK,
    REFINER,
    SETTINGS,
    SHARE,
    TIME,
    RowColumn,
    group_title,
    ranked_by,
    remarks,
)
from seedbed.leaderboard.tables.table import text_table

WIDTH = 118
MAPS = MEASURED["maps_mIoU_tuned"]
COMPACT = (
    RANK,
    METHOD,
    REFINER,
    SETTINGS,
    MAPS,
    MEASURED["pseudo_mask_mIoU"],
    MEASURED["val_mIoU"],
    SHARE,
    GAIN,
    TIME,
)
COMPACT_TITLES = ("#", "method", "refiner", "settings", "maps", "pseudo-masks", "val", "share", "gain", "time")


def leaderboard(board: Board) -> str:
    """Return a compact table per group."""
    if not board.groups:
        return EMPTY + "\n"
    return "\n".join(_group(group) for group in board.groups) + (
        "\nPercent, mean ± standard deviation over random seeds.\n"
        "* the best of its group; in the ranking column also each row that cannot be told apart from the first\n"
    )


def _group(group: Group) -> str:
    rows = [[_cell(row, column) for column in COMPACT] for row in group.all_rows]
    shown = text_table(COMPACT, rows, apart=len(group.references))
    title = f"{group_title(group)} · ranked by {ranked_by(group)}"
    lines = [*textwrap.wrap(title, WIDTH, subsequent_indent="  "), *terminal.table(shown, COMPACT_TITLES)]
    texts = [group.caveat] if group.caveat else []
    for text in [*texts, *(f"{name}: {remark}" for name, remark in remarks(group))]:
        lines += textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines) + "\n"


def _cell(row: Row, column: RowColumn) -> str:
    if not isinstance(row.values.get(column.measure), Summary):
        return column.text(row)
    # The maps' spread is left out: a terminal has no room for it.
    text = column.text(row).partition(" ±")[0] if column is MAPS else column.text(row)
    # The mark stands to the right of the number, so that the numbers are aligned.
    return text + (" *" if column.measure in row.marked else "  ")
