"""Uploads the trials of a running sweep to MLflow, from the files that the trials write.

Only the sweep's driver and `seedbed sync` talk to MLflow, so a slow or unreachable server delays no trial. What
could not be uploaded stays in the work folder. Uploading twice, or after a kill, makes no second run.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from seedbed.benchmark.files import write_text
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.sweeps.trial_files import UPLOADED, is_running
from seedbed.benchmark.tracking.client import Tracker
from seedbed.benchmark.tracking.lost_runs import end_lost_runs
from seedbed.benchmark.tracking.run_content import Number
from seedbed.benchmark.tracking.store import check_uri
from seedbed.benchmark.tracking.sweep_state import SweepState
from seedbed.benchmark.tracking.trial_run import INTERVAL, LiveRun, upload_once

CLOSED = "closed"
"""In the folder of a sweep: its parent run was ended."""

POLL = 1.0
"""Seconds between two looks at the files of running trials."""
DYING = 5.0
"""Seconds that a worker may take to die after its driver has stopped it."""

logger = logging.getLogger(__name__)


class MlflowUploader:
    """Listens to a sweep, and uploads its trials in a thread of its own."""

    def __init__(self, uri: str | None, work: WorkFolder) -> None:
        """`uri` is an MLflow server; None: the work folder's own store. Raises ConfigError for an invalid one."""
        if uri is not None:
            check_uri(uri)
        self._uri, self._work = uri, work.resolved()
        self._folder = Path()
        self._queue: queue.Queue[tuple[str, Path] | None] = queue.Queue()
        self._running: dict[Path, LiveRun] = {}
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._tracker: Tracker | None = None
        self._parent = ""
        self._state, self._numbers = SweepState(self._folder), list[Number]()
        self._retry_at = self._state_at = 0.0
        self.left = 0
        """How many trials could not be uploaded; known once the sweep has stopped."""

    def sweep_started(self, folder: Path) -> None:
        """Begin with the trials that ended earlier and were not uploaded."""
        self._folder, self._state = folder, SweepState(folder)
        (folder / CLOSED).unlink(missing_ok=True)
        self._thread.start()

    def trial_started(self, trial: Path) -> None:
        """Follow the trial in a folder from the moment at which a worker begins it."""
        self._queue.put(("started", trial))

    def trial_ended(self, trial: Path) -> None:
        """Upload the trial in a folder when its turn comes."""
        self._queue.put(("ended", trial))

    def sweep_stopped(self, finished: bool) -> None:
        """Upload the remaining trials, end the parent run, and return."""
        status = "FINISHED" if finished else "KILLED"
        self._queue.put(None)
        self._thread.join()
        self.left = len(self._waiting())
        if self._tracker is not None:
            with self._forgiving():
                self._send_state(self._tracker)
                left_running = end_lost_runs(self._tracker, self._work, self._folder)
                self._tracker.close(self._parent, status)
                if not left_running:
                    write_text(self._folder / CLOSED, status)
        if self.left:
            logger.info(
                f"note: {self.left} trials could not be uploaded to MLflow; their records are kept, "
                "and `seedbed sync` uploads them"
            )

    def _run(self) -> None:
        self._connect()
        for folder in self._waiting():
            self._upload(folder)
        while True:
            with contextlib.suppress(queue.Empty):
                if (item := self._queue.get(timeout=POLL)) is None:
                    break
                what, folder = item
                if what == "started":
                    self._running[folder] = LiveRun(folder)
                else:
                    self._running.pop(folder, None)
                    self._upload(folder)
            self._send()
        self._retry_at = 0.0
        for folder in self._waiting():
            self._upload(folder)
        self._wait_for_the_dying()

    def _connect(self) -> None:
        if self._tracker is None:
            with self._forgiving():
                tracker = Tracker(self._uri, self._work)
                description = json.loads((self._folder / "sweep.json").read_text())
                self._parent = tracker.sweep(
                    self._folder.name, description, description.get("code", ""), self._folder
                )
                end_lost_runs(tracker, self._work, self._folder)
                self._tracker = tracker

    def _upload(self, folder: Path) -> None:
        if time.monotonic() < self._retry_at:
            return
        self._connect()
        if self._tracker is not None:
            with self._forgiving():
                upload_once(self._tracker, self._parent, folder)

    def _send(self) -> None:
        """Deliver what is new of the running trials and of the sweep."""
        if time.monotonic() < self._retry_at:
            return
        self._connect()
        if self._tracker is not None:
            with self._forgiving():
                if time.monotonic() >= self._state_at:
                    self._send_state(self._tracker)
                for run in self._running.values():
                    run.send(self._tracker, self._parent)

    def _send_state(self, tracker: Tracker) -> None:
        self._state_at = time.monotonic() + INTERVAL
        if (numbers := self._state.numbers()) != self._numbers:
            tracker.send(self._parent, numbers, {})
            self._numbers = numbers

    def _wait_for_the_dying(self) -> None:
        end = time.monotonic() + DYING
        while any(is_running(folder) for folder in self._running) and time.monotonic() < end:
            time.sleep(0.1)

    def _waiting(self) -> list[Path]:
        results = sorted(self._folder.glob("trials/*/result.json"))
        return [path.parent for path in results if not (path.parent / UPLOADED).exists()]

    @contextmanager
    def _forgiving(self) -> Iterator[None]:
        """Keep going if MLflow cannot be reached, and try again a minute later."""
        try:
            yield
        except Exception as error:
            self._retry_at = time.monotonic() + 60
            text = (str(error).splitlines() or [""])[0]
            logger.info(f"note: MLflow did not take the records ({type(error).__name__}: {text[:300]})")
