"""Maps of the three classifiers of Splitting vs. Merging: their union as SCORES, and Tables 1–3 about them.

A and B use the expanding stream, C the reference stream (methods/splitting_merging/). M is a map after
ReLU and min–max by class, U the elementwise maximum of several (Section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch import Tensor

from seedbed.benchmark.evaluation.maps import MapWriter, ScoreMaps, resize_bilinear
from seedbed.benchmark.evaluation.metrics import IGNORE, SoftScores, soft_overlap
from seedbed.benchmark.evaluation.pictures import ROWS, Picture, heat_map, sheet
from seedbed.benchmark.evaluation.records import Record, records_by_class, records_of_soft_scores, write_records
from seedbed.benchmark.evaluation.scoring import SOFT_SCHEMA
from seedbed.benchmark.pipeline.hparams import hp
from seedbed.benchmark.pipeline.stage import Context, Kind, Stage
from seedbed.benchmark.training.checkpoint import load_network
from seedbed.benchmark.training.inference import multi_scale, one_value_per
from seedbed.datasets.base import Dataset, SplitView
from seedbed.methods.refine.crf import background_by_exponent

CLASSIFIERS = "abc"
LEVELS = {"stream_A": "a", "stream_B": "b", "stream_C": "c", "union_AB": "ab", "union_ABC": "abc"}
"""The levels of the records, and the classifiers whose maps they measure."""


IMAGE_SCHEMA = pa.schema([("level", pa.string()), *SOFT_SCHEMA])


def min_max(maps: Tensor) -> Tensor:
    """Return maps (…, h, w), each from 0 at its minimum to 1 at its maximum; a constant map is 0 (Section 3.3)."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low + 1e-5)


def union(maps: Tensor, members: str) -> Tensor:
    """Return the elementwise maximum (K, h, w) of the maps (3, K, h, w) of the classifiers in `members`."""
    return maps[[CLASSIFIERS.index(member) for member in members]].amax(0)


def score_maps(
    maps: Tensor,
    labels: tuple[int, ...],
    size: tuple[int, int],
    exponent: float | None = None,
    saliency: NDArray[np.float32] | None = None,
) -> ScoreMaps:
    """Return maps (K, h, w) of labels 1..C as ScoreMaps.

    With an `exponent`, background (1 − M_fore)^exponent is added (Section 3.3). M_fore is the maximum over classes
    and, if given, the saliency map, float32 (H, W) in [0, 1].
    """
    scores: NDArray[np.float32] = maps.cpu().numpy()
    if exponent is not None and labels:
        foreground = scores
        if saliency is not None:
            foreground = np.concatenate([scores, resize_bilinear(saliency[None], scores.shape[1:])])
        background = background_by_exponent(foreground, exponent)[None]
        labels, scores = (0, *labels), np.concatenate([background, scores])
    return ScoreMaps(np.array(labels, np.int16), scores, size)


@dataclass(frozen=True, kw_only=True)
class StreamInference(Stage):
    """Base of the stages that use the maps of the three classifiers."""

    consumes = (Kind.CHECKPOINT,)
    seeded = False

    long_side: int = hp(0, low=0, high=4096, source="longer image side in pixels at scale 1; 0 is the image's own")
    scales: tuple[float, ...] = hp(
        (1.0,), low=0.1, high=4, source="not in the paper; PSA: 1, 0.5, 1.5, 2", report_as="multi_scale"
    )
    flip: bool = hp(False, source="not in the paper; PSA: true")

    def normalised(self, checkpoint: Path, view: SplitView, ctx: Context) -> Iterator[tuple[str, Tensor]]:
        """Yield (id, M_A, M_B and M_C as one tensor (3, K, h, w)) of the K tagged classes, at stride 4."""
        network = cast(Any, load_network(checkpoint, ctx.device))
        for image_id, maps in multi_scale(
            network.maps,
            view,
            scales=self.scales,
            flip=self.flip,
            long_side=self.long_side,
            grid=one_value_per(4),
            ctx=ctx,
            label=f"{type(self).__name__} on {view.split}",
        ):
            streams = maps.unflatten(0, (len(CLASSIFIERS), -1))
            yield image_id, min_max(streams[:, [tag - 1 for tag in view.tags(image_id)]])


@dataclass(frozen=True, kw_only=True)
class InferSplittingMerging(StreamInference):
    """Localisation maps: the union of the classifiers' maps, for the tags of each image."""

    version = 3
    produces = Kind.SCORES

    union: Literal["abc", "ab", "a", "b", "c"] = hp("abc", source="Table 3: the union of all three is best")
    background_exponent: float | None = hp(
        None,
        low=0.1,
        high=100,
        source="Section 4.2: α = 2, to which the fixed threshold is equal; none: no background channel",
    )

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write the maps of the context's split."""
        view = data.split(ctx.split)
        with MapWriter(out) as writer:
            for image_id, maps in self.normalised(inputs[Kind.CHECKPOINT], view, ctx):
                writer.write(image_id, self.scores(view, image_id, union(maps, self.union)))

    def scores(self, view: SplitView, image_id: str, maps: Tensor) -> ScoreMaps:
        """Return the united maps (K, h, w) of an image with the background that competes with them."""
        return score_maps(maps, view.tags(image_id), view.size(image_id), self.background_exponent)


