"""Which trial is next: all cells of a sweep, their two phases, and what must wait for what.

Search: the trials of a cell on `tune`, under its Optuna study. Confirm: default and best settings with every seed.
Cells take turns, and searching goes first; the default settings are confirmed whenever no search trial can start.
A trial that needs a stage which another one is computing is held back until that stage is in the
store, so that nothing is computed twice and no machine waits. Nothing here knows Ray or MLflow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from seedbed.benchmark.errors import ConfigError, unknown_name
from seedbed.benchmark.pipeline.hparams import checked
from seedbed.benchmark.pipeline.pipeline import Step
from seedbed.benchmark.sweeps.plan import CellPlan, SweepPlan
from seedbed.benchmark.sweeps.search import CellStudy, Settings, extremes, storage_at
from seedbed.benchmark.sweeps.settings import Cell
from seedbed.benchmark.sweeps.trial_files import (
    BEGUN,
    JOB,
    Job,
    Outcome,
    Phase,
    SettingsName,
    read_job,
    read_outcome,
    write_outcome,
    write_text,
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
        self.ended: list[tuple[Job, Outcome]] = []
        """All trials that have ended, those of earlier drivers too."""

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
    def finished(self) -> int:
        """How many trials have ended, in whatever way."""
        return len(self.ended)

    @property
    def done(self) -> bool:
        """Whether every trial has ended."""
        return self.finished == self.plan.expected()

    def changes(self) -> list[str]:
        """Say how this code's search spaces differ from those with which unfinished searches go on.

        Raises ConfigError if this code cannot run what an unfinished search draws or drew.
        """
        notes = []
        for state in self._cells:
            if state.study.notes and (state.waiting or state.begun < self.plan.settings.trials):
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
                    f"{state.plan.cell}: the search began with other code, and this code cannot go on with {key} "
                    f"({error}). Use the code that it began with, or give the sweep a new name: what is in the "
                    "store is not computed again"
                ) from None

    def finish(self, outcome: Outcome) -> Job:
        """Note how a dealt trial ended, and return it."""
        job, _ = self._running[outcome.key]
        # The file comes first: what Optuna is told must be known after a kill too.
        if read_outcome(self.folder(job)) is None:
            write_outcome(self.folder(job), outcome)
        self._note(self._state(job), job, outcome)
        del self._running[outcome.key]
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

    def remaining(self) -> dict[tuple[Cell, Phase], int]:
        """Return how many trials of each cell and phase have not ended."""
        settings = self.plan.settings
        confirming = len(settings.seeds) * (2 if settings.trials else 1)
        left: dict[tuple[Cell, Phase], int] = {}
        for state in self._cells:
            left[state.plan.cell, "search"] = settings.trials
            left[state.plan.cell, "confirm"] = confirming
        for job, _ in self.ended:
            left[job.cell, job.phase] -= 1
        return left

    def seconds(self) -> dict[tuple[Cell, Phase], list[float]]:
        """Return how long trials took that computed something and did not fail, by cell and phase."""
        found: dict[tuple[Cell, Phase], list[float]] = {}
        for job, outcome in self.ended:
            if outcome.computed and outcome.status != "failed":
                found.setdefault((job.cell, job.phase), []).append(outcome.finished - outcome.started)
        return found

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
            changes = state.study.begin(number, self._dealt(state, number))
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

    def _dealt(self, state: _CellState, number: int) -> Settings | None:
        """Return what was drawn for a search trial that ran but that the study has lost."""
        if number == 0 or state.study.knows(number):
            return None
        settings = self.plan.settings
        folder = self.folder(self.plan.job(state.plan, "search", "suggested", number, settings.search_seed, {}))
        if read_outcome(folder) is None:
            return None
        drawn = {key: v for key, v in read_job(folder).trial.settings.items() if key in state.study.space}
        return drawn if drawn.keys() == state.study.space.keys() else None

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
        self.ended.append((job, outcome))
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
