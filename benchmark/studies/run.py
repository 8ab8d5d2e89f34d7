"""Runs a study as a sweep of its variants, and fills the paper's table with the measured numbers.

A cell reports the mean over seeds. Its interval, and that of a claim, is a paired bootstrap over images and seeds
if the trials keep per-image statistics, else Student's t over seeds (benchmark/studies/intervals.py).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seedbed.benchmark.environment import code_version
from seedbed.benchmark.errors import ConfigError, DataError
from seedbed.benchmark.evaluation.bootstrap import Interval
from seedbed.benchmark.evaluation.per_image import Ratios, ratios_of
from seedbed.benchmark.evaluation.records import read_records
from seedbed.benchmark.paths import slug, without_folders
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.studies.intervals import (
    difference_over_images,
    difference_over_seeds,
    over_images,
    over_seeds,
)
from seedbed.benchmark.studies.study import Spot, Study, measure_of
from seedbed.benchmark.sweeps.settings import NAME, SweepSettings, settings_of
from seedbed.benchmark.sweeps.trial_files import TrialSpec, read_outcome, read_spec
from seedbed.benchmark.trials.options import DECIDED, TrialOptions, options_of
from seedbed.benchmark.trials.trial import SMALL_IMAGES
from seedbed.datasets.tools.check import preflight

if TYPE_CHECKING:
    from seedbed.benchmark.sweeps.progress import SweepListener, SweepResult

HOURS = "cost/hours"
CITED = "reported only"


@dataclass(frozen=True, kw_only=True)
class StudyRequest(TrialOptions):
    """The options of a study. Options that are not given are the paper's."""

    dataset: str
    root: Path | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    name: str = ""
    """Name of the sweep; empty: the names of study and data set."""
    where: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the sweep about machines: workers, cores, address."""


def sweep_of(study: Study, request: StudyRequest, work: WorkFolder) -> SweepSettings:
    """Return the sweep of a study.

    Raises ConfigError if `settings` change what the table varies, and if a sweep would.
    """
    if varied := sorted(study.varied & {*request.settings}):
        raise ConfigError(f"{study.name} varies {', '.join(varied)}, so you cannot set it")
    data = work.locate(request.dataset, request.root).open()
    preflight(data, allow_val_in_training=request.allow_val_in_training)
    small = data.long_side <= SMALL_IMAGES
    variants = dict(study.variants)
    if small or request.segmentation_backbone:
        variants = {
            name: type(variant)(**{**vars(variant), "segmentation_backbone": None})
            for name, variant in variants.items()
        }
    second = None if small else study.segmentation_backbone
    needed = any(variant.segment for variant in variants.values())
    content: dict[str, Any] = {
        **{name: value for name, value in options_of(request).items() if name not in DECIDED},
        "name": request.name or _usual_name(study, request.dataset),
        "datasets": [f"{request.dataset}={request.root}" if request.root else request.dataset],
        "variants": variants,
        "trials": 0,
        "seeds": list(request.seeds),
        "maps_on": list(study.maps_on),
        "selections": list(study.selections),
        "backbone": request.backbone or (None if small else study.backbone),
        "segmentation_backbone": (request.segmentation_backbone or second) if needed else None,
        "segmentation_weights": request.segmentation_weights if needed else None,
        **request.where,
    }
    return settings_of({key: value for key, value in content.items() if value is not None})


def run_study(
    settings: SweepSettings,
    work: WorkFolder,
    listeners: Sequence[SweepListener] = (),
    accept_changed_code: bool = False,
) -> SweepResult:
    """Run or continue the trials of a study, as `run_sweep`; failed trials run again."""
    from seedbed.benchmark.sweeps.driver import run_sweep

    return run_sweep(settings, work, listeners, retry_failed=True, accept_changed_code=accept_changed_code)


@dataclass(frozen=True)
class Measured:
    """The measurements of one trial."""

    spec: TrialSpec
    failure: str
    """Why there are no numbers; empty if there are."""
    values: Mapping[str, float]
    """Records by name, as fractions."""
    folder: Path

    def ratios(self, measure: str, classes: Sequence[str]) -> Ratios | None:
        """Return the numerators and denominators of a record by image."""
        return ratios_of(self.folder / "per_image", measure, classes, self.values)


def measured(work: WorkFolder, sweep: str) -> dict[tuple[str, int], Measured]:
    """Return the measurements of a sweep's trials by variant and seed."""
    found = {}
    for path in sorted((work.sweeps / sweep / "trials").glob("*/job.json")):
        spec, outcome = read_spec(path.parent), read_outcome(path.parent)
        values: dict[str, float] = {}
        failure = "has not ended" if outcome is None else outcome.reason if outcome.status != "complete" else ""
        failure = without_folders(failure, *spec.dataset_spec.folders())
        if outcome is not None and not failure:
            try:
                records = read_records(path.parent / "records.parquet")
            except DataError as error:
                failure = without_folders(str(error), *spec.dataset_spec.folders())
            else:
                values = {record.name: record.value for record in records if record.value is not None}
                values[HOURS] = sum(outcome.stages.values()) / 3600
        found[spec.cell.variant, spec.trial.seed] = Measured(spec, failure, values, path.parent)
    return found


