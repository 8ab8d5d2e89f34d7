"""Tables, and the main columns of the leaderboard, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from seedbed.leaderboard.tables.table import Table


def table(shown: Table, titles: Sequence[str] | None = None) -> list[str]:
    """Return a table as lines; numbers are aligned to the right, and nothing is cut off."""
    lines = aligned([titles or shown.titles, *shown.rows], [column.number for column in shown.columns])
    if shown.apart:
        lines.insert(len(lines) - shown.apart, "-" * max(map(len, lines)))
    return lines


def aligned(rows: Sequence[Sequence[str]], right: Sequence[bool] = ()) -> list[str]:
    """Return rows of equally many texts as lines, the columns of `right` aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = right or [False] * len(widths)
    return [
        "  ".join(
            text.rjust(width) if side else text.ljust(width)
            for text, width, side in zip(row, widths, sides, strict=True)
        ).rstrip()
        for row in rows
    ]
