"""The rows of a group on the pages: cells with the value to sort by, and the commands that repeat a row."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seedbed.benchmark.paths import slug
from seedbed.leaderboard.analysis.grouping import SETTINGS as KINDS
from seedbed.leaderboard.analysis.grouping import RowRuns
from seedbed.leaderboard.analysis.ranking import NOTHING, Board, Group, Row
from seedbed.leaderboard.analysis.result import Analysis, GroupAnalysis
from seedbed.leaderboard.analysis.summary import Summary
from seedbed.leaderboard.data.conditions import Scope
from seedbed.leaderboard.data.measures import VAL
from seedbed.leaderboard.data.snapshot import Run
from seedbed.leaderboard.tables.columns import (
    GAIN,
    MEASURED,
    METHOD,
    RANK,
    REFINER,
    SETTINGS,
    SHARE,
    TIME,
    RowColumn,
    columns_of,
    group_table,
    ranked_by,
    time,
)
from seedbed.leaderboard.tables.table import Column, Table, TableCell, text_table

BESIDE = ("maps_mIoU_tuned", "pseudo_mask_mIoU", "val_mIoU")
"""The measures in the main table, beside the one that ranks."""


@dataclass(frozen=True)
class Heading:
    """The head of a column."""

    title: str
    meaning: str
    number: bool


@dataclass(frozen=True)
class PageCell:
    """A cell of a page: `46.20`, spread `0.31`, detail `[45.8, 46.7]`."""

    text: str
    spread: str = ""
    detail: str = ""
    value: str = ""
    """The value to sort the row by; empty: the text."""
    number: bool = False
    marked: bool = False
    missing: bool = False
    width: int = 1


@dataclass(frozen=True)
class Line:
    """A row of a table, with the place on its page that says how to repeat it."""

    row: Row
    cells: tuple[PageCell, ...]
    page: str
    anchor: str


@dataclass(frozen=True)
class HeatLine:
    """A row of the heat map: the IoU of each class in percent, None if there is none."""

    line: Line
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class GroupView:
    """A group with its tables, ready to be shown."""

    number: int
    group: Group
    analysis: GroupAnalysis
    headings: tuple[Heading, ...]
    main: tuple[Line, ...]
    all: tuple[Line, ...]
    heat: tuple[HeatLine, ...]

    @property
    def name(self) -> str:
        """Return the name of the group's files."""
        return f"group-{self.number}-{slug(self.group.scope.dataset)}"

    @property
    def choices(self) -> dict[str, list[str]]:
        """Return the values to filter the rows by."""
        rows = self.group.rows
        found = {name: sorted({getattr(row, name) for row in rows}) for name in ("method", "refiner")}
        return found | {"settings": [s for s in KINDS if any(row.at(s) for row in rows)]}


@dataclass(frozen=True)
class Repeat:
    """All that a reader needs to repeat a row and to judge it."""

    line: Line
    view: GroupView
    commands: tuple[tuple[int, str], ...]
    """One per seed; empty if the command was not recorded."""
    code: tuple[str, ...]
    dirty: bool
    digests: tuple[str, ...]
    hardware: tuple[str, ...]
    time: str
    settings: tuple[tuple[str, str], ...]
    """The settings that the search changed, by `Stage.field`."""
    remarks: tuple[str, ...]

    @property
    def recorded(self) -> bool:
        """Whether commands and settings were recorded."""
        return any(command for _, command in self.commands)


def page_of(row: Row) -> str:
    """Return the path of the page of a row's method, or of a reference."""
    return f"{'references' if row.reference else 'methods'}/{slug(row.method)}.html"


def group_views(board: Board, analysis: Analysis) -> list[GroupView]:
    """Return the groups of a board, each with its analysis."""
    pairs = zip(board.groups, analysis.groups, strict=True)
    return [_view(number, group, found) for number, (group, found) in enumerate(pairs, 1)]


def main_columns(group: Group) -> list[RowColumn]:
    """Return the columns of a group's main table."""
    beside = [MEASURED[name] for name in BESIDE if name != group.measure.name]
    columns = [RANK, METHOD, REFINER, SETTINGS, MEASURED[group.measure.name], *beside, GAIN, TIME]
    columns.insert(columns.index(MEASURED[VAL.name]) + 1, SHARE)
    return columns


def _view(number: int, group: Group, analysis: GroupAnalysis) -> GroupView:
    columns, shown = main_columns(group), columns_of(group)
    texts = list(group_table(group).cells)

    def lines(make: Callable[[int, Row], Iterable[PageCell]]) -> tuple[Line, ...]:
        return tuple(
            Line(row, tuple(make(index, row)), page_of(row), f"row-{number}-{index + 1}")
            for index, row in enumerate(group.all_rows)
        )

    main = lines(lambda index, row: [_main_cell(index, row, column, group, analysis) for column in columns])
    return GroupView(
        number=number,
        group=group,
        analysis=analysis,
        headings=tuple(_heading(column, group) for column in columns),
        main=main,
        all=lines(lambda index, row: all_cells(row, texts[index], shown)),
        heat=tuple(
            HeatLine(line, tuple(_percent(line.row.classes.get(name)) for name in group.classes))
            for line in main
            if line.row.classes
        ),
    )


