"""The plan of a sweep: its cells with their data and stages, checked before anything runs."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from seedbed.benchmark.errors import unknown_name
from seedbed.benchmark.evaluation.records import OBJECTIVE
from seedbed.benchmark.pipeline.hparams import hints
from seedbed.benchmark.pipeline.registry import METHODS, REFINERS
from seedbed.benchmark.pipeline.stage import Machine, Stage
from seedbed.benchmark.pipeline.work_folder import DatasetSpec, WorkFolder
from seedbed.benchmark.sweeps.search import Settings, Space, check_tune, search_space
from seedbed.benchmark.sweeps.settings import Cell, SweepSettings
from seedbed.benchmark.sweeps.trial_files import Phase, SettingsName, TrialSpec
from seedbed.benchmark.trials.conditions import conditions_of
from seedbed.benchmark.trials.options import options_of
from seedbed.benchmark.trials.plan import TrialPlan, plan_trial
from seedbed.benchmark.trials.references import REFERENCES
from seedbed.benchmark.trials.trial import Trial
from seedbed.datasets.base import Dataset, Split
from seedbed.datasets.tools.check import preflight, without_masks

CONSTANTS = [name for name, supervision in REFERENCES.items() if supervision != "full"]
"""The references without a network, which no random seed changes."""
SEED_OF_CONSTANTS = (0,)

logger = logging.getLogger(__name__)


@dataclass
class CellPlan:
    """A cell with everything that its trials share."""

    cell: Cell
    dataset_spec: DatasetSpec
    data: Dataset
    digest: str
    default: TrialPlan
    """The plan of a confirming trial with the default settings."""
    fixed: Settings
    """The sweep's settings for this cell's stages."""
    space: Space
    """What its search draws; references, and cells without a setting that `tune` names, have nothing."""
    trials: int
    """Number of search trials; 0 if there is nothing to search."""
    seeds: tuple[int, ...]
    """Random seeds of the confirming trials; a reference without a network is measured once."""

    @property
    def expected(self) -> int:
        """Number of trials: the search, and default and best settings with each seed."""
        return self.trials + len(self.seeds) * (2 if self.trials else 1)

    @property
    def conditions(self) -> dict[str, str | int]:
        """The conditions of every trial of the cell, also of missing ones."""
        return conditions_of(self.default)

    def description(self) -> dict[str, Any]:
        """Return the cell's entry in `sweep.json`."""
        digest, segment = {"data_digest": self.digest}, {"segment": self.default.trial.segment}
        own: dict[str, Any] = {"trials": self.trials}
        if self.cell.reference:
            own["seeds"] = list(self.seeds)
        return {**asdict(self.cell), **self.conditions, **digest, **segment, **own}


@dataclass
class SweepPlan:
    """All cells of a sweep, with names, settings and chains checked."""

    settings: SweepSettings
    work: WorkFolder
    cells: list[CellPlan]

    @property
    def folder(self) -> Path:
        return self.work.sweeps / self.settings.name

    def trial(self, cell: CellPlan, seed: int, changes: Mapping[str, Any], phase: Phase) -> Trial:
        """Return the trial of a cell with a seed and changed settings."""
        settings = {**cell.fixed, **changes}
        if phase == "search":
            chain = cell.default.chain
            searched = {type(s).__name__ for s in chain.configured} - {type(s).__name__ for s in chain.segment}
            settings = {key: value for key, value in settings.items() if key.partition(".")[0] in searched}
        return _trial(self.settings, cell.cell, seed, settings, phase)

    def plan(self, cell: CellPlan, trial: Trial) -> TrialPlan:
        """Return the plan of a trial of a cell."""
        return plan_trial(trial, cell.data, self.work, Machine(), cell.digest)

    def spec(
        self,
        cell: CellPlan,
        phase: Phase,
        name: SettingsName,
        number: int | None,
        seed: int,
        changes: Mapping[str, Any],
        rivals: list[list[float]] | None = None,
    ) -> TrialSpec:
        """Return everything that a worker needs to run one trial."""
        trial = self.trial(cell, seed, changes, phase)
        return TrialSpec(
            self.settings.name,
            cell.cell,
            phase,
            name,
            number,
            trial,
            cell.dataset_spec,
            cell.digest,
            cell.conditions,
            rivals,
        )

    def expected(self) -> int:
        """Return the number of trials of the whole sweep."""
        return sum(cell.expected for cell in self.cells)

    def description(self) -> dict[str, Any]:
        """Return what the leaderboard needs to show missing trials (`sweep.json`)."""
        return {
            "version": 1,
            "name": self.settings.name,
            "trials": self.settings.trials,
            "search_seed": self.settings.search_seed,
            "seeds": list(self.settings.seeds),
            "tune": list(self.settings.tune),
            "objective": str(OBJECTIVE[0]),
            "cells": [cell.description() for cell in self.cells],
        }


