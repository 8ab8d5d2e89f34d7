"""What a trial becomes in MLflow: the tags, metrics and files of its run."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.distributions import distribution_to_json

from seedbed.benchmark.evaluation.records import read_records
from seedbed.benchmark.paths import without_folders
from seedbed.benchmark.sweeps.search import drawn, storage_at
from seedbed.benchmark.sweeps.trial_files import Outcome, TrialSpec
from seedbed.benchmark.tracking.command_line import command_line

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

FILES = ("config.json", "per_class.csv", "examples.png", "log.txt", "error.txt", "records.parquet")


def tags_of(spec: TrialSpec, outcome: Outcome, config: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags of a trial's run (docs/sweeps.md lists them)."""
    code = str(config.get("environment", {}).get("code", ""))
    return {
        "seedbed.kind": "trial",
        "seedbed.sweep": spec.sweep,
        "seedbed.key": spec.key,
        "method": spec.cell.method,
        "refiner": spec.cell.refiner,
        "dataset": spec.cell.dataset,
        "variant": spec.cell.variant,
        "seed": str(spec.trial.seed),
        "phase": spec.phase,
        "settings": spec.settings,
        "number": "" if spec.number is None else str(spec.number),
        **{name: str(value) for name, value in spec.conditions.items()},
        "data_digest": spec.digest,
        "code": code.removesuffix("+dirty"),
        "dirty": str(code.endswith("+dirty")).lower(),
        "device": outcome.device,
        "hardware": outcome.hardware,
        "status": outcome.status,
        "reason": without_folders(outcome.reason, *spec.dataset_spec.folders())[:4000],
        "stages": json.dumps(dict(outcome.stages)),
    }


def search_tags(folder: Path, spec: TrialSpec) -> dict[str, str]:
    """Return the tags that tell what was drawn for the trial in `folder`, and how to run it again.

    `parameters` are the drawn settings as JSON: all of a search trial, of another one those that differ from the
    sweep's. `space` are the distributions of a search trial's, as Optuna writes them. Both are `{}` in a sweep
    without a search.
    """
    sweep = folder.parents[1]
    studies = sweep / "studies.db"
    by_number, space = drawn(_opened(studies), str(spec.cell)) if studies.exists() else ({}, {})
    changed = {key: value for key, value in spec.trial.settings.items() if key in space}
    # The first search trial has the default settings, which its spec does not name.
    parameters = changed if spec.number is None else by_number.get(spec.number, changed)
    distributions = {key: json.loads(distribution_to_json(space[key])) for key in parameters}
    generated = Path(spec.dataset_spec.root).is_relative_to(sweep.parents[1].resolve() / "data")
    return {
        "parameters": json.dumps(parameters, sort_keys=True),
        "space": json.dumps(distributions if spec.phase == "search" else {}, sort_keys=True),
        "command": command_line(spec, generated),
    }


@functools.lru_cache(maxsize=1)
def _opened(studies: Path) -> BaseStorage:
    """Open a sweep's studies once: it takes as long as to deliver a trial."""
    return storage_at(studies)


def metrics_of(folder: Path, outcome: Outcome) -> Iterator[tuple[str, float, int, int]]:
    """Yield (name, value, milliseconds since 1970, step) of all numbers that a trial left."""
    when = milliseconds(outcome.finished)
    if (folder / "records.parquet").exists():
        for record in read_records(folder / "records.parquet"):
            if record.value is not None:
                yield record.name, record.value, when, 0
    for stage, history in read_json(folder / "losses.json", {}).items():
        for epoch, losses in enumerate(history, 1):
            for loss, value in losses.items():
                yield f"{stage}/{loss}", float(value), when, epoch
    for name, samples in read_json(folder / "system.json", {}).items():
        for step, (moment, value) in enumerate(samples):
            yield name, float(value), int(moment), step
    yield "cost/computed_seconds", outcome.computed, when, 0


def milliseconds(seconds: float) -> int:
    return round(1000 * seconds)


def read_json(path: Path, default: Any) -> Any:
    return json.loads(path.read_text()) if path.exists() else default
