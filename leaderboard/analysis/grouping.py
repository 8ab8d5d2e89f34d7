"""Groups runs into rows, and rows into scopes that can be compared."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from seedbed.benchmark.evaluation.records import OBJECTIVE, first_value
from seedbed.benchmark.trials.references import REFERENCES
from seedbed.leaderboard.data.conditions import Scope
from seedbed.leaderboard.data.snapshot import Run

SETTINGS = ("default", "best", "given", "submitted")
BOTH = "default = best"
"""The settings of a row whose search found nothing better than the default."""
REFERENCE = "reference"
"""What a reference row has in place of settings."""
BOUND = "fully_supervised"
"""The reference that the rows' numbers on `val` are a share of."""


@dataclass(frozen=True)
class RowRuns:
    """The runs of one row: a method and a refiner at one kind of settings."""

    method: str
    refiner: str
    settings: str
    confirm: tuple[Run, ...]
    """One run per seed: what the row reports, missing runs included."""
    search: tuple[Run, ...]
    """The trials by which `best` was found; none for `default`."""

    @property
    def runs(self) -> tuple[Run, ...]:
        """Return all runs that the row depends on."""
        return self.search + self.confirm

    @property
    def paid(self) -> tuple[Run, ...]:
        """Return the runs that count towards the row's cost. The default settings need no search."""
        return self.confirm if self.settings == BOTH else self.runs


def rows_by_scope(runs: Iterable[Run]) -> dict[Scope, list[RowRuns]]:
    """Return the rows of each scope, both in alphabetical order, `default` before `best`.

    If `best` has the default settings, the two are one row, `default = best`. References are left out.
    """
    cells: dict[tuple[str, ...], list[Run]] = {}
    for run in (run for run in runs if not run.reference):
        cells.setdefault(run.cell, []).append(run)
    scopes: dict[Scope, list[RowRuns]] = {}
    for _, members in sorted(cells.items()):
        scopes.setdefault(members[0].scope, []).extend(_lines(members))
    return {scope: lines for scope, lines in scopes.items() if lines}


def references_of(runs: Iterable[Run], scope: Scope) -> list[RowRuns]:
    """Return the references for the rows of a scope: those of its data set, with its segmentation network."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        same_network = run.scope[-3:] == scope[-3:]
        if run.reference and run.dataset == scope.dataset and (same_network or run.reference != BOUND):
            found.setdefault(run.reference, []).append(run)
    return [RowRuns(name, "", REFERENCE, tuple(_once(found[name])), ()) for name in REFERENCES if name in found]


def _once(runs: Iterable[Run]) -> list[Run]:
    """Return the runs by seed, each once: several sweeps may have measured the same, with the same stages."""
    kept: list[Run] = []
    for run in sorted(runs, key=lambda run: (run.status != "complete", -len(run.stages), run.sweep)):
        others = [other for other in kept if other.seed == run.seed]
        if not any(run.status != "complete" or run.stages.keys() <= other.stages.keys() for other in others):
            kept.append(run)
    return sorted(kept, key=lambda run: run.seed)


def _lines(cell: Sequence[Run]) -> list[RowRuns]:
    """Return the rows of one cell."""
    search = tuple(run for run in cell if run.phase == "search")
    confirmed = {
        settings: sorted(
            (run for run in cell if run.phase == "confirm" and run.settings == settings), key=lambda run: run.seed
        )
        for settings in SETTINGS
    }
    default, best = confirmed["default"], confirmed["best"]
    if same_settings(default, best, search):
        confirmed = {BOTH: _either(default, best)}
    return [
        RowRuns(cell[0].method, cell[0].refiner, settings, tuple(runs), () if settings == "default" else search)
        for settings, runs in confirmed.items()
        if runs
    ]


def same_settings(default: Sequence[Run], best: Sequence[Run], search: Sequence[Run]) -> bool:
    """Return whether the confirming runs at `best` have the default settings.

    The keys of their stages decide: a key is a digest of all settings. If no seed is complete at both, the
    recorded parameters decide: none, or those of the search trial with the default settings.
    """
    of_best = {run.seed: run for run in best if run.status == "complete"}
    pairs = [(run, of_best[run.seed]) for run in default if run.status == "complete" and run.seed in of_best]
    pairs = [pair for pair in pairs if all(run.stages for run in pair)]
    if pairs:
        return all(one.stages.keys() == other.stages.keys() for one, other in pairs)
    drawn = [json.loads(run.parameters) for run in best if run.parameters]
    first = [json.loads(run.parameters) for run in search if run.settings == "default" and run.parameters]
    return bool(default and drawn and search) and all(found == {} or found in first for found in drawn)


def _either(default: Sequence[Run], best: Sequence[Run]) -> list[Run]:
    """Return the runs at `default`; in place of one that is not complete, that at `best` with the same seed."""
    complete = {run.seed: run for run in best if run.status == "complete"}
    return [run if run.status == "complete" else complete.get(run.seed, run) for run in default]


def searches(runs: Iterable[Run]) -> dict[Scope, dict[tuple[str, str], list[Run]]]:
    """Return the search trials of each scope by method and refiner, each in the order of their numbers."""
    found: dict[Scope, dict[tuple[str, str], list[Run]]] = {}
    for run in sorted((run for run in runs if run.phase == "search"), key=lambda run: int(run.number or -1)):
        found.setdefault(run.scope, {}).setdefault((run.method, run.refiner), []).append(run)
    return found


def objective(search: Run) -> float | None:
    """Return the result of a search trial: the mIoU of the pseudo-masks on `tune`, a fraction, or None."""
    return first_value(OBJECTIVE, search.metrics) if search.status == "complete" else None


def seconds_by_device(runs: Iterable[Run]) -> dict[str, float]:
    """Return the seconds that runs took on each device, every stage counted once.

    This is what the runs cost from scratch: a stage that several of them share was computed for all of them.
    """
    stages: dict[str, tuple[str, float]] = {}
    for run in sorted(runs, key=lambda run: run.key):
        for stage, seconds in run.stages.items():
            device, known = stages.get(stage, (run.device, 0.0))
            stages[stage] = device, max(known, seconds)
    totals: dict[str, float] = {}
    for stage in sorted(stages):
        device, seconds = stages[stage]
        totals[device] = totals.get(device, 0.0) + seconds
    return totals


def spent(search: Iterable[Run]) -> dict[str, int]:
    """Return how many search trials ran, by status: complete, pruned, failed."""
    counts = Counter(run.status for run in search)
    return {status: counts[status] for status in ("complete", "pruned", "failed") if counts[status]}
