"""The leaderboard as data: groups of rows with their numbers, ranks and marks, and the reasons for missing ranks.

A row is ranked only if nothing that its number depends on is missing: all expected seeds, at least three of them,
the conditions of the protocol, and one digest of the data in the whole group.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from seedbed.benchmark.evaluation.bootstrap import ranks_of
from seedbed.benchmark.evaluation.records import RecordName
from seedbed.leaderboard.analysis.grouping import (
    BOTH,
    BOUND,
    REFERENCE,
    RowRuns,
    references_of,
    rows_by_scope,
    seconds_by_device,
    spent,
)
from seedbed.leaderboard.analysis.summary import Summary, highest, paired_gain, summarise
from seedbed.leaderboard.data.conditions import RANK_NEEDS, Scope, column_names, shown
from seedbed.leaderboard.data.measures import MEASURES, PSEUDO_MASK, VAL, Measure, measures
from seedbed.leaderboard.data.snapshot import Run

SEEDS_NEEDED = 3
NOTHING = "–"
TITLES = {
    "fully_supervised": "fully supervised",
    "background": "background only",
    "whole_image": "tags + whole image",
}
"""The names of the references in the tables."""
MEASURED_OF = {"fully_supervised": (VAL,), "background": (PSEUDO_MASK, VAL), "whole_image": (PSEUDO_MASK,)}
"""What is measured of each reference; a missing one lacks only this."""
UNCOUNTED = "no counted pixel"
"""Shown instead of an mIoU if every true pixel of the split is 255."""


@dataclass(frozen=True)
class Row:
    """One row: a method and a refiner at `default` settings, at the `best` of a search, or at both if equal.

    A reference has its name as method, no refiner, and the settings `reference`. It has no rank and no bars.
    """

    method: str
    refiner: str
    settings: str
    seeds: tuple[int, ...]
    conditions: Mapping[str, str]
    """The conditions that have a column, by name."""
    ranked_on: str
    """The split that decides the rank."""
    values: Mapping[str, Summary | str]
    """By measure: mean and spread over random seeds, or the reason why there are none."""
    gain: Summary | None
    """What tuning gained: best − default, paired by seed."""
    gain_on: str
    """The measure of the gain; empty without one."""
    seconds: Mapping[str, float]
    """By device; every stage once."""
    trials: Mapping[str, int]
    """Search trials by status."""
    classes: Mapping[str, float | None]
    """IoU of each class by the group's measure, mean over random seeds; None if a seed has none."""
    status: str
    """`complete`, or what the seeds lack: `failed (1 of 3)`."""
    bars: tuple[str, ...]
    """Why the row is not ranked."""
    notes: tuple[str, ...]
    """Remarks that do not prevent a rank."""
    share: float | None = None
    """Its mIoU on `val` by that of the same network trained on true masks, with the same seeds."""
    rank: int | None = None
    marked: frozenset[str] = frozenset()
    """The measures in which it is the best of its group, or cannot be told apart from the first (marks.py)."""

    @property
    def name(self) -> str:
        """Return the row's name for a sentence."""
        return self.title if self.reference else f"{self.method} + {self.refiner}, {self.settings}"

    @property
    def reference(self) -> bool:
        """Whether it is a reference."""
        return self.settings == REFERENCE

    @property
    def title(self) -> str:
        """Return the name of the method, or what the reference is."""
        return TITLES[self.method] if self.reference else self.method

    def at(self, settings: str) -> bool:
        """Return whether the row has these settings, `default` or `best`."""
        return self.settings in (settings, BOTH)


@dataclass(frozen=True)
class Group:
    """Rows that can be compared, ranked ones first."""

    scope: Scope
    measure: Measure
    """The measure that ranks the rows."""
    rows: tuple[Row, ...]
    caveat: str = ""
    """Which ranked rows could not be compared with the first, and why; empty if all could."""
    references: tuple[Row, ...] = ()
    """Rows to judge the others by; they are not ranked and not compared."""

    @property
    def all_rows(self) -> tuple[Row, ...]:
        """All rows of the group's tables, references last."""
        return self.rows + self.references

    @property
    def classes(self) -> list[str]:
        """Return the names of all classes, background first."""
        names = {name for row in self.rows for name in row.classes}
        return sorted(names, key=lambda name: (name != "background", name))


