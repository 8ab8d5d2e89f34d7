"""Brings trials from nodes that do not see the work folder to the driver."""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from seedbed.benchmark.errors import StoreError
from seedbed.benchmark.files import atomic
from seedbed.benchmark.sweeps.remote.exchange import PLUGINS, Exchange, key_of, new_attempt, read_growing
from seedbed.benchmark.sweeps.trial_files import BEGUN, RESULT, RUNNING, read_outcome

POLL = 5.0
"""Seconds between two looks at the running trials."""

logger = logging.getLogger(__name__)


class Receiver:
    """A listener of a sweep that fills the folders of trials on other nodes, as if these wrote them.

    While such a trial runs, the driver holds its lock: Ray ends its worker when the driver dies.
    """

    def __init__(self, exchange: Exchange, folder: Path) -> None:
        """`folder` is that of the sweep."""
        self.exchange, self._folder = exchange, folder
        self._attempts: dict[str, Path] = {}
        """The trials that run, anywhere, by the names of their attempts."""
        self._seen: dict[str, int] = {}
        """When the attempts on such nodes were last shown."""
        self._locks: dict[str, FileLock] = {}
        self._busy = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def bring_all(self) -> int:
        """Bring the trials that ended after an earlier driver had died, and return their number."""
        count = 0
        for attempt in sorted(self.exchange.sent()):
            trial = self._folder / "trials" / key_of(attempt)
            if read_outcome(trial) is None:
                self._bring(attempt, trial)
                count += read_outcome(trial) is not None
            self.exchange.forget(attempt)
        return count

    def send_plugins(self, folder: Path) -> None:
        """Send the plug-ins in a folder, if there are any, to the nodes."""
        self.exchange.forget(PLUGINS)
        if folder.is_dir():
            self.exchange.send(PLUGINS, folder)

    def attempt(self, trial: Path) -> Mapping[str, Any]:
        """Return what the node needs that begins the trial in a folder; see `Node.delivering`."""
        attempt = new_attempt(trial.name)
        with self._busy:
            self._attempts[attempt] = trial
        return {"attempt": attempt, "left": read_growing(trial)}

    def bring(self, trial: Path) -> None:
        """Bring what there is of a trial whose worker ended it or died. Raises StoreError."""
        with self._busy:
            for attempt in [name for name, folder in self._attempts.items() if folder == trial]:
                self._write(attempt, self.exchange.shown(attempt))
                self._bring(attempt, trial)
                if (lock := self._locks.pop(attempt, None)) is not None:
                    lock.release()
                del self._attempts[attempt]
                if self._seen.pop(attempt, None) is not None:
                    self.exchange.forget(attempt)

    def sweep_started(self, folder: Path) -> None:
        """Begin to look at the running trials."""
        self._thread.start()

    def trial_started(self, trial: Path) -> None:
        """Do nothing: `attempt` knows the trial."""

    def trial_ended(self, trial: Path) -> None:
        """Do nothing: `bring` has brought the trial."""

    def sweep_stopped(self, finished: bool) -> None:
        """Free the locks of the trials that still run, and delete what is left of a finished sweep."""
        self._stop.set()
        self._thread.join()
        for lock in self._locks.values():
            lock.release()
        if finished:
            with contextlib.suppress(StoreError):
                self.exchange.forget_all()

    def _run(self) -> None:
        while not self._stop.wait(POLL):
            # The object store and the disk may be back at the next look.
            with contextlib.suppress(StoreError, OSError):
                if self._attempts:
                    self._look_at_all()

    def _look_at_all(self) -> None:
        for attempt, shown in self.exchange.running().items():
            if attempt in self._attempts and self._seen.get(attempt) != shown:
                files = self.exchange.shown(attempt)
                with self._busy:
                    # It may have ended in the meantime.
                    if attempt in self._attempts:
                        self._write(attempt, files)
                        self._seen[attempt] = shown

    def _write(self, attempt: str, files: Mapping[str, str] | None) -> None:
        """Write the growing files of a running attempt, and hold its lock; None: no such node has begun it."""
        if files is None:
            return
        trial = self._attempts[attempt]
        self._seen.setdefault(attempt, 0)
        if attempt not in self._locks:
            lock = FileLock(trial / RUNNING, thread_local=False)
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=0)
                self._locks[attempt] = lock
        for name, text in files.items():
            with atomic(trial / name, flush=False) as temporary:
                temporary.write_text(text, "utf-8")
        # Last: a trial that has begun and is not locked was interrupted.
        (trial / BEGUN).touch()

    def _bring(self, attempt: str, trial: Path) -> None:
        """Bring the folder of an ended trial, its result last; nothing if it was not sent."""
        incoming = self._folder / "incoming" / trial.name
        if not self.exchange.fetch(attempt, incoming):
            return
        files = [path.relative_to(incoming) for path in incoming.rglob("*") if path.is_file()]
        for name in sorted(files, key=lambda name: (name == Path(RESULT), name)):
            if name != Path(RUNNING):
                (trial / name).parent.mkdir(parents=True, exist_ok=True)
                (incoming / name).replace(trial / name)
        shutil.rmtree(incoming)
