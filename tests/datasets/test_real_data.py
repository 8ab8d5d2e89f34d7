"""On real images with real ImageNet weights, if environment variables name them (tests/conftest.py)."""

from __future__ import annotations

import numpy as np
import pytest

from seedbed.benchmark.evaluation.formats import PngMasks
from seedbed.benchmark.evaluation.scoring import score_masks
from seedbed.benchmark.pipeline.stage import Machine
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.trials.run import run_trial
from seedbed.benchmark.trials.trial import Trial
from seedbed.datasets.base import IGNORE_INDEX, Split
from seedbed.datasets.coco2014 import DATASET as COCO
from seedbed.datasets.coco2014.masks import rasterise
from seedbed.datasets.tools.check import check
from seedbed.datasets.voc2012 import DATASET

pytestmark = pytest.mark.real_data
LEARN = {"crf": (), "psa": ("TrainPsa",), "irn": ("TrainIrn",)}
"""The trainings of each refiner."""


def test_the_true_masks_score_perfectly_and_empty_ones_as_background_alone(real_voc):
    view = DATASET.open(real_voc).split(Split.VAL)
    perfect = score_masks(PngMasks(real_voc / "SegmentationClassAug"), view)
    assert perfect.confusion.miou() == 1.0
    assert perfect.images == 200


def test_the_masks_of_real_coco_are_drawn_and_agree_with_the_tags(real_coco, tmp_path):
    masks = tmp_path / "masks"
    drawn = rasterise(real_coco, masks)
    data = COCO.open(real_coco, masks=masks)
    assert drawn == len(data.ids(Split.WEAK)) + len(data.ids(Split.VAL))
    assert len(data.classes) == 80
    for split in (Split.TRAIN, Split.VAL):
        view = data.split(split)
        for image_id in view.ids[::8]:
            mask, (height, width) = view.mask(image_id), view.image(image_id).shape[:2]
            assert mask.shape == (height, width)
            # Small objects may be hidden, and crowds are ignored; nothing may be there that is not tagged.
            assert {*np.unique(mask).tolist()} - {0, IGNORE_INDEX} <= {*view.tags(image_id)}
    assert [problem for problem in check(data) if problem.severity == "error"] == []


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> WorkFolder:
    """Return a work folder for all refiners, which have the method's stages in common."""
    return WorkFolder(tmp_path_factory.mktemp("real"))


@pytest.mark.slow
@pytest.mark.parametrize("refiner", ["crf", "psa", "irn"])
def test_the_whole_line_runs_on_real_images(refiner, real_voc, real_weights, work, monkeypatch):
    """Six images of each split at 96 pixels, one epoch: every stage works on real sizes, tags and masks."""
    data = DATASET.open(real_voc)
    train, val = data.ids(Split.TRAIN)[:6], data.ids(Split.VAL)[:6]
    kept = {Split.WEAK: train, Split.TRAIN: train, Split.TUNE: train[:2], Split.VAL: val, Split.TEST: ()}
    monkeypatch.setattr(type(data), "ids", lambda self, split: kept[split])
    trial = Trial(
        dataset="voc2012",
        refiner=refiner,
        backbone="squeezenet",
        weights=str(real_weights),
        size=96,
        selections=["tuned"],
        settings={
            "TrainCam.epochs": 1,
            "TrainCam.batch": 3,
            "TrainSegmentation.epochs": 1,
            "TrainSegmentation.batch": 3,
            "InferCam.scales": (1.0,),
            "PredictMasks.scales": (1.0,),
            **{f"{stage}.{field}": n for stage in LEARN[refiner] for field, n in (("epochs", 1), ("batch", 3))},
        },
    )
    result = run_trial(trial, data, work, Machine())
    values = {record.name: record.value for record in result.records}
    assert 0 < values["seed.train/mIoU_oracle"] < 1
    assert values["seed.train/mIoU_oracle"] >= values["seed.train/mIoU_fixed"]
    assert 0 < values["val/mIoU"] < 1
    assert (result.folder / "examples.png").is_file()
    assert np.isfinite([v for v in values.values() if v is not None]).all()
