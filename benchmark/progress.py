"""What the user sees while something runs: messages, through `logging`, and progress bars.

Modules log to `logging.getLogger(__name__)`, below the logger `seedbed`. Where the log goes is decided once, by
what starts the work: `log_to_console` for commands and `seedbed.run`, `log_to_file` for a trial of a sweep.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECONDS_BETWEEN_LINES = 15.0

logger = logging.getLogger(__name__)


class Bar:
    """The progress of one loop. `advance` is cheap enough to be called for every batch."""

    def __init__(self, label: str, total: int, task: Any = None, display: Any = None) -> None:
        self.label, self.total, self.done = label, total, 0
        self._task, self._display = task, display
        self._start = self._last = time.monotonic()
        self._done_at_start = 0

    def start_at(self, done: int) -> None:
        """Say that `done` steps were taken by an earlier process."""
        self.done = self._done_at_start = done

    def retotal(self, total: int) -> None:
        """Set the number of steps, where it was not known before."""
        self.total = total
        if self._display is not None:
            self._display.update(self._task, total=total)

    def at(self, done: int, total: int) -> None:
        """Show a loop that tells its length with each step."""
        if total != self.total:
            self.retotal(total)
        self.show(done)

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count `steps` and show `note` (for example the loss)."""
        self.show(self.done + steps, note)

    def show(self, done: int, note: str = "") -> None:
        """Set the count to `done`."""
        self.done = done
        now = time.monotonic()
        if self._display is not None:
            self._display.update(self._task, completed=done, note=note)
        elif now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            rate = (done - self._done_at_start) / (now - self._start)
            left = f", {(self.total - done) / rate:.0f} s left" if rate > 0 else ""
            line = f"{self.label}: {done}/{self.total}{left} {note}".rstrip()
            logger.info(line, extra={"in_file": f"  {self.label}: step {done} {note}".rstrip()})


@contextmanager
def progress_bar(label: str, total: int) -> Iterator[Bar]:
    """Show the progress of a loop of `total` steps: a bar on a terminal, otherwise a log line now and then."""
    if not _on_terminal():
        yield Bar(label, total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as display:
        yield Bar(label, total, display.add_task(label, total=total, note=""), display)


@contextmanager
def log_to_console(quiet: bool = False) -> Iterator[None]:
    """Print the log on standard error meanwhile; `quiet` prints only warnings."""
    with _logging_to(_Console(logging.WARNING if quiet else logging.INFO)):
        yield


@contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Append the log to a file meanwhile, with the time of each line."""
    with _logging_to(_File(path)):
        yield


@contextmanager
def _logging_to(handler: logging.Handler) -> Iterator[None]:
    log = logging.getLogger("seedbed")
    level, propagate = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    # A handler of the root logger, which some library may have added, would print every line once more.
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate


def _on_terminal() -> bool:
    handlers = logging.getLogger("seedbed").handlers
    shown = any(isinstance(handler, _Console) and handler.level <= logging.INFO for handler in handlers)
    return shown and sys.stderr.isatty()


class _Formatter(logging.Formatter):
    """Puts the level before warnings."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging calls it so
        if record.levelno >= logging.WARNING:
            record.message = f"{record.levelname.lower()}: {record.message}"
        return super().formatMessage(record)


class _FileFormatter(_Formatter):
    """Puts the time before each line."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        record.message = getattr(record, "in_file", record.message)
        return super().formatMessage(record)


class _Console(logging.Handler):
    """Prints to what `sys.stderr` is at the time. Errors of writing are raised, and end the command."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.setFormatter(_Formatter())

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


class _File(logging.Handler):
    """Opens the file for each line, so that nothing has to be closed. Errors of writing are raised."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self.setFormatter(_FileFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{self.format(record)}\n")
