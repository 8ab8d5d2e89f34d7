"""Why RRM's energy loss does not help on Chimera: how right the reliable labels are, and what right ones would do.

    python -m tests.claims.rrm_labels --root DIR [--seeds 0 1 2]

Trains RRM on a Chimera four times a seed: on its own reliable labels and on true ones at the same places, each
with and without the energy. Prints the share of labelled foreground that is right, and the mIoU on `val` without
CRF.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from seedbed.benchmark.evaluation.formats import PngMasks
from seedbed.benchmark.evaluation.scoring import score_masks
from seedbed.benchmark.pipeline.stage import Context, Kind, Meta
from seedbed.datasets.base import IGNORE_INDEX, Dataset, Split
from seedbed.datasets.chimera import DATASET
from seedbed.methods import rrm
from seedbed.methods.cam import TrainCam
from seedbed.methods.rrm.reliable_labels import ReliableLabels


class ExamplesWithTruth(rrm.RrmExamples):
    """RRM's examples whose `mask` is the true mask in the place of zeros."""

    def inside(self, image_id: str) -> NDArray[np.uint8]:
        """Return the true mask, 255 as 0: it is inside the image."""
        full = self.view.dataset.split(Split.WEAK, supervision="full")
        mask = full.mask(image_id)
        return np.where(mask == IGNORE_INDEX, 0, mask).astype(np.uint8)


@dataclass
class Labeller:
    """Makes the reliable labels of a batch, and compares them with the true ones."""

    use_truth: bool
    truth: list[NDArray[np.uint8]] = field(default_factory=list)
    right: int = 0
    labelled: int = 0

    def __call__(self, label: ReliableLabels, items: Any) -> Iterator[NDArray[np.uint8]]:
        """Stand for the map that runs the CRFs."""
        for crop, truth in zip(items, self.truth, strict=True):
            labels = label(crop)
            foreground = (labels != 0) & (labels != IGNORE_INDEX)
            self.labelled += int(foreground.sum())
            self.right += int((foreground & (labels == truth)).sum())
            yield np.where(labels == IGNORE_INDEX, labels, truth) if self.use_truth else labels


@dataclass(frozen=True, kw_only=True)
class TrainWatched(rrm.TrainRrm):
    """TrainRrm whose labels a Labeller makes."""

    version = 1
    labeller: Labeller = field(default_factory=lambda: Labeller(False), metadata={})

    def losses(self, network: Any, mapped: Any) -> Any:
        """Give the labeller the true masks, and the losses what they expect in `mask`."""
        usual = super().losses(network, cast(Any, self.labeller))

        def losses(batch: Any, time: float) -> Any:
            mask = batch["mask"]
            self.labeller.truth = list(mask.cpu().numpy().astype(np.uint8))
            inside = mask.masked_fill(mask != IGNORE_INDEX, 0)
            return usual({**batch, "mask": inside}, time)

        return losses


def measure(data: Dataset, cam: Path, seed: int, use_truth: bool, energy: bool) -> tuple[float, float]:
    """Return the precision of labelled foreground and the mIoU on `val`."""
    stage = next(s for s in rrm.METHOD.localise(META) if isinstance(s, rrm.TrainRrm))
    settings = {name: getattr(stage, name) for name in stage.settings()}
    watched = TrainWatched(**settings, labeller=Labeller(use_truth))
    if not energy:
        watched = replace(watched, energy_weight=0.0)
    with tempfile.TemporaryDirectory() as name:
        network, scratch, masks = (Path(name) / part for part in ("network", "scratch", "masks"))
        for folder in (network, scratch, masks):
            folder.mkdir()
        watched.run(data, {Kind.CHECKPOINT: cam}, network, Context(seed, Split.WEAK, scratch))
        rrm.PredictRrm(crf="none").run(data, {Kind.CHECKPOINT: network}, masks, Context(seed, Split.VAL, scratch))
        miou = score_masks(PngMasks(masks), data.split(Split.VAL), processes=0).confusion.miou()
    return watched.labeller.right / max(1, watched.labeller.labelled), miou


META = Meta(classes=6, long_side=64, backbone="tiny")


def main() -> None:
    """Print a line for each kind of labels and loss."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="a generated Chimera of 64-pixel images")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    rrm.RrmExamples = ExamplesWithTruth  # type: ignore[misc]
    data = DATASET.open(options.root)
    train = next(s for s in rrm.METHOD.localise(META) if isinstance(s, TrainCam))
    found: dict[tuple[bool, bool], list[tuple[float, float]]] = {}
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as name:
            cam, scratch = Path(name) / "cam", Path(name) / "scratch"
            cam.mkdir()
            scratch.mkdir()
            train.run(data, {}, cam, Context(seed, Split.WEAK, scratch))
            for case in ((False, False), (False, True), (True, False), (True, True)):
                found.setdefault(case, []).append(measure(data, cam, seed, *case))
    print("| labels | loss | own labels of foreground that are right | mIoU on val |")
    print("|---|---|---:|---:|")
    for (use_truth, energy), values in found.items():
        names = ("true" if use_truth else "reliable", "with the energy" if energy else "cross entropy")
        cells = [mean([100 * value for value in column]) for column in zip(*values, strict=True)]
        print(f"| {' | '.join([*names, *cells])} |")


def mean(values: list[float]) -> str:
    """Return mean ± standard deviation."""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


if __name__ == "__main__":
    main()
