"""On real images with real ImageNet weights, if environment variables name them (tests/conftest.py)."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco
from scipy.io import loadmat

from seedbed.benchmark.evaluation.formats import PngMasks
from seedbed.benchmark.evaluation.scoring import score_masks
from seedbed.benchmark.pipeline.stage import Machine
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.sweeps.driver import run_sweep
from seedbed.benchmark.sweeps.settings import settings_of
from seedbed.benchmark.trials.run import run_trial
from seedbed.benchmark.trials.trial import Trial
from seedbed.datasets.base import IGNORE_INDEX, Split
from seedbed.datasets.coco2014 import DATASET as COCO
from seedbed.datasets.coco2014.masks import FOLDERS, rasterise
from seedbed.datasets.io.images import decode_mask, image_size
from seedbed.datasets.io.tags import mask_labels, tag_table
from seedbed.datasets.tools.check import check
from seedbed.datasets.tools.sbd import merge_sbd, read_sbd_mask
from seedbed.datasets.voc2012 import AUGMENTED, CLASSES, DATASET, LISTS
from tests.helpers.voc_folder import TRAIN, make_voc

pytestmark = pytest.mark.real_data
LEARN = {"crf": (), "psa": ("TrainPsa",), "irn": ("TrainIrn",)}
"""The trainings of each refiner."""


def test_the_true_masks_score_perfectly_and_empty_ones_as_background_alone(real_voc):
    view = DATASET.open(real_voc).split(Split.VAL)
    perfect = score_masks(PngMasks(real_voc / "SegmentationClassAug"), view)
    assert perfect.confusion.miou() == 1.0
    assert perfect.images == 200


@pytest.fixture(scope="module")
def coco_masks(real_coco, tmp_path_factory) -> Path:
    """Return the masks of all real COCO images."""
    masks = tmp_path_factory.mktemp("coco") / "masks"
    rasterise(real_coco, masks)
    return masks


def test_the_masks_of_real_coco_are_drawn_and_agree_with_the_tags(real_coco, coco_masks):
    data = COCO.open(real_coco, masks=coco_masks, tag_rule="annotated")
    drawn = len([*coco_masks.rglob("*.png")])
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


def test_the_visible_classes_of_real_coco_by_pycocotools(real_coco, coco_masks):
    """Of 544 annotated images, 511 have the same tags by both rules."""
    visible, annotated = (
        COCO.open(real_coco, masks=coco_masks, tag_rule=rule) for rule in ("visible", "annotated")
    )
    same = annotations = crowds = 0
    for split in ("train", "val"):
        content = json.loads((real_coco / "annotations" / f"instances_{split}2014.json").read_text())
        labels = {
            category["id"]: visible.category_ids.index(category["id"]) + 1 for category in content["categories"]
        }
        assert {label for i in visible.ids(Split(split)) for label in annotated.tags(i)} == {*range(1, 81)}
        for image in content["images"]:
            own = [entry for entry in content["annotations"] if entry["image_id"] == image["id"]]
            drawing = np.zeros((image["height"], image["width"]), np.uint8)
            for entry in own:
                coded = entry["segmentation"]
                if isinstance(coded, list):
                    coded = coco.merge(coco.frPyObjects(coded, *drawing.shape))
                else:
                    coded = coco.frPyObjects(coded, *drawing.shape)
                drawing[coco.decode(coded) > 0] = labels[entry["category_id"]]
            name = Path(image["file_name"]).stem
            assert visible.tags(name) == tuple(sorted({*np.unique(drawing).tolist()} - {0}))
            assert annotated.tags(name) == tuple(sorted({labels[entry["category_id"]] for entry in own}))
            annotations += bool(own)
            same += bool(own) and visible.tags(name) == annotated.tags(name)
            crowds += sum(entry["iscrowd"] for entry in own)
    assert (same, annotations, crowds) == (511, 544, 50)


@pytest.fixture(scope="module")
def small_coco(real_coco, tmp_path_factory) -> Path:
    """Return two real images of each part of COCO, with masks."""
    root = tmp_path_factory.mktemp("small") / "coco"
    (root / "annotations").mkdir(parents=True)
    for folder in FOLDERS:
        (root / folder).mkdir()
        content = json.loads((real_coco / "annotations" / f"instances_{folder}.json").read_text())
        content["images"] = content["images"][:: len(content["images"]) // 2][:2]
        kept = {image["id"]: image["file_name"] for image in content["images"]}
        content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in kept]
        (root / "annotations" / f"instances_{folder}.json").write_text(json.dumps(content))
        for name in kept.values():
            (root / folder / name).symlink_to(real_coco / folder / name)
    rasterise(root)
    return root


@pytest.fixture(scope="module")
def small_voc(real_voc, tmp_path_factory) -> Path:
    """Return four real images of each split of VOC."""
    root = tmp_path_factory.mktemp("small") / "voc"
    for folder in ("JPEGImages", AUGMENTED):
        (root / folder).mkdir(parents=True)
    data = DATASET.open(real_voc)
    (root / LISTS).mkdir(parents=True)
    for split, name in ((Split.TRAIN, "train"), (Split.TRAIN, "train_aug"), (Split.VAL, "val")):
        ids = data.ids(split)[::50][:4]
        (root / LISTS / f"{name}.txt").write_text("".join(f"{image_id}\n" for image_id in ids))
        for path in {path for i in ids for path in (data.image_path(i), data.mask_path(i))}:
            target = root / path.parent.name / path.name
            if not target.exists():
                target.symlink_to(path)
    return root


COARSE = {
    "TrainCam.epochs": 1,
    "TrainSegmentation.epochs": 1,
    "TrainIrn.epochs": 1,
    "InferCam.scales": [1.0],
    "PredictMasks.scales": [1.0],
    "PredictMasks.crf": "none",
}
QUICK = {"size": 96, "backbone": "tiny", "weights": "none", "selections": ["tuned"], "precision": "fp32"}


@pytest.mark.slow
@pytest.mark.parametrize("refiner", ["crf", "irn"])
def test_the_whole_line_runs_on_real_coco(refiner, small_coco, work):
    data = COCO.open(small_coco)
    settings = {key: value for key, value in COARSE.items() if refiner == "irn" or "Irn" not in key}
    trial = Trial(dataset="coco2014", refiner=refiner, settings=settings, **QUICK)
    result = run_trial(trial, data, work, Machine())
    values = {record.name: record.value for record in result.records}
    assert 0 <= values["pseudo_mask.train/mIoU_tuned"] <= 1
    assert 0 <= values["val/mIoU"] <= 1
    assert (result.folder / "examples.png").is_file()


@pytest.mark.slow
def test_a_sweep_runs_over_real_voc_and_coco(small_voc, small_coco, work):
    """VOC by six of its classes: both data sets are on one leaderboard, the choice of classes is stated."""
    name = "voc2012[cat,cow,dog,horse,person,sheep]"
    settings = settings_of(
        {
            "name": "real",
            "datasets": [f"{name}={small_voc}", f"coco2014={small_coco}"],
            "methods": ["cam"],
            "refiners": ["none"],
            "trials": 0,
            "seeds": [0],
            "settings": COARSE,
            **QUICK,
        }
    )
    done = run_sweep(settings, work)
    assert done.whole
    cells = json.loads((work.sweeps / "real" / "sweep.json").read_text())["cells"]
    stated = {cell["dataset"]: cell.get("classes") for cell in cells}
    assert stated == {name: "6 of 20 classes: cat, cow, dog, horse, person, sheep", "coco2014": None}


def test_tags_as_irn_and_psa_publish_them(real_labels, real_tags):
    """Both files have all labelled images of VOC; the CSV file has the same tags as words."""
    with real_tags.open(newline="") as file:
        expected = {
            row["image_id"]: tuple(sorted(CLASSES.index(word) + 1 for word in row["classes"].split()))
            for row in csv.DictReader(file)
        }
    assert len(expected) == 12031
    assert tag_table(real_labels, CLASSES) == expected


def test_a_data_set_reads_its_tags_from_published_files(real_labels, real_tags, real_voc):
    data, same = (DATASET.open(real_voc, tags=file) for file in (real_labels, real_tags))
    assert data.tag_source == "cls_labels.npy"
    for split in (Split.WEAK, Split.VAL):
        assert [data.tags(i) for i in data.ids(split)] == [same.tags(i) for i in data.ids(split)]


def test_official_files_of_sbd(real_sbd, real_tags, tmp_path):
    """Labels, sizes and classes agree with SBD's instances, its photographs, and VOC's tags."""
    dataset = real_sbd / "benchmark_RELEASE" / "dataset"
    tags = tag_table(real_tags, CLASSES)
    names = sorted(path.stem for path in (dataset / "cls").glob("*.mat"))
    assert names
    for name in names:
        mask = read_sbd_mask(dataset / "cls" / f"{name}.mat")
        instances = loadmat(dataset / "inst" / f"{name}.mat")["GTinst"][0, 0]
        categories = instances["Categories"].ravel()
        assert mask.dtype == np.uint8
        assert mask.shape == image_size(dataset / "img" / f"{name}.jpg")
        assert np.array_equal(mask, np.concatenate([[0], categories])[instances["Segmentation"]])
        assert mask_labels(mask, len(CLASSES)) == tags[name]
    voc = make_voc(tmp_path / "voc")
    (voc / LISTS / "train_aug.txt").unlink()
    listed = {*(dataset / "train.txt").read_text().split(), *(dataset / "val.txt").read_text().split()}
    assert merge_sbd(real_sbd, voc) == len(listed) + len(TRAIN)
    for name in listed:
        merged = decode_mask(voc / AUGMENTED / f"{name}.png")
        assert np.array_equal(merged, read_sbd_mask(dataset / "cls" / f"{name}.mat"))


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> WorkFolder:
    """Return a work folder for all refiners, which have the method's stages in common."""
    return WorkFolder(tmp_path_factory.mktemp("real"))


@pytest.mark.slow
@pytest.mark.parametrize("refiner", ["crf", "psa", "irn"])
def test_the_whole_line_runs_on_real_images(refiner, real_voc, real_weights, work, monkeypatch):
    """Three images of each split at 96 pixels, one epoch: every stage works on real sizes, tags and masks."""
    data = DATASET.open(real_voc)
    train, val = data.ids(Split.TRAIN)[:3], data.ids(Split.VAL)[:3]
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
