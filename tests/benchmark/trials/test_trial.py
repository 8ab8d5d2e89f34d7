"""A trial's chain: settings of a method, its own measurements and pictures, and methods that end in masks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import seedbed.benchmark.trials.trial
from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.evaluation.records import Record, write_records
from seedbed.benchmark.evaluation.stages import RECORDS_FILE
from seedbed.benchmark.evaluation.threshold import SelectThreshold
from seedbed.benchmark.pipeline.hparams import hp
from seedbed.benchmark.pipeline.stage import Context, Kind, Machine, Meta, Method, Stage
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.trials.plan import plan_trial
from seedbed.benchmark.trials.run import run_trial
from seedbed.benchmark.trials.trial import Trial, build_chain
from seedbed.datasets.base import Dataset, Split
from seedbed.datasets.io.images import write_mask
from seedbed.methods.backbones.base import build_backbone
from seedbed.methods.cam import METHOD as CAM
from seedbed.methods.cam import TrainCam

META = Meta(classes=6, long_side=64, backbone="tiny")


@dataclass(frozen=True, kw_only=True)
class CountImages(Stage):
    """A measurement: the number of images, in a picture too."""

    version = 1
    consumes = (Kind.CHECKPOINT,)
    produces = Kind.RECORDS
    factor: int = hp(1, low=1, high=9, source="test")

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        count = float(len(data.split(ctx.split)) * self.factor)
        write_records(out / RECORDS_FILE, [Record("counted", str(ctx.split), "images", "none", None, count, None)])
        (out / "cat.png").write_bytes(b"a picture")


@dataclass(frozen=True, kw_only=True)
class TrueMasks(Stage):
    """Stands for the prediction of a one-step method: the true masks."""

    version = 1
    consumes = (Kind.CHECKPOINT,)
    produces = Kind.MASKS

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        view = data.split(ctx.split, supervision="full")
        for image_id in view.ids:
            write_mask(out / f"{image_id}.png", view.mask(image_id))


@dataclass(frozen=True)
class Odd(Method):
    """One or two trainings, maps unless told otherwise, and a measurement of its own."""

    name: str = "odd"
    paper: str = "none"
    one_step: bool = False
    fixed_threshold: float = 0.15
    trainings: int = hp(1, low=1, high=2, source="test")

    def localise(self, meta: Meta) -> list[Stage]:
        train, infer = CAM.localise(meta)
        masks = [TrueMasks()] if self.one_step else []
        return [*[train] * self.trainings, infer, *masks]

    def measurements(self, meta: Meta) -> list[Stage]:
        return [CountImages()]


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what puts a variant of the odd method in the registry."""

    class Registry:
        def __init__(self, method: Method) -> None:
            self.method = method

        def load(self, _: str) -> Method:
            return self.method

    def put(**fields: Any) -> None:
        monkeypatch.setattr(seedbed.benchmark.trials.trial, "METHODS", Registry(Odd(**fields)))

    return put


def trial(**changes: Any) -> Trial:
    settings = {"TrainCam.epochs": 1, **changes.pop("settings", {})}
    return Trial(dataset="chimera", method="odd", segment=False, settings=settings, **changes)


def test_a_setting_of_the_method_decides_which_stages_there_are(odd):
    odd()
    assert len(build_chain(trial(), META).localise) == 2
    chain = build_chain(trial(settings={"Odd.trainings": "2"}), META)
    assert [type(stage).__name__ for stage in chain.localise] == ["TrainCam", "TrainCam", "InferCam"]
    assert all(stage.epochs == 1 for stage in chain.localise if isinstance(stage, TrainCam))
    assert chain.configured[0] == Odd(trainings=2)
    with pytest.raises(ConfigError, match=r"Odd\.trainings = 3: outside 1 … 2"):
        build_chain(trial(settings={"Odd.trainings": 3}), META)
    with pytest.raises(ConfigError, match=r"'training'.*trainings"):
        build_chain(trial(settings={"Odd.training": 2}), META)


