"""The leaderboard as Markdown, as a compact table for a terminal, and as CSV with unrounded numbers."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Iterable, Sequence

from seedbed.leaderboard.analysis.pairwise import GroupAnalysis
from seedbed.leaderboard.analysis.ranking import Board, Group, Row
from seedbed.leaderboard.analysis.result import Analysis
from seedbed.leaderboard.analysis.summary import Summary
from seedbed.leaderboard.data.conditions import SCOPE, column_names
from seedbed.leaderboard.data.measures import MEASURES
from seedbed.leaderboard.tables.columns import (
    GAIN,
    MEASURED,
    METHOD,
    RANK,
    REFINER,
    SETTINGS,
    TIME,
    Column,
    columns_of,
    group_title,
    ranked_by,
    ranking,
    remarks,
)
from seedbed.leaderboard.tables.pairwise import FACTS, TextTable, titled

EMPTY = "Nothing has been measured yet."
MARKS = (
    "Bold: the best of its group's ranked rows; in the ranking column also each row that cannot be told apart "
    "from the first: the 95 % interval of their paired difference includes 0."
)
NUMBERS = "Numbers are percent, mean ± standard deviation (n−1) over random seeds."
WIDTH = 118
COMPACT = (
    RANK,
    METHOD,
    REFINER,
    SETTINGS,
    MEASURED["maps_mIoU_tuned"],
    MEASURED["pseudo_mask_mIoU"],
    MEASURED["val_mIoU"],
    GAIN,
    TIME,
)
COMPACT_TITLES = ("#", "method", "refiner", "settings", "maps", "pseudo-masks", "val", "gain", "time")


def summary(board: Board) -> list[tuple[str, str]]:
    """Return what all groups share, as pairs of name and text."""
    pairs = [
        ("Sweep", board.sweep),
        ("Random seeds", ", ".join(map(str, board.seeds))),
        ("Search trials per cell", str(board.trials)),
        ("Hardware", ", ".join(board.hardware)),
        ("Code", ", ".join(version[:12] for version in board.code)),
    ]
    return [(name, text) for name, text in pairs if text]


def markdown(board: Board, analysis: Analysis | None = None) -> str:
    """Return the leaderboard as GitHub's Markdown, with intervals and comparisons where an analysis is given."""
    if not board.groups:
        return f"# Leaderboard\n\n{EMPTY}\n"
    facts = " · ".join(f"{name}: {escape(text)}" for name, text in summary(board))
    lines = ["# Leaderboard", "", facts, "", f"{NUMBERS} {MARKS}", ""]
    meanings = {_heading(column): column.meaning for column in columns_of(board.groups[0])}
    for group, own in zip(board.groups, _analyses(board, analysis), strict=True):
        columns = columns_of(group, own)
        meanings |= {_heading(column): column.meaning for column in columns}
        lines += [f"## {escape(group_title(group))}", "", escape(ranking(group)), ""]
        lines += [_line(_heading(column) for column in columns)]
        lines += [_line("---:" if column.number else "---" for column in columns)]
        lines += [_line(_markdown_cell(row, column) for column in columns) for row in group.rows]
        listed = [f"- {escape(name)}: {escape(remark)}" for name, remark in remarks(group)]
        lines += ["", *listed, ""] if listed else [""]
    if analysis is not None:
        lines += _said(board, analysis)
    lines += ["## Columns", "", "`docs/protocol.md` says what each number means.", ""]
    lines += [f"- **{heading}**: {meaning}" for heading, meaning in meanings.items()]
    return "\n".join(lines) + "\n"


def _analyses(board: Board, analysis: Analysis | None) -> Sequence[GroupAnalysis | None]:
    return [None] * len(board.groups) if analysis is None else analysis.groups


def _said(board: Board, analysis: Analysis) -> list[str]:
    """Return what an analysis says, and its tables, as lines of Markdown."""
    lines = ["## What can be told apart", "", *(f"- {escape(sentence)}" for sentence in analysis.sentences), ""]
    tables = list(titled(board, analysis))
    if tables:
        lines += [FACTS, ""]
    for table in tables:
        lines += [f"### {escape(table.title)}", "", *_table(table), ""]
    if analysis.images_without:
        lines += ["No intervals, for want of statistics of images:", ""]
        lines += [*(f"- {escape(text)}" for text in analysis.images_without), ""]
    return lines


def _table(table: TextTable) -> list[str]:
    rule = ["---", *["---:"] * (len(table.header) - 1)]
    return [_line(table.header), _line(rule), *(_line(map(escape, row)) for row in table.rows)]


def _heading(column: Column) -> str:
    return f"{column.section}: {column.title}" if column.section in ("Maps", "Pseudo-masks") else column.title


def _markdown_cell(row: Row, column: Column) -> str:
    text = escape(column.text(row))
    return f"**{text}**" if column.measure in row.marked else text


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def escape(text: str) -> str:
    """Return text that Markdown shows as it is, in one line."""
    # An underscore within a word is none of Markdown's signs.
    return re.sub(r"([\\`*\[\]<>|~#&$]|\b_\B|\B_\b)", r"\\\1", " ".join(text.split()))