@dataclass(frozen=True, kw_only=True)
class InferWithSaliency(InferSplittingMerging):
    """Localisation maps as above, whose background the data set's saliency maps lower (Section 3.3)."""

    background_exponent: float = hp(2.0, low=0.1, high=100, source="Section 4.2: α")

    def scores(self, view: SplitView, image_id: str, maps: Tensor) -> ScoreMaps:
        """Return the united maps (K, h, w) of an image with their background."""
        saliency = view.saliency(image_id)
        return score_maps(maps, view.tags(image_id), view.size(image_id), self.background_exponent, saliency)


@dataclass(frozen=True, kw_only=True)
class MeasureStreams(StreamInference):
    """Tables 1–3: how alike M_A and M_B are; soft overlap, precision and recall of each map and of the unions."""

    version = 4
    produces = Kind.RECORDS

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write the records of the context's split, and some of its images with all maps (`streams.png`).

        `per_image_streams.parquet` has one row per level, image and label: soft overlap, precision and recall; the
        level `streams_AB` has the similarity of M_A and M_B as its overlap.
        """
        view = data.split(ctx.split)
        shown = view.ids[:: max(1, len(view) // ROWS)][:ROWS]
        drawn: dict[str, dict[str, ScoreMaps]] = {}
        scores = StreamScores.empty(len(data.classes))
        for image_id, maps in self.normalised(inputs[Kind.CHECKPOINT], view, ctx):
            tags, size = view.tags(image_id), view.size(image_id)
            own = {level: score_maps(union(maps, which), tags, size) for level, which in LEVELS.items()}
            scores.update(image_id, view.mask(image_id), own)
            if image_id in shown:
                drawn[image_id] = own
        write_records(out / "records.parquet", scores.records(data.classes, str(ctx.split)))
        pq.write_table(pa.Table.from_pylist(scores.rows, IMAGE_SCHEMA), out / "per_image_streams.parquet")

        def column(level: str) -> Callable[[str], Picture]:
            return lambda image_id: heat_map(view.image(image_id), drawn[image_id][level])

        columns = {"image": view.image, "truth": view.mask} | {level: column(level) for level in LEVELS}
        sheet(shown, columns, view.classes).save(out / "streams.png")


@dataclass
class StreamScores:
    """The soft metrics of every level, and the similarity of M_A and M_B, over the images of a split."""

    soft: dict[str, SoftScores]
    similarity: NDArray[np.float64]
    """(C + 1,): soft overlap of M_A and M_B by label, summed over images."""
    images: NDArray[np.int64]
    """(C + 1,): images tagged with each label, except those with M_A and M_B both 0 everywhere."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Rows of each image, with the columns of IMAGE_SCHEMA."""

    @classmethod
    def empty(cls, classes: int) -> StreamScores:
        """Return the state before the first image."""
        soft = {level: SoftScores.empty(classes) for level in LEVELS}
        return cls(soft, np.zeros(classes + 1), np.zeros(classes + 1, np.int64))

    def update(self, image_id: str, truth: NDArray[np.uint8], maps: Mapping[str, ScoreMaps]) -> None:
        """Count one image: its true mask (H, W) and its maps by level. Pixels of 255 do not count."""
        full = {level: own.at_full_size() for level, own in maps.items()}
        for level, soft in self.soft.items():
            own = soft.update(truth, maps[level], full[level])
            columns = (own.labels, own.overlap, own.precision, own.recall)
            for values in zip(*(column.tolist() for column in columns), strict=True):
                self._row(level, image_id, *values)
        first, second = (full[level][:, truth != IGNORE] for level in ("stream_A", "stream_B"))
        seen = (first + second).any(1)
        labels = maps["stream_A"].labels[seen]
        similar = soft_overlap(first[seen], second[seen])
        self.similarity[labels] += similar
        self.images[labels] += 1
        for label, value in zip(labels.tolist(), similar.tolist(), strict=True):
            self._row("streams_AB", image_id, label, value, None, None)

    def _row(self, *values: Any) -> None:
        self.rows.append(dict(zip(IMAGE_SCHEMA.names, values, strict=True)))

    def records(self, classes: tuple[str, ...], split: str) -> list[Record]:
        """Return the records; those of the similarity have the level `streams_AB`."""
        mean = np.divide(
            self.similarity, self.images, where=self.images > 0, out=np.full(len(self.images), np.nan)
        )
        images = self.images[1:].tolist()
        records = list(records_by_class("similarity", mean[1:], classes, "streams_AB", split, images))
        for level, soft in self.soft.items():
            records += records_of_soft_scores(soft, classes, level, split)
        return records
