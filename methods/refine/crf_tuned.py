"""Dense CRF whose strength, `bilateral_compat`, is the best on `tune`.

One pass over an image runs the CRFs of all candidates (`dense_crf_by_compat`). The masks are those of the refiner
`crf` with the chosen `CrfMasks.bilateral_compat`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seedbed.benchmark.evaluation.maps import opened
from seedbed.benchmark.evaluation.metrics import Confusion
from seedbed.benchmark.evaluation.threshold import SelectThreshold, read_choice
from seedbed.benchmark.parallel import map_in_order
from seedbed.benchmark.pipeline.stage import Context, Kind, Meta, Stage
from seedbed.benchmark.progress import progress_bar
from seedbed.datasets.base import Dataset, Split, SplitView
from seedbed.methods.refine.crf import CrfMasks, CrfStage, dense_crf_by_compat

COMPATS = (1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 14.0, 20.0)
"""The candidates, over the range that a search for `CrfMasks.bilateral_compat` draws from."""


@dataclass(frozen=True, kw_only=True)
class SelectCrf(CrfStage):
    """Choose the strength of the CRF for SCORES cut at the threshold; adds it to `threshold.json`.

    `crf` is added: `settings` of the CrfMasks to apply, `miou` by candidate, and the split and number of images.
    """

    version = 1
    produces = Kind.THRESHOLD

    @property
    def on(self) -> Split:
        """A choice may see only the masks of `tune`."""
        return Split.TUNE

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write the threshold as it was, the strength, and how it was chosen."""
        view, chosen = data.split(ctx.split), read_choice(inputs[Kind.THRESHOLD])
        size = len(view.classes) + 1
        total = np.zeros((len(COMPATS), size, size), np.int64)
        task = partial(self.confusions, view, inputs[Kind.SCORES], float(chosen["threshold"]))
        with progress_bar("SelectCrf", len(view.ids)) as bar:
            for counts in map_in_order(task, view.ids, ctx.workers):
                total += counts
                bar.advance()
        # Without a pixel that counts, there is no mIoU.
        scored = [float(np.nan_to_num(Confusion(matrix).miou(), nan=-1.0)) for matrix in total]
        mious = dict(zip(COMPATS, scored, strict=True))
        best = best_compat(mious, self.kernels().bilateral_compat)
        chosen["crf"] = {
            "settings": self.settings() | {"bilateral_compat": best},
            "miou": {f"{compat:g}": miou for compat, miou in mious.items()},
            "split": str(ctx.split),
            "images": len(view),
        }
        (out / "threshold.json").write_text(json.dumps(chosen))

    def confusions(self, view: SplitView, scores: Path, threshold: float, image_id: str) -> NDArray[np.int64]:
        """Return the confusion matrices (candidates, C + 1, C + 1) of one image."""
        image, truth, maps = view.image(image_id), view.mask(image_id), opened(scores).read(image_id)
        classes = len(view.classes)
        competing, unary = self.labels_and_unary(maps, threshold, classes)
        marginals = dense_crf_by_compat(image, unary, self.kernels(), COMPATS, self.iterations)
        masks = (self.mask(competing, of_one) for of_one in marginals)
        return np.stack([Confusion.empty(classes).update(truth, mask) for mask in masks])


def best_compat(mious: Mapping[float, float], usual: float) -> float:
    """Return the candidate with the highest mIoU; of equal ones that nearest to `usual`, then the lowest."""
    return max(sorted(mious), key=lambda compat: (mious[compat], -abs(compat - usual)))


@dataclass(frozen=True, kw_only=True)
class ChosenCrfMasks(Stage):
    """Pseudo-masks by the CRF that SelectCrf chose."""

    version = 1
    consumes = (Kind.SCORES, Kind.THRESHOLD)
    produces = Kind.MASKS
    seeded = False

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write one palette PNG per image of the context's split."""
        settings = read_choice(inputs[Kind.THRESHOLD])["crf"]["settings"]
        CrfMasks(**settings).run(data, inputs, out, ctx)


@dataclass(frozen=True)
class CrfTuned:
    """Threshold, then dense CRF of the best strength on the seed."""

    name: str = "crf_tuned"
    paper: str = "Krähenbühl & Koltun, NIPS 2011; settings of IRN, PSA and ICD, but the best strength for `tune`"

    def refine(self, meta: Meta, fixed_threshold: float) -> list[Stage]:
        """Choose a threshold, then a strength, and refine the thresholded seed."""
        return [SelectThreshold(value=fixed_threshold), SelectCrf(), ChosenCrfMasks()]


REFINER = CrfTuned()