@dataclass(frozen=True)
class Board:
    """The whole leaderboard."""

    sweep: str
    trials: int
    """Search trials that were planned for each cell."""
    seeds: tuple[int, ...]
    hardware: tuple[str, ...]
    code: tuple[str, ...]
    groups: tuple[Group, ...]


def board_of(runs: Sequence[Run]) -> Board:
    """Return the leaderboard of a snapshot's runs."""
    of_methods = [run for run in runs if not run.reference]
    conditions, bounds = column_names(name for run in of_methods for name in run.conditions), _bounds(runs)
    return Board(
        sweep=", ".join(sorted({run.sweep for run in runs})),
        trials=max((run.trials for run in runs), default=0),
        seeds=tuple(sorted({run.seed for run in of_methods if run.phase == "confirm"})),
        hardware=tuple(_known(run.hardware for run in runs)),
        code=tuple(_known(run.code for run in runs)),
        groups=tuple(
            _group(scope, lines, references_of(runs, scope), conditions, bounds)
            for scope, lines in rows_by_scope(runs).items()
        ),
    )


Bounds = Mapping[tuple[str, str, int], float]
"""The mIoU on `val` of networks trained on true masks, by sweep, data set and seed.

Within a sweep they differ from the methods' networks only in the masks that they are trained on.
"""


def _bounds(runs: Iterable[Run]) -> Bounds:
    bounds = {(r.sweep, r.dataset, r.seed): VAL.of(r) for r in runs if r.reference == BOUND}
    return {place: value for place, value in bounds.items() if value is not None}


def _group(
    scope: Scope,
    lines: list[RowRuns],
    references: Sequence[RowRuns],
    conditions: Sequence[str],
    bounds: Bounds,
) -> Group:
    confirmed = [run for line in lines for run in line.confirm]
    present = [m for m in MEASURES if any(m.of(run) is not None or m.uncounted(run) for run in confirmed)]
    measure = measures(confirmed)[scope]
    bars = _bars_of_group(scope, lines)
    defaults = {(line.method, line.refiner): line for line in lines if line.settings in ("default", BOTH)}
    rows = [
        _row(line, defaults.get((line.method, line.refiner)), present, measure, conditions, bars, bounds)
        for line in lines
    ]
    apart = tuple(_reference(line, present, measure, conditions, bounds) for line in references)
    return Group(scope, measure, _ranked(rows, measure), references=apart)


def _reference(
    line: RowRuns, present: list[Measure], measure: Measure, conditions: Sequence[str], bounds: Bounds
) -> Row:
    """Return the row of a reference. What is wrong with it is a note: it is not ranked anyway."""
    own = [m for m in present if m in MEASURED_OF[line.method]]
    row = _row(line, None, own, measure, conditions, [], bounds)
    return replace(
        row, ranked_on=NOTHING, bars=(), notes=(*_unfinished(line.confirm), *_repeated(line), *row.notes)
    )


def _bars_of_group(scope: Scope, lines: list[RowRuns]) -> list[str]:
    named = {"data set": scope.dataset, "supervision": scope.supervision, "backbone": scope.backbone}
    named["initialisation"] = scope.initialisation
    bars = [f"its {name} was not recorded" for name, value in named.items() if not value]
    digests = _known(run.data_digest for line in lines for run in line.runs)
    if len(digests) > 1:
        bars.append(f"the group mixes contents of the data (digests {', '.join(d[:12] for d in digests)})")
    return bars


