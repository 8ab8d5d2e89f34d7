"""What a sweep will do and cost, before it runs (`seedbed sweep --dry-run`).

Suggestions are not known before the search, so random ones stand for them: which stages they share is the same.
Costs are the mean durations of the same stage in this store, on the same data set where there are any.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import optuna

from benchmark.dealer import CellPlan, SweepPlan, plan_sweep
from benchmark.errors import ConfigError
from benchmark.pipeline import Step
from benchmark.progress import Reporter
from benchmark.seeding import derive_seed
from benchmark.store import Store
from benchmark.sweep_settings import Cell, SweepSettings
from benchmark.trial import Trial
from benchmark.workfolder import WorkFolder


@dataclass(frozen=True)
class CellForecast:
    """The trials of a cell."""

    cell: Cell
    searching: int
    confirming: int
    searched: list[str]


@dataclass(frozen=True)
class StageForecast:
    """How often a stage is needed, how many different artifacts that is, and what the missing ones cost."""

    stage: str
    needed: int
    distinct: int
    stored: int
    seconds: float | None
    """Mean duration; None where the store has never timed the stage and something is to be computed."""

    @property
    def hours(self) -> float | None:
        """Hours for what is not in the store."""
        missing = self.distinct - self.stored
        if missing == 0:
            return 0.0
        return None if self.seconds is None else missing * self.seconds / 3600


@dataclass(frozen=True)
class Forecast:
    """All of a sweep."""

    cells: list[CellForecast]
    stages: list[StageForecast]

    @property
    def trials(self) -> int:
        """Number of trials."""
        return sum(cell.searching + cell.confirming for cell in self.cells)


def forecast(settings: SweepSettings, work: WorkFolder, reporter: Reporter) -> Forecast:
    """Return what a sweep would do. Runs nothing. Raises ConfigError and DataError as the sweep would."""
    plan = plan_sweep(settings, work, reporter)
    needed: Counter[str] = Counter()
    steps: dict[str, dict[str, Step]] = defaultdict(dict)
    data: dict[str, str] = {}
    cells = []
    for cell in plan.cells:
        searching = confirming = 0
        for trial in _trials(plan, cell):
            searching += trial.measure_on == "tune"
            confirming += trial.measure_on == "report"
            try:
                planned = plan.plan(cell, trial).steps()
            except ConfigError:
                # Random settings that do not go together; such a trial would fail at no cost.
                continue
            for key, step in planned.items():
                needed[type(step.stage).__name__] += 1
                steps[type(step.stage).__name__][key] = step
                data[key] = cell.digest
        searched = sorted(plan.space(cell)) if settings.trials > 1 else []
        cells.append(CellForecast(cell.cell, searching, confirming, searched))
    times = _Durations(work.store)
    stages = []
    for name, distinct in steps.items():
        missing = [key for key in distinct if work.store.get(key) is None]
        known = [times.mean(name, data[key]) for key in missing]
        seconds = [value for value in known if value is not None]
        mean = sum(seconds) / len(seconds) if seconds else None
        stages.append(StageForecast(name, needed[name], len(distinct), len(distinct) - len(missing), mean))
    return Forecast(cells, sorted(stages, key=lambda row: -(row.hours or 0)))


def _trials(plan: SweepPlan, cell: CellPlan) -> Iterator[Trial]:
    """Yield the trials of a cell, with random settings for the suggestions; the best is the last of them."""
    settings = plan.settings
    changes: dict[str, object] = {}
    for number in range(settings.trials):
        if number:
            seed = derive_seed(settings.search_seed, str(cell.cell), number) % 2**32
            sampler = optuna.samplers.RandomSampler(seed=seed)
            study = optuna.create_study(sampler=sampler)
            changes = dict(study.ask({key: space for key, (space, _) in plan.space(cell).items()}).params)
        yield plan.trial(cell, settings.search_seed, changes, "search")
    for seed in settings.seeds:
        yield plan.trial(cell, seed, {}, "confirm")
        if settings.trials:
            yield plan.trial(cell, seed, changes, "confirm")


class _Durations:
    """Seconds that stages took, from the store."""

    def __init__(self, store: Store) -> None:
        self._on_data: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._anywhere: dict[str, list[float]] = defaultdict(list)
        for entry in store.entries():
            self._on_data[entry.stage, entry.record["identity"]["data"]].append(entry.seconds)
            self._anywhere[entry.stage].append(entry.seconds)

    def mean(self, stage: str, data: str) -> float | None:
        seconds = self._on_data.get((stage, data)) or self._anywhere.get(stage)
        return sum(seconds) / len(seconds) if seconds else None
