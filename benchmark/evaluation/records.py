"""The Record: one tidy row per measured number, and the file that holds them.

`records.parquet` has the columns level, split, metric, selection, label, value and count; the schema's metadata
holds its version. A value that does not exist (a class without a pixel) is null, never a number.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from seedbed.benchmark.errors import DataError
from seedbed.benchmark.evaluation.metrics import Confusion, SoftScores, Values, mean_of_known
from seedbed.benchmark.pipeline.store import way_out
from seedbed.datasets.io.images import atomic

if TYPE_CHECKING:
    from seedbed.benchmark.evaluation.scoring import MapScores, MaskScores

Selection = Literal["fixed", "tuned", "oracle", "none"]
SCHEMA_VERSION = b"1"
SCHEMA = pa.schema(
    [
        ("level", pa.string()),
        ("split", pa.string()),
        ("metric", pa.string()),
        ("selection", pa.string()),
        ("label", pa.string()),
        ("value", pa.float64()),
        ("count", pa.int64()),
    ],
    metadata={"seedbed.records": SCHEMA_VERSION},
)


@dataclass(frozen=True)
class Record:
    """One measured number (docs/protocol.md says what each level, metric and selection means)."""

    level: str
    split: str
    metric: str
    selection: Selection
    """How the threshold was chosen; `none` where the number has no threshold."""
    label: str | None
    """The class that the number is about; None where it is about all."""
    value: float | None
    """A fraction in [0, 1] for metrics, a threshold, or a number of classes; None where it does not exist."""
    count: int | None
    """How many images or classes the number is the mean of."""

    @property
    def name(self) -> str:
        """The record's name in an experiment tracker: `seed.train/mIoU_tuned`, `val/IoU_cat`."""
        place = self.split if self.level == "segmentation" else f"{self.level}.{self.split}"
        # A tracker takes `/` for a folder.
        label = self.label and self.label.replace("/", "_")
        parts = [self.metric, label, None if self.selection == "none" else self.selection]
        return f"{place}/{'_'.join(part for part in parts if part)}"


def records_of_map_scores(
    scores: MapScores,
    classes: Sequence[str],
    level: str,
    split: str,
    fixed: float,
    tuned: float | None,
) -> list[Record]:
    """Return the records of scored maps: mIoU and IoU at each selection, soft metrics, pixel AP.

    `fixed` and `tuned` are thresholds of the curve (ConfigError otherwise); `tuned` may be None. Maps with a
    background channel need no threshold: theirs is one prediction, `fixed`.
    """
    thresholds: dict[Selection, float] = {"fixed": fixed}
    if tuned is not None:
        thresholds["tuned"] = tuned
    thresholds["oracle"] = scores.curve.best()[0]
    records: list[Record] = []
    for selection, threshold in thresholds.items():
        records += _of_confusion(scores.curve.at(threshold), classes, level, split, selection)
        records.append(Record(level, str(split), "threshold", selection, None, threshold, None))
    records += records_of_soft_scores(scores.soft, classes, level, split)
    if scores.signed.truths.any():
        for row in scores.signed.results():
            label = f"T={row['threshold']:g}"
            for metric in ("mIoU", "recall", "coverage"):
                value = _known(row[metric])
                records.append(Record(level, str(split), f"signed_{metric}", "fixed", label, value, None))
    records += records_by_class("pixel_AP", scores.pixel_ap.by_class()[1:], classes, level, split, None)
    return records


def records_of_soft_scores(scores: SoftScores, classes: Sequence[str], level: str, split: str) -> Iterator[Record]:
    """Yield the records of soft overlap, precision and recall."""
    metrics = ("soft_overlap", "soft_precision", "soft_recall")
    for metric, values in zip(metrics, scores.by_class(), strict=True):
        yield from records_by_class(metric, values[1:], classes, level, split, scores.images[1:].tolist())


def records_of_mask_scores(
    scores: MaskScores, classes: Sequence[str], level: str, split: str, selection: Selection
) -> list[Record]:
    """Return the records of scored masks: mIoU, and IoU, precision, recall and F of each label."""
    return list(_of_confusion(scores.confusion, classes, level, split, selection))


def _of_confusion(
    confusion: Confusion, classes: Sequence[str], level: str, split: str, selection: Selection
) -> Iterator[Record]:
    split, names = str(split), ("background", *classes)
    counted = confusion.classes_counted()
    yield Record(level, split, "mIoU", selection, None, _known(confusion.miou()), counted)
    yield Record(level, split, "classes", selection, None, float(counted), counted)
    columns = {
        "IoU": confusion.iou(),
        "precision": confusion.precision(),
        "recall": confusion.recall(),
        "F": confusion.f_score(),
    }
    for metric, values in columns.items():
        if metric != "IoU":
            yield Record(level, split, f"m{metric}", selection, None, _known(mean_of_known(values)), counted)
        for name, value in zip(names, values, strict=True):
            yield Record(level, split, metric, selection, name, _known(value), None)


def records_by_class(
    metric: str, values: Values, classes: Sequence[str], level: str, split: str, images: list[int] | None
) -> Iterator[Record]:
    """Yield `m` + metric, the mean over the foreground classes whose value is not NaN, and each class's value.

    `values` is (C,), `images` the number of images of each class.
    """
    present = sum(not math.isnan(value) for value in values)
    yield Record(level, str(split), f"m{metric}", "none", None, _known(mean_of_known(values)), present)
    for index, (name, value) in enumerate(zip(classes, values, strict=True)):
        yield Record(
            level, str(split), metric, "none", name, _known(value), None if images is None else images[index]
        )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Write records as Parquet, by one rename; a value that is NaN becomes null."""
    rows = [vars(r) | {"value": None if r.value is None else _known(r.value)} for r in records]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    with atomic(path) as temporary:
        pq.write_table(table, temporary)


def read_records(path: Path) -> list[Record]:
    """Read what `write_records` wrote. Raises DataError for a missing file or another version."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: not a file of records ({error}); {way_out(path)}") from None
    version = (table.schema.metadata or {}).get(b"seedbed.records")
    if version != SCHEMA_VERSION:
        raise DataError(f"{path}: records of version {version!r}, this Seedbed reads {SCHEMA_VERSION!r}")
    return [Record(**row) for row in table.to_pylist()]
