"""What a trial becomes in MLflow: the tags, parameters, metrics, description and files of its run."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from optuna.distributions import distribution_to_json

from seedbed.benchmark.evaluation.records import read_records
from seedbed.benchmark.paths import without_folders
from seedbed.benchmark.sweeps.search import drawn, storage_at
from seedbed.benchmark.sweeps.trial_files import SYSTEM, Outcome, TrialSpec
from seedbed.benchmark.tracking.command_line import command_line
from seedbed.benchmark.trials.progress_log import PROGRESS, read_lines, read_progress

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

Number = tuple[str, float, int, int]
"""Name, value, milliseconds since 1970, and step of a metric."""
FILES = ("config.json", "per_class.csv", "examples.png", "log.txt", "error.txt", "records.parquet")


def tags_of(folder: Path, spec: TrialSpec, config: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags that the run of the trial in `folder` has from its beginning (docs/sweeps.md lists all)."""
    code = str(config.get("environment", {}).get("code", ""))
    return {
        "seedbed.kind": "trial",
        "seedbed.sweep": spec.sweep,
        "seedbed.key": folder.name,
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
        "recipe": json.dumps(recipe_of(config)),
        **search_tags(folder, spec),
    }


def tags_of_end(spec: TrialSpec, outcome: Outcome) -> dict[str, str]:
    """Return the tags that tell how a trial ended. A run without them is of a trial that runs, or was killed."""
    return {
        "device": outcome.device,
        "hardware": outcome.hardware,
        "status": outcome.status,
        "reason": without_folders(outcome.reason, *spec.dataset_spec.folders())[:4000],
        "stages": json.dumps(dict(outcome.stages)),
        "progress": "ended",
    }


def note_of(run: str, folder: Path, spec: TrialSpec, command: str) -> str:
    """Return the description of a trial's run, as Markdown: what it is, its command, and its pictures so far."""
    refiner = f", refiner **{spec.cell.refiner}**" if spec.cell.refiner else ""
    what = (
        f"Method **{spec.cell.method}**{refiner}, data set **{spec.cell.dataset}**, random seed {spec.trial.seed}."
    )
    if not spec.sweep:
        which = "Started by `seedbed run`."
    elif spec.phase == "search":
        which = f"Search trial {spec.number} of the sweep `{spec.sweep}`: pseudo-masks of `tune` only."
    else:
        which = f"Confirming trial of the sweep `{spec.sweep}`, with the {spec.settings} settings."
    parts = [f"{what} {which}", f"This command runs it again:\n\n```\n{command}\n```"]
    for path in pictures(folder):
        # Relative to MLflow's page, whatever the address of its server.
        place = quote(str(path.relative_to(folder)))
        parts.append(f"![{path.stem}](get-artifact?path={place}&run_uuid={run})")
    return "\n\n".join(parts)


def note_of_sweep(name: str) -> str:
    """Return the description of a sweep's run, as Markdown."""
    commands = (f"watch {name}", f"sweep --resume {name}", f"leaderboard --sweep {name} --out DIR")
    listed = "\n".join(f"seedbed {command}" for command in commands)
    return f"A sweep. Its trials are the runs below this one.\n\n```\n{listed}\n```"


def pictures(folder: Path) -> list[Path]:
    """Return the pictures of the trial in `folder`: its examples, and those of the method's own measurements."""
    examples = folder / "examples.png"
    return [*([examples] if examples.exists() else []), *sorted(folder.glob("figures/*.png"))]


def params_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Return every hyper-parameter of a trial; a stage that occurs several times has its parameters once."""
    return {
        f"{stage['stage']}.{name}": ",".join(map(str, value)) if isinstance(value, list) else str(value)
        for stage in config.get("stages", [])
        for name, value in stage.items()
        if name not in ("stage", "version")
    }


def recipe_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Return a digest, of 8 hexadecimal digits, of the settings and the version of each stage, by its name."""
    by_stage: dict[str, list[Any]] = {}
    for stage in config.get("stages", []):
        by_stage.setdefault(stage["stage"], []).append(stage)
    return {
        name: hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
        for name, settings in sorted(by_stage.items())
    }


def search_tags(folder: Path, spec: TrialSpec) -> dict[str, str]:
    """Return the tags that tell what was drawn for the trial in `folder`, and how to run it again.

    `parameters` are the drawn settings as JSON: all of a search trial, of another one those that differ from the
    sweep's. `space` are the distributions of a search trial's, as Optuna writes them. Both are `{}` in a sweep
    without a search.
    """
    studies = folder.parents[1] / "studies.db"
    by_number, space = drawn(_opened(studies), str(spec.cell)) if spec.sweep and studies.exists() else ({}, {})
    changed = {key: value for key, value in spec.trial.settings.items() if key in space}
    # The first search trial has the default settings, which its spec does not name.
    parameters = changed if spec.number is None else by_number.get(spec.number, changed)
    distributions = {key: json.loads(distribution_to_json(space[key])) for key in parameters}
    work = folder.parents[3 if spec.sweep else 1].resolve()
    generated = Path(spec.dataset_spec.root).is_relative_to(work / "data")
    return {
        "parameters": json.dumps(parameters, sort_keys=True),
        "space": json.dumps(distributions if spec.phase == "search" else {}, sort_keys=True),
        "command": command_line(spec, generated),
    }


@functools.lru_cache(maxsize=1)
def _opened(studies: Path) -> BaseStorage:
    """Open a sweep's studies once: it takes as long as to deliver a trial."""
    return storage_at(studies)


def metrics_of(folder: Path, outcome: Outcome) -> Iterator[Number]:
    """Yield all numbers that an ended trial left."""
    when = milliseconds(outcome.finished)
    if (folder / "records.parquet").exists():
        for record in read_records(folder / "records.parquet"):
            if record.value is not None:
                yield record.name, record.value, when, 0
    if (folder / PROGRESS).exists():
        yield from running_metrics(folder)
    else:
        yield from _earlier_metrics(folder, when)
    yield "cost/computed_seconds", outcome.computed, when, 0


def running_metrics(folder: Path) -> Iterator[Number]:
    """Yield the numbers that a trial has while it runs: its stages, its losses by epoch, the load of the machine.

    A number stays the same as the files grow, with its time, so MLflow has it once however often it is sent.
    """
    progress = read_progress(folder)
    if progress is None:
        return
    for step, (moment, number) in enumerate(progress.stages):
        yield "progress/stage", number, milliseconds(moment), step
    for training, epochs in progress.history.items():
        for step, epoch in enumerate(epochs, 1):
            for loss, value in epoch.losses.items():
                yield f"{training}/{loss}", value, milliseconds(epoch.time), step
    samples = (sample for sample in read_lines(folder / SYSTEM) if sample.get("time", 0) >= progress.started)
    for step, sample in enumerate(samples):
        moment = sample.pop("time")
        for name, value in sample.items():
            yield name, float(value), milliseconds(moment), step


def _earlier_metrics(folder: Path, when: int) -> Iterator[Number]:
    """Yield the losses and loads of a trial of an earlier version, which wrote them at its end."""
    for stage, history in read_json(folder / "losses.json", {}).items():
        for epoch, losses in enumerate(history, 1):
            for loss, value in losses.items():
                yield f"{stage}/{loss}", float(value), when, epoch
    for name, samples in read_json(folder / "system.json", {}).items():
        for step, (moment, value) in enumerate(samples):
            yield name, float(value), int(moment), step


def milliseconds(seconds: float) -> int:
    return round(1000 * seconds)


def read_json(path: Path, default: Any) -> Any:
    return json.loads(path.read_text()) if path.exists() else default