def _heading(column: RowColumn, group: Group) -> Heading:
    title = ranked_by(group) if column.measure == group.measure.name else column.title
    if column.measure and column.measure != group.measure.name and column.section in ("Maps", "Pseudo-masks"):
        title = f"{column.section} {column.title}"
    return Heading(title, column.meaning.replace("`", ""), column.number)


def all_cells(row: Row, cells: Iterable[TableCell], columns: Sequence[RowColumn]) -> list[PageCell]:
    """Return the page's cells of a row in all columns."""
    found, position = [], 0
    for cell in cells:
        column = columns[position]
        position += cell.width
        if cell.missing:
            found.append(PageCell(cell.text, missing=True, width=cell.width))
        else:
            found.append(_cell(row, column))
    return found


def _main_cell(index: int, row: Row, column: RowColumn, group: Group, analysis: GroupAnalysis) -> PageCell:
    cell = _cell(row, column)
    if column is RANK and row.rank is not None and index in analysis.rank_intervals:
        low, high = analysis.rank_intervals[index]
        # Only one possible rank: show no interval.
        detail = "" if low == high else f"{low}–{high}"
        return PageCell(cell.text, detail=detail, value=cell.value, number=True)
    if column.measure == group.measure.name and index in analysis.intervals:
        bounds = ", ".join(f"{100 * bound:.2f}" for bound in analysis.intervals[index])
        return PageCell(cell.text, cell.spread, f"[{bounds}]", cell.value, True, cell.marked)
    return cell


def _cell(row: Row, column: RowColumn) -> PageCell:
    text = column.text(row)
    missing = column.measure != "" and isinstance(row.values[column.measure], str) and text != NOTHING
    if missing:
        return PageCell(text, missing=True)
    main, _, spread = text.partition(" ± ") if column.number else (text, "", "")
    main, _, detail = main.partition(" (") if column.number else (main, "", "")
    return PageCell(
        main,
        spread,
        detail.removesuffix(")"),
        sort_value(row, column),
        column.number,
        column.measure in row.marked,
    )


def sort_value(row: Row, column: RowColumn) -> str:
    """Return the unrounded number behind a cell; empty if the text itself sorts the row."""
    summary = row.gain if column is GAIN else row.values.get(column.measure)
    if isinstance(summary, Summary):
        return repr(summary.mean)
    if column is RANK:
        return "" if row.rank is None else str(row.rank)
    if column is SHARE:
        return "" if row.share is None else repr(row.share)
    if column is TIME:
        return repr(round(sum(row.seconds.values()))) if row.seconds else ""
    return ""


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def repeats(view: GroupView, lines: Mapping[Scope, Sequence[RowRuns]], page: str) -> list[Repeat]:
    """Return how to repeat each row of a page, that of a method or a reference, in a group."""
    own = {(line.method, line.refiner, line.settings): line for line in lines.get(view.group.scope, ())}
    found = [line for line in view.main if line.page == page]
    return [_repeat(line, view, own.get((line.row.method, line.row.refiner, line.row.settings))) for line in found]


def _repeat(line: Line, view: GroupView, entry: RowRuns | None) -> Repeat:
    row, own = line.row, () if entry is None else entry.confirm
    return Repeat(
        line=line,
        view=view,
        commands=tuple((run.seed, run.command) for run in own),
        code=_known(run.code for run in own),
        dirty=any(run.dirty == "true" for run in own),
        digests=_known(run.data_digest for run in own),
        hardware=_known(run.hardware for run in own),
        time=time(row),
        settings=() if row.reference or row.at("default") else _parameters(own),
        remarks=(*(f"not ranked: {bar}" for bar in row.bars), *row.notes),
    )


def _parameters(runs: Sequence[Run]) -> tuple[tuple[str, str], ...]:
    """Return the settings that the search changed; they are the same for all seeds."""
    recorded: dict[str, Any] = json.loads(runs[0].parameters or "{}") if runs else {}
    texts = ((name, value if isinstance(value, str) else json.dumps(value)) for name, value in recorded.items())
    return tuple(sorted(texts))


def _known(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({value for value in values if value}))


def main_table(view: GroupView) -> Table:
    """Return a group's main table."""

    def text(cell: PageCell) -> str:
        spread = f" ± {cell.spread}" if cell.spread else ""
        return cell.text + spread + (f" {cell.detail}" if cell.detail.startswith("[") else "")

    columns = [Column(heading.title, heading.meaning, number=heading.number) for heading in view.headings]
    rows = [[text(cell) for cell in line.cells] for line in view.main]
    return text_table(columns, rows, apart=len(view.group.references))
