"""A dry run: what it estimates, what it does not know, and that it writes nothing."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from seedbed.benchmark.cli.main import app
from seedbed.benchmark.pipeline.cost import Conditions, conditions_of
from seedbed.benchmark.pipeline.dry_run_folder import DryRunFolder, PlannedChimera
from seedbed.benchmark.pipeline.pipeline import Pipeline
from seedbed.benchmark.pipeline.stage import Kind, Machine
from seedbed.benchmark.pipeline.store import Store
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.sweeps.dry_run import Estimate, _Durations, forecast
from seedbed.datasets.base import Split
from seedbed.datasets.chimera import generate
from seedbed.methods.cam import InferCam, TrainCam
from tests.helpers.sweeping import SHORT, run_to_its_end, scheduler_of, small


def put(store: Store, key: str, stage: str, seconds: float, **conditions) -> None:
    """Put an entry into a store that took so many seconds."""
    store.path(key).mkdir(parents=True)
    record = {"key": key, "identity": {"stage": stage, "data": "d"}, "seconds": seconds, "bytes": 0}
    if conditions:
        record["conditions"] = conditions
    (store.path(key) / "entry.json").write_text(json.dumps(record))


@pytest.fixture
def step(chimera, tmp_path):
    """Return the training step of a CAM of 2 epochs with a crop of 40 pixels."""
    stages = [TrainCam(epochs=2, crop=40, backbone="tiny", weights="none"), InferCam()]
    return Pipeline(stages, chimera, "d", 0, Store(tmp_path), Machine()).step(0, Split.WEAK)


def test_conditions_are_backbone_size_images_epochs_and_device(step, chimera, tmp_path):
    images = len(chimera.ids(Split.WEAK))
    assert conditions_of(step, chimera, "cuda:1") == Conditions("cuda", "tiny", 40, images, 2)
    pipeline = Pipeline([step.stage, InferCam()], chimera, "d", 0, Store(tmp_path), Machine())
    # Inference has the backbone of the checkpoint that it uses, and works on whole images.
    tune = conditions_of(pipeline.step(1, Split.TUNE), chimera, "cpu")
    assert tune == Conditions("cpu", "tiny", 64, len(chimera.ids(Split.TUNE)), 1)
    faster = replace(pipeline, precision="bf16").step(1, Split.TUNE)
    assert conditions_of(faster, chimera, "cpu") == replace(tune, precision="bf16")
    assert Conditions("cpu", "", 10, 3, 2).work == 10 * 10 * 3 * 2


def test_what_is_computed_records_its_conditions_and_the_key_stays(chimera, tmp_path):
    stage = TrainCam(epochs=1, crop=32, batch=8, backbone="tiny", weights="none")
    pipeline = Pipeline([stage], chimera, "d", 0, Store(tmp_path), Machine())
    step = pipeline.step(0, Split.WEAK)
    entry = pipeline.compute(step)
    assert entry.record["conditions"] == conditions_of(step, chimera, "cpu").to_json()
    assert "conditions" not in entry.record["identity"]


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        # Equal stage, device, backbone, size and images: by epochs.
        ([("TrainCam", 30.0, {})], Estimate(30.0, False)),
        ([("TrainCam", 30.0, {"epochs": 6})], Estimate(10.0, False)),
        ([("TrainCam", 30.0, {}), ("TrainCam", 50.0, {})], Estimate(40.0, False)),
        # Twice the side are four times the pixels.
        ([("TrainCam", 40.0, {"side": 80})], Estimate(10.0, True)),
        ([("TrainCam", 40.0, {"images": 68})], Estimate(20.0, True)),
        # Of several sizes, the closest one.
        ([("TrainCam", 44.0, {"side": 20}), ("TrainCam", 40.0, {"side": 80, "images": 17})], Estimate(20.0, True)),
        # A 500-pixel VGG is not a 64-pixel tiny one.
        ([("TrainCam", 30.0, {"backbone": "vgg16"})], None),
        ([("TrainCam", 30.0, {"device": "cuda"})], None),
        ([("TrainCam", 30.0, {"precision": "bf16"})], None),
        ([("TrainIrn", 30.0, {})], None),
        # An entry of an earlier version does not say how.
        ([("TrainCam", 30.0, None)], None),
        ([], None),
    ],
)
def test_a_step_is_estimated_by_comparable_ones(step, chimera, tmp_path, known, expected):
    assert len(chimera.ids(Split.WEAK)) == 34
    store = Store(tmp_path / "store")
    wanted = {"device": "cpu", "backbone": "tiny", "side": 40, "images": 34, "epochs": 2}
    for number, (stage, seconds, changes) in enumerate(known):
        put(store, f"{number:064x}", stage, seconds, **({} if changes is None else wanted | changes))
    assert _Durations(store).estimate(step, chimera, "cpu") == expected


def tree(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in root.rglob("*")}


def test_a_dry_run_writes_nothing_and_generates_nothing(tmp_path, monkeypatch):
    def sweep(*words: str) -> str:
        options = [
            "--methods",
            "cam",
            "--refiners",
            "none",
            "--trials",
            "2",
            "--seeds",
            "0",
            "--dry-run",
            "--name",
            "s",
        ]
        ran = CliRunner().invoke(app, ["sweep", *options, *words, "--work", str(tmp_path / "work")])
        assert ran.exit_code == 0, ran.output
        return ran.output

    monkeypatch.setattr("seedbed.datasets.chimera.generate", lambda *_, **__: pytest.fail("generated"))
    monkeypatch.chdir(tmp_path)
    for name in ("chimera", "chimera-voc", "chimera-coco"):
        text = sweep("--datasets", name)
        assert f"not known: the content of {name}, which the sweep will generate" in text
        # The network on true masks has one trial, and so has each of the two references without a network.
        assert "trials: 7, cells: 1, references: 3" in text
        assert re.search(rf"^fully_supervised × {name} +0 +1 +nothing$", text, re.MULTILINE)
        assert "trials: 4, cells: 1\n" in sweep("--datasets", name, "--no-references")
        assert "estimate: none" in text
        assert "not timed yet" in text
    study = ["study", "icd_t5", "--dataset", "chimera-voc", "--dry-run", "--work", str(tmp_path / "work")]
    ran = CliRunner().invoke(app, study)
    assert ran.exit_code == 0, ran.exception
    assert "trials: 24, cells: 8" in ran.output
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_a_full_work_folder_changes_nothing_in_it(chimera_root, tmp_path):
    settings = small(chimera_root, refiners=["none"], trials=0, seeds=[0])
    run_to_its_end(scheduler_of(settings, tmp_path))
    before = tree(tmp_path)
    found = forecast(small(chimera_root, refiners=["none"], trials=0, seeds=[0, 1]), WorkFolder(tmp_path))
    assert tree(tmp_path) == before
    assert found.trials == 2
    training = next(row for row in found.stages if row.stage == "TrainCam")
    assert (training.needed, training.distinct, training.stored) == (2, 2, 1)
    assert (training.seconds, training.not_timed) == (None, 1)


def test_the_estimate_says_that_it_is_rough_and_what_is_not_timed(chimera_root, tmp_path):
    conditions = {"device": "cpu", "backbone": "tiny", "side": 128, "images": 34, "epochs": 1}
    store = WorkFolder(tmp_path / "work").store
    put(store, "a" * 64, "TrainCam", 7200.0, **conditions)
    settings = small(chimera_root, refiners=["none"], trials=0, seeds=[0], gpus_per_trial=0)
    settings.save(tmp_path / "s.yaml")
    ran = CliRunner().invoke(
        app, ["sweep", str(tmp_path / "s.yaml"), "--dry-run", "--work", str(tmp_path / "work")]
    )
    assert ran.exit_code == 0, ran.output
    assert "rough: scaled by pixels and images" in ran.output
    assert "rough estimate: " in ran.output
    assert "hours on cpu" in ran.output
    assert "not in the estimate: " in ran.output
    row = next(line for line in ran.output.splitlines() if line.startswith("TrainCam "))
    assert "(rough)" in row
    unknown = next(line for line in ran.output.splitlines() if line.startswith("TrainSegmentation "))
    assert "not timed yet" in unknown


def test_of_a_cluster_the_device_is_not_known(chimera_root, tmp_path):
    settings = small(chimera_root, refiners=["none"], trials=0, address="auto")
    assert forecast(settings, WorkFolder(tmp_path)).device is None
    with_gpus = small(chimera_root, refiners=["none"], trials=0, address="auto", gpus_per_trial=0.5)
    assert forecast(with_gpus, WorkFolder(tmp_path)).device == "cuda"


def test_a_dry_run_refuses_what_the_sweep_refuses(tmp_path):
    from seedbed.benchmark.errors import ConfigError

    settings = small(tmp_path, datasets=["chimera-voc"], settings={**SHORT, "TrainCam.lrr": 1})
    with pytest.raises(ConfigError, match="unknown setting of TrainCam 'lrr'"):
        forecast(settings, WorkFolder(tmp_path))


@pytest.mark.parametrize("layout", ["voc", "coco"])
def test_the_planned_data_set_has_the_splits_of_the_generated_one(tmp_path, monkeypatch, layout):
    for module in ("seedbed.benchmark.pipeline.work_folder", "seedbed.benchmark.pipeline.dry_run_folder"):
        monkeypatch.setattr(f"{module}.DEMO_IMAGES", 20)
        monkeypatch.setattr(f"{module}.DEMO_SIZE", 48)
    planned = DryRunFolder(tmp_path).locate(f"chimera-{layout}", None).open()
    assert isinstance(planned, PlannedChimera)
    generate(tmp_path / "data" / f"chimera-{layout}", layout=layout, images=20, size=48)
    real = DryRunFolder(tmp_path).locate(f"chimera-{layout}", None).open()
    assert planned.classes == real.classes
    assert planned.name == real.name
    assert {s: len(planned.ids(s)) for s in Split} == {s: len(real.ids(s)) for s in Split}
    assert planned.has_saliency == real.has_saliency
    assert set(planned.ids(Split.TUNE)) <= set(planned.ids(Split.TRAIN)) <= set(planned.ids(Split.WEAK))


def test_kinds_of_the_planned_steps_are_those_of_a_sweep(tmp_path):
    """All of the chain is known before the data is there."""
    found = forecast(small(tmp_path, datasets=["chimera-voc"]), WorkFolder(tmp_path))
    stages = {row.stage for row in found.stages}
    assert {"TrainCam", "InferCam", "CrfMasks", "TrainSegmentation", "PredictMasks"} <= stages
    assert TrainCam.produces is Kind.CHECKPOINT
