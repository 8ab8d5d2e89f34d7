"""Scores saved maps or masks of a split, from any source, in one pass over the pixels.

Images are taken in chunks of 32 and the chunks' states are merged in order, so the number of processes never
changes a bit of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from seedbed.benchmark.errors import DataError, MaskForbiddenError
from seedbed.benchmark.evaluation.formats import MapSource, MaskSource
from seedbed.benchmark.evaluation.maps import ScoreMaps
from seedbed.benchmark.evaluation.metrics import (
    THRESHOLDS,
    Confusion,
    ImageCurve,
    ImageSoft,
    PixelAp,
    SignedSeeds,
    SoftScores,
    ThresholdCurve,
)
from seedbed.benchmark.evaluation.plausibility import Plausibility, explain
from seedbed.benchmark.parallel import map_in_order
from seedbed.datasets.base import IGNORE_INDEX, SplitView

CHUNK = 32
NAMED = 20
"""Maximum number of bad files named in one error; all are counted."""
Progress = Callable[[int, int], None]


@dataclass
class MapScores:
    """The scores of the maps of a split."""

    curve: ThresholdCurve
    soft: SoftScores
    pixel_ap: PixelAp
    signed: SignedSeeds
    images: int
    plausibility: Plausibility = field(default_factory=Plausibility)

    @classmethod
    def empty(cls, classes: int, thresholds: NDArray[np.float32] = THRESHOLDS) -> MapScores:
        """Return the state before the first image."""
        curve = ThresholdCurve.empty(classes, thresholds)
        return cls(curve, SoftScores.empty(classes), PixelAp.empty(classes), SignedSeeds.empty(classes), 0)

    def merge(self, other: MapScores) -> None:
        """Add another part of the split."""
        self.curve.merge(other.curve)
        self.soft.merge(other.soft)
        self.pixel_ap.merge(other.pixel_ap)
        self.signed.merge(other.signed)
        self.images += other.images
        self.plausibility.merge(other.plausibility)


@dataclass
class MaskScores:
    """The scores of the masks of a split."""

    confusion: Confusion
    images: int
    plausibility: Plausibility = field(default_factory=Plausibility)

    def merge(self, other: MaskScores) -> None:
        """Add another part of the split."""
        self.confusion.merge(other.confusion)
        self.images += other.images
        self.plausibility.merge(other.plausibility)


def score_maps(
    source: MapSource,
    view: SplitView,
    *,
    processes: int = 1,
    thresholds: NDArray[np.float32] = THRESHOLDS,
    signed: bool = False,
    per_image: Path | None = None,
    progress: Progress | None = None,
) -> MapScores:
    """Score localisation maps against the true masks of a split.

    `thresholds` are those of the curve (`metrics.thresholds_with` adds others to the usual ones).
    `signed` also measures ICD's Table 2 (`SignedSeeds`), for maps that score background below 0.
    `per_image` is a Parquet file to write, one row per cell of each image's ImageCurve (id, truth, label, passed,
    pixels), from which the confusion of any image at any threshold follows exactly (per_image.py); the soft
    scores of each image go to a file beside it, `…_soft.parquet`. `progress(done, images)` is called
    regularly. Raises DataError naming every file that is missing, broken, of another size than its image, or
    has classes that the data set does not know; MaskForbiddenError for a split without masks.
    """
    total = MapScores.empty(len(view.classes), thresholds)
    curve_schema = CURVE_SCHEMA.with_metadata({"thresholds": thresholds.astype("<f4").tobytes()})
    curves, softs = _Rows(per_image, curve_schema), _Rows(_beside(per_image, "_soft"), SOFT_SCHEMA)
    with curves, softs:
        for state, own in _chunks(_ScoreMapChunk(source, view, thresholds, signed), view, processes, progress):
            total.merge(state)
            for image_id, curve, soft in own:
                curves.add(image_id, vars(curve))
                softs.add(image_id, vars(soft))
    return total


def score_masks(
    source: MaskSource,
    view: SplitView,
    *,
    processes: int = 1,
    per_image: Path | None = None,
    progress: Progress | None = None,
    ignore_predicted: bool = False,
) -> MaskScores:
    """Score masks against the true masks of a split.

    `per_image` is a Parquet file to write, one row per nonzero cell of each image's confusion matrix
    (id, truth, predicted, pixels). `ignore_predicted` leaves pixels out that are predicted 255 (docs/methods.md).
    Raises as `score_maps`.
    """
    total = MaskScores(Confusion.empty(len(view.classes)), 0)
    with _Rows(per_image, MASK_SCHEMA) as rows:
        for state, own in _chunks(_ScoreMaskChunk(source, view, ignore_predicted), view, processes, progress):
            total.merge(state)
            for image_id, matrix in own:
                truth, predicted = np.nonzero(matrix)
                rows.add(
                    image_id,
                    {
                        "truth": truth.astype(np.uint8),
                        "predicted": predicted.astype(np.uint8),
                        "pixels": matrix[truth, predicted],
                    },
                )
    return total


def predict(maps: ScoreMaps) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """Return the best foreground class, its score, both (H, W), and the foreground maps at full size (K, H, W).

    With a background channel a pixel's score is 2 if the best class wins over background and −1 if it does
    not: such maps need no threshold and are the same at each.
    """
    full = maps.at_full_size()
    foreground = maps.labels != 0
    if not foreground.any():
        return np.zeros(maps.size, np.uint8), np.full(maps.size, -1, np.float32), full[foreground]
    classes = full[foreground]
    best = maps.labels[foreground].astype(np.uint8)[classes.argmax(0)]
    score = classes.max(0)
    if not foreground.all():
        score = np.where(score > full[~foreground][0], np.float32(2), np.float32(-1))
    return best, score, classes


@dataclass(frozen=True)
class _ScoreMapChunk:
    source: MapSource
    view: SplitView
    thresholds: NDArray[np.float32]
    signed: bool

    def __call__(self, ids: Sequence[str]) -> tuple[MapScores, list[tuple[str, ImageCurve, ImageSoft]], list[str]]:
        state, own, problems = MapScores.empty(len(self.view.classes), self.thresholds), [], []
        for image_id in ids:
            try:
                truth, maps = self.view.mask(image_id), self.source.read(image_id)
                if not len(maps.labels):
                    # PSA's dictionary of an image without classes does not tell its size.
                    maps = replace(maps, size=self.view.size(image_id))
                _check(self.view, image_id, maps.size, maps.labels)
            except DataError as error:
                problems.append(str(error))
                continue
            best, score, full = predict(maps)
            foreground = ScoreMaps(maps.labels[maps.labels != 0], full, maps.size)
            curve = state.curve.update(truth, best, score)
            soft = state.soft.update(truth, foreground, full)
            state.pixel_ap.update(truth, foreground, full)
            if self.signed:
                state.signed.update(truth, foreground, full)
            state.images += 1
            highest = float(maps.scores.max(initial=-np.inf))
            state.plausibility.highest = max(state.plausibility.highest, highest)
            state.plausibility.update(self.view, image_id, truth, np.where(2 * score >= score.max(), best, 0))
            own.append((image_id, curve, soft))
        return state, own, problems


@dataclass(frozen=True)
class _ScoreMaskChunk:
    source: MaskSource
    view: SplitView
    ignore_predicted: bool

    def __call__(self, ids: Sequence[str]) -> tuple[MaskScores, list[tuple[str, NDArray[np.int64]]], list[str]]:
        state, own, problems = MaskScores(Confusion.empty(len(self.view.classes)), 0), [], []
        for image_id in ids:
            try:
                truth, mask = self.view.mask(image_id), self.source.read(image_id)
                _check(self.view, image_id, (mask.shape[0], mask.shape[1]), np.unique(mask))
            except DataError as error:
                problems.append(str(error))
                continue
            own.append((image_id, state.confusion.update(truth, mask, self.ignore_predicted)))
            state.plausibility.update(self.view, image_id, truth, mask)
            state.images += 1
        return state, own, problems


def _check(view: SplitView, image_id: str, size: tuple[int, int], labels: NDArray) -> None:
    if size != view.size(image_id):
        height, width = view.size(image_id)
        raise DataError(f"{image_id}: the result is {size[1]}x{size[0]}, the image {width}x{height} pixels")
    unknown = sorted({int(v) for v in labels} - {*range(len(view.classes) + 1), IGNORE_INDEX})
    if unknown:
        limits = f"outside 0..{len(view.classes)} and 255{explain(view, unknown)}"
        raise DataError(f"{image_id}: the result has labels {unknown}, {limits}")


def _chunks(
    task: Callable[[Sequence[str]], tuple[Any, list[Any], list[str]]],
    view: SplitView,
    processes: int,
    progress: Progress | None,
) -> Iterator[tuple[Any, list[Any]]]:
    if not view.has_masks:
        raise MaskForbiddenError(f"the split {view.split.value!r} shows no masks to score against")
    chunks = [view.ids[start : start + CHUNK] for start in range(0, len(view.ids), CHUNK)]
    problems: list[str] = []
    done = 0
    for chunk, (state, own, bad) in zip(chunks, map_in_order(task, chunks, processes), strict=True):
        problems += bad
        done += len(chunk)
        if progress is not None:
            progress(done, len(view.ids))
        if not problems:
            yield state, own
    if problems:
        listed = "\n  ".join(problems[:NAMED])
        more = f"\n  … and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        raise DataError(f"{len(problems)} of {len(view.ids)} results cannot be scored:\n  {listed}{more}")


CURVE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("truth", pa.uint8()),
        ("label", pa.uint8()),
        ("passed", pa.uint8()),
        ("pixels", pa.int64()),
    ]
)
SOFT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("labels", pa.int64()),
        ("overlap", pa.float64()),
        ("precision", pa.float64()),
        ("recall", pa.float64()),
    ]
)
MASK_SCHEMA = pa.schema(
    [("id", pa.string()), ("truth", pa.uint8()), ("predicted", pa.uint8()), ("pixels", pa.int64())]
)


def _beside(path: Path | None, suffix: str) -> Path | None:
    return None if path is None else path.with_name(f"{path.stem}{suffix}{path.suffix}")


class _Rows:
    """Writes rows of per-image statistics as they come; writes nothing if `path` is None.

    The file appears once it is complete, and never after an error.
    """

    def __init__(self, path: Path | None, schema: pa.Schema) -> None:
        self._path, self._partial = path, _beside(path, "-partial")
        self._writer = None if self._partial is None else pq.ParquetWriter(self._partial, schema)
        self._schema = schema
        self._tables: list[pa.Table] = []

    def __enter__(self) -> _Rows:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._writer is None or self._partial is None or self._path is None:
            return
        if kind is None:
            self._flush()
        self._writer.close()
        if kind is None:
            self._partial.replace(self._path)
        else:
            self._partial.unlink()

    def add(self, image_id: str, columns: dict[str, NDArray]) -> None:
        """Add the rows of one image, given as equally long columns."""
        if self._writer is None:
            return
        length = len(next(iter(columns.values())))
        self._tables.append(pa.table({"id": [image_id] * length, **columns}, schema=self._schema))
        if len(self._tables) == 256:
            self._flush()

    def _flush(self) -> None:
        if self._writer is not None and self._tables:
            self._writer.write_table(pa.concat_tables(self._tables))
            self._tables = []