def terminal(board: Board) -> str:
    """Return a table for a terminal: the main numbers of each group, and what is wrong with rows."""
    if not board.groups:
        return EMPTY + "\n"
    return "\n".join(_terminal_group(group) for group in board.groups) + (
        "\nPercent, mean ± standard deviation over random seeds.\n"
        "* the best of its group; in the ranking column also each row that cannot be told apart from the first\n"
    )


def _terminal_group(group: Group) -> str:
    table = [list(COMPACT_TITLES), *([_terminal_cell(row, column) for column in COMPACT] for row in group.rows)]
    widths = [max(len(line[index]) for line in table) for index in range(len(COMPACT))]
    title = f"{group_title(group)} · ranked by {ranked_by(group)}"
    lines = [*textwrap.wrap(title, WIDTH, subsequent_indent="  "), *(_aligned(line, widths) for line in table)]
    told = [group.caveat] if group.caveat else []
    for text in [*told, *(f"{name}: {remark}" for name, remark in remarks(group))]:
        lines += textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ")
    return "\n".join(lines) + "\n"


def _terminal_cell(row: Row, column: Column) -> str:
    if not isinstance(row.values.get(column.measure), Summary):
        return column.text(row)
    # The mark hangs out to the right, so that the numbers stand in line.
    return column.text(row) + (" *" if column.measure in row.marked else "  ")


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    cells = zip(line, widths, COMPACT, strict=True)
    return "  ".join(
        text.rjust(width) if column.number else text.ljust(width) for text, width, column in cells
    ).rstrip()


def comma_separated(board: Board, analysis: Analysis | None = None) -> str:
    """Return one row a line with unrounded fractions, mean and standard deviation apart.

    With an analysis, the last columns are the 95 % intervals of the rank, of the number that decides it
    (`interval_of`), and of the measures that follow from the same statistics of images.
    """
    analyses = _analyses(board, analysis)
    rows = [
        _flat(board, group, row) | ({} if own is None else _limits(group, own, index))
        for group, own in zip(board.groups, analyses, strict=True)
        for index, row in enumerate(group.rows)
    ]
    beside = dict.fromkeys(name for own in analyses if own is not None for name in own.beside)
    limits = [*_LIMITS, *(f"{name}_{side}" for name in beside for side in ("low", "high"))]
    out = io.StringIO()
    writer = csv.DictWriter(out, _names(board) + (limits if analysis is not None else []), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _names(board: Board) -> list[str]:
    conditions = board.groups[0].rows[0].conditions if board.groups else column_names(())
    return [
        *("sweep", "dataset", *SCOPE, "rank", "method", "refiner", "settings"),
        *(f"{measure.name}_{part}" for measure in MEASURES for part in ("mean", "std")),
        *("gain_on", "gain_mean", "gain_std", "gpu_hours", "cpu_hours"),
        *("trials_complete", "trials_pruned", "trials_failed", "random_seeds", *conditions, "evaluation"),
        *("status", "not_ranked_because", "marked", "notes"),
    ]


_LIMITS = ["rank_low", "rank_high", "interval_of", "interval_low", "interval_high"]


def _limits(group: Group, analysis: GroupAnalysis, index: int) -> dict[str, object]:
    ranks = analysis.rank_intervals.get(index, (None, None))
    number = analysis.intervals.get(index, (None, None))
    measure = group.measure.name if index in analysis.intervals else None
    flat: dict[str, object] = dict(zip(_LIMITS, (*ranks, measure, *number), strict=True))
    for name, intervals in analysis.beside.items():
        flat[f"{name}_low"], flat[f"{name}_high"] = intervals.get(index, (None, None))
    return flat


def _flat(board: Board, group: Group, row: Row) -> dict[str, object]:
    flat: dict[str, object] = {
        "sweep": board.sweep,
        "dataset": group.dataset,
        **{name: getattr(group, name) for name in SCOPE},
        "rank": row.rank,
        "method": row.method,
        "refiner": row.refiner,
        "settings": row.settings,
        "gain_on": row.gain_on,
        "gpu_hours": _hours(row, gpu=True),
        "cpu_hours": _hours(row, gpu=False),
        "random_seeds": " ".join(map(str, row.seeds)),
        "status": row.status,
        "not_ranked_because": "; ".join(row.bars),
        "marked": " ".join(sorted(row.marked)),
        "notes": "; ".join(row.notes),
    }
    numbers = {name: value for name, value in row.values.items() if isinstance(value, Summary)}
    if row.gain is not None:
        numbers["gain"] = row.gain
    for name, value in numbers.items():
        flat |= {f"{name}_mean": value.mean, f"{name}_std": value.std}
    flat |= {f"trials_{status}": row.trials.get(status, 0) for status in ("complete", "pruned", "failed")}
    return flat | dict(row.conditions) | {"evaluation": row.ranked_on}


def _hours(row: Row, *, gpu: bool) -> float | None:
    """Return hours to a tenth of a minute: a duration is measured anew each time, and more would be noise."""
    seconds = [seconds for device, seconds in row.seconds.items() if (device != "cpu") == gpu]
    return round(sum(seconds) / 3600, 3) if seconds else None
