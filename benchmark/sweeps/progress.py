"""The progress of a sweep: its listeners, one line per finished trial, the remaining time, and the result."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Protocol

from seedbed.benchmark.errors import DataError
from seedbed.benchmark.evaluation.records import RANKED, first_value, read_records
from seedbed.benchmark.sweeps.resume import to_retry
from seedbed.benchmark.sweeps.scheduler import Scheduler
from seedbed.benchmark.sweeps.settings import Cell
from seedbed.benchmark.sweeps.trial_files import ERROR, LOG, Outcome, Phase, TrialSpec

SHOWN_REASONS = 5

logger = logging.getLogger(__name__)


class SweepListener(Protocol):
    """Follows a sweep in the driver's process. The methods about trials must return at once: they delay trials."""

    def sweep_started(self, folder: Path) -> None:
        """The sweep in `folder` starts or continues; its `sweep.json` is written."""

    def trial_started(self, trial: Path) -> None:
        """A worker will begin the trial in a folder; its `job.json` is written."""

    def trial_ended(self, trial: Path) -> None:
        """The trial in a folder has finished or failed; its `result.json` is written."""

    def sweep_stopped(self, finished: bool) -> None:
        """The driver stops; `finished` if all trials have ended."""


class SweepProgress:
    """Prints a line when a trial ends: its numbers, and the time that the sweep still needs."""

    def __init__(self, scheduler: Scheduler, wanted: Mapping[str, float]) -> None:
        """`wanted` are the resources of a trial, `{"CPU": …, "GPU": …}`."""
        self._scheduler, self._wanted = scheduler, wanted

    def ended(self, spec: TrialSpec, outcome: Outcome) -> None:
        """Print how a trial ended."""
        folder = self._scheduler.folder(spec)
        count = f"[{self._scheduler.finished}/{self._scheduler.plan.expected()}]"
        logger.info(
            f"{count} {spec.label}{self._numbers(spec, outcome)}"
            f"{_state(folder, outcome)}  {outcome.finished - outcome.started:.0f} s{self._left()}"
        )

    def _numbers(self, spec: TrialSpec, outcome: Outcome) -> str:
        if outcome.status != "complete":
            return ""
        if spec.phase == "confirm":
            return ranked_number(self._scheduler.folder(spec))
        if outcome.objective is None:
            return ""
        best = self._scheduler.best(spec)
        return f"  tune mIoU {100 * outcome.objective:.2f}" + ("" if best is None else f" (best {100 * best:.2f})")

    def _slots(self) -> int:
        """Return how many trials the cluster can run at once now."""
        import ray

        there = ray.cluster_resources()
        fits = [there.get(what, 0) / wanted for what, wanted in self._wanted.items() if wanted]
        return max(1, int(min(fits)))

    def _left(self) -> str:
        remaining = self._scheduler.remaining()
        if not any(remaining.values()):
            return ""
        seconds, unknown = time_left(remaining, self._scheduler.seconds())
        if not seconds:
            return ""
        without = f", and the {unknown} confirming trials, which are not timed yet" if unknown else ""
        return f"; about {duration(seconds / self._slots())} left{without}"


def ranked_number(folder: Path) -> str:
    """Return the number that ranks a confirming trial, as text; empty without one."""
    try:
        values = {record.name: record.value for record in read_records(folder / "records.parquet")}
    except DataError:
        return ""
    for title, names in RANKED.items():
        if (value := first_value(names, values)) is not None:
            return f"  {title} {100 * value:.2f}"
    return ""


def time_left(
    remaining: Mapping[tuple[Cell, Phase], int], known: Mapping[tuple[Cell, Phase], Sequence[float]]
) -> tuple[float, int]:
    """Return the seconds that the remaining trials take one after another, and how many are not in the estimate.

    A trial takes as long as those of its cell and phase, else as those of its phase. Confirming trials take many
    times as long as search trials, so neither estimates the other.
    """
    seconds, unknown = 0.0, 0
    for (cell, phase), count in remaining.items():
        samples = known.get((cell, phase)) or [s for key, all_s in known.items() if key[1] == phase for s in all_s]
        if samples:
            seconds += count * fmean(samples)
        else:
            unknown += count
    return seconds, unknown


def duration(seconds: float) -> str:
    """Return a duration in words, `42 s` or `3 min`."""
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _state(folder: Path, outcome: Outcome) -> str:
    if outcome.status == "complete":
        return ""
    return f"  {outcome.status}: {outcome.reason}" + (f" ({log_of(folder)})" if outcome.status == "failed" else "")


def log_of(trial: Path) -> Path:
    """Return the file that best explains why the trial in a folder failed."""
    return next((trial / name for name in (ERROR, LOG) if (trial / name).exists()), trial)


def failure_lines(folder: Path, failed: Iterable[tuple[TrialSpec, Outcome]]) -> Iterator[str]:
    """Yield the most frequent reasons of the failed trials of the sweep in `folder`, each with a log."""
    reasons: dict[str, list[TrialSpec]] = {}
    for spec, outcome in failed:
        reasons.setdefault(outcome.reason, []).append(spec)
    listed = sorted(reasons.items(), key=lambda item: -len(item[1]))
    for reason, specs in listed[:SHOWN_REASONS]:
        yield f"  {len(specs)} failed: {reason}"
        yield f"    first: {specs[0].label}; log: {log_of(folder / 'trials' / specs[0].key)}"
    if len(listed) > SHOWN_REASONS:
        yield f"  and {len(listed) - SHOWN_REASONS} other reasons; each is in error.txt of its trial's folder"


@dataclass(frozen=True)
class SweepResult:
    """The result of a sweep."""

    name: str
    folder: Path
    expected: int
    ended: Sequence[tuple[TrialSpec, Outcome]]
    seconds: float

    @property
    def failed(self) -> list[tuple[TrialSpec, Outcome]]:
        """The trials that failed."""
        return [(spec, outcome) for spec, outcome in self.ended if outcome.status == "failed"]

    @property
    def finished(self) -> int:
        """Number of trials that ended without failing, including those stopped early."""
        return len(self.ended) - len(self.failed)

    @property
    def confirmed(self) -> bool:
        """Whether a leaderboard has anything to show."""
        return any(
            spec.phase == "confirm" and outcome.status == "complete" and not spec.cell.reference
            for spec, outcome in self.ended
        )

    @property
    def whole(self) -> bool:
        """Whether all trials finished."""
        return self.finished == self.expected

    def lines(self, where: str = "") -> Iterator[str]:
        """Yield how many trials finished and failed, why, and what `--resume` would do.

        `where` is the option of a command that names the work folder.
        """
        minutes = f"{self.seconds / 60:.1f} min" if self.seconds >= 90 else f"{self.seconds:.0f} s"
        failed = f", {len(self.failed)} failed" if self.failed else ""
        yield f"sweep {self.name}: {self.finished} of {self.expected} trials finished{failed}  ({minutes})"
        if not self.failed:
            return
        yield from failure_lines(self.folder, self.failed)
        yield self._resumed(where)

    def _resumed(self, where: str) -> str:
        again = to_retry(self.ended)
        kept = len(self.failed) - len({spec.key for spec in again} & {spec.key for spec, _ in self.failed})
        command = f"`seedbed sweep --resume {self.name}{where}`"
        rest = f"{kept} failed search trials stay failed, since later ones were chosen knowing them"
        if not again:
            return f"{command} would run nothing again: the {rest}"
        return f"{command} runs {len(again)} trials again" + (f"; the {rest}" if kept else "")
