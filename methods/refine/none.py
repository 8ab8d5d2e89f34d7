"""No refinement: the maps are thresholded as they are.

Prediction at threshold t: argmax over the constant t for background and the class maps (PSA t = 0.2, IRN and
SC-CAM t = 0.15). The threshold is `fixed` (the paper's constant), `tuned` (best mIoU on the masks of `tune`)
or `oracle` (best on `train` itself; for reports only, marked as such).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import FloatDistribution

from benchmark.evaluate import score_maps
from benchmark.hparams import hp
from benchmark.maps import MapReader, ScoreMaps, opened
from benchmark.parallel import for_each_image
from benchmark.stage import Context, Kind, Meta, Stage
from benchmark.store import reading
from datasets.base import IGNORE_INDEX, Dataset, Split
from datasets.files import write_mask

UNSURE = 1e-5
"""Signed scores and products that differ by no more are equal (ICD code)."""


@dataclass(frozen=True, kw_only=True)
class SelectThreshold(Stage):
    """Choose the background threshold for SCORES; writes `threshold.json`."""

    version = 2
    consumes = (Kind.SCORES,)
    produces = Kind.THRESHOLD
    seeded = False

    selection: Literal["fixed", "tuned", "oracle"] = hp("tuned", source="docs/protocol.md")
    value: float = hp(0.15, low=0, high=1, source="IRN and SC-CAM code; used if fixed")
    tuned: float | None = hp(
        None,
        FloatDistribution(0.0, 0.59, step=0.01),
        low=0,
        high=1,
        on_request=True,
        when=("selection", "tuned"),
        source="the threshold that a search on `tune` chose; none: the best for the seeds on `tune`",
    )

    @property
    def on(self) -> Split:
        """The only masks that a choice may see are those of `tune`; the oracle looks at `train`."""
        return Split.TRAIN if self.selection == "oracle" else Split.TUNE

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write the threshold, and how it was chosen."""
        chosen: dict[str, Any] = {"selection": self.selection, "threshold": self.value}
        if self.selection == "tuned" and self.tuned is not None:
            chosen["threshold"] = self.tuned
        elif self.selection != "fixed":
            view = data.split(ctx.split)
            scores = score_maps(MapReader(inputs[Kind.SCORES]), view, processes=ctx.workers)
            threshold, miou = scores.curve.best()
            chosen |= {"threshold": threshold, "miou": miou, "split": str(ctx.split), "images": len(view)}
        (out / "threshold.json").write_text(json.dumps(chosen))


def read_threshold(folder: Path) -> float:
    """Return the threshold that SelectThreshold wrote."""
    with reading(folder / "threshold.json") as path:
        return float(json.loads(path.read_text("utf-8"))["threshold"])


@dataclass(frozen=True, kw_only=True)
class ThresholdMasks(Stage):
    """Pseudo-masks by threshold alone; 255 where signed maps are undefined."""

    version = 2
    consumes = (Kind.SCORES, Kind.THRESHOLD)
    produces = Kind.MASKS
    seeded = False

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write one palette PNG an image of the context's split."""
        ids = data.split(ctx.split).ids
        task = _Threshold(inputs[Kind.SCORES], read_threshold(inputs[Kind.THRESHOLD]), out)
        for_each_image(task, ids, ctx, "ThresholdMasks")


@dataclass(frozen=True, kw_only=True)
class ArgmaxMasks(Stage):
    """Pseudo-masks of maps with a background channel: the best channel wins, and there is no threshold."""

    version = 1
    consumes = (Kind.SCORES,)
    produces = Kind.MASKS
    seeded = False

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write one palette PNG an image of the context's split."""
        ids = data.split(ctx.split).ids
        for_each_image(_Threshold(inputs[Kind.SCORES], 0.0, out), ids, ctx, "ArgmaxMasks")


def threshold_mask(maps: ScoreMaps, threshold: float) -> NDArray[np.uint8]:
    """Return labels uint8 (H, W): the best class where its score exceeds `threshold`, else background.

    Maps with a background channel (label 0) need no threshold: the best channel wins.
    """
    height, width = maps.size
    if len(maps.labels) == 0:
        return np.zeros((height, width), np.uint8)
    scores = maps.at_full_size()
    best = maps.labels[scores.argmax(0)].astype(np.uint8)
    if maps.labels[0] != 0:
        best[scores.max(0) <= np.float32(threshold)] = 0
    return best


def seed_mask(maps: ScoreMaps, threshold: float) -> NDArray[np.uint8]:
    """Return `threshold_mask`, but 255 where signed maps (ICD) are undefined: neither a class nor background.

    Those are the pixels of a stored cell whose best score is 0 (methods/icd_maps.py). Maps without negative scores
    or with a background channel are not signed: there 0 means background.
    """
    labels = threshold_mask(maps, threshold)
    scores = maps.scores.astype(np.float32, copy=False)
    if len(maps.labels) == 0 or maps.labels[0] == 0 or scores.min() >= 0:
        return labels
    undefined = np.abs(scores.max(0)) <= UNSURE
    rows, columns = (
        ((np.arange(length) + 0.5) * (cells / length)).astype(np.intp)
        for length, cells in zip(maps.size, undefined.shape, strict=True)
    )
    labels[undefined[rows[:, None], columns]] = IGNORE_INDEX
    return labels


@dataclass(frozen=True)
class _Threshold:
    """Makes and writes the mask of one image; sent to worker processes."""

    scores: Path
    threshold: float
    out: Path

    def __call__(self, image_id: str) -> None:
        maps = opened(self.scores).read(image_id)
        write_mask(self.out / f"{image_id}.png", seed_mask(maps, self.threshold))


@dataclass(frozen=True)
class NoRefinement:
    """Threshold only."""

    name: str = "none"
    paper: str = "none"

    def refine(self, meta: Meta, fixed_threshold: float) -> list[Stage]:
        """Choose a threshold and apply it."""
        return [SelectThreshold(value=fixed_threshold), ThresholdMasks()]


REFINER = NoRefinement()
