"""Chooses the next trial of a sweep, over all cells and their two phases.

Search: the trials of a cell on `tune`, suggested by its Optuna study. Confirm: default and best settings with
every seed. Cells take turns, search trials first; default settings are confirmed when no search trial can start.
If a trial needs a stage that another trial is computing, it waits until that stage is in the store, so that
nothing is computed twice and no machine waits. Nothing here knows Ray or MLflow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from seedbed.benchmark.errors import ConfigError, unknown_name
from seedbed.benchmark.files import write_text
from seedbed.benchmark.pipeline.hparams import checked
from seedbed.benchmark.pipeline.pipeline import Step
from seedbed.benchmark.sweeps.plan import CellPlan, SweepPlan
from seedbed.benchmark.sweeps.search import CellStudy, Settings, extremes, storage_at
from seedbed.benchmark.sweeps.settings import Cell
from seedbed.benchmark.sweeps.trial_files import (
    BEGUN,
    SPEC,
    Outcome,
    Phase,
    SettingsName,
    TrialSpec,
    read_outcome,
    read_spec,
    write_outcome,
)


@dataclass
class _CellState:
    """The phase of a cell."""

    plan: CellPlan
    study: CellStudy
    waiting: list[TrialSpec] = field(default_factory=list)
    begun: int = 0
    started: int = 0
    confirming: set[SettingsName] = field(default_factory=set)


class Scheduler:
    """Chooses the next trial of a sweep, and records how each one ended, so that a kill loses nothing."""

    def __init__(self, plan: SweepPlan) -> None:
        """Read the state of the sweep from its folder. Trials that were running start again."""
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
                    cell.space,
                    settings.search_seed,
                    cell.trials,
                    settings.window,
                ),
            )
            for cell in plan.cells
        ]
        self._running: dict[str, tuple[TrialSpec, dict[str, Step]]] = {}
        self._steps: dict[str, dict[str, Step]] = {}
        self.ended: list[tuple[TrialSpec, Outcome]] = []
        """All ended trials, also of earlier drivers."""

    def folder(self, spec: TrialSpec) -> Path:
        """Return the folder of a trial."""
        return self.plan.folder / "trials" / spec.key

    def cell_of(self, spec: TrialSpec) -> CellPlan:
        """Return the cell of a trial."""
        return self._state(spec).plan

    def refresh(self) -> None:
        """Read the trials that ended before a kill."""
        for state in self._cells:
            self._advance(state)

    def next_trial(self) -> TrialSpec | None:
        """Return the next trial; None if none can start now (`done`: whether none is left)."""
        self.refresh()
        busy = self._busy()
        for phase in ("search", "confirm"):
            # References come last: their times say nothing about those of the methods' trials.
            for state in sorted(self._cells, key=lambda s: (bool(s.plan.cell.reference), s.started)):
                for spec in state.waiting:
                    if spec.phase != phase or not busy.isdisjoint(self._steps.get(spec.key, ())):
                        continue
                    missing = self._missing(spec)
                    if busy.isdisjoint(missing):
                        state.waiting.remove(spec)
                        state.started += 1
                        self._running[spec.key] = (spec, missing)
                        folder = self.folder(spec)
                        folder.mkdir(parents=True, exist_ok=True)
                        (folder / BEGUN).unlink(missing_ok=True)
                        write_text(folder / SPEC, spec.to_json())
                        return spec
        return None

    @property
    def finished(self) -> int:
        """Number of trials that have finished or failed."""
        return len(self.ended)

    @property
    def done(self) -> bool:
        """Whether every trial has ended."""
        return self.finished == self.plan.expected()

    def changes(self) -> list[str]:
        """Return how this code's search spaces differ from those that unfinished searches keep.

        Raises ConfigError if this code cannot run the settings of an unfinished search.
        """
        notes = []
        for state in self._cells:
            if state.study.notes and (state.waiting or state.begun < state.plan.trials):
                self._check_space(state)
                notes += [f"{state.plan.cell}: {note}" for note in state.study.notes]
        return notes

    def _check_space(self, state: _CellState) -> None:
        classes = {type(stage).__name__: type(stage) for stage in state.plan.default.chain.configured}
        for key, (space, _) in state.study.space.items():
            stage, _, name = key.partition(".")
            try:
                if stage not in classes:
                    raise unknown_name("stage", stage, classes)
                for value in extremes(space):
                    checked(classes[stage], name, value)
            except ConfigError as error:
                raise ConfigError(
                    f"{state.plan.cell}: the search began with other code, and this code cannot continue with "
                    f"{key} ({error}). Use the code that it began with, or give the sweep a new name: stored "
                    "results are not computed again"
                ) from None

    def finish(self, outcome: Outcome) -> TrialSpec:
        """Record how a started trial ended, and return it."""
        spec, _ = self._running[outcome.key]
        # Write the file first: after a kill, it must contain all that Optuna knows.
        if read_outcome(self.folder(spec)) is None:
            write_outcome(self.folder(spec), outcome)
        self._note(self._state(spec), spec, outcome)
        del self._running[outcome.key]
        return spec

    def give_up(self, key: str, reason: str) -> Outcome:
        """Return the outcome of a trial whose worker was lost: failed, unless it left a result."""
        spec, _ = self._running[key]
        return read_outcome(self.folder(spec)) or Outcome(key, "failed", reason)

    def take_back(self, key: str) -> None:
        """Put a started trial back, as the next of its cell."""
        spec, _ = self._running.pop(key)
        state = self._state(spec)
        state.waiting.insert(0, spec)
        state.started -= 1

    def remaining(self) -> dict[tuple[Cell, Phase], int]:
        """Return the number of trials of each cell and phase that have not ended."""
        left: dict[tuple[Cell, Phase], int] = {}
        for plan in self.plan.cells:
            left[plan.cell, "search"] = plan.trials
            left[plan.cell, "confirm"] = plan.expected - plan.trials
        for spec, _ in self.ended:
            left[spec.cell, spec.phase] -= 1
        return left

    def seconds(self) -> dict[tuple[Cell, Phase], list[float]]:
        """Return the durations of trials that computed something and did not fail, by cell and phase."""
        found: dict[tuple[Cell, Phase], list[float]] = {}
        for spec, outcome in self.ended:
            if outcome.computed and outcome.status != "failed":
                found.setdefault((spec.cell, spec.phase), []).append(outcome.finished - outcome.started)
        return found

    def best(self, spec: TrialSpec) -> float | None:
        """Return the best objective so far in the cell of a trial."""
        study = self._state(spec).study
        number = study.best()
        return None if number is None else study.value(number)

    def _advance(self, state: _CellState) -> None:
        """Fill the list of waiting trials, as far as the cell's results allow; read trials that ended before."""
        settings, trials = self.plan.settings, state.plan.trials
        while state.begun < trials and state.study.ready(state.begun):
            number = state.begun
            changes = state.study.begin(number, self._settings_of_ended(state, number))
            name: SettingsName = "suggested" if number else "default"
            rivals = state.study.rivals(number) if settings.early_stopping else None
            spec = self.plan.spec(
                state.plan,
                "search",
                name,
                number,
                settings.search_seed,
                changes if number else {},
                rivals,
            )
            state.begun += 1
            self._add(state, spec)
        if "default" not in state.confirming:
            self._confirm(state, "default", {})
        searched = trials and all(state.study.finished(n) for n in range(trials))
        if searched and "best" not in state.confirming:
            best = state.study.best()
            # If no search trial finished, the best known settings are the defaults.
            self._confirm(state, "best", state.study.begin(best) if best else {})

    def _settings_of_ended(self, state: _CellState, number: int) -> Settings | None:
        """Return the settings of a search trial that ran but is missing from the study."""
        if number == 0 or state.study.knows(number):
            return None
        settings = self.plan.settings
        folder = self.folder(self.plan.spec(state.plan, "search", "suggested", number, settings.search_seed, {}))
        if read_outcome(folder) is None:
            return None
        drawn = {key: v for key, v in read_spec(folder).trial.settings.items() if key in state.study.space}
        return drawn if drawn.keys() == state.study.space.keys() else None

    def _confirm(self, state: _CellState, name: SettingsName, changes: Settings) -> None:
        state.confirming.add(name)
        for seed in state.plan.seeds:
            self._add(state, self.plan.spec(state.plan, "confirm", name, None, seed, changes))

    def _add(self, state: _CellState, spec: TrialSpec) -> None:
        outcome = read_outcome(self.folder(spec))
        if outcome is None:
            state.waiting.append(spec)
        else:
            self._note(state, spec, outcome)

    def _note(self, state: _CellState, spec: TrialSpec, outcome: Outcome) -> None:
        if spec.number is not None:
            losses = outcome.losses if self.plan.settings.early_stopping else ()
            state.study.finish(spec.number, outcome.status, outcome.objective, losses)
        self.ended.append((spec, outcome))
        self._steps.pop(spec.key, None)

    def _state(self, spec: TrialSpec) -> _CellState:
        return next(state for state in self._cells if state.plan.cell == spec.cell)

    def _missing(self, spec: TrialSpec) -> dict[str, Step]:
        """Return the steps of a trial that are not in the store."""
        if spec.key not in self._steps:
            try:
                self._steps[spec.key] = self.plan.plan(self.cell_of(spec), spec.trial).steps()
            except Exception:
                # Settings that are invalid together: the worker gets the same error and records it.
                self._steps[spec.key] = {}
        store = self.plan.work.store
        missing = {key: step for key, step in self._steps[spec.key].items() if not store.exists(key)}
        self._steps[spec.key] = missing
        return missing

    def _busy(self) -> set[str]:
        """Return the keys that running trials still compute."""
        store = self.plan.work.store
        for _, missing in self._running.values():
            for key in [key for key in missing if store.exists(key)]:
                del missing[key]
        return {key for _, missing in self._running.values() for key in missing}
