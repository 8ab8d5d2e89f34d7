"""The columns of a group of rows: title, meaning, and the text of each cell."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from seedbed.leaderboard.analysis.ranking import NOTHING, Board, Group, Row
from seedbed.leaderboard.analysis.summary import Summary
from seedbed.leaderboard.data.conditions import Scope, column_names, shown
from seedbed.leaderboard.data.measures import MEASURES
from seedbed.leaderboard.tables.table import Column, Table, text_table

if TYPE_CHECKING:
    from seedbed.leaderboard.analysis.pairwise import GroupAnalysis


EMPTY = "Nothing has been measured yet."
MARKS = (
    "Bold: the best of its group's ranked rows; in the ranking column also each row that cannot be told apart "
    "from the first: the 95 % interval of their paired difference includes 0."
)
NUMBERS = "Numbers are percent, mean ± standard deviation (n−1) over random seeds."


@dataclass(frozen=True)
class RowColumn(Column):
    """A column of a group's table; `measure` is its name among the measures, empty for others."""

    text: Callable[[Row], str] = field(kw_only=True)
    measure: str = field(default="", kw_only=True)


def percent(value: Summary) -> str:
    """Return "46.20 ± 0.31", in percent; without "±" for a single value."""
    return f"{100 * value.mean:.2f}" + ("" if value.std is None else f" ± {100 * value.std:.2f}")


def duration(seconds: float, unit: str = "") -> str:
    """Return "8.4 s", "42 s", "4.2 min" or "3.1 h"; with the unit `CPU-`: "4.2 CPU-min"."""
    # A value that rounds up to the next unit is shown in that unit.
    if seconds < 9.95:
        return f"{seconds:.1f} {unit}s"
    if seconds < 59.5:
        return f"{seconds:.0f} {unit}s"
    if seconds < 3597:
        return f"{seconds / 60:.1f} {unit}min"
    return f"{seconds / 3600:.1f} {unit}h"


def time(row: Row) -> str:
    """Return "1.2 GPU-h" or "4.2 CPU-min" for each kind of device that the row ran on."""
    kinds: dict[str, float] = {}
    for device, seconds in row.seconds.items():
        kind = "CPU-" if device == "cpu" else "GPU-"
        kinds[kind] = kinds.get(kind, 0.0) + seconds
    return " + ".join(duration(seconds, kind) for kind, seconds in sorted(kinds.items())) or NOTHING


def trials(row: Row) -> str:
    """Return "8", or "8 (6 complete, 1 pruned, 1 failed)" unless all are complete."""
    total = sum(row.trials.values())
    if row.trials.get("complete", 0) == total:
        return str(total)
    return f"{total} ({', '.join(f'{count} {status}' for status, count in row.trials.items())})"


def gain(row: Row) -> str:
    """Return "+1.20 ± 0.31", in points of percent."""
    if row.gain is None:
        return NOTHING
    # Adding zero turns a rounded −0.0 into 0.0.
    mean = f"{round(100 * row.gain.mean, 2) + 0.0:+.2f}".replace("-", "−")
    return mean + ("" if row.gain.std is None else f" ± {100 * row.gain.std:.2f}")


def share(row: Row) -> str:
    """Return "91.3", in percent."""
    return NOTHING if row.share is None else f"{100 * row.share:.1f}"


def _measure(name: str) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        value = row.values[name]
        return value if isinstance(value, str) else percent(value)

    return text


def _condition(name: str) -> RowColumn:
    what = shown(name)
    return RowColumn(what.title, what.meaning, "Conditions", what.number, text=lambda row: row.conditions[name])


