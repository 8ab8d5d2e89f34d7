"""The process that delivers a `seedbed run` to MLflow while it runs: `python -m … WORK RUN`.

It is a process of its own because importing MLflow takes seconds, which training need not wait for, and because it
outlives a kill of the training and then ends the run.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.sweeps.trial_files import is_running
from seedbed.benchmark.tracking.client import Tracker
from seedbed.benchmark.tracking.lost_runs import end_lost_runs
from seedbed.benchmark.tracking.trial_run import LiveRun, upload_once

POLL = 0.5
"""Seconds between two looks at the files of the run."""


def follow(work: WorkFolder, folder: Path) -> None:
    """Deliver the trial in `folder` until it ends, and end what is left RUNNING of it and of others."""
    tracker, run = Tracker(None, work), LiveRun(folder)
    while is_running(folder):
        run.send(tracker, None)
        time.sleep(POLL)
    upload_once(tracker, None, folder)
    end_lost_runs(tracker, work)


if __name__ == "__main__":
    follow(WorkFolder(Path(sys.argv[1])), Path(sys.argv[2]))
