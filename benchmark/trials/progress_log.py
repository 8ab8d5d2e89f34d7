"""The log of a running trial, `progress.jsonl`: one JSON line for each start, stage and epoch.

    {"time": 1767225600.1, "stages": 7, "anew": true}                                 a process runs the trial
    {"time": 1767225600.2, "stage": "TrainCam", "split": "weak", "epochs": 15}        a stage starts to compute
    {"time": 1767225660.3, "training": "TrainCam", "epoch": 1, "losses": {"classification": 0.5}}

Times are in seconds since 1970. Lines are only added. A process that continues a killed trial adds to the same
log, so an epoch is there once, with the time at which it was first known. `anew` begins another attempt, for which
no earlier line counts.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from seedbed.benchmark.pipeline.stage import Kind, Stage
from seedbed.benchmark.pipeline.store import reading
from seedbed.benchmark.trials.plan import TrialPlan
from seedbed.datasets.base import Split

PROGRESS = "progress.jsonl"
"""The log's name in the folder of a trial."""


@dataclass
class Epoch:
    """The mean losses of one epoch of a training."""

    time: float
    losses: Mapping[str, float]


@dataclass
class Progress:
    """What the log of a trial says about its last attempt."""

    started: float
    """When the attempt began, in seconds since 1970; it names the attempt."""
    planned: int = 0
    """Number of stages that the process which runs the trial computes."""
    stages: list[tuple[float, int]] = field(default_factory=list)
    """Time and number of each stage that started; the number is 1 again if another process continues."""
    stage: str = ""
    """The stage that started last, `TrainCam on weak`."""
    stage_started: float = 0.0
    epochs: int = 0
    """Number of epochs of this stage; 0 if it is no training."""
    training: str = ""
    """The training that this stage is, `TrainSub_2` if it is the second of its kind."""
    history: dict[str, list[Epoch]] = field(default_factory=dict)
    """The epochs of each training."""

    @property
    def number(self) -> int:
        """The number of the stage that started last; 0 before the first."""
        return self.stages[-1][1] if self.stages else 0

    @property
    def epoch(self) -> int:
        """How many epochs of the current stage are complete."""
        return len(self.history.get(self.training, ())) if self.epochs else 0

    def __str__(self) -> str:
        if not self.stage:
            return "starting"
        epoch = f", epoch {self.epoch} of {self.epochs}" if self.epochs else ""
        return f"stage {self.number} of {self.planned}: {self.stage}{epoch}"