RANK = RowColumn(
    "#",
    "rank within the group",
    number=True,
    text=lambda row: NOTHING if row.rank is None else str(row.rank),
)
METHOD = RowColumn("Method", "the method that makes the localisation maps", text=lambda row: row.title)
REFINER = RowColumn(
    "Refiner", "the refiner that turns them into pseudo-masks", text=lambda row: row.refiner or NOTHING
)
SETTINGS = RowColumn(
    "Settings",
    "`default`, or the `best` of a search that saw `tune` alone; `default = best`: the search found none better; "
    "`reference`: not a method, and not ranked",
    text=lambda row: row.settings,
)
MEASURED = {
    measure.name: RowColumn(
        measure.title,
        measure.meaning,
        measure.section,
        number=True,
        text=_measure(measure.name),
        measure=measure.name,
    )
    for measure in MEASURES
}
SHARE = RowColumn(
    "Share",
    "val mIoU in percent of that of the same network trained on true masks with the same random seeds",
    "Segmentation",
    number=True,
    text=share,
)
GAIN = RowColumn(
    "Gain",
    "best − default in points, paired by random seed: on `val`, or on the pseudo-masks if there is no network",
    "Tuning and cost",
    number=True,
    text=gain,
)
TIME = RowColumn(
    "Time",
    "computing time from scratch with every stage counted once; for `best`, search included",
    "Tuning and cost",
    number=True,
    text=time,
)
TRIALS = RowColumn("Trials", "search trials that ran", "Tuning and cost", number=True, text=trials)
SEEDS = RowColumn(
    "Random seeds",
    "the random seeds behind the numbers",
    "Conditions",
    text=lambda row: ", ".join(map(str, row.seeds)),
)
RANKED_ON = RowColumn("Ranked on", "the split that decides the rank", "Conditions", text=lambda row: row.ranked_on)


@functools.cache
def all_columns(conditions: tuple[str, ...]) -> tuple[RowColumn, ...]:
    """Return the columns of rows with these conditions (leaderboard/data/conditions.py: columns)."""
    first = (RANK, METHOD, REFINER, SETTINGS, *MEASURED.values(), SHARE, GAIN, TIME, TRIALS, SEEDS)
    return (*first, *map(_condition, conditions), RANKED_ON)


def legend(board: Board) -> tuple[RowColumn, ...]:
    """Return the columns of a board's tables, without intervals."""
    return columns_of(board.groups[0]) if board.groups else all_columns(tuple(column_names(())))


def columns_of(group: Group, analysis: GroupAnalysis | None = None) -> tuple[RowColumn, ...]:
    """Return the columns of a group's table; with an analysis, intervals are beside rank and number."""
    columns = all_columns(tuple(group.rows[0].conditions))
    if analysis is None:
        return columns
    ranks = {group.rows[index].name: limits for index, limits in analysis.rank_intervals.items()}
    rank_interval = RowColumn(
        f"{RANK.title} 95 %",
        "95 % interval of the rank, over images and random seeds",
        number=True,
        text=lambda row: rank_limits(ranks.get(row.name)),
    )
    beside = {RANK: (RANK, rank_interval)}
    for name, intervals in {group.measure.name: analysis.intervals, **analysis.beside}.items():
        beside[MEASURED[name]] = (MEASURED[name], _interval(MEASURED[name], group, intervals))
    return tuple(each for column in columns for each in beside.get(column, (column,)))


def _interval(column: RowColumn, group: Group, intervals: Mapping[int, tuple[float, float]]) -> RowColumn:
    """Return the column of the intervals of a measure's numbers, by the places of the rows."""
    numbers = {group.rows[index].name: limits for index, limits in intervals.items()}
    return RowColumn(
        f"{column.title} 95 %",
        "95 % interval of the number before it, over images and random seeds",
        column.section,
        number=True,
        text=lambda row: percent_limits(numbers.get(row.name)),
    )


def rank_limits(limits: tuple[int, int] | None) -> str:
    """Return "2–4", or "2" if only one rank is possible."""
    if limits is None:
        return NOTHING
    return str(limits[0]) if limits[0] == limits[1] else f"{limits[0]}–{limits[1]}"


def percent_limits(limits: tuple[float, float] | None) -> str:
    """Return "45.10 … 47.20" of fractions, in percent."""
    return NOTHING if limits is None else f"{points(limits[0])} … {points(limits[1])}"


def points(fraction: float) -> str:
    """Return "−1.20": a fraction, or a difference of two, in percent."""
    # Adding zero turns a rounded −0.0 into 0.0.
    return f"{round(100 * fraction, 2) + 0.0:.2f}".replace("-", "−")


