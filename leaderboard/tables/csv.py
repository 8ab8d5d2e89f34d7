"""Tables, and the whole leaderboard with unrounded numbers, as CSV."""

from __future__ import annotations

from seedbed.leaderboard.analysis.pairwise import GroupAnalysis
from seedbed.leaderboard.analysis.ranking import Board, Group, Row
from seedbed.leaderboard.analysis.result import Analysis
from seedbed.leaderboard.analysis.summary import Summary
from seedbed.leaderboard.data.conditions import column_names
from seedbed.leaderboard.data.measures import MEASURES
from seedbed.leaderboard.tables.columns import scope_names
from seedbed.leaderboard.tables.table import Table, unrounded


def table(shown: Table) -> str:
    """Return a table's texts."""
    return shown.texts.to_csv(index=False, lineterminator="\n")


def leaderboard(board: Board, analysis: Analysis | None = None) -> str:
    """Return one line per row with unrounded fractions, mean and standard deviation apart.

    With an analysis, the last columns are the 95 % intervals of the rank, of the number that decides it
    (`interval_of`), and of the measures that follow from the same statistics of images.
    """
    analyses = [None] * len(board.groups) if analysis is None else analysis.groups
    rows = [
        _flat(board, group, row) | ({} if own is None else _limits(group, own, index))
        for group, own in zip(board.groups, analyses, strict=True)
        for index, row in enumerate(group.all_rows)
    ]
    beside = dict.fromkeys(name for own in analyses if own is not None for name in own.beside)
    limits = [*_LIMITS, *(f"{name}_{side}" for name in beside for side in ("low", "high"))]
    names = _names(board) + (limits if analysis is not None else [])
    return unrounded(names, rows)


def _names(board: Board) -> list[str]:
    found = dict.fromkeys(name for group in board.groups for row in group.rows for name in row.conditions)
    conditions = found or column_names(())
    return [
        *("sweep", *scope_names(board), "rank", "method", "refiner", "settings"),
        *(f"{measure.name}_{part}" for measure in MEASURES for part in ("mean", "std")),
        *("share_of_bound", "gain_on", "gain_mean", "gain_std", "gpu_hours", "cpu_hours"),
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
        **{name: getattr(group.scope, name) for name in scope_names(board)},
        "rank": row.rank,
        "method": row.method,
        "refiner": row.refiner,
        "settings": row.settings,
        "share_of_bound": row.share,
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
