"""What an earlier driver of a sweep left: its settings, its description, and trials that must run again."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

from benchmark.dealer import SweepPlan
from benchmark.environment import code_version
from benchmark.errors import ConfigError, DataError
from benchmark.job import read_outcome, write_text
from benchmark.sweep_settings import SweepSettings, read_settings


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
            if old["data_digest"] != new["data_digest"]:
                raise DataError(
                    f"{new['dataset']}: its files have changed since this sweep began; give the sweep a new name"
                )
        description |= {"id": before["id"], "code": before["code"]}
    write_text(path, json.dumps(description, indent=1))


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
