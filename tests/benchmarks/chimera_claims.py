"""What each method is for, measured on Chimera: the tables of docs/results/chimera.md.

    python -m tests.benchmarks.chimera_claims                 every claim
    python -m tests.benchmarks.chimera_claims esol sc_cam     some of them

Every line is one `seedbed run --no-segment` with other settings, through the store in `--work`: what is there is
not computed again, and two of these commands with other claims may run side by side. Prints Markdown: mean ±
standard deviation (n − 1) over seeds, in percent, and in how many seeds a paper's claim held.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmark.pipeline import Machine
from benchmark.progress import Reporter
from benchmark.trial import Trial, run_trial
from benchmark.workfolder import WorkFolder
from datasets.base import Dataset

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
    trial = Trial("chimera", method, seed=seed, segment=False, selections=("tuned",), settings=settings)
    records = {r.name: r.value for r in run_trial(trial, data, work, Machine(reporter=Reporter(True))).records}
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
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


CLAIMS: dict[str, Claim] = {
    claim.method: claim
    for claim in (
        Claim(
            "mixup_cam",
            "The regularisers lower what they are meant to lower (entropy of the classes, spread of the maps), "
            "and the maps get better (Table 2.1). Entropy and spread are shares of a uniform distribution's.",
            {
                "CAM": {"method": "cam"},
                "mixup": {"TrainMixupCam.entropy_weight": 0, "TrainMixupCam.concentration_weight": 0},
                "mixup, entropy": {"TrainMixupCam.concentration_weight": 0},
                "mixup, concentration": {"TrainMixupCam.entropy_weight": 0},
                "all": {},
            },
            {"entropy": "seed.train/class_entropy", "spread": "seed.train/spread", **SEEDS_USED},
            [
                Expected("entropy", "mixup", "mixup, entropy"),
                Expected("spread", "mixup", "mixup, concentration"),
                Expected("oracle", "all", "CAM"),
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
    from datasets.chimera import DATASET, generate

    root = options.work / "chimera"
    if not root.exists():
        generate(root, layout="voc", images=IMAGES, size=SIZE, seed=0)
    data, work = DATASET.open(root), WorkFolder(options.work)
    for name in options.claims:
        print(table(CLAIMS[name], data, work, options.seeds), flush=True)


if __name__ == "__main__":
    main()
