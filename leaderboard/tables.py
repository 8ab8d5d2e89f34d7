"""The leaderboard as Markdown, as a compact table for a terminal, and as CSV with unrounded numbers."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Iterable, Sequence

from leaderboard.columns import (
    COLUMNS,
    GAIN,
    HOURS,
    MEASURED,
    METHOD,
    RANK,
    REFINER,
    SETTINGS,
    Column,
    group_title,
    ranked_by,
    remarks,
)
from leaderboard.standing import FIELDS, MEASURES, Board, Group, Row
from leaderboard.statistics import Summary

EMPTY = "Nothing has been measured yet."
MARKS = (
    "Bold: the best of its group's ranked rows, and all within the spread of the best: "
    "means that differ by at most √((s₁² + s₂²)/2)."
)
NUMBERS = "Numbers are percent, mean ± standard deviation (n−1) over seeds."
WIDTH = 118
COMPACT = (
    RANK,
    METHOD,
    REFINER,
    SETTINGS,
    MEASURED["seed_mIoU_tuned"],
    MEASURED["pseudo_mask_mIoU"],
    MEASURED["val_mIoU"],
    GAIN,
    HOURS,
)
COMPACT_TITLES = ("#", "method", "refiner", "settings", "seeds", "pseudo-masks", "val", "gain", "hours")


def summary(board: Board) -> list[tuple[str, str]]:
    """Return what all groups share, as pairs of name and text."""
    pairs = [
        ("Sweep", board.sweep),
        ("Trial seeds", ", ".join(map(str, board.seeds))),
        ("Search trials a cell", str(board.trials)),
        ("Hardware", ", ".join(board.hardware)),
        ("Code", ", ".join(version[:12] for version in board.code)),
    ]
    return [(name, text) for name, text in pairs if text]


def markdown(board: Board) -> str:
    """Return the leaderboard as GitHub's Markdown."""
    if not board.groups:
        return f"# Leaderboard\n\n{EMPTY}\n"
    facts = " · ".join(f"{name}: {_escape(text)}" for name, text in summary(board))
    lines = ["# Leaderboard", "", facts, "", f"{NUMBERS} {MARKS}", ""]
    for group in board.groups:
        lines += [f"## {_escape(group_title(group))}", "", f"Ranked by {ranked_by(group)}.", ""]
        lines += [_line(_heading(column) for column in COLUMNS)]
        lines += [_line("---:" if column.number else "---" for column in COLUMNS)]
        lines += [_line(_markdown_cell(row, column) for column in COLUMNS) for row in group.rows]
        listed = [f"- {_escape(name)}: {_escape(remark)}" for name, remark in remarks(group)]
        lines += ["", *listed, ""] if listed else [""]
    lines += ["## Columns", "", "`docs/protocol.md` says what each number means.", ""]
    lines += [f"- **{_heading(column)}**: {column.meaning}" for column in COLUMNS]
    return "\n".join(lines) + "\n"


def _heading(column: Column) -> str:
    return f"{column.section}: {column.title}" if column.section in ("Seeds", "Pseudo-masks") else column.title


def _markdown_cell(row: Row, column: Column) -> str:
    text = _escape(column.text(row))
    return f"**{text}**" if column.measure in row.marked else text


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape(text: str) -> str:
    """Return text that Markdown shows as it is, in one line."""
    # An underscore within a word is none of Markdown's signs.
    return re.sub(r"([\\`*\[\]<>|~#&$]|\b_\B|\B_\b)", r"\\\1", " ".join(text.split()))


def terminal(board: Board) -> str:
    """Return a table for a terminal: the main numbers of each group, and what is wrong with rows."""
    if not board.groups:
        return EMPTY + "\n"
    return "\n".join(_terminal_group(group) for group in board.groups) + (
        "\nPercent, mean ± standard deviation over seeds.  * best of its group, or within the spread of the best\n"
    )


def _terminal_group(group: Group) -> str:
    table = [list(COMPACT_TITLES), *([_terminal_cell(row, column) for column in COMPACT] for row in group.rows)]
    widths = [max(len(line[index]) for line in table) for index in range(len(COMPACT))]
    title = f"{group_title(group)} · ranked by {ranked_by(group)}"
    lines = [*textwrap.wrap(title, WIDTH, subsequent_indent="  "), *(_aligned(line, widths) for line in table)]
    for name, remark in remarks(group):
        lines += textwrap.wrap(f"{name}: {remark}", WIDTH, initial_indent="  ", subsequent_indent="    ")
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


def comma_separated(board: Board) -> str:
    """Return one row a line with unrounded fractions, mean and standard deviation apart."""
    rows = [_flat(board, group, row) for group in board.groups for row in group.rows]
    out = io.StringIO()
    writer = csv.DictWriter(out, _FLAT, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


_FLAT = [
    *("sweep", "dataset", "supervision", "backbone", "initialisation"),
    *("segmentation_backbone", "segmentation_initialisation", "rank", "method", "refiner", "settings"),
    *(f"{measure.name}_{part}" for measure in MEASURES for part in ("mean", "std")),
    *("gain_on", "gain_mean", "gain_std", "gpu_hours", "cpu_hours"),
    *("trials_complete", "trials_pruned", "trials_failed", "seeds", *FIELDS, "evaluation", "status"),
    *("not_ranked_because", "notes"),
]


def _flat(board: Board, group: Group, row: Row) -> dict[str, object]:
    flat: dict[str, object] = {
        "sweep": board.sweep,
        "dataset": group.dataset,
        "supervision": group.supervision,
        "backbone": group.backbone,
        "initialisation": group.initialisation,
        "segmentation_backbone": group.segmentation_backbone,
        "segmentation_initialisation": group.segmentation_initialisation,
        "rank": row.rank,
        "method": row.method,
        "refiner": row.refiner,
        "settings": row.settings,
        "gain_on": row.gain_on,
        "gpu_hours": _hours(row, gpu=True),
        "cpu_hours": _hours(row, gpu=False),
        "seeds": " ".join(map(str, row.seeds)),
        "status": row.status,
        "not_ranked_because": "; ".join(row.bars),
        "notes": "; ".join(row.notes),
    }
    numbers = {name: value for name, value in row.values.items() if isinstance(value, Summary)}
    if row.gain is not None:
        numbers["gain"] = row.gain
    for name, value in numbers.items():
        flat |= {f"{name}_mean": value.mean, f"{name}_std": value.std}
    flat |= {f"trials_{status}": row.trials.get(status, 0) for status in ("complete", "pruned", "failed")}
    return flat | dict(row.fields)


def _hours(row: Row, *, gpu: bool) -> float | None:
    """Return hours to one decimal: a duration is measured anew each time, and more digits would be noise."""
    seconds = [seconds for device, seconds in row.seconds.items() if (device != "cpu") == gpu]
    return round(sum(seconds) / 3600, 1) if seconds else None
