"""Ends the runs that a kill left RUNNING in MLflow, from the locks that the kernel frees when a process dies."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.sweeps.trial_files import RESULT, SPEC, is_running
from seedbed.benchmark.tracking.client import Tracker
from seedbed.benchmark.tracking.trial_run import upload_once


def is_driven(sweep: Path) -> bool:
    """Return whether a driver is running the sweep in a folder."""
    try:
        with FileLock(sweep / "driver.lock", timeout=0):
            return False
    except Timeout:
        return True


def end_lost_runs(tracker: Tracker, work: WorkFolder, own: Path | None = None) -> int:
    """End the runs of the work folder that are RUNNING in MLflow although no process runs them any more.

    A trial that left a result is uploaded; one without becomes KILLED. `own` is the folder of the sweep that the
    caller drives or ends: its run is the caller's, and its trials run only as long as a worker has their locks.
    Returns the number of trials of `own` that still run.
    """
    still_running = 0
    identities: dict[str | None, bool] = {}
    for run in tracker.running():
        tags = run.data.tags
        sweep = work.sweeps / tags["seedbed.sweep"] if tags.get("seedbed.sweep") else None
        parent = run.info.run_id if tags["seedbed.kind"] == "sweep" else tags.get("mlflow.parentRunId")
        if sweep is not None:
            # On a server that a group shares, another work folder may have a sweep of this name.
            if parent not in identities:
                identities[parent] = _is_same(tracker, parent, sweep)
            if not identities[parent] or (sweep != own and is_driven(sweep)):
                continue
        if tags["seedbed.kind"] == "sweep":
            if sweep != own:
                tracker.close(run.info.run_id, "KILLED")
            continue
        folder = _folder_of(work, sweep, tags)
        if not (folder / SPEC).exists():
            continue
        if is_running(folder):
            still_running += sweep is not None and sweep == own
        elif (folder / RESULT).exists():
            upload_once(tracker, parent, folder, again=True)
        else:
            tracker.close(run.info.run_id, "KILLED")
    return still_running


def _folder_of(work: WorkFolder, sweep: Path | None, tags: Mapping[str, str]) -> Path:
    return (work.runs if sweep is None else sweep / "trials") / tags["seedbed.key"]


def _is_same(tracker: Tracker, parent: str | None, sweep: Path) -> bool:
    """Return whether the sweep in a folder is the one of a parent run."""
    if parent is None:
        return False
    with contextlib.suppress(OSError, ValueError, AttributeError):
        own = json.loads((sweep / "sweep.json").read_bytes()).get("id", "")
        return bool(tracker.client.get_run(parent).data.tags.get("seedbed.id") == own)
    return False
