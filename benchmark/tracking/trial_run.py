"""The run of one trial in MLflow: what is new in the trial's files while it runs, and at the end all of it."""

from __future__ import annotations

import json
import time
from pathlib import Path

from filelock import FileLock

from seedbed.benchmark.files import write_text
from seedbed.benchmark.sweeps.trial_files import BEGUN, UPLOADED, read_outcome
from seedbed.benchmark.tracking.client import Tracker
from seedbed.benchmark.tracking.run_content import running_metrics
from seedbed.benchmark.trials.progress_log import PROGRESS, read_progress

DELIVERY = "delivery.lock"
"""In the folder of a trial: held while its run is made or uploaded, so that there is one."""
INTERVAL = 10.0
"""Least number of seconds between two deliveries of a running trial."""


class LiveRun:
    """The run of a trial that runs now. Everything is read from the trial's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._run, self._attempt = "", 0.0
        self._sent: set[tuple[str, int]] = set()
        self._next = 0.0

    def send(self, tracker: Tracker, parent: str | None) -> None:
        """Deliver what is new, unless that was done a moment ago; make the run as soon as the trial has begun."""
        begun = (self.folder / BEGUN).exists() and (self.folder / PROGRESS).exists()
        if not begun or time.monotonic() < self._next:
            return
        progress = read_progress(self.folder)
        if progress is None:
            return
        self._next = time.monotonic() + INTERVAL
        if self._attempt != progress.started:
            with FileLock(self.folder / DELIVERY):
                self._run, self._attempt, self._sent = tracker.begin(parent, self.folder), progress.started, set()
        new = [number for number in running_metrics(self.folder) if (number[0], number[3]) not in self._sent]
        tracker.send(self._run, new, {"progress": str(progress)})
        self._sent |= {(name, step) for name, _, _, step in new}


def upload_once(tracker: Tracker, parent: str | None, folder: Path, again: bool = False) -> None:
    """Upload the trial in `folder`, unless it was uploaded or has no result yet. One process at a time."""
    with FileLock(folder / DELIVERY):
        if read_outcome(folder) is None or ((folder / UPLOADED).exists() and not again):
            return
        run = tracker.upload(parent, folder)
        write_text(folder / UPLOADED, json.dumps({"run": run, "uri": tracker.uri}))
