"""A measured number as sums over images, from the per-image statistics that a trial keeps.

Every mIoU, mean F and soft metric is a mean over classes of Σ top / Σ bottom, the sums over images. So the number
of any resample of the images follows exactly from its images' parts: what a paired bootstrap needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

SELECTIONS = ("fixed", "tuned", "oracle")
SOFT = {
    "msoft_overlap": "overlap",
    "msoft_precision": "precision",
    "msoft_recall": "recall",
    "msimilarity": "overlap",
}
MASK_COLUMNS = {"id", "truth", "predicted", "pixels"}


@dataclass(frozen=True)
class Ratios:
    """The parts of one number: float64 (N, C) by image and class; `ids` are the images, ascending."""

    ids: tuple[str, ...]
    top: NDArray[np.float64]
    bottom: NDArray[np.float64]

    def value(self) -> float:
        """Return the number itself, a fraction; NaN where no class has anything to count."""
        top, bottom = self.top.sum(0), self.bottom.sum(0)
        present = bottom > 0
        return float((top[present] / bottom[present]).mean()) if present.any() else float("nan")


def ratios_of(folder: Path, record: str, classes: Sequence[str], thresholds: Mapping[str, float]) -> Ratios | None:
    """Return the parts of a record of a trial, None where the trial keeps none for it.

    `folder` is the trial's `per_image/`, `record` a name such as `seed.train/mIoU_tuned`, `classes` are the
    foreground classes, `thresholds` the trial's records of thresholds, `seed.train/threshold_tuned`.
    """
    place, _, metric = record.partition("/")
    level, _, split = place.rpartition(".")
    level = level or "segmentation"
    selection = next((s for s in SELECTIONS if metric.endswith(f"_{s}")), "none")
    metric = metric.removesuffix(f"_{selection}")
    if metric in SOFT:
        return _soft(folder, level, split, SOFT[metric], len(classes))
    suffix = "" if selection == "none" else f"_{selection}"
    path = folder / f"{level}.{split}{suffix}.parquet"
    curve = folder / f"{level}.{split}.parquet"
    if metric == "seed_mIoU":
        metric, path = "mIoU", curve
    if path.exists() and {*pq.read_schema(path).names} == MASK_COLUMNS:
        cells = _cells_of_masks(path)
    elif curve.exists() and (threshold := thresholds.get(f"{place}/threshold{suffix}")) is not None:
        cells = _cells_of_maps(curve, threshold)
    else:
        return None
    return _of_confusion(cells, metric, classes)


Cells = tuple[NDArray[np.str_], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""The nonzero cells of all images' confusion matrices: id, true label, predicted label, pixels, each (M,)."""


def _cells_of_masks(path: Path) -> Cells:
    table = pq.read_table(path)
    ids = np.asarray(table["id"].to_pylist(), str)
    return ids, *(table[name].to_numpy().astype(np.int64) for name in ("truth", "predicted", "pixels"))


def _cells_of_maps(path: Path, threshold: float) -> Cells:
    from seedbed.benchmark.evaluation.metrics import threshold_index

    table = pq.read_table(path)
    index = threshold_index(np.frombuffer(table.schema.metadata[b"thresholds"], "<f4"), threshold)
    truth, label, passed, pixels = (
        table[name].to_numpy().astype(np.int64) for name in ("truth", "label", "passed", "pixels")
    )
    return np.asarray(table["id"].to_pylist(), str), truth, np.where(passed > index, label, 0), pixels


def _of_confusion(cells: Cells, metric: str, classes: Sequence[str]) -> Ratios | None:
    ids, truth, predicted, pixels = cells
    images, row = np.unique(ids, return_inverse=True)
    shape = len(images), len(classes) + 1
    both, true, own = (np.zeros(shape) for _ in range(3))
    right = truth == predicted
    np.add.at(both, (row[right], truth[right]), pixels[right])
    np.add.at(true, (row, truth), pixels)
    np.add.at(own, (row, predicted), pixels)
    names = tuple(images.tolist())
    if metric == "mIoU":
        return Ratios(names, both, true + own - both)
    if metric == "mF":
        return Ratios(names, 2 * both, true + own)
    name = metric.removeprefix("IoU_")
    if name == metric or name not in ("background", *classes):
        return None
    label = ("background", *classes).index(name)
    return Ratios(names, both[:, [label]], (true + own - both)[:, [label]])


def _soft(folder: Path, level: str, split: str, column: str, classes: int) -> Ratios | None:
    path, streams = folder / f"{level}_soft.{split}.parquet", folder / f"streams.{split}.parquet"
    source = next((each for each in (path, streams) if each.exists()), None)
    if source is None:
        return None
    table = pq.read_table(source)
    # An image that counts for no class at this level is an image of the split all the same.
    images = np.unique(np.asarray(table["id"].to_pylist(), str))
    if source == streams:
        table = table.filter(pc.equal(table["level"], pa.scalar(level)))
    row = np.searchsorted(images, np.asarray(table["id"].to_pylist(), str))
    labels = table["labels"].to_numpy() - 1
    top, bottom = np.zeros((len(images), classes)), np.zeros((len(images), classes))
    top[row, labels] = table[column].to_numpy()
    bottom[row, labels] = 1
    return Ratios(tuple(images.tolist()), top, bottom)
