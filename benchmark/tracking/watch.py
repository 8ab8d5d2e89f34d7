"""The state of a sweep as text for a terminal, from the files in its folder alone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from seedbed.benchmark.sweeps.progress import duration, failure_lines
from seedbed.benchmark.sweeps.trial_files import SYSTEM, Phase, TrialSpec, is_running, read_spec
from seedbed.benchmark.tracking.lost_runs import is_driven
from seedbed.benchmark.tracking.sweep_state import CellState, SweepState
from seedbed.benchmark.trials.progress_log import Progress, read_lines, read_progress

PHASES: tuple[Phase, ...] = ("search", "confirm")
Table = Sequence[Sequence[str]]


@dataclass(frozen=True)
class View:
    """The state of a sweep at one moment."""

    summary: list[str]
    cells: Table
    running: Table
    failures: list[str]
    driven: bool
    """Whether a driver runs the sweep."""


def view_of(state: SweepState) -> View:
    """Return the state of a sweep. Raises DataError if its `sweep.json` is missing or damaged."""
    cells, driven = state.cells(), is_driven(state.folder)
    failed = [ended for cell in cells for ended in cell.ended if ended[1].status == "failed"]
    return View(
        summary=list(_summary(state, cells, driven)),
        cells=[
            ["cell", *PHASES, "failed", "best tune mIoU"],
            *(
                [
                    str(cell.cell),
                    *(f"{cell.done(phase)}/{cell.expected[phase]}" for phase in PHASES),
                    str(cell.failed or ""),
                    "" if cell.best is None else f"{100 * cell.best:.2f}",
                ]
                for cell in cells
            ),
        ],
        running=[_row(folder, cells) for folder in state.begun()],
        failures=list(failure_lines(state.folder, failed)),
        driven=driven,
    )


def _summary(state: SweepState, cells: Sequence[CellState], driven: bool) -> Iterator[str]:
    name = state.folder.name
    expected = sum(sum(cell.expected.values()) for cell in cells)
    done, failed = sum(len(cell.ended) for cell in cells), sum(cell.failed for cell in cells)
    if driven:
        now = "a driver runs it"
    elif done < expected:
        now = f"no driver runs it; continue with: seedbed sweep --resume {name}"
    else:
        now = "it has ended"
    yield f"sweep {name}: {done} of {expected} trials ended, {failed} failed; {now}"
    if waiting := state.not_uploaded():
        yield f"MLflow: {done - waiting} of {done} delivered" + ("" if driven else "; the others: seedbed sync")
    else:
        yield f"MLflow: all {done} delivered"


def _row(folder: Path, cells: Sequence[CellState]) -> list[str]:
    """Return the trial, where it is, the time that it needs, and the load of its machine."""
    spec, progress = read_spec(folder), read_progress(folder)
    if not is_running(folder):
        return [spec.label, "was interrupted" if progress is None else f"was interrupted in {progress}", "", ""]
    if progress is None:
        return [spec.label, "starting", "", ""]
    return [spec.label, str(progress), _left(spec, progress, cells, time.time()), _load(folder)]


def _left(spec: TrialSpec, progress: Progress, cells: Sequence[CellState], now: float) -> str:
    """Return the time left of the training and of the trial, as far as the files tell."""
    left = []
    times = [e.time for e in progress.history.get(progress.training, ()) if e.time >= progress.stage_started]
    if progress.epochs and times:
        each = (times[-1] - progress.stage_started) / len(times)
        left.append(f"training: {_rest(each * (progress.epochs - progress.epoch) - (now - times[-1]))}")
    known = [
        outcome.finished - outcome.started
        for cell in cells
        if cell.cell == spec.cell
        for other, outcome in cell.ended
        if other.phase == spec.phase and outcome.computed and outcome.status != "failed"
    ]
    if known:
        left.append(f"trial: {_rest(fmean(known) - (now - progress.started))}")
    return ", ".join(left)


def _rest(seconds: float) -> str:
    return f"{duration(max(0.0, seconds))} left"


def _load(folder: Path) -> str:
    """Return the load of the GPU, of the processor without one, from the last sample."""
    sample = {}
    for line in read_lines(folder / SYSTEM):
        sample = line
    memory = sample.get("system/gpu_0_memory_usage_megabytes")
    load = sample.get("system/gpu_0_utilization_percentage")
    if memory is not None:
        return f"GPU {'' if load is None else f'{load:.0f} %, '}{memory / 1000:.1f} GB"
    processor = sample.get("system/cpu_utilization_percentage")
    return "" if processor is None else f"CPU {processor:.0f} %"
