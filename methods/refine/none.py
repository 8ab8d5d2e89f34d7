"""No refinement: the maps are thresholded as they are (benchmark/evaluation/threshold.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from seedbed.benchmark.evaluation.maps import opened
from seedbed.benchmark.evaluation.threshold import SelectThreshold, read_threshold, seed_mask
from seedbed.benchmark.pipeline.stage import Context, Kind, Meta, Stage
from seedbed.datasets.base import Dataset
from seedbed.datasets.io.images import write_mask


@dataclass(frozen=True, kw_only=True)
class ThresholdMasks(Stage):
    """Pseudo-masks by threshold; undefined pixels of signed maps are 255."""

    version = 2
    consumes = (Kind.SCORES, Kind.THRESHOLD)
    produces = Kind.MASKS
    seeded = False

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write one palette PNG per image of the context's split."""
        task = partial(write_seed, inputs[Kind.SCORES], read_threshold(inputs[Kind.THRESHOLD]), out)
        ctx.for_each_image(task, data.split(ctx.split).ids, "ThresholdMasks")


@dataclass(frozen=True, kw_only=True)
class ArgmaxMasks(Stage):
    """Pseudo-masks of maps with a background channel: the best channel wins, and there is no threshold."""

    version = 1
    consumes = (Kind.SCORES,)
    produces = Kind.MASKS
    seeded = False

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write one palette PNG per image of the context's split."""
        task = partial(write_seed, inputs[Kind.SCORES], 0.0, out)
        ctx.for_each_image(task, data.split(ctx.split).ids, "ArgmaxMasks")


def write_seed(scores: Path, threshold: float, out: Path, image_id: str) -> None:
    """Make and write the mask of one image."""
    write_mask(out / f"{image_id}.png", seed_mask(opened(scores).read(image_id), threshold))


@dataclass(frozen=True)
class NoRefinement:
    """Threshold only."""

    name: str = "none"
    paper: str = "none"

    def refine(self, meta: Meta, fixed_threshold: float) -> list[Stage]:
        """Choose a threshold and apply it."""
        return [SelectThreshold(value=fixed_threshold), ThresholdMasks()]


REFINER = NoRefinement()
