"""Refuses a sweep that would mix results of earlier code with new ones, unless the user accepts them."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from seedbed.benchmark.errors import ConfigError, SeedbedError
from seedbed.benchmark.pipeline.changed_code import OPTION, Change, accept, changes_of, describe
from seedbed.benchmark.pipeline.pipeline import Step
from seedbed.benchmark.sweeps.plan import CellPlan, SweepPlan
from seedbed.benchmark.sweeps.trial_files import Outcome, TrialSpec, read_outcome, read_spec
from seedbed.benchmark.trials.trial import Trial

logger = logging.getLogger(__name__)


def check_code(plan: SweepPlan, accepted: bool) -> None:
    """Check all results that a sweep will read from the store or has finished, before any trial starts.

    If `accepted`, record in the store that today's code gives the same results, and only warn of trials that
    finished with other versions of their stages. Else raise ConfigError, naming what changed.
    """
    changes: dict[str, Change] = {}
    for cell in plan.cells:
        for trial in _known_trials(plan, cell):
            changes |= {change.step.key: change for change in _changes(plan, cell, trial)}
    _decide(list(changes.values()), plan, accepted)
    other = _finished_with_other_versions(plan)
    if other:
        text = (
            f"trials of this sweep that have finished used other versions of {', '.join(other)}. Give the sweep a "
            f"new --name: what is still valid is taken from the store"
        )
        if not accepted:
            raise ConfigError(f"{text}; or give {OPTION} to keep them beside new ones")
        logger.warning(text)


def refusal(plan: SweepPlan) -> str:
    """Return why `check_code` would refuse the sweep without acceptance; empty if it would not."""
    try:
        check_code(plan, accepted=False)
    except ConfigError as error:
        return str(error)
    return ""


def check_trial(plan: SweepPlan, spec: TrialSpec, accepted: bool) -> None:
    """Check the store as `check_code` does, for one trial whose settings were not known before."""
    cell = next(cell for cell in plan.cells if cell.cell == spec.cell)
    _decide(_changes(plan, cell, spec.trial), plan, accepted)


def _decide(changes: list[Change], plan: SweepPlan, accepted: bool) -> None:
    if accepted:
        accept(changes, plan.work.store)
    elif changes:
        raise ConfigError(f"{describe(changes)}, give {OPTION} to use the stored results")


def _changes(plan: SweepPlan, cell: CellPlan, trial: Trial) -> list[Change]:
    return changes_of(_steps(plan, cell, trial).values(), cell.data, plan.work.store)


def _steps(plan: SweepPlan, cell: CellPlan, trial: Trial) -> dict[str, Step]:
    try:
        return plan.plan(cell, trial).steps()
    except SeedbedError:
        # Settings of an earlier suggestion that are invalid today: the trial reports it.
        return {}


def _known_trials(plan: SweepPlan, cell: CellPlan) -> Iterator[Trial]:
    """Yield the trials of a cell that are known before it starts, and the finished ones."""
    if cell.trials:
        yield plan.trial(cell, plan.settings.search_seed, {}, "search")
    for seed in cell.seeds:
        yield plan.trial(cell, seed, {}, "confirm")
    for spec, _ in _finished(plan):
        if spec.cell == cell.cell:
            yield spec.trial


def _finished(plan: SweepPlan) -> Iterator[tuple[TrialSpec, Outcome]]:
    for folder in sorted((plan.folder / "trials").glob("*")):
        try:
            spec, outcome = read_spec(folder), read_outcome(folder)
        except (OSError, ValueError, TypeError, KeyError, SeedbedError):
            continue  # Left by a power loss: the trial runs again.
        if outcome is not None:
            yield spec, outcome


def _finished_with_other_versions(plan: SweepPlan) -> list[str]:
    """Return the stages whose version differs from that of finished trials."""
    cells = {cell.cell: cell for cell in plan.cells}
    names: dict[str, None] = {}
    for spec, outcome in _finished(plan):
        if outcome.status != "complete" or spec.cell not in cells:
            continue
        steps = {key[:12]: step for key, step in _steps(plan, cells[spec.cell], spec.trial).items()}
        if steps and not outcome.stages.keys() <= steps.keys():
            new = [step for key, step in steps.items() if key not in outcome.stages]
            first = [
                step for step in new if not any(i.key[:12] not in outcome.stages for i in step.inputs.values())
            ]
            names |= dict.fromkeys(type(step.stage).__name__ for step in first)
    return list(names)
