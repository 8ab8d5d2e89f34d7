"""The measuring stages: they read results from disk and write Records. None changes a mask.

Levels: `classification` (tags by the classifier), `seed` (maps by threshold), `pseudo_mask` (after the
refiner), `one_step` (the predictions of a one-step method's own network) and `segmentation` (the predictions of
the network that was trained on pseudo-masks).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from seedbed.benchmark.evaluation.formats import PngMasks
from seedbed.benchmark.evaluation.maps import MapReader
from seedbed.benchmark.evaluation.metrics import thresholds_with
from seedbed.benchmark.evaluation.records import (
    Record,
    records_of_map_scores,
    records_of_mask_scores,
    write_records,
)
from seedbed.benchmark.evaluation.scoring import score_maps, score_masks
from seedbed.benchmark.pipeline.hparams import hp
from seedbed.benchmark.pipeline.stage import Context, Kind, Stage
from seedbed.benchmark.progress import progress_bar
from seedbed.datasets.base import Dataset

RECORDS_FILE = "records.parquet"


@dataclass(frozen=True, kw_only=True)
class MeasureMaps(Stage):
    """Quality of SCORES: mIoU at the fixed, tuned and oracle threshold, soft overlap, pixel AP."""

    version = 1
    consumes = (Kind.SCORES, Kind.THRESHOLD)
    produces = Kind.RECORDS
    seeded = False

    level: Literal["seed", "refined_seed"] = hp("seed", source="docs/protocol.md")
    fixed: float = hp(0.15, low=0, high=1, source="the method's paper")

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write the records and the per-image statistics of the context's split."""
        from seedbed.benchmark.evaluation.threshold import read_threshold

        view = data.split(ctx.split)
        tuned = read_threshold(inputs[Kind.THRESHOLD])
        with progress_bar(f"MeasureMaps on {ctx.split}", len(view)) as bar:
            scores = score_maps(
                MapReader(inputs[Kind.SCORES]),
                view,
                processes=ctx.workers,
                thresholds=thresholds_with(self.fixed, tuned),
                per_image=out / "per_image.parquet",
                progress=lambda done, _: bar.show(done),
            )
        records = records_of_map_scores(scores, data.classes, self.level, ctx.split, self.fixed, tuned)
        write_records(out / RECORDS_FILE, records)


@dataclass(frozen=True, kw_only=True)
class MeasureMasks(Stage):
    """Quality of MASKS: mIoU, and IoU, precision, recall and F of each class."""

    version = 1
    consumes = (Kind.MASKS,)
    produces = Kind.RECORDS
    seeded = False

    level: Literal["pseudo_mask", "one_step", "segmentation"] = hp("pseudo_mask", source="docs/protocol.md")
    selection: Literal["fixed", "tuned", "oracle", "none"] = hp(
        "none", source="how the masks' threshold was chosen"
    )

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write the records and the per-image statistics of the context's split."""
        view = data.split(ctx.split)
        with progress_bar(f"MeasureMasks on {ctx.split}", len(view)) as bar:
            scores = score_masks(
                PngMasks(inputs[Kind.MASKS]),
                view,
                processes=ctx.workers,
                per_image=out / "per_image.parquet",
                progress=lambda done, _: bar.show(done),
            )
        records = records_of_mask_scores(scores, data.classes, self.level, ctx.split, self.selection)
        write_records(out / RECORDS_FILE, records)


@dataclass(frozen=True, kw_only=True)
class MeasureClassifier(Stage):
    """How well the network of a CHECKPOINT predicts an image's tags: average precision over images."""

    version = 3
    consumes = (Kind.CHECKPOINT,)
    produces = Kind.RECORDS
    seeded = False

    long_side: int = hp(0, low=0, high=4096, source="longer image side in pixels; 0 is the image's own")

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write `mAP` (mean over the classes that occur), `AP` of each class, and `exact`.

        `exact` is the share of images whose tags are all predicted correctly by logit > 0.
        """
        from seedbed.benchmark.training.checkpoint import load_network
        from seedbed.benchmark.training.inference import multi_scale

        network = cast(Any, load_network(inputs[Kind.CHECKPOINT], ctx.device))
        view = data.split(ctx.split)
        logits = {
            image_id: value[:, 0, 0].cpu().numpy()
            for image_id, value in multi_scale(
                lambda images: network(images)[:, :, None, None],
                view,
                scales=(1.0,),
                flip=False,
                long_side=self.long_side,
                grid=lambda *_: (1, 1),
                ctx=ctx,
                label=f"MeasureClassifier on {ctx.split}",
            )
        }
        scores = np.stack([logits[image_id] for image_id in view.ids])
        tags = np.zeros(scores.shape, bool)
        for row, image_id in enumerate(view.ids):
            tags[row, [tag - 1 for tag in view.tags(image_id)]] = True
        write_records(out / RECORDS_FILE, _classification_records(scores, tags, data.classes, ctx.split))


def average_precision(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> float | None:
    """Return the average precision of scores (N,) against truth (N,); None if nothing is positive."""
    from sklearn.metrics import precision_recall_curve

    if not positive.any():
        return None
    precision, recall, _ = precision_recall_curve(positive, scores)
    # As scikit-learn's average_precision_score, but summed from recall 0 up: the last bits of earlier results.
    return float((np.diff(recall[::-1]) * precision[-2::-1]).sum())


def _classification_records(
    scores: NDArray[np.floating], tags: NDArray[np.bool_], classes: tuple[str, ...], split: str
) -> list[Record]:
    by_class = [average_precision(scores[:, c], tags[:, c]) for c in range(len(classes))]
    counted = [value for value in by_class if value is not None]
    exact = float(((scores > 0) == tags).all(1).mean())

    def record(metric: str, value: float | None, label: str | None, count: int) -> Record:
        return Record("classification", str(split), metric, "none", label, value, count)

    return [
        record("mAP", float(np.mean(counted)) if counted else None, None, len(counted)),
        record("exact", exact, None, len(scores)),
        *(
            record("AP", value, name, int(tags[:, c].sum()))
            for c, (name, value) in enumerate(zip(classes, by_class, strict=True))
        ),
    ]
