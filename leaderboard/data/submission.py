"""Saved maps or masks of any code, scored by the protocol as one run: a row beside those of Seedbed's methods.

Masks of `train` are pseudo-masks, masks of `val` the output of a segmentation network. Maps are those of `train`:
they are cut at a fixed threshold, at the one that is best on `tune`, and at the best one on `train`; cut at the
second, they are the pseudo-masks without a refiner.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from seedbed.benchmark.environment import code_version
from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.evaluation.formats import MapSource, MaskSource
from seedbed.benchmark.evaluation.metrics import thresholds_with
from seedbed.benchmark.evaluation.per_image import read_confusions
from seedbed.benchmark.evaluation.records import PSEUDO_MASK, VAL, RecordName, Selection
from seedbed.benchmark.evaluation.scoring import score_maps, score_masks
from seedbed.benchmark.pipeline.registry import METHODS
from seedbed.benchmark.trials.references import REFERENCES
from seedbed.datasets.base import Dataset, Split
from seedbed.leaderboard.data.conditions import SUBMITTED
from seedbed.leaderboard.data.per_image import RunImages
from seedbed.leaderboard.data.result_file import Result
from seedbed.leaderboard.data.snapshot import Run

SWEEP = "submitted"
"""What a submitted run has in place of the name of a sweep, and of its settings."""
LONGEST = 80
"""The most characters of a name."""
MASKS_OF = {"train": PSEUDO_MASK[-1], "val": VAL[0]}
"""The number that masks of a split give."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What a user says of saved results. A row has no rank while a text that it needs is empty."""

    name: str
    refiner: str
    seed: int
    supervision: str
    """`I` image tags, `I+S` saliency as well, or another text."""
    backbone: str
    initialisation: str
    precision: Literal["fp32", "bf16"]
    crf: str
    """The settings of a dense CRF; `none` without one, empty if unknown."""
    scales: str
    """Scales of inference; `none` for one scale, empty if unknown."""
    selection: Selection
    """How the threshold of masks was chosen; maps are cut by Seedbed."""
    tuning_masks: int
    """True masks that were used to choose thresholds or settings."""
    paper: str
    code: str

    def __post_init__(self) -> None:
        """Raise ConfigError for a name that cannot be a row of its own."""
        name = self.name.strip()
        if not name or len(name) > LONGEST or any(unicodedata.category(c).startswith("C") for c in name):
            raise ConfigError(f"--name {self.name!r}: give 1 to {LONGEST} printable characters")
        if name in (*METHODS.names(), *REFERENCES):
            raise ConfigError(f"--name {name}: Seedbed has a method or reference of this name; give another one")
        if self.tuning_masks < 0:
            raise ConfigError(f"--tuning-masks {self.tuning_masks}: give 0 or more")
        if self.selection in ("tuned", "oracle") and not self.tuning_masks:
            raise ConfigError(f"--selection {self.selection} needs true masks; say how many by --tuning-masks")

    def run(self, data: Dataset, digest: str, masks_seen: int, command: str) -> Run:
        """Return the run, without numbers. `masks_seen` of `tune` were used to cut maps."""
        words = ", ".join(text for text in (self.paper.strip(), self.code.strip()) if text)
        conditions = {
            "supervision": self.supervision,
            "backbone": self.backbone,
            "initialisation": self.initialisation,
            "segmentation_backbone": self.backbone,
            "segmentation_initialisation": self.initialisation,
            "precision": self.precision,
            "crf_preset": self.crf,
            "multi_scale": self.scales,
            "segmentation": "",
            "selection": "tuned" if masks_seen else self.selection,
            "tuning_masks": str(self.tuning_masks + masks_seen),
            SUBMITTED: words or "yes",
        }
        if data.class_choice:
            conditions["classes"] = data.class_choice
        code = code_version()
        identity = [self.name.strip(), self.refiner, data.display_name, data.class_choice, self.seed]
        identity += [self.supervision, self.backbone, self.initialisation, self.precision]
        return Run(
            sweep=SWEEP,
            key=hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16],
            method=self.name.strip(),
            refiner=self.refiner,
            dataset=data.display_name,
            conditions=conditions,
            phase="confirm",
            settings=SWEEP,
            number="",
            command=command,
            seed=self.seed,
            status="complete",
            reason="",
            device="",
            hardware="",
            code=code.removesuffix("+dirty"),
            dirty=str(code.endswith("+dirty")).lower(),
            data_digest=digest,
            trials=0,
            metrics={},
        )


def images_of_masks(
    source: MaskSource, data: Dataset, split: str, processes: int, progress: Progress
) -> dict[str, RunImages]:
    """Score masks of `train` or `val`. Raises DataError that lists all images whose mask cannot be scored."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "per_image.parquet"
        score_masks(source, data.split(split), processes=processes, per_image=path, progress=progress)
        return {str(MASKS_OF[split]): _images(path, len(data.classes))}


def images_of_maps(
    source: MapSource, data: Dataset, fixed: float, processes: int, progress: Progress
) -> dict[str, RunImages]:
    """Score maps of `train`. Raises DataError that lists all images whose maps cannot be scored."""
    thresholds = thresholds_with(fixed)
    options: dict[str, Any] = {"thresholds": thresholds, "processes": processes, "progress": progress}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "per_image.parquet"
        scores = score_maps(source, data.split(Split.TRAIN), per_image=path, **options)
        tuned = score_maps(source, data.split(Split.TUNE), **options).curve.best()[0]
        at: Mapping[Selection, float] = {"fixed": fixed, "tuned": tuned, "oracle": scores.curve.best()[0]}
        found = {
            str(RecordName("seed", "train", "mIoU", selection)): _images(path, len(data.classes), threshold)
            for selection, threshold in at.items()
        }
    return {**found, str(PSEUDO_MASK[0]): found[str(RecordName("seed", "train", "mIoU", "tuned"))]}


def _images(path: Path, classes: int, threshold: float | None = None) -> RunImages:
    cells = read_confusions(path, threshold)
    return RunImages.of(cells.ids, cells.counts(classes + 1))


def added(result: Result, earlier: Result | None) -> Result:
    """Return a result with the measurements of an earlier one of the same run that it does not have itself.

    So masks of `train` and of `val`, submitted one after the other, make one run. What belongs to other data is
    left out.
    """
    if earlier is None or earlier.run.data_digest != result.run.data_digest or earlier.classes != result.classes:
        return result
    kept = {name: images for name, images in earlier.images.items() if name not in result.images}
    if not kept:
        return result
    commands = dict.fromkeys([*earlier.run.command.split(" && "), result.run.command])
    before, now = earlier.run.conditions, dict(result.run.conditions)
    # What any of its numbers depends on, the row depends on.
    now["tuning_masks"] = str(max(int(before["tuning_masks"]), int(now["tuning_masks"])))
    now["selection"] = before["selection"] if now["selection"] == "none" else now["selection"]
    run = replace(result.run, command=" && ".join(commands), conditions=now)
    return Result.of(run, result.classes, {**kept, **result.images})
