"""One trial of a sweep as files: what to do (`job.json`) and how it ended (`result.json`).

sweeps/NAME/trials/KEY/
    job.json         cell, phase, trial, data set, its conditions     records.parquet   the numbers
    result.json      written last: status, objective, stages          losses.json       by stage and epoch
    config.json      every hyper-parameter, data, environment         per_class.csv     one row per class
    per_image/       statistics of each image, as Parquet             examples.png      pictures (confirm)
    progress.jsonl   stages and epochs (trials/progress_log.py)       log.txt           what it printed
    system.jsonl     load of the machine (system_metrics.py)          error.txt         the traceback of a failure
    begun            empty: a worker has begun it (benchmark/sweeps/failures.py)
    running.lock     held by the process that runs it
    delivered.json   its run in MLflow, once all of it is there (benchmark/tracking/uploader.py)

`seedbed run` leaves the same files, in its own folder, `runs/ID/`; its spec names no sweep.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from seedbed.benchmark.errors import DataError
from seedbed.benchmark.files import write_text
from seedbed.benchmark.pipeline.work_folder import DatasetSpec
from seedbed.benchmark.sweeps.search import Status
from seedbed.benchmark.sweeps.settings import Cell
from seedbed.benchmark.trials.conditions import conditions_in
from seedbed.benchmark.trials.progress_log import PROGRESS
from seedbed.benchmark.trials.trial import Trial

Phase = Literal["search", "confirm"]
SettingsName = Literal["default", "suggested", "best", "given"]
"""`given`: those of a `seedbed run` that are not the default ones."""
FIELDS = {"dataset_spec": "place", "conditions": "facts"}
"""The fields of a spec with another name in `job.json`."""


@dataclass(frozen=True)
class TrialSpec:
    """One trial of a sweep, and everything that a worker on another node needs to run it."""

    sweep: str
    """The name of the sweep; empty for a trial of `seedbed run`."""
    cell: Cell
    phase: Phase
    settings: SettingsName
    number: int | None
    """The search trial's number; None when confirming."""
    trial: Trial
    dataset_spec: DatasetSpec
    digest: str
    """The data set's content digest."""
    conditions: Mapping[str, Any]
    """What the numbers depend on, for MLflow and the leaderboard (benchmark/trials/conditions.py)."""
    rivals: Sequence[Sequence[float]] | None = None
    """Loss curves of the trials to compare the first training with; None: no early stopping."""

    @property
    def key(self) -> str:
        """The trial's permanent name: the same sweep, cell, phase and number or seed have the same key."""
        # A cell without a variant keeps the key from before there were variants.
        cell = [value for name, value in asdict(self.cell).items() if value or name != "variant"]
        identity = [
            self.sweep,
            *cell,
            self.phase,
            self.settings,
            self.number,
            self.trial.seed,
        ]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """A readable name, `cam × crf × voc2012: search 3`."""
        if not self.sweep:
            changed = (f"{key}={value}" for key, value in self.trial.settings.items())
            return ", ".join([f"{self.cell}: seed {self.trial.seed}", *changed])
        which = f"search {self.number}" if self.phase == "search" else f"{self.settings}, seed {self.trial.seed}"
        return f"{self.cell}: {which}"

    def to_json(self) -> str:
        """Return the content of `job.json`."""
        content = asdict(self)
        return json.dumps({FIELDS.get(name, name): value for name, value in content.items()}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> TrialSpec:
        """Read the text of `to_json`."""
        content = json.loads(text)
        content["cell"] = Cell(**content["cell"])
        # Before there was an option, trials computed in float32, also on machines with instructions for bfloat16.
        content["trial"] = Trial(**{"precision": "fp32", **content["trial"]})
        content["dataset_spec"] = DatasetSpec(**content.pop(FIELDS["dataset_spec"]))
        content["conditions"] = conditions_in(content.pop(FIELDS["conditions"]))
        return cls(**content)


@dataclass(frozen=True)
class Outcome:
    """How a trial ended."""

    key: str
    status: Status
    reason: str = ""
    objective: float | None = None
    """mIoU of the pseudo-masks on `tune`, in [0, 1]."""
    losses: Sequence[float] = ()
    """Sum of the losses of each epoch of the first training."""
    stages: Mapping[str, float] = field(default_factory=dict)
    """Seconds that each needed stage took when it was computed, by 12 digits of its key."""
    computed: float = 0.0
    """Seconds of the stages that this trial computed itself."""
    started: float = 0.0
    """Seconds since 1970."""
    finished: float = 0.0
    device: str = "cpu"
    hardware: str = ""


RESULT = "result.json"
SPEC = "job.json"
CONFIG = "config.json"
SYSTEM = "system.jsonl"
LOG = "log.txt"
BEGUN = "begun"
RUNNING = "running.lock"
ERROR = "error.txt"
UPLOADED = "delivered.json"
"""The run and the store that the trial was uploaded to."""


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Write `result.json` by one rename, as the last file of a trial."""
    write_text(folder / RESULT, json.dumps(asdict(outcome), indent=1))


def read_outcome(folder: Path) -> Outcome | None:
    """Return how the trial in `folder` ended; None if it has not ended or its `result.json` is damaged."""
    try:
        return Outcome(**json.loads((folder / RESULT).read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def is_running(folder: Path) -> bool:
    """Return whether a process, on any machine that shares `folder`, runs its trial: the kernel frees its lock."""
    if not (folder / RUNNING).exists():
        return False
    try:
        with FileLock(folder / RUNNING, timeout=0):
            return False
    except Timeout:
        return True


def read_spec(folder: Path) -> TrialSpec:
    """Return the spec of the trial in `folder`. Raises DataError if the file is missing or damaged."""
    try:
        return TrialSpec.from_json((folder / SPEC).read_text("utf-8"))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{folder / SPEC}: missing, empty or cut off ({type(error).__name__}); "
            f"`seedbed sweep --resume {folder.parents[1].name}` writes it again"
        ) from None


def damaged_file(folder: Path) -> Path | None:
    """Return a file of an ended trial that is missing, empty or truncated; None if all are whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not (folder / SPEC).exists():
        return folder / SPEC
    for path in sorted(folder.rglob("*.json")):
        try:
            json.loads(path.read_bytes())
        except ValueError:
            return path
    for path in sorted(folder.rglob("*.parquet")):
        try:
            pq.read_metadata(path)
        except (OSError, pa.ArrowInvalid):
            return path
    return None


def forget(folder: Path) -> None:
    """Remove how the trial in `folder` ended, so that it runs again. Its stages are in the store."""
    for left in (UPLOADED, ERROR, PROGRESS, SYSTEM, RESULT):
        (folder / left).unlink(missing_ok=True)
