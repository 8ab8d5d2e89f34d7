"""Records a trial of `seedbed run` as a sweep's worker does, and has it delivered to the work folder's MLflow.

Nothing here imports MLflow: another process does (benchmark/tracking/follow.py).
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from seedbed.benchmark.files import write_text
from seedbed.benchmark.pipeline.work_folder import DatasetSpec, WorkFolder
from seedbed.benchmark.sweeps.settings import Cell
from seedbed.benchmark.sweeps.trial_files import (
    BEGUN,
    CONFIG,
    ERROR,
    RESULT,
    RUNNING,
    SPEC,
    SYSTEM,
    UPLOADED,
    Outcome,
    TrialSpec,
    forget,
)
from seedbed.benchmark.sweeps.worker import reason_of, write_end
from seedbed.benchmark.system_metrics import SystemMetrics
from seedbed.benchmark.trials.conditions import conditions_of
from seedbed.benchmark.trials.plan import TrialPlan
from seedbed.benchmark.trials.progress_log import ProgressLog
from seedbed.benchmark.trials.references import REFERENCES
from seedbed.benchmark.trials.trial import Trial

PATIENCE = 60.0
"""Seconds to wait for MLflow at the end of a run."""


class RunRecorder:
    """Records one trial; `record` is for `run_trial`."""

    def __init__(self, trial: Trial, dataset_spec: DatasetSpec, work: WorkFolder) -> None:
        """`trial` is as the user gave it, without the defaults that depend on the data set."""
        self._trial, self._dataset_spec, self._work = trial, dataset_spec, WorkFolder(work.root.resolve())
        self._folder = Path()
        self._delivery: subprocess.Popen[bytes] | None = None

    @contextmanager
    def record(self, plan: TrialPlan, folder: Path) -> Iterator[None]:
        """Write the trial's files in `folder` while it runs, and start the process that delivers them.

        Does nothing if MLflow has the trial and nothing is to be computed, or if another process runs it.
        """
        spec = self._spec(plan)
        lock = FileLock(folder / RUNNING)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield
            return
        try:
            if not (folder / RESULT).exists():
                yield from self._recorded(plan, folder, spec)
            elif _is_delivered(folder, spec) and not plan.missing():
                yield
            else:
                forget(folder)
                yield from self._recorded(plan, folder, spec)
        finally:
            lock.release()

    def _recorded(self, plan: TrialPlan, folder: Path, spec: TrialSpec) -> Iterator[None]:
        started = time.time()
        write_text(folder / SPEC, spec.to_json())
        write_text(folder / CONFIG, json.dumps(plan.describe(), indent=1))
        log = ProgressLog(plan, folder)
        (folder / BEGUN).touch()
        self._deliver(folder.resolve())
        outcome, device = Outcome(folder.name, "complete", started=started), plan.machine.device
        # After Ctrl-C there is no result: MLflow shows the run as killed, and the same command continues it.
        try:
            with SystemMetrics(folder / SYSTEM):
                yield
        except Exception as error:
            with contextlib.suppress(OSError):
                write_text(folder / ERROR, traceback.format_exc())
            write_end(folder, replace(outcome, status="failed", reason=reason_of(error)), plan, log, device)
            raise
        write_end(folder, outcome, plan, log, device)

    def wait(self) -> bool:
        """Wait until MLflow has the trial; return whether it has."""
        if self._delivery is None:
            return True
        try:
            self._delivery.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            return False
        return (self._folder / UPLOADED).exists()

    def _spec(self, plan: TrialPlan) -> TrialSpec:
        trial = self._trial
        reference = next((name for name, how in REFERENCES.items() if how == trial.supervision), "")
        method, refiner = (reference, "") if reference else (trial.method, trial.refiner)
        return TrialSpec(
            sweep="",
            cell=Cell(method, refiner, self._dataset_spec.name),
            phase="confirm",
            settings="given" if trial.settings else "default",
            number=None,
            trial=trial,
            dataset_spec=self._dataset_spec,
            digest=plan.digest,
            conditions=conditions_of(plan),
        )

    def _deliver(self, folder: Path) -> None:
        self._folder = folder
        nowhere = subprocess.DEVNULL
        self._delivery = subprocess.Popen(
            [sys.executable, "-m", "seedbed.benchmark.tracking.follow", str(self._work.root), str(folder)],
            stdin=nowhere,
            stdout=nowhere,
            stderr=nowhere,
            start_new_session=True,  # Ctrl-C is for the training.
        )


def _is_delivered(folder: Path, spec: TrialSpec) -> bool:
    return (folder / UPLOADED).exists() and (folder / SPEC).read_text("utf-8") == spec.to_json()