def test_a_methods_own_measurements_are_recorded_with_its_pictures(odd, chimera, tmp_path):
    odd()
    result = run_trial(trial(settings={"CountImages.factor": 2}), chimera, WorkFolder(tmp_path), Machine())
    counted = [record for record in result.records if record.level == "counted"]
    assert [(r.split, r.value) for r in counted] == [("train", 2.0 * len(chimera.ids(Split.TRAIN)))]
    assert (result.folder / "figures" / "CountImages_cat.png").read_bytes() == b"a picture"
    assert {"seed", "pseudo_mask", "counted"} <= {record.level for record in result.records}


def test_maps_masks_and_own_measurements_are_measured_on_the_splits_that_are_asked_for(odd, chimera, tmp_path):
    odd()
    places = {}
    for maps_on in (("train",), ("val",), ("train", "val")):
        plan = plan_trial(trial(maps_on=maps_on), chimera, WorkFolder(tmp_path), Machine(), digest="d")
        steps = plan.steps().values()
        places[maps_on] = {
            (type(step.stage).__name__, str(step.split)) for step in steps if step.stage.produces is Kind.RECORDS
        }
    on_tune = {("MeasureMasks", "tune"), ("MeasureClassifier", "val")}
    measured = ("MeasureMaps", "MeasureMasks", "CountImages")
    for maps_on, found in places.items():
        assert found == {(name, split) for name in measured for split in maps_on} | on_tune


def test_what_is_about_superpixels_or_clusters_is_measured_on_train(chimera, tmp_path):
    own = Trial(dataset="chimera", method="icd", segment=False, maps_on=("val",))
    steps = plan_trial(own, chimera, WorkFolder(tmp_path), Machine(), digest="d").steps().values()
    assert {str(s.split) for s in steps if type(s.stage).__name__ == "MeasureIcd"} == {"train"}
    assert {str(s.split) for s in steps if type(s.stage).__name__ == "MeasureMaps"} == {"val"}


def test_a_search_leaves_the_own_measurements_out(odd, chimera, tmp_path):
    odd()
    plan = plan_trial(trial(measure_on="tune"), chimera, WorkFolder(tmp_path), Machine())
    assert "CountImages" not in {type(step.stage).__name__ for step in plan.steps().values()}


FILES = ("run.json", "records.parquet", "per_class.csv", "per_image", "examples.png", "figures")


def test_the_same_run_by_two_processes_at_once_ends_well_in_both(odd, chimera, tmp_path, monkeypatch):
    """The second draws its pictures, and ends, while the first draws the same."""
    from seedbed.benchmark.evaluation import pictures

    odd()
    draw = pictures.draw_examples

    def run() -> Path:
        return run_trial(trial(), chimera, WorkFolder(tmp_path), Machine()).folder

    def draw_beside_another_process(path: Path, *more: Any) -> None:
        draw(path, *more)
        with monkeypatch.context() as other:
            other.setattr(pictures, "draw_examples", draw)
            other.setattr("os.getpid", lambda: 1)
            run()

    monkeypatch.setattr(pictures, "draw_examples", draw_beside_another_process)
    assert {path.name for path in run().iterdir()} == {*FILES}


def test_a_one_step_method_is_measured_on_train_and_val_beside_its_maps(odd, chimera, tmp_path):
    odd(one_step=True)
    result = run_trial(trial(), chimera, WorkFolder(tmp_path), Machine())
    miou = {(r.level, r.split): r.value for r in result.records if r.metric == "mIoU" and r.selection == "none"}
    assert miou == {("pseudo_mask", "train"): 1.0, ("pseudo_mask", "tune"): 1.0, ("one_step", "val"): 1.0}
    assert {"fixed", "tuned", "oracle"} <= {r.selection for r in result.records if r.level == "seed"}


