"""What each method is for, measured on Chimera: the tables of docs/results/chimera.md.

    python -m tests.claims.chimera                 every claim
    python -m tests.claims.chimera esol sc_cam     some of them

Every line is one `seedbed run --no-segment` with other settings, through the store in `--work`: what is there is
not computed again, and two of these commands with other claims may run side by side. Prints Markdown: mean ±
standard deviation (n − 1) over seeds, in percent, and in how many seeds a paper's claim held.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedbed.benchmark.pipeline.stage import Machine
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.trials.run import run_trial
from seedbed.benchmark.trials.trial import Trial
from seedbed.datasets.base import Dataset

IMAGES, SIZE = 400, 64
Settings = Mapping[str, Any]
SEEDS_USED: dict[str, str] = {
    "fixed": "seed.train/mIoU_fixed",
    "tuned": "seed.train/mIoU_tuned",
    "oracle": "seed.train/mIoU_oracle",
    "overlap": "seed.train/msoft_overlap",
    "precision": "seed.train/msoft_precision",
    "recall": "seed.train/msoft_recall",
}


@dataclass(frozen=True)
class Expected:
    """A paper's claim: `measure` of `line` is above that of `than`."""

    measure: str
    line: str
    than: str


@dataclass(frozen=True)
class Claim:
    """One table."""

    method: str
    text: str
    lines: Mapping[str, Settings]
    """Settings by the line's title; the key `method` names another method."""
    measures: Mapping[str, str]
    """Names of records by the column's title."""
    expected: Sequence[Expected]


def measured(
    claim: Claim, line: Mapping[str, Any], data: Dataset, work: WorkFolder, seed: int
) -> dict[str, float]:
    """Return the numbers of one run by column, in percent; NaN where there is none."""
    settings = dict(line)
    method = settings.pop("method", claim.method)
    trial = Trial(
        dataset="chimera", method=method, seed=seed, segment=False, selections=("tuned",), settings=settings
    )
    records = {r.name: r.value for r in run_trial(trial, data, work, Machine()).records}
    found = {title: records.get(name) for title, name in claim.measures.items()}
    return {title: float("nan") if value is None else 100 * value for title, value in found.items()}


def table(claim: Claim, data: Dataset, work: WorkFolder, seeds: Sequence[int]) -> str:
    """Run the lines of a claim and return its table."""
    numbers = {
        title: [measured(claim, line, data, work, seed) for seed in seeds] for title, line in claim.lines.items()
    }
    rows = [f"| | {' | '.join(claim.measures)} |", f"|---|{'---:|' * len(claim.measures)}"]
    for title, runs in numbers.items():
        cells = (f"{_mean([run[m] for run in runs])}" for m in claim.measures)
        rows.append(f"| {title} | {' | '.join(cells)} |")
    held = []
    for claimed in claim.expected:
        gains = [
            a[claimed.measure] - b[claimed.measure]
            for a, b in zip(numbers[claimed.line], numbers[claimed.than], strict=True)
        ]
        times = sum(gain > 0 for gain in gains)
        held.append(
            f"- {claimed.measure}: *{claimed.line}* above *{claimed.than}* in {times} of {len(gains)} seeds, "
            f"by {_mean(gains)}"
        )
    return "\n".join([f"## {claim.method}", "", claim.text, "", *rows, "", *held, ""])


def _mean(values: Sequence[float]) -> str:
    if any(math.isnan(value) for value in values):
        return "–"
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


