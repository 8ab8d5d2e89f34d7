"""What a person sees while a stage runs: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS_BETWEEN_LINES = 15.0


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
            print(f"{self.label}: {done}/{self.total}{left} {note}".rstrip(), file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Reporter:
    """Where progress and notices go. `quiet` prints nothing."""

    quiet: bool = True

    def say(self, text: str) -> None:
        """Print one line for the user, on standard error."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """Print one line that a quiet run shows too."""
        print(f"warning: {text}", file=sys.stderr, flush=True)

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Bar]:
        """Show the progress of a loop of `total` steps."""
        if self.quiet:
            yield Bar(label, total, display=_Nothing())
        elif not sys.stderr.isatty():
            yield Bar(label, total)
        else:
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


@dataclass(frozen=True)
class LogFile(Reporter):
    """Writes what is said to a file, with the time; a bar is a line now and then."""

    path: Path = Path("log.txt")

    def say(self, text: str) -> None:
        """Append one line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def warn(self, text: str) -> None:
        """Append one line."""
        self.say(f"warning: {text}")

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Bar]:
        """Write how far the loop is, every quarter of a minute."""
        yield Bar(label, total, display=_Lines(self, label))


class _Lines:
    """Stands in for a bar's display in a file."""

    def __init__(self, log: LogFile, label: str) -> None:
        self._log, self._label, self._last = log, label, time.monotonic()

    def update(self, _: Any, completed: int | None = None, note: str = "", **__: Any) -> None:
        now = time.monotonic()
        if completed is not None and now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            self._log.say(f"  {self._label}: step {completed} {note}".rstrip())


class _Nothing:
    def update(self, *_: Any, **__: Any) -> None:
        """Show nothing."""
