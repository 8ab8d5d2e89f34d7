"""The conditions of a trial: what its numbers depend on besides method, refiner, data set and seed.

A setting of a stage, or an option of a trial, is a condition if it is declared with `report_as="NAME"`. Under this
name it is in `job.json` and `sweep.json`, a tag of the run in MLflow, and a column of the leaderboard
(leaderboard/data/conditions.py has the titles).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from seedbed.benchmark.pipeline.hparams import declared
from seedbed.benchmark.trials.references import REFERENCES
from seedbed.datasets.base import Split

if TYPE_CHECKING:
    from seedbed.benchmark.trials.plan import TrialPlan

NONE = "none"
NO_METHOD = {"full": "F", "background": "none", "whole_image": "I"}
"""The supervision of references: true masks, nothing, or tags."""
NO_CONDITIONS = frozenset({"method", "refiner", "dataset", "variant", "segment", "data_digest", "seeds", "trials"})
"""The other keys of a cell in `sweep.json`."""


def conditions_of(plan: TrialPlan) -> dict[str, str | int]:
    """Return the conditions of a trial by name, as recorded."""
    from seedbed.benchmark.evaluation.threshold import SelectThreshold
    from seedbed.datasets.tools.check import val_in_training

    trial, chain, data = plan.trial, plan.chain, plan.data
    reported = {
        option.metadata["report_as"]: _text(getattr(trial, option.name))
        for option in dataclasses.fields(trial)
        if "report_as" in option.metadata
    }
    method = [] if chain.method is None else [chain.method]
    # If several stages have the same condition, the first counts.
    for stage in reversed([*method, *chain.stages]):
        for name, setting in declared(type(stage)).items():
            if setting.report_as:
                reported[setting.report_as] = _text(getattr(stage, name))
    supervision: str = NO_METHOD[trial.supervision] if chain.method is None else chain.method.supervision
    if supervision and reported.get("segmentation_initialisation", trial.weights) == "coco":
        supervision += "+COCO masks"
    if supervision and trial.allow_val_in_training and val_in_training(data):
        supervision += "+val images"
    # The threshold `oracle` sees the masks of `train` too.
    seen = {Split.TUNE, *(stage.on for stage in chain.stages if isinstance(stage, SelectThreshold))}
    if reference := next((name for name, how in REFERENCES.items() if how == trial.supervision), ""):
        # Nothing is chosen for it.
        seen, reported["reference"] = set(), reference
    every_row_has: dict[str, str | int] = {
        "supervision": supervision,
        "backbone": str(trial.backbone),
        "initialisation": str(trial.weights),
        # Without a segmentation network: those of the method.
        "segmentation_backbone": str(trial.backbone),
        "segmentation_initialisation": str(trial.weights),
        "crf_preset": NONE,
        "multi_scale": NONE,
        "segmentation": "deeplab" if chain.segment else NONE,
        "selection": NONE,
        "tuning_masks": len({image_id for split in seen for image_id in data.ids(split)}),
    }
    if data.class_choice:
        reported["classes"] = data.class_choice
    return every_row_has | reported


def conditions_in(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Return the conditions of a cell of `sweep.json`, also of one that an earlier version wrote."""
    return {name: value for name, value in cell.items() if name not in NO_CONDITIONS}


def search_trials_in(cell: Mapping[str, Any], of_sweep: int) -> int:
    """Return the number of search trials of a cell of `sweep.json`; `of_sweep` for one of an earlier version."""
    return int(cell.get("trials", 0 if cell.get("reference") else of_sweep))


def _text(value: Any) -> str:
    """Return a setting as text: `0.5,1,1.5`, `true`, `none`."""
    if isinstance(value, list | tuple):
        return ",".join(map(_text, value))
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
