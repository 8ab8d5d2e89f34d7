"""Reads the statistics per image that a trial keeps (scoring.py writes them), and splits a number into images.

Every metric of counted pixels and every soft metric is a mean over classes of Σ numerator / Σ denominator, summed
over images. So the number of any resample of the images follows exactly from the parts of its images: that is what
a paired bootstrap needs.
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

from seedbed.benchmark.evaluation.metrics import (
    COUNTED,
    Counts,
    counted_parts,
    mean_of_known,
    ratio,
    threshold_index,
)
from seedbed.benchmark.evaluation.records import RecordName

SOFT = {"soft_overlap": "overlap", "soft_precision": "precision", "soft_recall": "recall", "similarity": "overlap"}
"""The columns of the files of soft scores, by metric."""


@dataclass(frozen=True, eq=False)
class Ratios:
    """The parts of one number: float64 (N, C) by image and class; `ids` are the images, ascending."""

    ids: tuple[str, ...]
    top: NDArray[np.float64]
    bottom: NDArray[np.float64]

    def value(self) -> float:
        """Return the number itself, a fraction; NaN if no class has anything to count."""
        return float(mean_of_known(ratio(self.top.sum(0), self.bottom.sum(0))))


@dataclass(frozen=True, eq=False)
class ImageConfusions:
    """The nonzero cells of the confusion matrices of images."""

    ids: tuple[str, ...]
    """The images, ascending."""
    image: NDArray[np.int64]
    """(M,): places in `ids`."""
    truth: NDArray[np.int64]
    predicted: NDArray[np.int64]
    pixels: NDArray[np.int64]

    def counts(self, labels: int | None = None) -> NDArray[np.int64]:
        """Return Counts (N, 3, labels); without `labels`, up to the highest label that occurs."""
        if labels is None:
            labels = 1 + int(max(self.truth.max(initial=0), self.predicted.max(initial=0)))
        counts = np.zeros((len(self.ids), 3, labels), np.int64)
        right = self.truth == self.predicted
        np.add.at(counts[:, 0], (self.image[right], self.truth[right]), self.pixels[right])
        np.add.at(counts[:, 1], (self.image, self.truth), self.pixels)
        np.add.at(counts[:, 2], (self.image, self.predicted), self.pixels)
        return counts


def file_name(name: RecordName) -> str:
    """Return the file with the statistics of a record, `segmentation.val.parquet` for `val/mIoU`."""
    return f"{name.level}.{name.split}{'' if name.selection == 'none' else f'_{name.selection}'}.parquet"


def read_confusions(path: Path, threshold: float | None = None) -> ImageConfusions:
    """Read the statistics of masks, or those of maps cut at `threshold`.

    Raises OSError or ArrowInvalid for a file that cannot be read, KeyError for one of another kind, ConfigError
    for a threshold at which the maps were not measured.
    """
    table = pq.read_table(path)
    ids, image = np.unique(np.asarray(table["id"].to_pylist(), str), return_inverse=True)
    kinds = ("truth", "predicted" if threshold is None else "label", "pixels")
    truth, predicted, pixels = (table[name].to_numpy().astype(np.int64) for name in kinds)
    if threshold is not None:
        index = threshold_index(np.frombuffer(table.schema.metadata[b"thresholds"], "<f4"), threshold)
        predicted = np.where(table["passed"].to_numpy() > index, predicted, 0)
    return ImageConfusions(tuple(ids.tolist()), image, truth, predicted, pixels)


def ratios(metric: str, ids: tuple[str, ...], counts: Counts) -> Ratios:
    """Return the parts of a metric of COUNTED, from the Counts (N, 3, L) of images."""
    top, bottom = counted_parts(metric, np.asarray(counts, np.float64))
    return Ratios(ids, top, bottom)


def ratios_of(folder: Path, record: str, classes: Sequence[str], values: Mapping[str, float]) -> Ratios | None:
    """Return the parts of a record of a trial; None if the trial keeps none for it.

    `folder` is the trial's `per_image/`, `record` a name such as `seed.train/mIoU_tuned`, `classes` are the
    foreground classes, `values` the trial's records by name: among them, the thresholds at which maps are cut.
    """
    name = RecordName.parse(record)
    if name is None:
        return None
    metric = name.metric if name.label else name.metric.removeprefix("m")
    path, curve = folder / file_name(name), folder / f"{name.level}.{name.split}.parquet"
    if metric == "seed_mIoU":
        metric, path = "IoU", curve
    if metric in SOFT:
        return _soft(folder, name, SOFT[metric], len(classes))
    threshold = values.get(str(name.of("threshold")))
    labels = ("background", *classes)
    if metric not in COUNTED or name.label not in (None, *labels):
        return None
    if path.exists() and "predicted" in pq.read_schema(path).names:
        cells = read_confusions(path)
    elif curve.exists() and threshold is not None:
        cells = read_confusions(curve, threshold)
    else:
        return None
    parts = ratios(metric, cells.ids, cells.counts(len(labels)))
    if name.label is None:
        return parts
    own = [labels.index(name.label)]
    return Ratios(parts.ids, parts.top[:, own], parts.bottom[:, own])


def _soft(folder: Path, name: RecordName, column: str, classes: int) -> Ratios | None:
    own, streams = folder / f"{name.level}_soft.{name.split}.parquet", folder / f"streams.{name.split}.parquet"
    source = next((each for each in (own, streams) if each.exists()), None)
    if source is None or name.label is not None:
        return None
    table = pq.read_table(source)
    # An image that counts for no class at this level is still an image of the split.
    images = np.unique(np.asarray(table["id"].to_pylist(), str))
    if source == streams:
        table = table.filter(pc.equal(table["level"], pa.scalar(name.level)))
    row = np.searchsorted(images, np.asarray(table["id"].to_pylist(), str))
    labels = table["labels"].to_numpy() - 1
    top, bottom = np.zeros((len(images), classes)), np.zeros((len(images), classes))
    top[row, labels] = table[column].to_numpy()
    bottom[row, labels] = 1
    return Ratios(tuple(images.tolist()), top, bottom)
