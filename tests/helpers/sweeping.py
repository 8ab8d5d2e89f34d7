"""Small sweeps for tests: settings, and trials that end without being run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from seedbed.benchmark.pipeline.store import Store
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.sweeps.plan import plan_sweep
from seedbed.benchmark.sweeps.resume import describe
from seedbed.benchmark.sweeps.scheduler import Scheduler
from seedbed.benchmark.sweeps.settings import SweepSettings, settings_of
from seedbed.benchmark.sweeps.trial_files import Outcome, TrialSpec, write_outcome

SHORT = {"TrainCam.epochs": 1, "TrainSegmentation.epochs": 1}


def small(root: Path, **changes: Any) -> SweepSettings:
    """Return the settings of a sweep of CAM over one tiny data set, with as little training as there can be.

    It has no references unless `references=True`.
    """
    return settings_of(
        {
            "name": "small",
            "methods": ["cam"],
            "refiners": ["none", "crf"],
            "datasets": [f"chimera-voc={root}"],
            "trials": 2,
            "seeds": [0, 1],
            "settings": SHORT,
            "references": False,
            **changes,
        }
    )


def scheduler_of(settings: SweepSettings, work: Path) -> Scheduler:
    """Return the scheduler of a sweep, as a driver that just started would make it."""
    return Scheduler(plan_sweep(settings, WorkFolder(work)))


def put_entry(store: Store, key: str) -> None:
    """Pretend that a stage has been computed."""
    store.path(key).mkdir(parents=True, exist_ok=True)
    record = {"key": key, "identity": {"stage": "Pretended", "data": ""}, "seconds": 1.0, "bytes": 0}
    (store.path(key) / "entry.json").write_text(json.dumps(record))


def end(scheduler: Scheduler, spec: TrialSpec, objective: float | None = 0.5, **outcome: Any) -> None:
    """Let a started trial end: its stages are in the store, its result is written, the scheduler knows."""
    for key in scheduler.plan.plan(scheduler.cell_of(spec), spec.trial).steps():
        put_entry(scheduler.plan.work.store, key)
    result = Outcome(spec.key, **{"status": "complete", "objective": objective, **outcome})
    write_outcome(scheduler.folder(spec), result)
    scheduler.finish(result)


def run_to_its_end(scheduler: Scheduler, slots: int = 2, objective: Any = lambda spec: 0.5) -> list[TrialSpec]:
    """Start and end all trials, `slots` at a time, and return them in the order in which they were started."""
    started: list[TrialSpec] = []
    running: list[TrialSpec] = []
    while not scheduler.done:
        while len(running) < slots and (spec := scheduler.next_trial()) is not None:
            started.append(spec)
            running.append(spec)
        # An empty list here means that nothing runs and nothing can be started.
        spec = running.pop(0)
        end(scheduler, spec, objective(spec))
    return started


def run_sweep_here(settings: SweepSettings, work: WorkFolder) -> None:
    """Run all trials of a sweep in this process, without Ray, and upload them to MLflow."""
    from seedbed.benchmark.sweeps.worker import run_sweep_trial
    from seedbed.benchmark.tracking.sync import sync

    scheduler = Scheduler(plan_sweep(settings, work))
    settings.save(scheduler.plan.folder / "sweep.yaml")
    describe(scheduler.plan.folder, scheduler.plan)
    while (spec := scheduler.next_trial()) is not None:
        scheduler.finish(run_sweep_trial(spec, work, "cpu", 0))
    sync(work, None)
