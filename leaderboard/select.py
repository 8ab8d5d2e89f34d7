"""Which runs make one line of the leaderboard, and which lines may be compared with each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from leaderboard.snapshot import Run, Scope

SETTINGS = ("default", "best")


@dataclass(frozen=True)
class Entry:
    """The runs of one line: a method with a refiner, at one kind of settings."""

    method: str
    refiner: str
    settings: str
    confirm: tuple[Run, ...]
    """One run a seed: what the line reports. Missing runs are among them."""
    search: tuple[Run, ...]
    """The trials by which `best` was found; none for `default`."""

    @property
    def runs(self) -> tuple[Run, ...]:
        """Return all that the line took."""
        return self.search + self.confirm


def entries(runs: Iterable[Run]) -> dict[Scope, list[Entry]]:
    """Return the lines of each scope, both in alphabetical order, `default` before `best`."""
    cells: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        cells.setdefault(run.cell, []).append(run)
    scopes: dict[Scope, list[Entry]] = {}
    for _, members in sorted(cells.items()):
        first = members[0]
        search = tuple(run for run in members if run.phase == "search")
        for settings in SETTINGS:
            confirm = [run for run in members if run.phase == "confirm" and run.settings == settings]
            if confirm:
                confirm.sort(key=lambda run: run.seed)
                found = search if settings == "best" else ()
                entry = Entry(first.method, first.refiner, settings, tuple(confirm), found)
                scopes.setdefault(first.scope, []).append(entry)
    return scopes


def searches(runs: Iterable[Run]) -> dict[Scope, dict[tuple[str, str], list[Run]]]:
    """Return the search trials of each scope by method and refiner, each in the order of their numbers."""
    found: dict[Scope, dict[tuple[str, str], list[Run]]] = {}
    for run in sorted((run for run in runs if run.phase == "search"), key=lambda run: int(run.number or -1)):
        found.setdefault(run.scope, {}).setdefault((run.method, run.refiner), []).append(run)
    return found


def objective(search: Run) -> float | None:
    """Return what a search trial came to: the mIoU of the pseudo-masks on `tune`, a fraction; None without one."""
    names = (f"pseudo_mask.tune/mIoU{selection}" for selection in ("", "_tuned", "_fixed", "_oracle"))
    complete = search.status == "complete"
    return next((search.metrics[name] for name in names if complete and name in search.metrics), None)


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
