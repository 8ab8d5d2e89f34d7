"""Runs one trial of a sweep and writes its folder. Knows neither Ray nor MLflow.

Every error inside the trial becomes an outcome `failed` with its reason; only the death of the process does not.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from filelock import FileLock

from seedbed.benchmark.environment import environment
from seedbed.benchmark.errors import SeedbedError, out_of_memory
from seedbed.benchmark.evaluation.records import OBJECTIVE, Record, first_value
from seedbed.benchmark.files import write_text
from seedbed.benchmark.pipeline.stage import Machine
from seedbed.benchmark.pipeline.work_folder import DatasetSpec, WorkFolder
from seedbed.benchmark.progress import log_to_file
from seedbed.benchmark.sweeps.search import StoppedEarlyError, stop_if_above_median
from seedbed.benchmark.sweeps.trial_files import (
    BEGUN,
    CONFIG,
    ERROR,
    LOG,
    RUNNING,
    SYSTEM,
    Outcome,
    TrialSpec,
    read_outcome,
    write_outcome,
)
from seedbed.benchmark.system_metrics import SystemMetrics
from seedbed.benchmark.trials.measurements import write_measurements
from seedbed.benchmark.trials.plan import TrialPlan, plan_trial
from seedbed.benchmark.trials.progress_log import ProgressLog, curves, stored_history
from seedbed.datasets.base import Dataset

if TYPE_CHECKING:
    from seedbed.benchmark.training.loop import TrainingStage

REASON = 500
"""Maximum length of a failure's reason in characters."""


def run_sweep_trial(spec: TrialSpec, work: WorkFolder, device: str, workers: int) -> Outcome:
    """Run a trial, write its folder, and return how it ended; an ended trial does not run again.

    A worker that outlived its driver and a worker of the resumed sweep take turns.
    """
    folder = work.sweeps / spec.sweep / "trials" / spec.key
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / RUNNING):
        if (outcome := read_outcome(folder)) is not None:
            return outcome
        # On a full disk this mark is missing, and the death of this worker is not counted.
        with contextlib.suppress(OSError):
            (folder / BEGUN).touch()
        with log_to_file(folder / LOG):
            return _run(spec, folder, work, device, workers)


def _run(spec: TrialSpec, folder: Path, work: WorkFolder, device: str, workers: int) -> Outcome:
    machine = Machine(device=device, workers=workers)
    started = time.time()
    losses: list[float] = []
    outcome = Outcome(spec.key, "complete")
    plan: TrialPlan | None = None
    log: ProgressLog | None = None
    try:
        with SystemMetrics(folder / SYSTEM):
            plan = plan_trial(spec.trial, _opened(_frozen(spec.dataset_spec)), work, machine, spec.digest)
            # What MLflow shows of a running trial is in its folder before the log, which says that it runs.
            with contextlib.suppress(OSError):
                write_text(folder / CONFIG, json.dumps(plan.describe(), indent=1))
            log = ProgressLog(plan, folder)
            losses = _first_training(plan, spec.rivals)
            records = plan.measure()
            write_measurements(folder, plan, records, pictures=spec.phase == "confirm")
            outcome = replace(outcome, objective=objective_of(records))
    except StoppedEarlyError as error:
        losses = list(error.losses)
        outcome = replace(outcome, status="pruned", reason=str(error))
    except Exception as error:
        _leave_if_broken(device)
        outcome = replace(outcome, status="failed", reason=reason_of(error))
        # Even this may fail on a full disk.
        with contextlib.suppress(OSError):
            write_text(folder / ERROR, traceback.format_exc())
    return write_end(folder, replace(outcome, losses=losses, started=started), plan, log, device)


def write_end(
    folder: Path, outcome: Outcome, plan: TrialPlan | None, log: ProgressLog | None, device: str
) -> Outcome:
    """Write the last files of a trial that ends now, and return its outcome with what the plan has computed."""
    now = environment()
    outcome = replace(
        outcome,
        computed=sum(entry.seconds for entry in plan.executed) if plan is not None else 0.0,
        finished=time.time(),
        device=device,
        hardware=str((now["gpu"] if device != "cpu" else None) or now["processor"]),
    )
    # What a full disk does not accept now is computed again when the sweep is resumed.
    with contextlib.suppress(OSError, SeedbedError):
        if plan is not None:
            outcome = replace(outcome, stages=_seconds(plan))
            write_text(folder / CONFIG, json.dumps(plan.describe(), indent=1))
            write_text(folder / "losses.json", json.dumps(curves(plan)))
        if log is not None:
            log.add_stored()
        write_outcome(folder, outcome)
    return outcome


def _leave_if_broken(device: str) -> None:
    """End this process if its GPU no longer answers: all later trials would fail on it."""
    if device == "cpu":
        return
    import torch

    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        os._exit(1)


def objective_of(records: Sequence[Record]) -> float | None:
    """Return the mIoU of the pseudo-masks on `tune`; None if it was not measured."""
    return first_value(OBJECTIVE, {record.name: record.value for record in records})


def reason_of(error: BaseException) -> str:
    """Return what went wrong in one line of at most REASON characters; the traceback is in `error.txt`."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not isinstance(error, SeedbedError) and (text := out_of_memory(error)) is not None:
        return text
    if any("Traceback (most recent call last)" in line for line in lines):
        # A loader's worker process writes its traceback before the error.
        text = lines[-1]
    else:
        # `Error(s) in loading state_dict for VGG:` needs the next line.
        text = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
        text = text if isinstance(error, SeedbedError) else f"{type(error).__name__}: {text}".rstrip(": ")
    return text if len(text) <= REASON else text[: REASON - 1] + "…"


def _first_training(plan: TrialPlan, rivals: Sequence[Sequence[float]] | None) -> list[float]:
    """Run the first training, stop it if it is worse than its rivals, and return its losses by epoch."""
    target = plan.first_training()
    if target is None:
        return []
    training = cast("TrainingStage", target.step.stage)
    if rivals:
        name = type(target.step.stage).__name__

        def judge(stage: str, history: Sequence[Mapping[str, float]]) -> None:
            target.pipeline.machine.on_epoch(stage, history)
            if stage == name:
                stop_if_above_median(rivals, training.totals(history), training.stop_after)

        judged = replace(target.pipeline.machine, on_epoch=judge)
        pipeline = replace(target.pipeline, machine=judged, executed=plan.executed)
        folder = pipeline.compute(target.step).path
        # Stored trainings are judged as if they had run now, so that a resumed sweep decides the same.
        stop_if_above_median(rivals, training.totals(stored_history(folder) or []), training.stop_after)
    else:
        folder = target.pipeline.compute(target.step).path
    return training.totals(stored_history(folder) or [])


def _seconds(plan: TrialPlan) -> dict[str, float]:
    """Return the seconds of all stages of a plan that are in the store, by 12 digits of their keys."""
    entries = ((key, plan.work.store.get(key)) for key in plan.steps())
    return {key[:12]: entry.seconds for key, entry in entries if entry is not None}


def _frozen(spec: DatasetSpec) -> tuple[str, str, str, str]:
    return spec.name, spec.loader, spec.root, json.dumps(dict(spec.options), sort_keys=True)


@functools.lru_cache(maxsize=8)
def _opened(spec: tuple[str, str, str, str]) -> Dataset:
    """Open a data set once per process: reading the lists and tags of COCO takes seconds."""
    name, loader, root, options = spec
    return DatasetSpec(name, loader, root, json.loads(options)).open()
