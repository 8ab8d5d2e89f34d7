"""The files of a trial that hold what was measured: numbers, statistics of images, and pictures."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seedbed.benchmark.evaluation.per_image import file_name
from seedbed.benchmark.evaluation.records import PER_CLASS, Record, RecordName, write_records
from seedbed.benchmark.pipeline.pipeline import Step
from seedbed.benchmark.trials.plan import TrialPlan


def write_measurements(folder: Path, plan: TrialPlan, records: Sequence[Record], pictures: bool) -> None:
    """Write the records and the stored statistics of a measured trial into `folder`, and pictures if wanted.

    records.parquet   the numbers                       per_image/     statistics of each image, as Parquet
    per_class.csv     one row per class                 examples.png, figures/     the pictures
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_records(folder / "records.parquet", records)
    _write_per_class(folder / "per_class.csv", records)
    for step in plan.steps().values():
        for source in sorted(plan.work.store.path(step.key).glob("per_image*.parquet")):
            target = folder / "per_image" / _per_image_name(step, source.stem)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(source, target)
    if pictures:
        plan.pictures(folder / "examples.png")
        for name, path in plan.figures().items():
            (folder / "figures").mkdir(exist_ok=True)
            shutil.copyfile(path, folder / "figures" / name)


def _per_image_name(step: Step, stem: str) -> str:
    """Return the file of per-image statistics: `pseudo_mask.train_tuned.parquet`, `seed_soft.train.parquet`."""
    values, own = step.stage.settings(), stem.removeprefix("per_image").removeprefix("_")
    level = values.get("level", "")
    place = {"": level, "soft": f"{level}_soft"}.get(own, own)
    selection = values.get("selection", "none")
    return file_name(RecordName(place, str(step.split), "", selection))


def _write_per_class(path: Path, records: Sequence[Record]) -> None:
    """Write one row per level, split, selection and class, with one column per metric, as fractions."""
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for record in records:
        if record.label is not None and record.metric in PER_CLASS:
            place: tuple[str, ...] = (record.level, record.split, record.selection, record.label)
            rows.setdefault(place, {})[record.metric] = record.value
    metrics = [metric for metric in PER_CLASS if any(metric in row for row in rows.values())]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["level", "split", "selection", "class", *metrics])
        for place, row in rows.items():
            writer.writerow([*place, *("" if row.get(m) is None else row[m] for m in metrics)])