def test_a_one_step_method_goes_on_to_the_segmentation_network(odd, chimera, tmp_path):
    odd(one_step=True)
    plan = plan_trial(Trial(dataset="chimera", method="odd"), chimera, WorkFolder(tmp_path), Machine())
    names = {(type(t.step.stage).__name__, t.step.stage.settings().get("level")) for t in plan.targets()}
    assert {("MeasureMasks", "one_step"), ("MeasureMasks", "segmentation")} <= names


def test_a_one_step_method_takes_no_refiner(odd):
    odd(one_step=True)
    with pytest.raises(ConfigError, match="'odd' predicts its own masks"):
        build_chain(trial(refiner="crf"), META)


@pytest.mark.parametrize("measure_on", ["report", "tune"])
def test_a_refiner_that_learns_reads_the_methods_maps_from_weak(measure_on, chimera, tmp_path):
    trial = Trial(dataset="chimera", refiner="irn", segment=False, measure_on=measure_on)
    plan = plan_trial(trial, chimera, WorkFolder(tmp_path), Machine(), digest="d")
    where = {(type(step.stage).__name__, str(step.split)) for step in plan.steps().values()}
    own = "tune" if measure_on == "tune" else "train"
    assert {split for name, split in where if name == "InferCam"} == {"weak"}
    assert {split for name, split in where if name == "IrnLabels"} == {"weak"}
    assert {split for name, split in where if name == "WalkIrn"} == {own}


def test_a_refiners_own_threshold_is_not_that_of_the_seeds(chimera, tmp_path):
    """IRN cuts its own maps at 0.25; CAM's stay at 0.15."""
    trial = Trial(dataset="chimera", refiner="irn", segment=False, settings={"SelectThreshold.value": "0.3"})
    plan = plan_trial(trial, chimera, WorkFolder(tmp_path), Machine(), digest="d")
    stages = [step.stage for step in plan.steps().values()]
    assert [s.settings()["fixed"] for s in stages if type(s).__name__ == "MeasureMaps"] == [0.15]
    assert [s.value for s in plan.chain.refine if isinstance(s, SelectThreshold)] == [0.3]


# The segmentation network's own backbone and weights


def planned(data: Dataset, folder: Path, **changes: Any) -> Any:
    """Return the plan of a trial of CAM with a segmentation network."""
    return plan_trial(Trial(dataset="chimera", **changes), data, WorkFolder(folder), Machine())


def network_of(plan: Any) -> tuple[str, str]:
    """Return backbone and weights of the segmentation network, for which stages and record must agree."""
    trial = plan.describe()["trial"]
    stages = (plan.chain.localise[0], plan.chain.segment[0])
    of_stages = [(stage.backbone, stage.weights) for stage in stages]
    recorded = [(trial[f"{p}backbone"], trial[f"{p}weights"]) for p in ("", "segmentation_")]
    assert of_stages == recorded
    return recorded[1]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("tiny", "none")),
        ({"backbone": "resnet50", "weights": "none"}, ("resnet50", "none")),
        ({"backbone": "resnet50", "segmentation_weights": "none"}, ("resnet50", "none")),
        ({"segmentation_backbone": "vgg16"}, ("vgg16", "imagenet")),
        (
            {"backbone": "resnet50", "weights": "none", "segmentation_backbone": "resnet101"},
            ("resnet101", "imagenet"),
        ),
        ({"backbone": "resnet50", "segmentation_backbone": "tiny"}, ("tiny", "none")),
        ({"backbone": "resnet50", "segmentation_weights": "coco"}, ("resnet50", "coco")),
        ({"segmentation_backbone": "resnet101", "segmentation_weights": "coco"}, ("resnet101", "coco")),
    ],
)
def test_the_segmentation_network_has_the_methods_backbone_and_weights_or_its_own(
    chimera, tmp_path, changes, expected
):
    assert network_of(planned(chimera, tmp_path, **changes)) == expected


