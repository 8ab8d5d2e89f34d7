"""Thresholds of localisation maps: how one is chosen, and the mask that it gives.

Prediction at threshold t: argmax over the constant t for background and the class maps (PSA t = 0.2, IRN and
SC-CAM t = 0.15). The threshold is `fixed` (the paper's constant), `tuned` (best mIoU on the masks of `tune`)
or `oracle` (best on `train` itself, for reports only and marked as such).
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

from seedbed.benchmark.evaluation.maps import MapReader, ScoreMaps
from seedbed.benchmark.evaluation.scoring import score_maps
from seedbed.benchmark.pipeline.hparams import hp
from seedbed.benchmark.pipeline.stage import Context, Kind, Stage
from seedbed.benchmark.pipeline.store import reading
from seedbed.datasets.base import IGNORE_INDEX, Dataset, Split

UNSURE = 1e-5
"""Signed scores and products that differ by at most this are equal (ICD code)."""


@dataclass(frozen=True, kw_only=True)
class SelectThreshold(Stage):
    """Choose the background threshold for SCORES; writes `threshold.json`."""

    version = 2
    consumes = (Kind.SCORES,)
    produces = Kind.THRESHOLD
    seeded = False

    selection: Literal["fixed", "tuned", "oracle"] = hp("tuned", source="docs/protocol.md", report_as="selection")
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
        """A choice may see only the masks of `tune`; the oracle looks at `train`."""
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


def read_choice(folder: Path) -> dict[str, Any]:
    """Return what SelectThreshold, and stages after it, chose: the content of `threshold.json`."""
    with reading(folder / "threshold.json") as path:
        chosen: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return {**chosen, "threshold": float(chosen["threshold"])}


def read_threshold(folder: Path) -> float:
    """Return the threshold that SelectThreshold wrote."""
    threshold: float = read_choice(folder)["threshold"]
    return threshold


def threshold_mask(maps: ScoreMaps, threshold: float) -> NDArray[np.uint8]:
    """Return labels uint8 (H, W): the best class if its score exceeds `threshold`, else background.

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
    """Return `threshold_mask`, with 255 for pixels of signed maps (ICD) that are neither a class nor background.

    Those are the pixels of a stored cell whose best score is 0 (methods/icd/maps.py). Maps without negative scores
    or with a background channel are not signed: there, 0 means background.
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