def result_of(
    study: Study, settings: SweepSettings, work: WorkFolder, command: str, classes: Sequence[str]
) -> dict[str, Any]:
    """Return the study's table as plain JSON values (docs/studies.md)."""
    trials = measured(work, settings.name)
    table = StudyTable(study, trials, settings.seeds, tuple(classes))
    columns = [*dict.fromkeys(("background", *classes, "mIoU"))] if study.by_class else list(study.table.columns)
    labels = [row.label for row in study.table.rows]
    own = {row.label: row.own for row in study.table.rows}
    dataset = settings.dataset_names()[0]
    return {
        "study": study.name,
        "sweep": "" if settings.name == _usual_name(study, dataset) else settings.name,
        "title": study.title,
        "paper": f"{study.paper.title}, {_number(study.table.number)}",
        "method": study.paper.method,
        "dataset": dataset,
        "unit": study.table.unit,
        "columns": columns,
        "rows": [
            {"label": row, "own": own[row], "cells": [table.cell(row, column) for column in columns]}
            for row in labels
        ],
        "protocol": {"ours": _protocol(study, settings, trials), "paper": dict(study.table.protocol)},
        "claims": [table.claim(claim.text, claim.higher, claim.lower) for claim in study.claims],
        "notes": [*study.notes, *([study.table.note] if study.table.note else [])],
        "command": command,
        "code": code_version(),
        "seeds": list(settings.seeds),
    }


def _usual_name(study: Study, dataset: str) -> str:
    return f"{study.name}-{dataset if NAME.fullmatch(dataset) else slug(dataset)}"