CLAIMS: dict[str, Claim] = {
    claim.method: claim
    for claim in (
        Claim(
            "splitting_merging",
            "A larger β lowers the similarity of M_A and M_B (Table 1) and raises the recall of their union "
            "(Table 2). Overlap, precision and recall of the maps are soft; AB is the union of A and B.",
            {
                "CAM": {"method": "cam"},
                **{f"β = {beta}": {"TrainSplittingMerging.beta": beta} for beta in (0, 10, 20, 50)},
                "β = 20, no intersection": {"TrainSplittingMerging.intersection": False},
            },
            {
                "similarity": "streams_AB.train/msimilarity",
                "AB overlap": "union_AB.train/msoft_overlap",
                "AB precision": "union_AB.train/msoft_precision",
                "AB recall": "union_AB.train/msoft_recall",
                **SEEDS_USED,
            },
            [
                *(Expected("similarity", f"β = {a}", f"β = {b}") for a, b in ((0, 10), (10, 20), (20, 50))),
                *(Expected("AB recall", f"β = {a}", f"β = {b}") for a, b in ((10, 0), (20, 0), (50, 0))),
                Expected("recall", "β = 20", "CAM"),
            ],
        ),
        Claim(
            "icd",
            "ICD's maps beat CAM's in pixel AP (Table 1). The last four columns are those of the CAM branch and "
            "of ICD's scores in their order, of one network.",
            {
                "CAM": {"method": "cam"},
                "CAM, as many epochs": {"method": "cam", "TrainCam.epochs": 40},
                "ICD": {},
                "ICD, published start": {"TrainIcd.deviation": 0.01},
                "mean over superpixels": {"TrainIcd.refinement": "mean", "MeasureIcd.refinement": "mean"},
                "no superpixels": {"TrainIcd.refinement": "none", "MeasureIcd.refinement": "none"},
            },
            {
                "pixel AP": "seed.train/mpixel_AP",
                **SEEDS_USED,
                "CAM branch": "icd_cam.train/mpixel_AP",
                "bottom-up": "icd_bottom_up.train/mpixel_AP",
                "refined": "icd_refined.train/mpixel_AP",
                "top-down": "icd_top_down.train/mpixel_AP",
            },
            [
                Expected("pixel AP", "ICD", "CAM"),
                Expected("pixel AP", "ICD", "CAM, as many epochs"),
                Expected("pixel AP", "ICD, published start", "CAM"),
                Expected("pixel AP", "ICD", "no superpixels"),
            ],
        ),
        Claim(
            "rrm",
            "The joint loss beats cross entropy alone (Table 2): mIoU of the masks that the segmentation branch "
            "predicts, on training images and on val.",
            {"cross entropy": {"TrainRrm.energy_weight": 0}, "with the energy": {}},
            {
                "train": "pseudo_mask.train/mIoU",
                "val": "one_step.val/mIoU",
                "val precision": "one_step.val/mprecision",
                "val recall": "one_step.val/mrecall",
            },
            [Expected("val", "with the energy", "cross entropy")],
        ),
        Claim(
            "esol",
            "Expansion raises recall and Shrinkage raises precision again (Table 6).",
            {
                "CAM": {"method": "cam"},
                "classifier": {"Esol.until": "classifier"},
                "Expansion": {"Esol.until": "expansion"},
                "Expansion, Shrinkage": {},
            },
            {"pixel AP": "seed.train/mpixel_AP", **SEEDS_USED},
            [
                Expected("recall", "Expansion", "classifier"),
                Expected("precision", "Expansion, Shrinkage", "Expansion"),
                Expected("tuned", "Expansion, Shrinkage", "classifier"),
            ],
        ),
        Claim(
            "mixup_cam",
            "The regularisers lower what they are meant to lower (entropy of the classes, spread of the maps), "
            "and the maps get better (Table 2.1). Entropy and spread are shares of a uniform distribution's.",
            {
                "CAM": {"method": "cam"},
                "mixup": {"TrainMixupCam.entropy_weight": 0, "TrainMixupCam.concentration_weight": 0},
                "mixup, entropy": {"TrainMixupCam.concentration_weight": 0},
                "mixup, entropy × 50": {
                    "TrainMixupCam.concentration_weight": 0,
                    "TrainMixupCam.entropy_weight": 1,
                },
                "mixup, concentration": {"TrainMixupCam.entropy_weight": 0},
                "all": {},
            },
            {"entropy": "seed.train/class_entropy", "spread": "seed.train/spread", **SEEDS_USED},
            [
                Expected("entropy", "mixup", "mixup, entropy"),
                Expected("entropy", "mixup", "mixup, entropy × 50"),
                Expected("spread", "mixup", "mixup, concentration"),
                Expected("oracle", "all", "CAM"),
            ],
        ),
        Claim(
            "seam",
            "ER lowers the difference between the maps of an image and of its copy, and PCM makes the maps better "
            "(Section 4). The difference is a mean over places, of maps from 0 to 1.",
            {
                "CAM": {"method": "cam"},
                "two branches": {"TrainSeam.equivariance_weight": 0, "TrainSeam.pcm": False},
                "ER": {"TrainSeam.pcm": False},
                "ER, PCM": {"TrainSeam.hard_share": 1},
                "ER, PCM, hard pixels": {},
            },
            {"difference": "seed.train/equivariance_error", "pixel AP": "seed.train/mpixel_AP", **SEEDS_USED},
            [
                Expected("difference", "two branches", "ER"),
                Expected("oracle", "ER", "two branches"),
                Expected("oracle", "ER, PCM, hard pixels", "ER"),
                Expected("oracle", "ER, PCM, hard pixels", "ER, PCM"),
                Expected("oracle", "ER, PCM, hard pixels", "CAM"),
            ],
        ),
        Claim(
            "sc_cam",
            "The seeds change over rounds, for the better (Table 3.2). Round 0 is CAM.",
            {f"round {rounds}": {"ScCam.rounds": rounds} for rounds in range(4)},
            {"pixel AP": "seed.train/mpixel_AP", **SEEDS_USED},
            [Expected("overlap", f"round {rounds}", "round 0") for rounds in (1, 2, 3)],
        ),
        Claim(
            "advcam",
            "Climbing finds more of the objects (Section 3.2), and the maps get better; they get better still if "
            "other classes and what is already found are kept from growing (Section 3.3). All lines are the same "
            "classifier at the same scales.",
            {
                "CAM": {"method": "cam", "InferCam.scales": (1.0, 2.0)},
                "climbing": {"InferAdvCam.other_classes": False, "InferAdvCam.mask_weight": 0},
                "AdvCAM": {},
            },
            {"pixel AP": "seed.train/mpixel_AP", **SEEDS_USED},
            [
                *(Expected(measure, "AdvCAM", "CAM") for measure in ("recall", "pixel AP", "tuned")),
                Expected("tuned", "AdvCAM", "climbing"),
            ],
        ),
        Claim(
            "recam",
            "The softmax cross entropy makes better maps than CAM's (abstract). The published settings have the "
            "gradient through the mask and the product of both classifiers; the recipe of `tiny` has neither.",
            {
                "CAM": {"method": "cam"},
                "CAM, as many epochs": {"method": "cam", "TrainCam.epochs": 16},
                "λ = 0, first": {"TrainReCam.reactivation_weight": 0, "InferReCam.combination": "first"},
                "ReCAM, second": {},
                **{
                    f"ReCAM, {combination}": {"InferReCam.combination": combination}
                    for combination in ("first", "sum", "product")
                },
                **{
                    f"through the mask, {combination}": {
                        "TrainReCam.through_mask": True,
                        "InferReCam.combination": combination,
                    }
                    for combination in ("second", "product")
                },
            },
            {"pixel AP": "seed.train/mpixel_AP", **SEEDS_USED},
            [
                Expected("tuned", "ReCAM, second", "CAM"),
                Expected("tuned", "ReCAM, second", "CAM, as many epochs"),
                Expected("tuned", "ReCAM, second", "λ = 0, first"),
                Expected("tuned", "through the mask, product", "CAM"),
                Expected("pixel AP", "ReCAM, second", "CAM"),
            ],
        ),
    )
}


def main() -> None:
    """Print the tables of the claims that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claims", nargs="*", default=list(CLAIMS), help=f"of {', '.join(CLAIMS)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("seedbed-work/claims"))
    options = parser.parse_args()
    from seedbed.datasets.chimera import DATASET, generate

    root = options.work / "chimera"
    if not root.exists():
        generate(root, layout="voc", images=IMAGES, size=SIZE, seed=0)
    data, work = DATASET.open(root), WorkFolder(options.work)
    for name in options.claims:
        print(table(CLAIMS[name], data, work, options.seeds), flush=True)


if __name__ == "__main__":
    main()