def _row(
    line: RowRuns,
    default: RowRuns | None,
    present: list[Measure],
    measure: Measure,
    conditions: Sequence[str],
    bars: list[str],
    bounds: Bounds,
) -> Row:
    status = _status(line.confirm)
    values = {m.name: _value(line, m, status) if m in present else NOTHING for m in MEASURES}
    told = {name: _known(run.conditions.get(name) for run in _finished(line)) for name in conditions}
    gain_on, gain = _gain(line, default)
    ranked_by, split = values[measure.name], measure.records[0].split
    if status == "complete" and not isinstance(ranked_by, Summary):
        what = f"{split} mIoU of its {'network' if measure is VAL else 'pseudo-masks'}"
        why = {
            NOTHING: f"no {what}",
            UNCOUNTED: f"no {what}: every pixel of the true masks of {split} is 255, so none is counted",
        }
        bars = [*bars, why.get(ranked_by, f"{what} {ranked_by}")]
    return Row(
        method=line.method,
        refiner=line.refiner,
        settings=line.settings,
        seeds=tuple(sorted({run.seed for run in line.confirm})),
        conditions={name: ", ".join(texts) or NOTHING for name, texts in told.items()},
        ranked_on=split if isinstance(ranked_by, Summary) else NOTHING,
        values=values,
        gain=gain,
        gain_on=gain_on,
        seconds=seconds_by_device(line.paid),
        trials=spent(line.search),
        classes=_classes(line.confirm, measure) if status == "complete" else {},
        status=status,
        bars=(*_unfinished(line.confirm), *_bars(line, told), *bars),
        notes=tuple(_notes(line)),
        share=_share(line, bounds) if status == "complete" else None,
    )


def _share(line: RowRuns, bounds: Bounds) -> float | None:
    """Return the mean mIoU on `val` by the mean bound with the same seeds; None if a seed lacks either.

    A reference without a network has one seed for all, so all seeds of the bound count.
    """
    own = [VAL.of(run) for run in line.confirm]
    if line.settings == REFERENCE and line.method != BOUND:
        places = {(run.sweep, run.dataset) for run in line.confirm}
        paired: list[float | None] = [value for place, value in bounds.items() if place[:2] in places]
    else:
        paired = [bounds.get((run.sweep, run.dataset, run.seed)) for run in line.confirm]
    values, limits = ([value for value in found if value is not None] for found in (own, paired))
    if not limits or len(values) < len(own) or len(limits) < len(paired) or not any(limits):
        return None
    return summarise(values).mean / summarise(limits).mean


def _status(confirm: Sequence[Run]) -> str:
    counts = Counter(run.status for run in confirm if run.status != "complete")
    lacking = [f"{status} ({count} of {len(confirm)})" for status, count in sorted(counts.items())]
    if len({run.seed for run in confirm}) < len(confirm):
        lacking.append("a seed ran twice")
    return ", ".join(lacking) or "complete"


def _value(line: RowRuns, measure: Measure, status: str) -> Summary | str:
    if status != "complete":
        return status
    known = [value for run in line.confirm if (value := measure.of(run)) is not None]
    if not known:
        return UNCOUNTED if any(measure.uncounted(run) for run in line.confirm) else NOTHING
    lacking = len(line.confirm) - len(known)
    return f"absent ({lacking} of {len(line.confirm)})" if lacking else summarise(known)


def _finished(line: RowRuns) -> list[Run]:
    """Return the runs that show the row's conditions: the complete ones, if there are any."""
    return [run for run in line.confirm if run.status == "complete"] or list(line.confirm)


def _gain(line: RowRuns, default: RowRuns | None) -> tuple[str, Summary | None]:
    if line.settings == "default" or default is None:
        return "", None
    for measure in (VAL, PSEUDO_MASK):
        if all(isinstance(_value(entry, measure, _status(entry.confirm)), Summary) for entry in (line, default)):
            return measure.name, paired_gain(_by_seed(default, measure), _by_seed(line, measure))
    return "", None


def _by_seed(line: RowRuns, measure: Measure) -> dict[int, float]:
    return {run.seed: value for run in line.confirm if (value := measure.of(run)) is not None}


def _unfinished(confirm: Sequence[Run]) -> list[str]:
    """Return why seeds are not complete, one text per reason."""
    reasons: dict[tuple[str, str], list[int]] = {}
    for run in confirm:
        if run.status != "complete":
            reasons.setdefault((run.status, run.reason), []).append(run.seed)
    return [
        f"{_seeds(seeds)} {status}" + (f": {reason}" if reason else "")
        for (status, reason), seeds in reasons.items()
    ]