def plan_sweep(settings: SweepSettings, work: WorkFolder) -> SweepPlan:
    """Open the data sets, build every chain and check every setting. Raises ConfigError, DataError."""
    plan = SweepPlan(settings, work, [])
    dataset_specs = {name: work.locate(name, settings.root_of(name)) for name in settings.dataset_names()}
    opened = {name: dataset_spec.open() for name, dataset_spec in dataset_specs.items()}
    for data in opened.values():
        allowed = settings.allow_val_in_training
        for warning in preflight(data, allow_val_in_training=allowed, processes=settings.workers):
            logger.warning(warning)
    digests = {name: work.digest(data) for name, data in opened.items()}
    known: set[str] = set()
    for cell in [*settings.cells(), *_possible_references(settings, opened)]:
        dataset_spec, data, digest = dataset_specs[cell.dataset], opened[cell.dataset], digests[cell.dataset]
        # A setting of the method may add stages that have other settings.
        method = "" if cell.reference else type(METHODS.load(cell.method)).__name__
        given = settings.settings_of(cell)
        own = {key: value for key, value in given.items() if key.partition(".")[0] == method}
        seeds = SEED_OF_CONSTANTS if cell.reference in CONSTANTS else settings.seeds
        bare = plan_trial(_trial(settings, cell, seeds[0], own, "confirm"), data, work, Machine(), digest)
        names = {type(stage).__name__ for stage in bare.chain.configured}
        known |= names
        fixed = {key: value for key, value in given.items() if key.partition(".")[0] in names}
        if cell.variant and (lost := {*settings.variants[cell.variant].settings} - {*fixed}):
            raise unknown_name(f"stage of the variant {cell.variant!r}", sorted(lost)[0].partition(".")[0], names)
        default = plan_trial(_trial(settings, cell, seeds[0], fixed, "confirm"), data, work, Machine(), digest)
        # A search does not include the segmentation network.
        stages = [] if cell.reference else [*default.chain.localise, *default.chain.refine]
        space = search_space(stages, settings.tune, fixed)
        trials = settings.trials if space else 0
        plan.cells.append(CellPlan(cell, dataset_spec, data, digest, default, fixed, space, trials, seeds))
    _check_settings(plan, known)
    return plan


def _possible_references(settings: SweepSettings, opened: Mapping[str, Dataset]) -> list[Cell]:
    """Return the cells of the references, without upper bounds that lack true masks (logged)."""
    cells = []
    for cell in settings.reference_cells():
        data = opened[cell.dataset]
        # A data set that a dry run plans has no files yet.
        if REFERENCES[cell.reference] == "full" and data.root.exists() and (missing := without_masks(data)):
            logger.warning(
                f"note: {cell.dataset} has no row `{cell.reference}`, because {len(missing)} of the "
                f"{len(data.ids(Split.WEAK))} images of `weak` have no true mask (the first: {missing[0]})"
            )
        else:
            cells.append(cell)
    return cells


def _check_settings(plan: SweepPlan, known: set[str]) -> None:
    """Refuse settings and words of `tune` that no stage of the project has; note those that no cell has.

    So users can copy a file and remove some methods. `known` are the names of the sweep's stages.
    """
    settings = plan.settings
    ignored = [key for key in settings.settings if key.partition(".")[0] not in known]
    for key in ignored:
        stage, _, name = key.partition(".")
        if stage not in (classes := stage_classes()):
            raise unknown_name("stage", stage, known)
        if name not in (valid := hints(classes[stage])):
            raise unknown_name(f"setting of {stage}", name, valid)
    if settings.trials:
        chains: list[list[Stage]] = [
            [*c.default.chain.localise, *c.default.chain.refine] for c in plan.cells if not c.cell.reference
        ]
        ignored += [f"tune {word}" for word in check_tune(chains, settings.tune, lambda: stage_classes().values())]
    if ignored:
        logger.info(f"note: no stage of this sweep has these settings, which are ignored: {', '.join(ignored)}")


def _trial(settings: SweepSettings, cell: Cell, seed: int, changes: Mapping[str, Any], phase: Phase) -> Trial:
    options = options_of(settings) | {"settings": dict(changes)}
    if cell.variant:
        variant = settings.variants[cell.variant]
        options["segment"] = variant.segment
        options["segmentation_backbone"] = variant.segmentation_backbone or settings.segmentation_backbone
    what: dict[str, Any] = {"method": cell.method, "refiner": cell.refiner}
    if cell.reference:
        what = {"supervision": REFERENCES[cell.reference]}
    return Trial(
        dataset=cell.dataset,
        seed=seed,
        measure_on="tune" if phase == "search" else "report",
        **what,
        **options,
    )


@functools.cache
def stage_classes() -> dict[str, type[object]]:
    """Return the class of every method and stage that can have settings, by name. Imports all plug-ins."""
    import seedbed.methods.segmentation.stages  # noqa: F401  # its stages follow every method

    found: dict[str, type[object]] = {
        type(METHODS.load(name)).__name__: type(METHODS.load(name)) for name in METHODS.names()
    }
    for name in REFINERS.names():
        REFINERS.load(name)
    waiting: list[type[object]] = [Stage]
    while waiting:
        waiting += (below := waiting.pop().__subclasses__())
        found |= {stage.__name__: stage for stage in below}
    return found
