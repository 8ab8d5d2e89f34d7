"""Resumes a sweep: checks its settings and data, and finds trials that must run again."""

from __future__ import annotations

import contextlib
import json
import logging
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna

from seedbed.benchmark.environment import code_version
from seedbed.benchmark.errors import ConfigError, DataError
from seedbed.benchmark.files import write_text
from seedbed.benchmark.sweeps.plan import SweepPlan
from seedbed.benchmark.sweeps.search import named_errors, storage_at
from seedbed.benchmark.sweeps.settings import SweepSettings, read_saved
from seedbed.benchmark.sweeps.trial_files import (
    RESULT,
    SPEC,
    Outcome,
    TrialSpec,
    damaged_file,
    forget,
    read_outcome,
    read_spec,
)

WEIGHTS = {"initialisation": "--weights", "segmentation_initialisation": "--segmentation-weights"}
"""The conditions that hold the digest of a weights file, with the options that give the file."""

logger = logging.getLogger(__name__)


def check_same_sweep(folder: Path, settings: SweepSettings) -> None:
    """Raise ConfigError if the sweep in `folder` began with other settings."""
    path = folder / "sweep.yaml"
    # Without sweep.json the earlier sweep never began: it was refused or killed before.
    if not path.exists() or not (folder / "sweep.json").exists():
        return
    if names := read_saved(path).differences(settings):
        raise ConfigError(
            f"{folder}: a sweep of this name has other settings ({', '.join(names)}); continue it with "
            f"`seedbed sweep --resume {settings.name}`, or choose another --name"
        )


@contextmanager
def naming_other_code(folder: Path) -> Iterator[None]:
    """Add a hint to a ConfigError if the sweep in `folder` began with other code."""
    try:
        yield
    except ConfigError as error:
        before = None
        with contextlib.suppress(ValueError, AttributeError):
            before = _description(folder / "sweep.json")
        if before is None or before["code"] == code_version():
            raise
        raise ConfigError(
            f"{error}. The sweep began with other code ({before['code'][:12]}): use that, or give the sweep a new "
            "name; stored results are not computed again"
        ) from None


def describe(folder: Path, plan: SweepPlan) -> None:
    """Write `sweep.json`.

    Raises DataError if the data has changed since the sweep began, ConfigError if its cells have.
    """
    path = folder / "sweep.json"
    description = {
        **plan.description(),
        "id": uuid.uuid4().hex,
        "expected": plan.expected(),
        "code": code_version(),
    }
    try:
        before = _description(path)
    except (ValueError, AttributeError):
        logger.info(f"note: {path} is empty or cut off; it is written again")
        before = None
    if before is not None:
        old, new = (
            # References may be added and left out.
            {_cell(entry): entry for entry in d["cells"] if not entry.get("reference")}
            for d in (before, description)
        )
        if lost := sorted(old.keys() ^ new.keys()):
            raise ConfigError(
                f"{path}: {' × '.join(filter(None, lost[0]))} is not a cell of both this code and the code that "
                "the sweep began with; give the sweep a new name"
            )
        for cell, entry in new.items():
            _check_same_content(old[cell], entry)
        description |= {"id": before["id"], "code": before["code"]}
    write_text(path, json.dumps(description, indent=1))


def _description(path: Path) -> dict[str, Any] | None:
    """Return the content of `sweep.json`, None without one. Raises ValueError, AttributeError if it is damaged."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    return content if {"cells", "id", "code"} <= content.keys() else None


def _check_same_content(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise DataError if a cell's data set or weights file has changed since the sweep began."""
    for key, what in {"data_digest": new["dataset"], **WEIGHTS}.items():
        # A sweep of an earlier version may lack a condition that was added later.
        before, now = str(old.get(key, "")), str(new.get(key, ""))
        if before and before != now:
            raise DataError(
                f"{what}: not the content that this sweep began with (its digest is {_short(now)}, then it was "
                f"{_short(before)}). Say where the same files are now (--resume NAME with --datasets NAME=ROOT, "
                "--weights FILE), or give the sweep a new name"
            )


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]


def update_dataset_specs(folder: Path, plan: SweepPlan) -> None:
    """Write the current locations of data sets to the files of earlier trials."""
    dataset_specs = {cell.cell: cell.dataset_spec for cell in plan.cells}
    for path in sorted((folder / "trials").glob("*/job.json")):
        spec = read_spec(path.parent)
        dataset_spec = dataset_specs.get(spec.cell, spec.dataset_spec)
        if spec.dataset_spec != dataset_spec:
            write_text(path, replace(spec, dataset_spec=dataset_spec).to_json())


def _cell(entry: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(entry.get(name, "")) for name in ("method", "refiner", "dataset", "variant"))


def forget_damaged(folder: Path) -> None:
    """Reset the trials that have an empty or truncated file, as after a power loss."""
    for result in sorted((folder / "trials").glob(f"*/{RESULT}")):
        if (damaged := damaged_file(result.parent)) is not None:
            logger.info(f"note: {damaged} is missing, empty or cut off; its trial runs again")
            forget(result.parent)
    for spec in sorted((folder / "trials").glob(f"*/{SPEC}")):
        try:
            read_spec(spec.parent)
        except DataError:
            # The scheduler writes it again when the trial starts.
            spec.unlink()


def forget_failures(folder: Path) -> int:
    """Reset the failed trials that can run again, and return their number."""
    ended = [
        (read_spec(path.parent), outcome)
        for path in sorted((folder / "trials").glob(f"*/{RESULT}"))
        if (outcome := read_outcome(path.parent)) is not None
    ]
    again = to_retry(ended)
    for name in {str(spec.cell) for spec in again if spec.phase == "search"}:
        studies = folder / "studies.db"
        with named_errors(studies):
            storage = storage_at(studies)
            if name in optuna.get_all_study_names(storage):
                optuna.delete_study(study_name=name, storage=storage)
    for spec in again:
        forget(folder / "trials" / spec.key)
    return len(again)


def to_retry(ended: Iterable[tuple[TrialSpec, Outcome]]) -> list[TrialSpec]:
    """Return the trials that `--resume` runs again.

    Failed confirming trials run again. Failed search trials do not, because later suggestions depend on them; but
    if all search trials of a cell failed, the search and the confirming trials of its best settings start again.
    """
    ended = list(ended)
    searched = {spec.cell for spec, _ in ended if spec.phase == "search"}
    useful = {spec.cell for spec, outcome in ended if spec.phase == "search" and outcome.status != "failed"}
    barren = searched - useful
    return [
        spec
        for spec, outcome in ended
        if (spec.cell in barren and (spec.phase == "search" or spec.settings == "best"))
        or (spec.phase == "confirm" and outcome.status == "failed")
    ]