def group_table(group: Group, analysis: GroupAnalysis | None = None) -> Table:
    """Return a group's rows in all columns; with an analysis, intervals are beside rank and number."""
    columns = columns_of(group, analysis)
    measured = [
        ((i, j), row.values[column.measure], column.measure in row.marked)
        for i, row in enumerate(group.all_rows)
        for j, column in enumerate(columns)
        if column.measure
    ]
    return text_table(
        columns,
        [[column.text(row) for column in columns] for row in group.all_rows],
        group_title(group),
        marked=[place for place, _, marked in measured if marked],
        missing=[place for place, value, _ in measured if isinstance(value, str) and value != NOTHING],
        apart=len(group.references),
    )


def initialisation(group: Group) -> str:
    """Return the initialisation of a group's backbone; for a weights file, the first digits of its digest."""
    return _short(group.scope.initialisation)


def segmentation(group: Group) -> list[tuple[str, str]]:
    """Return backbone and initialisation of the segmentation network by name; empty if they are the method's."""
    scope = group.scope
    own = scope.segmentation_backbone, scope.segmentation_initialisation
    if own == (scope.backbone, scope.initialisation):
        return []
    return [("segmentation backbone", own[0] or NOTHING), ("segmentation initialisation", _short(own[1]))]


def _short(initialisation: str) -> str:
    kind, colon, digest = initialisation.partition(":")
    return f"{kind}:{digest[:12]}" if colon else kind or NOTHING


def group_title(group: Group) -> str:
    """Return the conditions that the rows of a group share."""
    scope = group.scope
    return (
        f"{scope.data} · supervision {scope.supervision or NOTHING} · backbone {scope.backbone or NOTHING}"
        f" · initialisation {initialisation(group)}"
        + "".join(f" · {name} {text}" for name, text in segmentation(group))
        + (f" · precision {scope.precision}" if scope.precision else "")
    )


def scope_names(board: Board) -> list[str]:
    """Return the columns of a scope in a CSV file; `classes` only if classes of a data set were chosen."""
    chosen = any(group.scope.classes for group in board.groups)
    return [name for name in Scope._fields if chosen or name != "classes"]


def ranked_by(group: Group) -> str:
    """Return the measure that ranks a group."""
    return f"{'' if group.measure.name == 'val_mIoU' else 'pseudo-mask '}{group.measure.title}"


def classes_counted(group: Group) -> str:
    """Return "6 + background", the classes in the group's mIoU; "6" for a group without background."""
    names = group.classes
    foreground = sum(name != "background" for name in names)
    return f"{foreground} + background" if foreground < len(names) else str(foreground)


def ranking(group: Group) -> str:
    """Return the measure that ranks a group, and the rows that could not be compared with the first."""
    return f"Ranked by {ranked_by(group)}." + (f" {group.caveat}" if group.caveat else "")


def remarks(group: Group) -> Iterator[tuple[str, str]]:
    """Yield the name of each row with remarks, and why it has no rank or what a reader should know."""
    for row in group.all_rows:
        if row.bars:
            yield row.name, f"not ranked: {'; '.join(row.bars)}"
        if row.notes:
            yield row.name, "; ".join(row.notes)


def summary(board: Board) -> list[tuple[str, str]]:
    """Return the facts that all groups share, as pairs of name and text."""
    pairs = [
        ("Sweep", board.sweep),
        ("Random seeds", ", ".join(map(str, board.seeds))),
        ("Search trials per cell", str(board.trials)),
        ("Hardware", ", ".join(board.hardware)),
        ("Code", ", ".join(version[:12] for version in board.code)),
    ]
    return [(name, text) for name, text in pairs if text]


def printed(value: float | None) -> str:
    """Return a number as papers print it, with one decimal or more; a dash for None."""
    if value is None:
        return NOTHING
    text = f"{value:g}"
    return text if "." in text else f"{text}.0"


def number(value: float | None, digits: int = 2) -> str:
    """Return a number with `digits` decimals; a dash for None."""
    return NOTHING if value is None else f"{value:.{digits}f}"
