"""The masks that a finished trial's segmentation network predicts for a few images of `train`.

The trial itself predicts only `val`. Predictions are kept in `gallery/NETWORK/` of the work folder.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.sweeps.trial_files import read_spec

if TYPE_CHECKING:
    from seedbed.benchmark.pipeline.stage import Machine, Precision
    from seedbed.methods.segmentation.stages import PredictMasks

logger = logging.getLogger(__name__)


def predict_train(work: WorkFolder, trial: Path, ids: Sequence[str], device: Callable[[], str]) -> Path | None:
    """Return a folder with the mask ID.png of each image, uint8 labels at the image's size.

    `trial` is the folder of a finished trial. None if it has no segmentation network, the store no longer has it,
    or this code has another version of the prediction (logged). Imports torch and calls `device()`, the name of a
    device, only to predict missing masks. Raises the errors of the stage.
    """
    description = json.loads((trial / "config.json").read_text("utf-8"))
    key = description["artifacts"].get("network")
    if key is None or not work.store.folder(key).is_dir():
        return None
    folder = work.root / "gallery" / key
    missing = tuple(image_id for image_id in ids if not (folder / f"{image_id}.png").is_file())
    if missing:
        from seedbed.benchmark.pipeline.stage import Machine
        from seedbed.benchmark.trials.run import recorded_prediction

        try:
            stage = recorded_prediction(description)
        except ConfigError as error:
            logger.warning(f"{trial}: no predictions of train: {error}")
            return None
        folder.mkdir(parents=True, exist_ok=True)
        precision = description["trial"].get("precision", "fp32")
        _predict(stage, work, trial, missing, folder, precision, Machine(device=device()))
    return folder


def _predict(
    stage: PredictMasks,
    work: WorkFolder,
    trial: Path,
    ids: tuple[str, ...],
    folder: Path,
    precision: Precision,
    machine: Machine,
) -> None:
    from seedbed.benchmark.pipeline.stage import Context
    from seedbed.datasets.base import Split
    from seedbed.methods.segmentation.stages import predict_masks

    spec = read_spec(trial)
    data = work.current(spec.dataset_spec, spec.digest).open()
    view = replace(data.split(Split.TRAIN), ids=ids)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        context = Context(spec.trial.seed, Split.TRAIN, Path(temporary), precision, **vars(machine))
        predict_masks(stage, work.store.path(folder.name), view, Path(temporary), context)
        # A mask appears by one rename, so that a kill leaves no partial one.
        for image_id in ids:
            (Path(temporary) / f"{image_id}.png").replace(folder / f"{image_id}.png")
