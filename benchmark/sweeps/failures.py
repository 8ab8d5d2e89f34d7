"""What becomes of a trial whose worker died: it is tried again, it has failed, or the sweep stops.

A worker marks the folder of a job that it begins (worker.py). A death after that may be the job's own doing: it
is counted. A worker that began nothing says nothing about the job: until a cluster notices that a node
is gone, it goes on placing workers there, and each of them is lost at once. Knows neither Ray nor the dealer.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.sweeps.trial_files import BEGUN

DEATHS = 3
"""So many times a trial whose worker died in the middle of it is started again."""
PAUSE = 5.0
"""Seconds during which no trial is dealt after a worker was lost that had begun none."""
PATIENCE = 600.0
"""Seconds for which no worker at all need begin a trial before the sweep stops."""


class Deaths:
    """Judges each loss of a worker."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Take the clock, in seconds."""
        self._clock = clock
        self._counts: Counter[Path] = Counter()
        self._until = 0.0
        self._since: float | None = None
        self.cause = ""
        """Why the last worker was lost, as Ray tells it."""

    @property
    def pausing(self) -> bool:
        """Whether trials are held back, so that a cluster has time to notice that a node is gone."""
        return self._clock() < self._until

    def none(self) -> None:
        """Note that a worker brought a trial to its end."""
        self._since = None

    def lost(self, folder: Path, others: Iterable[Path]) -> str:
        """Judge the loss of the worker of the job in `folder`; return why the job failed, "" to try it again.

        `others` are the folders of the jobs that still run. Raises ConfigError where no worker has begun any job
        for PATIENCE seconds.
        """
        if (folder / BEGUN).exists():
            self._since = None
            self._counts[folder] += 1
            count = self._counts[folder]
            return f"its worker died {count} times{self._last_error()}" if count > DEATHS else ""
        now = self._clock()
        self._until = now + PAUSE
        if self._since is None or any((other / BEGUN).exists() for other in others):
            self._since = now
        if now - self._since > PATIENCE:
            raise ConfigError(f"no worker could begin a trial for {PATIENCE / 60:.0f} minutes{self._last_error()}")
        return ""

    def _last_error(self) -> str:
        return f"; the last error: {self.cause}" if self.cause else ""
