"""What happens after a worker dies: its trial is tried again, its trial fails, or the sweep stops.

A worker marks the folder of a trial that it begins (worker.py). If it dies after that, the trial may be the cause:
the failure is counted. If it began nothing, the trial is not the cause: until a cluster notices that a node
is gone, it still places workers there, and each of them is lost at once. This module knows neither Ray nor the
scheduler.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.sweeps.trial_files import BEGUN

MAX_RESTARTS = 3
"""Maximum number of restarts after a worker dies during a trial."""
PAUSE = 5.0
"""Seconds to wait before the next trial after the loss of a worker that had begun none."""
PATIENCE = 600.0
"""Seconds without any worker beginning a trial after which the sweep stops."""


class WorkerFailures:
    """Judges each loss of a worker."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns the time in seconds."""
        self._clock = clock
        self._counts: Counter[Path] = Counter()
        self._until = 0.0
        self._since: float | None = None
        self.cause = ""
        """Why the last worker was lost, as Ray reports it."""

    @property
    def pausing(self) -> bool:
        """Whether trials must wait, so that a cluster has time to notice that a node is gone."""
        return self._clock() < self._until

    def none(self) -> None:
        """Note that a worker finished a trial."""
        self._since = None

    def lost(self, folder: Path, others: Iterable[Path]) -> str:
        """Judge the loss of the worker of the trial in `folder`; return why the trial failed, "" to try it again.

        `others` are the folders of the trials that still run. Raises ConfigError if no worker has begun any
        trial for PATIENCE seconds.
        """
        if (folder / BEGUN).exists():
            self._since = None
            self._counts[folder] += 1
            count = self._counts[folder]
            return f"its worker died {count} times{self._last_error()}" if count > MAX_RESTARTS else ""
        now = self._clock()
        self._until = now + PAUSE
        if self._since is None or any((other / BEGUN).exists() for other in others):
            self._since = now
        if now - self._since > PATIENCE:
            raise ConfigError(f"no worker could begin a trial for {PATIENCE / 60:.0f} minutes{self._last_error()}")
        return ""

    def _last_error(self) -> str:
        return f"; the last error: {self.cause}" if self.cause else ""