def test_the_recipe_is_that_of_the_segmentation_networks_backbone(chimera, tmp_path):
    plan = planned(chimera, tmp_path, segmentation_backbone="vgg16")
    train, localise = plan.chain.segment[0], plan.chain.localise[0]
    assert (train.head, train.lr, train.optimiser) == ("large_fov", 1e-3, "sgd")
    assert localise.backbone == "tiny"
    assert plan.run_id() != planned(chimera, tmp_path).run_id()


def test_the_upper_bound_is_on_the_segmentation_networks_backbone(chimera, tmp_path):
    plan = planned(chimera, tmp_path, supervision="full", segmentation_backbone="vgg16")
    assert type(plan.chain.stages[0]).__name__ == "TrainSupervised"
    assert (plan.chain.stages[0].backbone, plan.chain.stages[0].weights) == ("vgg16", "imagenet")


def test_weights_files_are_known_by_their_digests(chimera, tmp_path):
    for name in ("method", "network"):
        (tmp_path / name).write_text(name)
    files = {"weights": str(tmp_path / "method"), "segmentation_weights": str(tmp_path / "network")}
    plan = planned(chimera, tmp_path / "work", **files)
    digests = [hashlib.sha256(name.encode()).hexdigest() for name in ("method", "network")]
    assert (plan.trial.weights, plan.trial.segmentation_weights) == tuple(f"sha256:{d}" for d in digests)
    assert plan.chain.segment[0].weights == f"sha256:{digests[1]}"
    assert {key: path.name for key, path in plan.machine.weights_files.items()} == {
        f"sha256:{digests[0]}": "method",
        f"sha256:{digests[1]}": "network",
    }
    shared = planned(chimera, tmp_path / "work", weights=files["weights"])
    assert shared.trial.segmentation_weights == f"sha256:{digests[0]}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"backbone": "resnet50", "weights": "coco"},
            "--weights coco: they have seen masks.*Valid: none, imagenet",
        ),
        ({"segmentation_weights": "coco"}, "'tiny' has no COCO weights. Valid: none, or a state-dict file"),
        ({"segmentation_weights": "imagenet"}, "'tiny' has no ImageNet weights"),
        ({"segmentation_backbone": "resnet38", "segmentation_weights": "coco"}, "'resnet38' has no COCO weights"),
        (
            {"segmentation_weights": "nowhere.pth"},
            "--segmentation-weights nowhere.pth: no such file. Valid: .*coco",
        ),
        ({"segmentation_backbone": "resnet11"}, "unknown backbone 'resnet11'. Did you mean"),
        ({"segmentation_backbone": "tiny", "segment": False}, "need a segmentation network"),
        (
            {"segmentation_backbone": "resnet50", "settings": {"TrainSegmentation.head": "large_fov"}},
            "has no fc6. Valid with large_fov: vgg16",
        ),
    ],
)
def test_impossible_segmentation_networks_are_refused_before_anything_runs(chimera, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        planned(chimera, tmp_path, **changes)


def test_coco_weights_have_seen_the_images_of_coco_val(chimera, tmp_path, monkeypatch):
    monkeypatch.setattr(chimera, "name", "coco2014")
    with pytest.raises(ConfigError, match="most images of COCO's val2014"):
        planned(chimera, tmp_path, segmentation_backbone="resnet50", segmentation_weights="coco")


def test_a_file_trains_the_segmentation_network_of_another_backbone(chimera, tmp_path):
    """The localisation's network begins at random, the segmentation network from a file for its own backbone."""
    torch.save(build_backbone("squeezenet", 16, pretrained=False).state_dict(), tmp_path / "w.pth")
    short = {"TrainCam.epochs": 1, "TrainSegmentation.epochs": 1, "TrainSegmentation.crop": 32}
    own = {"segmentation_backbone": "squeezenet", "segmentation_weights": str(tmp_path / "w.pth")}
    trial = Trial(dataset="chimera", selections=("tuned",), settings=short, **own)
    result = run_trial(trial, chimera, WorkFolder(tmp_path / "work"), Machine())
    assert any(record.name == "val/mIoU" for record in result.records)