def read_progress(folder: Path) -> Progress | None:
    """Return the progress of the trial in `folder`; None if no process has begun it."""
    found: Progress | None = None
    for line in read_lines(folder / PROGRESS):
        found = _after(found, line)
    return found


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file with one JSON object per line, without lines that a kill has cut off."""
    try:
        text = path.read_text("utf-8", errors="replace")
    except FileNotFoundError:
        return
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            if isinstance(content := json.loads(line), dict):
                yield content


def append_line(path: Path, content: Mapping[str, Any]) -> None:
    """Add one JSON object as a line. A full disk is no reason for a trial to fail: the line is left out."""
    with contextlib.suppress(OSError), path.open("ab") as file:
        file.write(json.dumps(content).encode() + b"\n")


def _after(before: Progress | None, line: Mapping[str, Any]) -> Progress | None:
    """Return the progress after one more line; `before` is changed."""
    try:
        moment = float(line["time"])
        if before is None or line.get("anew"):
            # Only the first line, or one of a new attempt, makes a new object.
            return Progress(moment, int(line["stages"])) if "stages" in line else before
        if "stages" in line:
            before.planned, before.stage, before.epochs = int(line["stages"]), "", 0
        elif "stage" in line:
            epochs, training, stage = (
                int(line["epochs"]),
                str(line["training"]),
                f"{line['stage']} on {line['split']}",
            )
            before.stages.append((moment, before.number + 1 if before.stage else 1))
            before.stage, before.stage_started = stage, moment
            before.epochs, before.training = epochs, training
        elif "epoch" in line:
            known = before.history.setdefault(str(line["training"]), [])
            if int(line["epoch"]) == len(known) + 1:
                known.append(Epoch(moment, {k: float(v) for k, v in line["losses"].items()}))
    except (KeyError, ValueError, TypeError, AttributeError):
        # A damaged line: the next ones may be whole.
        pass
    return before


class ProgressLog:
    """Writes the log of a trial while it runs."""

    def __init__(self, plan: TrialPlan, folder: Path) -> None:
        """Begin the log in `folder`, or continue that of a killed process, and follow the plan's stages."""
        self._path, self._plan = folder / PROGRESS, plan
        self._names, self._training = training_names(plan), ""
        self._current: dict[str, Any] = {}
        self._close_last_line()
        before = read_progress(folder)
        self._history = {} if before is None else {n: [e.losses for e in h] for n, h in before.history.items()}
        plan.planned = len(plan.missing())
        self._write(stages=plan.planned, anew=before is None)
        plan.machine = replace(plan.machine, on_stage=self._stage, on_epoch=self._epoch)
        self.add_stored()

    def add_stored(self) -> None:
        """Add the epochs of trainings that are in the store, whoever computed them."""
        for training, history in curves(self._plan).items():
            self._add(training, history)

    def _stage(self, stage: Stage, split: Split, key: str) -> None:
        self._training = self._names.get(key, "")
        self._current = {
            "stage": type(stage).__name__,
            "split": str(split),
            "epochs": getattr(stage, "stop_after", 0),
            "training": self._training,
        }
        self._write(**self._current)

    def _epoch(self, _: str, history: Sequence[Mapping[str, float]]) -> None:
        self._add(self._training, history)

    def _add(self, training: str, history: Sequence[Mapping[str, float]]) -> None:
        """Write the epochs of `history` that the log does not have."""
        known = self._history.setdefault(training, [])
        common = min(len(known), len(history))
        if list(known[:common]) != list(history[:common]):
            # Other code has computed the earlier epochs: their numbers are not those of this attempt.
            self._history = {training: (known := [])}
            self._write(stages=self._plan.planned, anew=True)
            if self._current:
                self._write(**self._current)
        for number, losses in enumerate(history[len(known) :], len(known) + 1):
            self._write(training=training, epoch=number, losses=dict(losses))
            known.append(dict(losses))

    def _write(self, **content: Any) -> None:
        append_line(self._path, {"time": time.time(), **content})

    def _close_last_line(self) -> None:
        """End a line that a kill has cut off, so that the next one is whole."""
        with contextlib.suppress(OSError), self._path.open("rb+") as file:
            if file.read()[-1:] not in (b"", b"\n"):
                file.write(b"\n")


def training_names(plan: TrialPlan) -> dict[str, str]:
    """Return the names of a plan's training stages by key; repeated stages are numbered, `TrainSub_2`."""
    names: dict[str, str] = {}
    for key, step in plan.steps().items():
        if step.stage.produces is Kind.CHECKPOINT:
            name = type(step.stage).__name__
            again = sum(n.partition("_")[0] == name for n in names.values())
            names[key] = f"{name}_{again + 1}" if again else name
    return names


def curves(plan: TrialPlan) -> dict[str, list[dict[str, float]]]:
    """Return the losses by epoch of every training stage of a plan that is in the store, by its name."""
    found = {name: stored_history(plan.work.store.folder(key)) for key, name in training_names(plan).items()}
    return {name: history for name, history in found.items() if history is not None}


def stored_history(entry: Path) -> list[dict[str, float]] | None:
    """Return the mean losses by epoch of a training in the store; None if it is not there, or no training."""
    if not (entry / "training.json").exists():
        return None
    with reading(entry / "training.json") as path:
        history: list[dict[str, float]] = json.loads(path.read_text("utf-8"))["history"]
    return history
