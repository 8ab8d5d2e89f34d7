"""The Record: one tidy row per measured number, its name, and the file that holds the records of a run.

`records.parquet` has the columns level, split, metric, selection, label, value and count; the schema's metadata
holds its version. A value that does not exist (a class without a pixel) is null, never a number.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, SupportsFloat, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from seedbed.benchmark.errors import DataError
from seedbed.benchmark.evaluation.metrics import COUNTED, Confusion, SoftScores, Values, mean_of_known
from seedbed.benchmark.files import atomic
from seedbed.benchmark.pipeline.store import way_out

if TYPE_CHECKING:
    from seedbed.benchmark.evaluation.scoring import MapScores, MaskScores

Selection = Literal["fixed", "tuned", "oracle", "none"]
SPLITS = ("tune", "train", "val", "test")
SOFT = ("soft_overlap", "soft_precision", "soft_recall")
PER_CLASS = (*COUNTED, "AP", *SOFT)
"""The metrics with a value per class, in the order of the columns of `per_class.csv`."""
LABELLED = (*PER_CLASS, "pixel_AP", "similarity", "signed_mIoU", "signed_recall", "signed_coverage")
"""All metrics whose records have a label."""
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
class RecordName:
    """What a record is about. As text: `seed.train/mIoU_tuned`, `val/IoU_cat`."""

    level: str
    split: str
    metric: str
    selection: Selection = "none"
    """How the threshold was chosen; `none` if the number has no threshold."""
    label: str | None = None
    """The class that the number is about; None if it is about all."""

    def __str__(self) -> str:
        """Return the name in an experiment tracker, the leaderboard and the files of studies."""
        # A tracker takes `/` for a folder.
        label = self.label and self.label.replace("/", "_")
        parts = [self.metric, label, None if self.selection == "none" else self.selection]
        return f"{self.place}/{'_'.join(part for part in parts if part)}"

    @property
    def place(self) -> str:
        """Level and split as text: `seed.train`, or `val` of the segmentation network."""
        return self.split if self.level == "segmentation" else f"{self.level}.{self.split}"

    @classmethod
    @functools.lru_cache(maxsize=4096)
    def parse(cls, text: str) -> RecordName | None:
        """Return the name that is written as `text`; None if no record has such a name (a loss, a cost)."""
        place, _, rest = text.partition("/")
        level, _, split = place.rpartition(".")
        if not rest or split not in SPLITS:
            return None
        metric, _, last = rest.rpartition("_")
        selection: Selection = next((s for s in get_args(Selection) if s == last and metric), "none")
        metric = rest if selection == "none" else metric
        labelled = next((name for name in LABELLED if metric.startswith(f"{name}_")), None)
        label = None if labelled is None else metric.removeprefix(f"{labelled}_")
        return cls(level or "segmentation", split, labelled or metric, selection, label)

    def of(self, metric: str, label: str | None = None) -> RecordName:
        """Return the name of another metric at the same level, split and selection."""
        return replace(self, metric=metric, label=label)


VAL = (RecordName("segmentation", "val", "mIoU"),)
"""The result of the segmentation network."""
PSEUDO_MASK = (
    RecordName("pseudo_mask", "train", "mIoU", "tuned"),
    RecordName("pseudo_mask", "train", "mIoU"),
)
"""The result of a method and refiner. The first that a run has counts: some masks need no threshold."""
RANKED = {"val mIoU": VAL, "pseudo-mask mIoU": PSEUDO_MASK}
"""The numbers that rank the rows of a leaderboard, by title; a run is ranked by the first that it has."""
OBJECTIVE = tuple(
    RecordName("pseudo_mask", "tune", "mIoU", selection) for selection in ("none", "tuned", "fixed", "oracle")
)
"""What a search maximises, whatever the selection of the masks. It needs no segmentation network."""


def first_value(names: Iterable[RecordName], values: Mapping[str, float | None]) -> float | None:
    """Return the value of the first of `names` that is in `values` (by name as text); None if none is."""
    return next((values[text] for text in map(str, names) if text in values), None)


@dataclass(frozen=True)
class Record:
    """One measured number (docs/protocol.md says what each level, metric and selection means)."""

    level: str
    split: str
    metric: str
    selection: Selection
    """How the threshold was chosen; `none` if the number has no threshold."""
    label: str | None
    """The class that the number is about; None if it is about all."""
    value: float | None
    """A fraction in [0, 1] for metrics, a threshold, or a number of classes; None if it does not exist."""
    count: int | None
    """How many images or classes the number is the mean of."""

    @property
    def name(self) -> str:
        """The record's name as text: `seed.train/mIoU_tuned`, `val/IoU_cat`."""
        return str(RecordName(self.level, self.split, self.metric, self.selection, self.label))


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
    for metric, values in zip(SOFT, scores.by_class(), strict=True):
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
    for metric in COUNTED:
        values = confusion.by_label(metric)
        yield Record(level, split, f"m{metric}", selection, None, _known(mean_of_known(values)), counted)
        if metric == "IoU":
            yield Record(level, split, "classes", selection, None, float(counted), counted)
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


def _known(value: SupportsFloat) -> float | None:
    number = float(value)
    return None if math.isnan(number) else number


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
