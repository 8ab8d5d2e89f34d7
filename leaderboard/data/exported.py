"""A trial of this work folder, of a sweep or of `seedbed run`, as a result to hand on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.evaluation.per_image import ImageConfusions, file_name, read_confusions
from seedbed.benchmark.evaluation.records import RecordName, read_records
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.sweeps.trial_files import CONFIG, RESULT, UPLOADED, TrialSpec, read_outcome, read_spec
from seedbed.benchmark.tracking.run_content import read_json, tags_of, tags_of_end
from seedbed.leaderboard.data.collect import PER_IMAGE, PLAN, run_of
from seedbed.leaderboard.data.expected import ExpectedTrials
from seedbed.leaderboard.data.per_image import RunImages
from seedbed.leaderboard.data.result_file import Result

SINGLE = "seedbed run"
"""What a trial of `seedbed run` has in place of the name of a sweep."""


def result_of(work: WorkFolder, name: str) -> Result:
    """Return the result of a complete trial, given by its key or by the id of its run in MLflow.

    Raises ConfigError if there is no such trial, or if it has no result to hand on.
    """
    folder = _trial(work, name)
    spec, outcome = read_spec(folder), read_outcome(folder)
    if spec.phase != "confirm" or outcome is None or outcome.status != "complete":
        what = "has not ended" if outcome is None else f"is {outcome.status}"
        what = "is a search trial" if spec.phase != "confirm" else what
        raise ConfigError(f"{spec.label}: {what}; only complete trials that a leaderboard reports can be exported")
    config = read_json(folder / CONFIG, {})
    run = run_of({**tags_of(folder, spec, config), **tags_of_end(spec, outcome)}, {}, _plan(folder, spec))
    return Result.of(run, config["data"]["classes"], images_of(folder, len(config["data"]["classes"])))


def _trial(work: WorkFolder, name: str) -> Path:
    found = [
        path.parent for path in sorted([*work.sweeps.glob(f"*/trials/*/{RESULT}"), *work.runs.glob(f"*/{RESULT}")])
    ]
    for folder in found:
        if name in (folder.name, read_json(folder / UPLOADED, {}).get("run")):
            return folder
    if (work.runs / name).is_dir():
        raise ConfigError(
            f"{work.runs / name}: this run was not recorded for MLflow; give its command again without --no-track"
        )
    raise ConfigError(
        f"{work.root}: no trial {name!r} among {len(found)} that ended; its id is in the address of its page in "
        "`seedbed ui`, and its key is the tag seedbed.key"
    )


def _plan(folder: Path, spec: TrialSpec) -> ExpectedTrials:
    if not spec.sweep:
        return ExpectedTrials(SINGLE, 0, (spec.trial.seed,), (spec.conditions,))
    return ExpectedTrials.parse(json.loads((folder.parents[1] / PLAN).read_text("utf-8")))


def images_of(trial: Path, classes: int) -> dict[str, RunImages]:
    """Return the statistics of a trial's images by the mIoU that they give, of maps at each threshold."""
    values = {record.name: record.value for record in read_records(trial / "records.parquet")}
    found: dict[str, RunImages] = {}
    for text in values:
        name = RecordName.parse(text)
        if name is not None and name.metric == "mIoU" and name.label is None:
            cells = _cells(trial / PER_IMAGE, name, values)
            if cells is not None:
                found[text] = RunImages.of(cells.ids, cells.counts(classes + 1))
    return found


def _cells(folder: Path, name: RecordName, values: Mapping[str, float | None]) -> ImageConfusions | None:
    """Return the confusion matrices behind an mIoU; None if the trial keeps none."""
    own, curve = folder / file_name(name), folder / f"{name.level}.{name.split}.parquet"
    if own.exists() and "predicted" in pq.read_schema(own).names:
        return read_confusions(own)
    threshold = values.get(str(name.of("threshold")))
    return read_confusions(curve, threshold) if curve.exists() and threshold is not None else None