def _bars(line: RowRuns, conditions: Mapping[str, Sequence[str]]) -> list[str]:
    bars = _repeated(line)
    seeds = [run.seed for run in line.confirm]
    if len(set(seeds)) < SEEDS_NEEDED:
        bars.append(f"{_count(len(set(seeds)), 'seed')}, and {SEEDS_NEEDED} are needed")
    if any(run.status == "complete" for run in line.confirm):
        bars += [f"its {shown(name).words} was not recorded" for name in RANK_NEEDS if not conditions[name]]
    bars += [
        f"its seeds differ in {shown(name).words}: {', '.join(texts)}"
        for name, texts in conditions.items()
        if len(texts) > 1
    ]
    if line.settings == "best" and not spent(line.search):
        bars.append("no search trial was recorded")
    return bars


def _repeated(line: RowRuns) -> list[str]:
    seeds = [run.seed for run in line.confirm]
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    return [f"{_seeds(twice)} ran more than once"] if twice else []


def _notes(line: RowRuns) -> list[str]:
    notes = []
    code = _known(run.code for run in line.runs)
    if len(code) > 1:
        notes.append(f"{len(code)} versions of the code: {', '.join(version[:12] for version in code)}")
    if any(run.dirty == "true" for run in line.runs):
        notes.append("the code had changes that were not committed")
    ran, planned = sum(spent(line.search).values()), line.confirm[0].trials
    if line.search and ran < planned:
        notes.append(f"{ran} of {_count(planned, 'planned search trial')} ran")
    failures: dict[str, int] = {}
    for run in line.search:
        if run.status == "failed":
            failures[run.reason] = failures.get(run.reason, 0) + 1
    notes += [f"{_count(count, 'search trial')} failed: {reason}" for reason, count in sorted(failures.items())]
    return notes


def _classes(confirm: Sequence[Run], measure: Measure) -> dict[str, float | None]:
    """Return the mean IoU of each class over all runs."""
    ious = [_class_ious(run, measure) for run in confirm]
    names = sorted({name for iou in ious for name in iou})
    means: dict[str, float | None] = {}
    for name in names:
        known = [value for iou in ious if (value := iou.get(name)) is not None]
        means[name] = summarise(known).mean if len(known) == len(ious) else None
    return means


def _class_ious(run: Run, measure: Measure) -> dict[str, float | None]:
    record = next((record for record in measure.records if str(record) in run.metrics), None)
    named = ((RecordName.parse(text), value) for text, value in run.metrics.items())
    return {
        name.label: value
        for name, value in named
        if record and name and name.metric == "IoU" and name.label and name.of(record.metric) == record
    }


def _ranked(rows: list[Row], measure: Measure) -> tuple[Row, ...]:
    """Rank and mark the rows without bars, and put them first."""
    eligible = [row for row in rows if not row.bars]
    means = [_mean(row, measure) for row in eligible]
    eligible = [replace(row, rank=rank) for row, rank in zip(eligible, ranks_of(means).tolist(), strict=True)]
    marks: dict[int, set[str]] = {}
    for column in MEASURES:
        known = {
            i: value for i, row in enumerate(eligible) if isinstance(value := row.values[column.name], Summary)
        }
        for index in highest(known):
            marks.setdefault(index, set()).add(column.name)
    ranked = [replace(row, marked=frozenset(marks.get(index, ()))) for index, row in enumerate(eligible)]
    return (*sorted(ranked, key=lambda row: row.rank or 0), *(row for row in rows if row.bars))


def _mean(row: Row, measure: Measure) -> float:
    value = row.values[measure.name]
    assert isinstance(value, Summary), "a row without a number has a bar"
    return value.mean


def _known(values: Iterable[object]) -> list[str]:
    """Return the different values as texts, in order, without those that were not recorded."""
    return sorted({str(value) for value in values if value not in ("", None)})


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
