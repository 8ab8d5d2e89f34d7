"""Which trial is next: all cells of a sweep, their two phases, and what must wait for what.

Search: the trials of a cell on `tune`, under its Optuna study. Confirm: default and best settings with every seed.
Cells take turns, and searching goes first; the default settings are confirmed whenever no search trial can start.
A trial that needs a stage which another one is computing is held back until that stage is in the
store, so that nothing is computed twice and no machine waits. Nothing here knows Ray or MLflow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmark.errors import unknown_name
from benchmark.job import BEGUN, JOB, Job, Outcome, Phase, SettingsName, read_outcome, write_outcome, write_text
from benchmark.pipeline import Machine, Step
from benchmark.plan import Plan, plan_trial
from benchmark.progress import Reporter
from benchmark.registry import METHODS
from benchmark.search import CellStudy, Settings, check_tune, search_space, storage_at
from benchmark.stage import Stage
from benchmark.sweep_settings import Cell, SweepSettings
from benchmark.trial import Trial
from benchmark.workfolder import Place, WorkFolder
from datasets.base import Dataset, Split
from datasets.check import preflight, val_in_training

OBJECTIVE = "pseudo_mask.tune/mIoU"
"""Maximised by the search (with the selection's name behind it); needs no segmentation network."""


@dataclass
class CellPlan:
    """A cell with all that its trials share."""

    cell: Cell
    place: Place
    data: Dataset
    digest: str
    default: Plan
    """The plan of a confirming trial with the default settings."""
    fixed: Settings
    """The sweep's settings that this cell's stages have."""

    def facts(self) -> dict[str, Any]:
        """Return what is told of every trial of the cell, and of the cell where a trial is missing."""
        trial, stages, method = self.default.trial, self.default.chain.stages, self.default.chain.method
        values = [stage.settings() for stage in stages]
        crf = next((v["preset"] for v in values if "preset" in v), "none")
        scales = next((v["scales"] for s, v in zip(stages, values, strict=True) if "scales" in v), None)
        chosen = next((v["selection"] for v in values if "selection" in v), "none")
        # Read from the stage, so that no way of setting it escapes the mark.
        network = self.default.chain.segment[0].settings() if self.default.chain.segment else {}
        initialisation = network.get("weights", trial.weights)
        masks = "+COCO masks" if initialisation == "coco" else ""
        val = "+val images" if trial.allow_val_in_training and val_in_training(self.data) else ""
        return {
            "method": self.cell.method,
            "refiner": self.cell.refiner,
            "dataset": self.cell.dataset,
            "variant": self.cell.variant,
            "supervision": "" if method is None else method.supervision + masks + val,
            "backbone": trial.backbone,
            "initialisation": trial.weights,
            "segmentation_backbone": network.get("backbone", trial.backbone),
            "segmentation_initialisation": initialisation,
            "crf_preset": crf,
            "multi_scale": "none" if scales is None else ",".join(f"{scale:g}" for scale in scales),
            "segmentation": "deeplab" if self.default.chain.segment else "none",
            "selection": chosen,
            "tuning_masks": len(self.data.ids(Split.TUNE)),
            "data_digest": self.digest,
            "segment": trial.segment,
        }


@dataclass
class SweepPlan:
    """All cells of a sweep, checked: every name known, every setting valid, every chain possible."""

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

    def plan(self, cell: CellPlan, trial: Trial) -> Plan:
        """Return what a trial of a cell will compute."""
        return plan_trial(trial, cell.data, self.work, Machine(), cell.digest)

    def space(self, cell: CellPlan) -> dict[str, Any]:
        """Return the search space of a cell; the segmentation network is no part of a search."""
        chain = cell.default.chain
        return search_space([*chain.localise, *chain.refine], self.settings.tune, cell.fixed)

    def job(
        self,
        cell: CellPlan,
        phase: Phase,
        name: SettingsName,
        number: int | None,
        seed: int,
        changes: Mapping[str, Any],
        rivals: list[list[float]] | None = None,
    ) -> Job:
        """Return the job of one trial."""
        trial = self.trial(cell, seed, changes, phase)
        return Job(
            self.settings.name,
            cell.cell,
            phase,
            name,
            number,
            trial,
            cell.place,
            cell.digest,
            cell.facts(),
            rivals,
        )

    def expected(self) -> int:
        """Return the number of trials of the whole sweep."""
        confirming = len(self.settings.seeds) * (2 if self.settings.trials else 1)
        return len(self.cells) * (self.settings.trials + confirming)

    def description(self) -> dict[str, Any]:
        """Return what the leaderboard must know to show what is missing (`sweep.json`)."""
        return {
            "version": 1,
            "name": self.settings.name,
            "trials": self.settings.trials,
            "search_seed": self.settings.search_seed,
            "seeds": list(self.settings.seeds),
            "tune": list(self.settings.tune),
            "objective": OBJECTIVE,
            "cells": [cell.facts() for cell in self.cells],
        }


def plan_sweep(settings: SweepSettings, work: WorkFolder, reporter: Reporter) -> SweepPlan:
    """Open the data sets, build every chain and check every setting. Raises ConfigError, DataError."""
    plan = SweepPlan(settings, work, [])
    places = {name: work.locate(name, settings.root_of(name), reporter) for name in settings.dataset_names()}
    opened = {name: place.open() for name, place in places.items()}
    for data in opened.values():
        preflight(data, allow_val_in_training=settings.allow_val_in_training, processes=settings.workers)
    digests = {name: work.digest(data, reporter) for name, data in opened.items()}
    known: set[str] = set()
    for cell in settings.cells():
        place, data, digest = places[cell.dataset], opened[cell.dataset], digests[cell.dataset]
        # A setting of the method may bring in stages that other settings are about.
        method = type(METHODS.load(cell.method)).__name__
        given = settings.settings_of(cell)
        own = {key: value for key, value in given.items() if key.partition(".")[0] == method}
        bare = plan_trial(_trial(settings, cell, settings.seeds[0], own, "confirm"), data, work, Machine(), digest)
        names = {type(stage).__name__ for stage in bare.chain.configured}
        known |= names
        fixed = {key: value for key, value in given.items() if key.partition(".")[0] in names}
        if cell.variant and (lost := {*settings.variants[cell.variant].settings} - {*fixed}):
            raise unknown_name(f"stage of the variant {cell.variant!r}", sorted(lost)[0].partition(".")[0], names)
        trial = _trial(settings, cell, settings.seeds[0], fixed, "confirm")
        default = plan_trial(trial, data, work, Machine(), digest)
        plan.cells.append(CellPlan(cell, place, data, digest, default, fixed))
    for key in settings.settings:
        if key.partition(".")[0] not in known:
            raise unknown_name("stage", key.partition(".")[0], known)
    if settings.trials:
        chains: list[list[Stage]] = [[*c.default.chain.localise, *c.default.chain.refine] for c in plan.cells]
        check_tune(chains, settings.tune)
    return plan


def _trial(settings: SweepSettings, cell: Cell, seed: int, changes: Mapping[str, Any], phase: Phase) -> Trial:
    variant = settings.variants[cell.variant] if cell.variant else None
    own = None if variant is None else variant.segmentation_backbone
    return Trial(
        dataset=cell.dataset,
        method=cell.method,
        refiner=cell.refiner,
        seed=seed,
        backbone=settings.backbone,
        weights=settings.weights,
        segmentation_backbone=own or settings.segmentation_backbone,
        segmentation_weights=settings.segmentation_weights,
        size=settings.size,
        segment=settings.segment if variant is None else variant.segment,
        selections=settings.selections,
        maps_on=settings.maps_on,
        allow_val_in_training=settings.allow_val_in_training,
        settings=dict(changes),
        measure_on="tune" if phase == "search" else "report",
    )


@dataclass
class _CellState:
    """Where a cell is."""

    plan: CellPlan
    study: CellStudy
    waiting: list[Job] = field(default_factory=list)
    begun: int = 0
    dealt: int = 0
    confirming: set[SettingsName] = field(default_factory=set)


class Dealer:
    """Deals out the trials of a sweep, and is told how each one ended. Knows what ended before a kill."""

    def __init__(self, plan: SweepPlan) -> None:
        """Read the state of the sweep from its folder. What was running when it stopped is dealt again."""
        self.plan = plan
        plan.folder.mkdir(parents=True, exist_ok=True)
        storage = storage_at(plan.folder / "studies.db")
        settings = plan.settings
        self._cells = [
            _CellState(
                cell,
                CellStudy(
                    storage,
                    str(cell.cell),
                    plan.space(cell),
                    settings.search_seed,
                    settings.trials,
                    settings.window,
                ),
            )
            for cell in plan.cells
        ]
        self._running: dict[str, tuple[Job, dict[str, Step]]] = {}
        self._steps: dict[str, dict[str, Step]] = {}
        self.finished = 0
        self.computed_seconds: dict[Phase, list[float]] = {"search": [], "confirm": []}

    def folder(self, job: Job) -> Path:
        """Return the folder of a trial."""
        return self.plan.folder / "trials" / job.key

    def cell_of(self, job: Job) -> CellPlan:
        """Return the cell of a job."""
        return self._state(job).plan

    def refresh(self) -> None:
        """Take up what ended before a kill."""
        for state in self._cells:
            self._advance(state)

    def deal(self) -> Job | None:
        """Return the next trial, None where none can start now (`done` says whether any is left)."""
        self.refresh()
        busy = self._busy()
        for phase in ("search", "confirm"):
            for state in sorted(self._cells, key=lambda s: s.dealt):
                for job in state.waiting:
                    if job.phase != phase or not busy.isdisjoint(self._steps.get(job.key, ())):
                        continue
                    missing = self._missing(job)
                    if busy.isdisjoint(missing):
                        state.waiting.remove(job)
                        state.dealt += 1
                        self._running[job.key] = (job, missing)
                        folder = self.folder(job)
                        folder.mkdir(parents=True, exist_ok=True)
                        (folder / BEGUN).unlink(missing_ok=True)
                        write_text(folder / JOB, job.to_json())
                        return job
        return None

    @property
    def done(self) -> bool:
        """Whether every trial has ended."""
        return self.finished == self.plan.expected()

    def finish(self, outcome: Outcome) -> Job:
        """Note how a dealt trial ended, and return it."""
        job, _ = self._running[outcome.key]
        # The file comes first: what Optuna is told must be known after a kill too.
        if read_outcome(self.folder(job)) is None:
            write_outcome(self.folder(job), outcome)
        self._note(self._state(job), job, outcome)
        del self._running[outcome.key]
        if outcome.computed:
            self.computed_seconds[job.phase].append(outcome.finished - outcome.started)
        return job

    def give_up(self, key: str, reason: str) -> Outcome:
        """Return how a trial ended whose worker could not say so itself: failed, unless it left a result."""
        job, _ = self._running[key]
        return read_outcome(self.folder(job)) or Outcome(key, "failed", reason)

    def take_back(self, key: str) -> None:
        """Let a dealt trial wait again, as the next of its cell."""
        job, _ = self._running.pop(key)
        state = self._state(job)
        state.waiting.insert(0, job)
        state.dealt -= 1

    def remaining(self) -> dict[Phase, int]:
        """Return how many trials of each phase have not ended."""
        search = sum(not s.study.finished(n) for s in self._cells for n in range(self.plan.settings.trials))
        return {"search": search, "confirm": self.plan.expected() - self.finished - search}

    def best(self, job: Job) -> float | None:
        """Return the best objective so far in the cell of a job."""
        study = self._state(job).study
        number = study.best()
        return None if number is None else study.value(number)

    def _advance(self, state: _CellState) -> None:
        """Fill the list of trials that wait, as far as the cell's results allow; take up what ended before."""
        settings = self.plan.settings
        while state.begun < settings.trials and state.study.ready(state.begun):
            number = state.begun
            changes = state.study.begin(number)
            name: SettingsName = "suggested" if number else "default"
            rivals = state.study.rivals(number) if settings.early_stopping else None
            job = self.plan.job(
                state.plan,
                "search",
                name,
                number,
                settings.search_seed,
                changes if number else {},
                rivals,
            )
            state.begun += 1
            self._add(state, job)
        if "default" not in state.confirming:
            self._confirm(state, "default", {})
        searched = settings.trials and all(state.study.finished(n) for n in range(settings.trials))
        if searched and "best" not in state.confirming:
            best = state.study.best()
            # Where no search trial came to its end, the best known settings are the default ones.
            self._confirm(state, "best", state.study.begin(best) if best else {})

    def _confirm(self, state: _CellState, name: SettingsName, changes: Settings) -> None:
        state.confirming.add(name)
        for seed in self.plan.settings.seeds:
            self._add(state, self.plan.job(state.plan, "confirm", name, None, seed, changes))

    def _add(self, state: _CellState, job: Job) -> None:
        outcome = read_outcome(self.folder(job))
        if outcome is None:
            state.waiting.append(job)
        else:
            self._note(state, job, outcome)

    def _note(self, state: _CellState, job: Job, outcome: Outcome) -> None:
        if job.number is not None:
            losses = outcome.losses if self.plan.settings.early_stopping else ()
            state.study.finish(job.number, outcome.status, outcome.objective, losses)
        self.finished += 1
        self._steps.pop(job.key, None)

    def _state(self, job: Job) -> _CellState:
        return next(state for state in self._cells if state.plan.cell == job.cell)

    def _missing(self, job: Job) -> dict[str, Step]:
        """Return the steps of a trial that are not in the store."""
        if job.key not in self._steps:
            try:
                self._steps[job.key] = self.plan.plan(self.cell_of(job), job.trial).steps()
            except Exception:
                # Settings that do not go together: the worker meets the same error and writes it down.
                self._steps[job.key] = {}
        store = self.plan.work.store
        missing = {key: step for key, step in self._steps[job.key].items() if not store.path(key).exists()}
        self._steps[job.key] = missing
        return missing

    def _busy(self) -> set[str]:
        """Return the keys that running trials still have to compute."""
        store = self.plan.work.store
        for _, missing in self._running.values():
            for key in [key for key in missing if store.path(key).exists()]:
                del missing[key]
        return {key for _, missing in self._running.values() for key in missing}