@dataclass(frozen=True)
class StudyTable:
    """The numbers of a study's cells."""

    study: Study
    trials: Mapping[tuple[str, int], Measured]
    seeds: Sequence[int]
    classes: tuple[str, ...]

    def cell(self, row: str, column: str) -> dict[str, Any]:
        """Return one cell in its unit: our mean, spread and interval, the paper's value and the difference."""
        paper = self.study.table.value(row, column)
        spot = self._spot(row, column)
        cell: dict[str, Any] = dict.fromkeys(("ours", "std", "low", "high", "difference"))
        cell |= {"paper": paper, "seeds": 0, "missing": spot.missing}
        if not spot.variant:
            return cell
        measure = measure_of(self.study, spot, column)
        values, missing = self._values(spot, measure)
        if missing or not values:
            return cell | {"missing": missing or f"no record {measure}"}
        scale = self._scale(measure)
        mean = scale * statistics.fmean(values.values())
        cell |= {"ours": mean, "seeds": len(values)}
        if len(values) > 1:
            cell["std"] = scale * statistics.stdev(values.values())
        ratios = self._ratios(spot, measure)
        estimate = over_images(ratios) if ratios else over_seeds([*values.values()])
        if estimate is not None:
            cell |= {"low": scale * estimate.low, "high": scale * estimate.high}
        if paper is not None:
            cell["difference"] = mean - paper
        return cell

    def claim(self, text: str, higher: tuple[str, str], lower: tuple[str, str]) -> dict[str, Any]:
        """Return our verdict on a claim of the paper, with the paper's difference."""
        above, below = self.study.table.value(*higher), self.study.table.value(*lower)
        found: dict[str, Any] = {"text": text, "verdict": "undecided"}
        found |= dict.fromkeys(("difference", "low", "high", "p", "paper"))
        if above is not None and below is not None:
            found["paper"] = above - below
        spots = [self._spot(*place) for place in (higher, lower)]
        measures = [measure_of(self.study, s, place[1]) for s, place in zip(spots, (higher, lower), strict=True)]
        both = [self._values(spot, measure) for spot, measure in zip(spots, measures, strict=True)]
        common = sorted({*both[0][0]} & {*both[1][0]})
        if not common or any(missing for _, missing in both):
            return found
        scale = self._scale(measures[0])
        ratios = [self._ratios(spot, measure) for spot, measure in zip(spots, measures, strict=True)]
        estimate: Interval | None
        if all(ratios) and ratios[0].keys() == ratios[1].keys() and _same_images(*ratios):
            estimate = difference_over_images(*ratios)
        else:
            estimate = difference_over_seeds(*([values[seed] for seed in common] for values, _ in both))
        found["difference"] = scale * statistics.fmean(both[0][0][s] - both[1][0][s] for s in common)
        if estimate is not None:
            found |= {"low": scale * estimate.low, "high": scale * estimate.high, "p": estimate.p}
            found["verdict"] = verdict(estimate.low, estimate.high)
        return found

    def _spot(self, row: str, column: str) -> Spot:
        by_class = self.study.by_class and column not in self.study.columns
        missing = self.study.spots.get((row, "mIoU" if by_class else column))
        return missing or Spot("", "", CITED)

    def _values(self, spot: Spot, measure: str) -> tuple[dict[int, float], str]:
        """Return the numbers by seed, and why a seed has none."""
        values = {}
        for seed in self.seeds:
            trial = self.trials.get((spot.variant, seed))
            if trial is None or trial.failure:
                return {}, f"seed {seed}: {'was not run' if trial is None else trial.failure}"
            if measure in trial.values:
                values[seed] = trial.values[measure]
        return values, ""

    def _ratios(self, spot: Spot, measure: str) -> dict[int, Ratios]:
        found = {s: self.trials[spot.variant, s].ratios(measure, self.classes) for s in self.seeds}
        known = {seed: ratios for seed, ratios in found.items() if ratios is not None}
        return known if len(known) == len(found) else {}

    def _scale(self, measure: str) -> float:
        return 100.0 if self.study.table.unit == "%" and measure != HOURS else 1.0


def verdict(low: float, high: float) -> str:
    """Return the verdict on the claim that a difference is positive, from its interval."""
    if math.isnan(low) or low <= 0 <= high:
        return "undecided"
    return "holds" if low > 0 else "does not hold"


def _same_images(first: Mapping[int, Ratios], second: Mapping[int, Ratios]) -> bool:
    return len({ratios.ids for ratios in (*first.values(), *second.values())}) == 1


def _number(number: str) -> str:
    return number if number.startswith("Figure") else f"Table {number}"


def _protocol(study: Study, settings: SweepSettings, trials: Mapping[tuple[str, int], Measured]) -> dict[str, str]:
    """Return the conditions of our numbers in words."""
    first = next(iter(trials.values()), None)
    conditions: Mapping[str, Any] = {} if first is None else first.spec.conditions
    ours = {
        "dataset": settings.dataset_names()[0],
        "classes": str(conditions.get("classes", "")),
        "data digest": "" if first is None else first.spec.digest[:12],
        "splits of maps": ", ".join(study.maps_on),
        "backbone": str(conditions.get("backbone", "")),
        "initialisation": str(conditions.get("initialisation", ""))[:19],
        "image side": str(settings.size or "as they are"),
        "random seeds": ", ".join(map(str, settings.seeds)),
    }
    for key, value in settings.settings.items():
        ours[key] = str(value)
    return {name: text for name, text in ours.items() if text}
