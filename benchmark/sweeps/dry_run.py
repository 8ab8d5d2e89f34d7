"""The trials and the cost of a sweep, before it runs (`seedbed sweep --dry-run`).

Suggestions are not known before the search, so random ones replace them: they share the same stages. Costs come
from the durations in this store: of the same stage with the same backbone, image size, number of images and
device, else scaled by pixels and images from the closest one, and marked as rough.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

import optuna

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.pipeline.cost import Conditions, conditions_of
from seedbed.benchmark.pipeline.dry_run_folder import DryRunFolder
from seedbed.benchmark.pipeline.pipeline import Step
from seedbed.benchmark.pipeline.store import Store
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.sweeps.code_changes import refusal
from seedbed.benchmark.sweeps.plan import CellPlan, SweepPlan, plan_sweep
from seedbed.benchmark.sweeps.settings import Cell, SweepSettings
from seedbed.benchmark.training.reproducibility import derive_seed
from seedbed.benchmark.trials.trial import Trial
from seedbed.datasets.base import Dataset


@dataclass(frozen=True)
class CellForecast:
    """The trials of a cell."""

    cell: Cell
    searching: int
    confirming: int
    searched: list[str]


@dataclass(frozen=True)
class Estimate:
    """The estimated duration of a step."""

    seconds: float
    rough: bool
    """Whether it was scaled from images of another size or number."""


@dataclass(frozen=True)
class StageForecast:
    """How often a stage is needed, its number of different artifacts, and the cost of the missing ones."""

    stage: str
    needed: int
    distinct: int
    stored: int
    estimates: tuple[Estimate, ...]
    """Estimates of missing artifacts, as far as this store has timed a comparable stage."""

    @property
    def missing(self) -> int:
        """Number of artifacts that are not in the store."""
        return self.distinct - self.stored

    @property
    def not_timed(self) -> int:
        """Number of missing artifacts without an estimate."""
        return self.missing - len(self.estimates)

    @property
    def rough(self) -> bool:
        """Whether an estimate was scaled from images of another size or number."""
        return any(estimate.rough for estimate in self.estimates)

    @property
    def seconds(self) -> float | None:
        """Mean of the estimates; None if there are none."""
        return fmean(estimate.seconds for estimate in self.estimates) if self.estimates else None

    @property
    def hours(self) -> float:
        """Sum of the estimates."""
        return sum(estimate.seconds for estimate in self.estimates) / 3600


@dataclass(frozen=True)
class Forecast:
    """The whole sweep."""

    cells: list[CellForecast]
    stages: list[StageForecast]
    device: str | None
    """`cpu` or `cuda`; None if the cluster's machines are not known."""
    not_generated: tuple[str, ...]
    """Data sets that the sweep will generate."""
    refusal: str
    """Why the sweep will be refused without `--accept-changed-code`; empty if it will not be."""

    @property
    def trials(self) -> int:
        """Number of trials."""
        return sum(cell.searching + cell.confirming for cell in self.cells)


def forecast(settings: SweepSettings, work: WorkFolder) -> Forecast:
    """Return what a sweep would do. Runs and writes nothing. Raises what the sweep would."""
    work = DryRunFolder(work.root, work.location)
    plan = plan_sweep(settings.resolved(), work)
    needed: Counter[str] = Counter()
    steps: dict[str, dict[str, tuple[Step, Dataset]]] = defaultdict(dict)
    cells = []
    for cell in plan.cells:
        searching = confirming = 0
        for trial in _trials(plan, cell):
            searching += trial.measure_on == "tune"
            confirming += trial.measure_on == "report"
            try:
                planned = plan.plan(cell, trial).steps()
            except ConfigError:
                # Random settings that are not valid together; such a trial would fail at no cost.
                continue
            for key, step in planned.items():
                needed[type(step.stage).__name__] += 1
                steps[type(step.stage).__name__][key] = (step, cell.data)
        searched = sorted(cell.space) if cell.trials > 1 else []
        cells.append(CellForecast(cell.cell, searching, confirming, searched))
    device = settings.device
    times = _Durations(work.store)
    stages = []
    for name, distinct in steps.items():
        missing = [found for key, found in distinct.items() if work.store.get(key) is None]
        estimates = [times.estimate(step, data, device) for step, data in missing] if device else []
        known = tuple(estimate for estimate in estimates if estimate is not None)
        stages.append(StageForecast(name, needed[name], len(distinct), len(distinct) - len(missing), known))
    to_generate = tuple(dict.fromkeys(c.cell.dataset for c in plan.cells if not c.data.root.exists()))
    ordered = sorted(stages, key=lambda row: -row.hours)
    return Forecast(cells, ordered, device, to_generate, refusal(plan))


def _trials(plan: SweepPlan, cell: CellPlan) -> Iterator[Trial]:
    """Yield the trials of a cell, with random settings for the suggestions; the last one counts as the best."""
    settings = plan.settings
    changes: dict[str, object] = {}
    for number in range(cell.trials):
        if number:
            seed = derive_seed(settings.search_seed, str(cell.cell), number) % 2**32
            sampler = optuna.samplers.RandomSampler(seed=seed)
            study = optuna.create_study(sampler=sampler)
            changes = dict(study.ask({key: space for key, (space, _) in cell.space.items()}).params)
        yield plan.trial(cell, settings.search_seed, changes, "search")
    for seed in cell.seeds:
        yield plan.trial(cell, seed, {}, "confirm")
        if cell.trials:
            yield plan.trial(cell, seed, changes, "confirm")


class _Durations:
    """The durations of steps in the store, in seconds."""

    def __init__(self, store: Store) -> None:
        self._known: dict[tuple[str, ...], list[tuple[Conditions, float]]] = defaultdict(list)
        for entry in store.entries():
            # Entries of earlier versions do not record the conditions of their duration.
            if found := entry.record.get("conditions"):
                conditions = Conditions(**found)
                place = (entry.stage, conditions.device, conditions.backbone, conditions.precision)
                self._known[place].append((conditions, entry.seconds))

    def estimate(self, step: Step, data: Dataset, device: str) -> Estimate | None:
        """Return the estimated duration of a step from those of the same stage, device, backbone and precision.

        None without any.
        """
        wanted = conditions_of(step, data, device)
        known = self._known.get((type(step.stage).__name__, wanted.device, wanted.backbone, wanted.precision))
        if not known:
            return None
        same = [(c, seconds) for c, seconds in known if (c.side, c.images) == (wanted.side, wanted.images)]
        closest = min(known, key=lambda sample: abs(math.log(max(1, sample[0].work) / max(1, wanted.work))))
        scaled = [seconds * wanted.work / max(1, c.work) for c, seconds in same or [closest]]
        return Estimate(fmean(scaled), rough=not same)
