"""What an earlier driver of a sweep left: its settings, its description, and trials that must run again."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmark.dealer import SweepPlan
from benchmark.environment import code_version
from benchmark.errors import ConfigError, DataError
from benchmark.job import read_job, read_outcome, write_text
from benchmark.sweep_settings import SweepSettings, read_settings

WEIGHTS_FACTS = {"initialisation": "--weights", "segmentation_initialisation": "--segmentation-weights"}
"""The facts of a cell that are the digest of a weights file, with the options that give the file."""


def check_same_sweep(folder: Path, settings: SweepSettings) -> None:
    path = folder / "sweep.yaml"
    # Without sweep.json the earlier sweep never began: its settings were refused, or it was killed before.
    if not path.exists() or not (folder / "sweep.json").exists():
        return
    if names := read_settings(path, {}).differences(settings):
        raise ConfigError(
            f"{folder}: a sweep of this name has other settings ({', '.join(names)}); go on with it by "
            f"`seedbed sweep --resume {settings.name}`, or choose another --name"
        )


def describe(folder: Path, plan: SweepPlan) -> None:
    """Write `sweep.json`. Raises DataError where the data is not what the sweep began with."""
    path = folder / "sweep.json"
    description = {
        **plan.description(),
        "id": uuid.uuid4().hex,
        "expected": plan.expected(),
        "code": code_version(),
    }
    if path.exists():
        before = json.loads(path.read_text())
        for old, new in zip(before["cells"], description["cells"], strict=True):
            _check_same_content(old, new)
        description |= {"id": before["id"], "code": before["code"]}
    write_text(path, json.dumps(description, indent=1))


def _check_same_content(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise DataError if a cell's data set or weights file has another content than when the sweep began."""
    for key, what in {"data_digest": new["dataset"], **WEIGHTS_FACTS}.items():
        # A sweep of an earlier version may lack a fact that came later.
        before, now = str(old.get(key, "")), str(new.get(key, ""))
        if before and before != now:
            raise DataError(
                f"{what}: not the content that this sweep began with (its digest is {_short(now)}, then it was "
                f"{_short(before)}). Say where the same files are now (--resume NAME with --datasets NAME=ROOT, "
                "--weights FILE), or give the sweep a new name"
            )


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]


def update_places(folder: Path, plan: SweepPlan) -> None:
    """Write to the jobs of earlier trials where their data sets lie now."""
    places = {cell.cell: cell.place for cell in plan.cells}
    for path in sorted((folder / "trials").glob("*/job.json")):
        job = read_job(path.parent)
        place = places.get(job.cell, job.place)
        if job.place != place:
            write_text(path, replace(job, place=place).to_json())


def forget_failures(folder: Path) -> int:
    """Make the confirming trials of a sweep that failed wait again, and return how many they are.

    A search trial that failed stays failed: later suggestions were made knowing it.
    """
    count = 0
    for path in sorted((folder / "trials").glob("*/result.json")):
        outcome = read_outcome(path.parent)
        phase = json.loads((path.parent / "job.json").read_text())["phase"]
        if outcome is not None and outcome.status == "failed" and phase == "confirm":
            for left in ("delivered.json", "error.txt", "result.json"):
                (path.parent / left).unlink(missing_ok=True)
            count += 1
    return count
