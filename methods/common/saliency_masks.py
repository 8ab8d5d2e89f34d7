"""Pseudo-masks combined with saliency maps, after the refiner.

For papers that do not say how they do it: ESOL ("We combine our final pseudo ground-truths masks with saliency
maps", Section 4.2.1). The rule is the simplest published one, from OAA's code (Jiang et al., ICCV 2019):
salient background becomes 255, which losses ignore and metrics count as background.

Departures: pixels that are not salient become background by the same threshold; in OAA, 1 − saliency competes
with the classes for them. An image that is less than 1 % salient keeps its mask, as in ICD's code; OAA leaves
such images out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seedbed.benchmark.errors import DataError
from seedbed.benchmark.pipeline.hparams import hp
from seedbed.benchmark.pipeline.stage import Context, Kind, Stage
from seedbed.datasets.base import IGNORE_INDEX, Dataset, SplitView
from seedbed.datasets.io.images import decode_mask, write_mask

LEAST_AREA = 0.01
"""Share of salient pixels below which a saliency map is ignored (ICD's code)."""


def salient_area(saliency: NDArray[np.float32], threshold: float) -> NDArray[np.bool_] | None:
    """Return the pixels (H, W) with a saliency of at least `threshold`; None if they are less than 1 %."""
    area = saliency >= threshold
    return area if area.mean() >= LEAST_AREA else None


def combined(mask: NDArray[np.uint8], saliency: NDArray[np.float32], threshold: float) -> NDArray[np.uint8]:
    """Return a mask, labels uint8 (H, W), combined with a saliency map (H, W) in [0, 1].

    Pixels that are not salient become 0, salient background 255. If less than 1 % is salient, the mask stays.
    """
    area = salient_area(saliency, threshold)
    if area is None:
        return mask
    return np.where(area, np.where(mask == 0, IGNORE_INDEX, mask), 0).astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class SaliencyMasks(Stage):
    """Pseudo-masks combined with the data set's saliency maps."""

    version = 1
    consumes = (Kind.MASKS,)
    produces = Kind.MASKS
    seeded = False

    threshold: float = hp(0.125, low=0, high=1, source="OAA code: grey values from 32 of 255 are salient")

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write one palette PNG per image of the context's split.

        Raises DataError, naming the file, if a saliency map or mask is missing, broken, or of another size.
        """
        view = data.split(ctx.split)
        ctx.for_each_image(partial(self.combine, view, inputs[Kind.MASKS], out), view.ids, "SaliencyMasks")

    def combine(self, view: SplitView, masks: Path, out: Path, image_id: str) -> None:
        """Make and write the mask of one image."""
        path, saliency = masks / f"{image_id}.png", view.saliency(image_id)
        mask = decode_mask(path)
        if mask.shape != saliency.shape:
            (height, width), size = mask.shape, view.size(image_id)
            raise DataError(f"{path}: the mask is {width}x{height}, its image {size[1]}x{size[0]} pixels")
        write_mask(out / f"{image_id}.png", combined(mask, saliency, self.threshold))
