"""Runs a trial from images to records in a folder `runs/ID/`, and finds the results of finished runs."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedbed.benchmark.errors import ConfigError, DataError
from seedbed.benchmark.evaluation.records import Record
from seedbed.benchmark.files import write_text
from seedbed.benchmark.pipeline.changed_code import OPTION, Change, accept, describe
from seedbed.benchmark.pipeline.hparams import override
from seedbed.benchmark.pipeline.registry import METHODS
from seedbed.benchmark.pipeline.stage import Machine
from seedbed.benchmark.pipeline.store import Entry
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.training.initialisation import check_weights
from seedbed.benchmark.trials.measurements import write_measurements
from seedbed.benchmark.trials.plan import TrialPlan, plan_trial
from seedbed.benchmark.trials.trial import Trial
from seedbed.datasets.base import Dataset
from seedbed.datasets.tools.check import preflight
from seedbed.methods.segmentation.stages import PredictMasks

Recorder = Callable[[TrialPlan, Path], AbstractContextManager[None]]
"""Takes the plan of a trial and its folder, and records the trial while it runs."""

logger = logging.getLogger(__name__)


def unrecorded(_: TrialPlan, __: Path) -> AbstractContextManager[None]:
    """Record nothing."""
    return nullcontext()


@dataclass(frozen=True)
class Result:
    """The result of a trial."""

    run: str
    """The run's id: the same trial on the same data and code settings has the same id."""
    folder: Path
    """Holds `run.json` and the files of `write_measurements` (benchmark/trials/measurements.py)."""
    records: list[Record]
    executed: list[Entry]
    """The computed stages, without those found in the store."""
    changes: list[Change]
    """Stored results of earlier code; the user was warned."""


def run_trial(
    trial: Trial,
    data: Dataset,
    work: WorkFolder,
    machine: Machine,
    accept_changed_code: bool = False,
    record: Recorder = unrecorded,
) -> Result:
    """Run a trial through the store, measure it, and write `runs/ID/` in the work folder.

    Stored results are not computed again. Warns of results of earlier code; `accept_changed_code` records instead
    that today's code gives the same. The trial runs in the context that `record` returns. Raises DataError before
    any training if the lists, tags or files of the data set have errors, and the errors of the stages.
    """
    warnings = preflight(
        data,
        allow_val_in_training=trial.allow_val_in_training,
        full_supervision=trial.supervision == "full",
        processes=machine.workers,
    )
    for warning in warnings:
        logger.warning(warning)
    plan = plan_trial(trial, data, work, machine)
    check_weights(plan.weights_needed(), plan.machine.weights_files)
    changes = plan.changes()
    if accept_changed_code:
        accept(changes, work.store)
        changes = []
    if changes:
        logger.warning(f"{describe(changes)}, {OPTION} ends this warning. The stored results are used")
    folder = work.runs / plan.run_id()
    with record(plan, folder):
        records = plan.measure()
        write_measurements(folder, plan, records, pictures=True)
        description = plan.describe()
        if changes:
            description["changed_code"] = {change.entry.key: list(change.names) for change in changes}
        write_text(folder / "run.json", json.dumps(description, indent=1))
    return Result(plan.run_id(), folder, records, plan.executed, changes)


def read_run(work: WorkFolder, run: str) -> dict[str, Any]:
    """Return the description of a finished run. Raises ConfigError if there is no such run."""
    path = work.runs / run / "run.json"
    if not path.exists():
        known = sorted(p.parent.name for p in work.runs.glob("*/run.json"))
        listed = ", ".join(known[-10:]) or "(none)"
        raise ConfigError(f"{work.root}: no run {run!r}. The newest ones: {listed}")
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path}: damaged ({error}); the command of the run writes it again") from None
    return content


def artifact_of(work: WorkFolder, run: str, split: str) -> tuple[str, Path]:
    """Return the name (`predictions`, `masks`, `scores`) and the folder of a finished run's result for a split.

    Raises ConfigError if there is no such run, if it has nothing for the split, or if the result is no longer in
    the store.
    """
    artifacts = read_run(work, run)["artifacts"]
    wanted = ("predictions",) if split == "val" else ("masks", "scores")
    name = next((n for n in wanted if n in artifacts), None)
    if name is None:
        raise ConfigError(
            f"{run} has nothing for the split {split!r}; it has: {', '.join(artifacts) or 'nothing'}"
        )
    return name, _in_store(work, run, artifacts[name])


def network_of(work: WorkFolder, run: str) -> Path:
    """Return the folder of the trained network that a finished run predicted its masks with.

    Raises ConfigError if there is no such run, if it trained no segmentation network, or if the network is no
    longer in the store.
    """
    artifacts = read_run(work, run)["artifacts"]
    if "network" not in artifacts:
        raise ConfigError(
            f"{work.runs / run / 'run.json'}: names no segmentation network; repeat the run's command "
            "without --no-segment"
        )
    return _in_store(work, run, artifacts["network"])


def recorded_prediction(description: Mapping[str, Any]) -> PredictMasks:
    """Return the stage that predicted a run's masks, with the settings in its `run.json`.

    Raises ConfigError if this code has no such stage, or another version or other settings of it.
    """
    # A one-step method has its own stage.
    METHODS.load(description["trial"]["method"])
    kinds: list[type[PredictMasks]] = [PredictMasks, *PredictMasks.__subclasses__()]
    known = {kind.__name__: kind for kind in kinds}
    recorded = [dict(stage) for stage in description["stages"] if stage["stage"] in known]
    again = f"give the command of the run {description['run']} again"
    if not recorded:
        stages = ", ".join(stage["stage"] for stage in description["stages"])
        raise ConfigError(f"this code knows no stage that predicts masks among {stages}; {again}")
    name, version = recorded[-1].pop("stage"), recorded[-1].pop("version")
    if version != known[name].version:
        raise ConfigError(f"{name} was version {version} and is now {known[name].version}; {again}")
    (stage,) = override([known[name]()], {f"{name}.{field}": value for field, value in recorded[-1].items()})
    return stage


def _in_store(work: WorkFolder, run: str, key: str) -> Path:
    folder = work.store.folder(key)
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no longer in the store; the command of the run {run} computes it again")
    return folder
