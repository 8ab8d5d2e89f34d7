"""Masks for VOC's evaluation server: whose they are, the tar's bytes, and all that the check finds."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from seedbed.benchmark.cli.main import app
from seedbed.benchmark.errors import ConfigError, DataError
from seedbed.benchmark.pipeline.stage import Machine
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.trials.plan import plan_trial
from seedbed.benchmark.trials.run import Result, network_of, recorded_prediction, run_trial
from seedbed.benchmark.trials.trial import Trial
from seedbed.benchmark.trials.voc_server import (
    MASKS,
    TAR,
    check_submission,
    export_test_masks,
    images_of_test,
    write_tar,
)
from seedbed.datasets.base import Dataset, Split
from seedbed.datasets.chimera import DATASET, generate
from seedbed.datasets.io.images import decode_mask, write_mask
from seedbed.datasets.voc2012 import DATASET as VOC
from seedbed.datasets.voc2012 import LISTS
from seedbed.methods.rrm import PredictRrm
from seedbed.methods.segmentation.stages import PredictMasks
from tests.helpers.fakes import FolderDataset
from tests.helpers.voc_folder import SHAPE, TEST, make_voc

SUPERVISED: dict[str, Any] = {
    "TrainSupervised.epochs": 4,
    "TrainSupervised.class_balanced": True,
    "PredictMasks.scales": (0.5, 1.0),
    "PredictMasks.flip": False,
}
RRM: dict[str, Any] = {
    "TrainCam.epochs": 1,
    "TrainRrm.epochs": 1,
    "TrainRrm.lr": 1e-5,
    "PredictRrm.scales": (0.5, 1.0),
    "PredictRrm.crf": "none",
}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> WorkFolder:
    return WorkFolder(tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def supervised(chimera: Dataset, work: WorkFolder) -> Result:
    """Return the cheapest run with a segmentation network; its inference is not the default one."""
    return run_trial(Trial(dataset="chimera", supervision="full", settings=SUPERVISED), chimera, work, Machine())


@pytest.fixture(scope="module")
def rrm(chimera: Dataset, work: WorkFolder) -> Result:
    """Return a run of a one-step method without a segmentation network."""
    return run_trial(Trial(dataset="chimera", method="rrm", segment=False, settings=RRM), chimera, work, Machine())


@pytest.fixture
def copy(chimera_root: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny Chimera, to be changed."""
    return shutil.copytree(chimera_root, tmp_path / "copy")


def described(result: Result) -> dict[str, Any]:
    description: dict[str, Any] = json.loads((result.folder / "run.json").read_text())
    return description


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_with_val_in_the_place_of_test_the_masks_are_those_of_the_run(work, supervised, copy, tmp_path):
    """The same network, scales and flips: byte by byte what the run predicted, although the data has changed."""
    shutil.copy(copy / LISTS / "val.txt", copy / LISTS / "test.txt")
    export_test_masks(work, supervised.run, DATASET.open(copy), tmp_path / "out", Machine())
    predicted = files(work.store.path(described(supervised)["artifacts"]["predictions"]))
    del predicted["entry.json"]
    assert files(tmp_path / "out" / MASKS) == predicted
    assert len(set(predicted.values())) > 1, "so short a training that all masks are alike proves nothing"


def test_a_one_step_method_predicts_with_its_own_network_and_without_the_tags(work, rrm, copy, tmp_path):
    shutil.copy(copy / LISTS / "val.txt", copy / LISTS / "test.txt")
    export_test_masks(work, rrm.run, DATASET.open(copy), tmp_path / "out", Machine())
    (entry,) = [
        e for e in rrm.executed if e.stage == "PredictRrm" and e.record["identity"]["split"] == str(Split.VAL)
    ]
    predicted = files(entry.path)
    del predicted["entry.json"]
    assert files(tmp_path / "out" / MASKS) == predicted
    assert len(set(predicted.values())) > 1, "so short a training that all masks are alike proves nothing"
    trained = work.store.get(described(rrm)["artifacts"]["network"])
    assert trained is not None
    assert trained.stage == "TrainRrm"


def test_the_two_step_form_of_a_one_step_method_is_its_segmentation_network(chimera, tmp_path):
    plan = plan_trial(Trial(dataset="chimera", method="rrm"), chimera, WorkFolder(tmp_path), Machine())
    (named,) = [target.step.stage for target in plan.targets() if target.name == "network"]
    assert type(named).__name__ == "TrainSegmentation"
    assert type(recorded_prediction(plan.describe())) is PredictMasks


def test_naming_the_network_computes_nothing_and_a_removed_one_is_computed_again(chimera, supervised, tmp_path):
    settings = SUPERVISED | {"TrainSupervised.epochs": 1}
    trial, work = Trial(dataset="chimera", supervision="full", settings=settings), WorkFolder(tmp_path)
    first = run_trial(trial, chimera, work, Machine())
    assert [entry.stage for entry in first.executed] == ["TrainSupervised", "PredictMasks", "MeasureMasks"]
    key = described(first)["artifacts"]["network"]
    assert key == first.executed[0].key
    work.store.remove(key)
    with pytest.raises(ConfigError, match=rf"{key}: no longer in the store; the command of the run {first.run}"):
        export_test_masks(work, first.run, chimera, tmp_path / "out", Machine())
    assert not (tmp_path / "out").exists()
    assert [entry.key for entry in run_trial(trial, chimera, work, Machine()).executed] == [key]
    assert network_of(work, first.run).is_dir()


def test_the_tar_holds_every_mask_under_the_servers_names_and_is_the_same_twice(
    work, supervised, chimera, tmp_path
):
    first, second = (
        export_test_masks(work, supervised.run, chimera, tmp_path / name, Machine()) for name in ("one", "two")
    )
    ids = chimera.ids(Split.TEST)
    with tarfile.open(first) as tar:
        members = tar.getmembers()
        assert [m.name for m in members] == [f"results/VOC2012/Segmentation/comp6_test_cls/{i}.png" for i in ids]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
        contents = {Path(m.name).name: tar.extractfile(m).read() for m in members}
    assert contents == files(tmp_path / "one" / MASKS)
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes()[3:8] == bytes(5), "neither a file name nor a time in gzip's header"
    assert first == tmp_path / "one" / "results.tgz"


def test_masks_have_the_size_of_their_image(work, supervised, copy, tmp_path):
    data = DATASET.open(copy)
    wide, tall, *_ = data.ids(Split.TEST)
    for image_id, size in ((wide, (57, 33)), (tall, (20, 64))):
        path = data.image_path(image_id)
        with Image.open(path) as picture:
            picture.resize(size).save(path)
    export_test_masks(work, supervised.run, data, tmp_path, Machine())
    assert decode_mask(tmp_path / MASKS / f"{wide}.png").shape == (33, 57)
    assert decode_mask(tmp_path / MASKS / f"{tall}.png").shape == (64, 20)


@pytest.fixture
def view(tmp_path: Path) -> Any:
    """Return six images of 6 × 9 pixels and two classes as the split `test`, and a folder of right masks."""
    ids = [f"image{number}" for number in range(6)]
    images = {i: np.zeros((6, 9, 3), np.uint8) for i in ids}
    data = FolderDataset(tmp_path / "data", images, {}, splits={Split.TEST: ids})
    (tmp_path / "masks").mkdir()
    for image_id in ids:
        write_mask(tmp_path / "masks" / f"{image_id}.png", np.full((6, 9), 2, np.uint8))
    return data.split(Split.TEST)


def test_right_masks_have_no_problem(view, tmp_path):
    assert check_submission(tmp_path / "masks", view) == []
    for name in (".DS_Store", f"._{view.ids[0]}.png"):
        (tmp_path / "masks" / name).write_bytes(b"a Mac's")
    assert check_submission(tmp_path / "masks", view) == []
    write_tar(tmp_path / "results.tgz", tmp_path / "masks")
    with tarfile.open(tmp_path / "results.tgz") as packed:
        assert {Path(name).name for name in packed.getnames()} == {f"{image_id}.png" for image_id in view.ids}


def test_all_problems_are_told_at_once_each_with_its_file(view, tmp_path):
    folder = tmp_path / "masks"
    mask = np.zeros((6, 9), np.uint8)
    (folder / "image0.png").unlink()
    write_mask(folder / "image1.png", mask.T.copy())
    Image.fromarray(mask).save(folder / "image2.png")
    mask[0, 0], mask[1, 1] = 255, 3
    write_mask(folder / "image3.png", mask)
    (folder / "image4.png").write_bytes((folder / "image4.png").read_bytes()[:100])
    Image.fromarray(np.zeros((6, 9, 3), np.uint8)).save(folder / "image5.png", format="JPEG")
    write_mask(folder / "image6.png", mask)
    (folder / "notes.txt").touch()
    told = [text.removeprefix(f"{folder}/") for text in check_submission(folder, view)]
    assert told.pop(4).startswith("image4.png: no readable picture (")
    assert told == [
        "image0.png: missing",
        "image1.png: is 6x9 pixels, its image 9x6",
        "image2.png: a PNG of mode L, expected a palette PNG",
        "image3.png: labels [3, 255] are outside 0..2",
        "image5.png: a JPEG of mode RGB, expected a palette PNG",
        "image6.png: not in the test list; remove it",
        "notes.txt: not in the test list; remove it",
    ]


def test_a_file_of_an_older_list_stops_the_export_and_leaves_no_tar(work, supervised, chimera, tmp_path):
    tar = export_test_masks(work, supervised.run, chimera, tmp_path, Machine())
    for name in ("2012_999998", "2012_999999"):
        write_mask(tmp_path / MASKS / f"{name}.png", np.zeros((64, 64), np.uint8))
    with pytest.raises(DataError, match=r"2012_999998.png: not in the test list.*\n.*2012_999999.png: not in"):
        export_test_masks(work, supervised.run, chimera, tmp_path, Machine())
    assert not tar.exists()
    assert list(tmp_path.iterdir()) == [tmp_path / "results"]


def test_test_images_that_are_not_there_are_named(copy):
    data = DATASET.open(copy)
    ids = data.ids(Split.TEST)
    for image_id in ids[1:]:
        data.image_path(image_id).unlink()
    with pytest.raises(DataError) as caught:
        images_of_test(DATASET.open(copy))
    assert f"{len(ids) - 1} of the {len(ids)} images of {copy / LISTS / 'test.txt'} are missing: " in str(
        caught.value
    )
    assert str(caught.value).endswith(", ".join(ids[1:]))
    data.image_path(ids[0]).unlink()
    with pytest.raises(
        DataError, match=r"has no test images.*separate download.*JPEGImages.*Segmentation/test\.txt"
    ):
        images_of_test(DATASET.open(copy))


def test_of_many_missing_images_ten_are_named(copy):
    data = DATASET.open(copy)
    absent = [f"2013_{number:06d}" for number in range(11)]
    (copy / LISTS / "test.txt").write_text("\n".join((data.ids(Split.TEST)[0], *absent)))
    with pytest.raises(DataError, match=r"11 of the 12 images .*: 2013_000000, .*, 2013_000009, …$"):
        images_of_test(DATASET.open(copy))


def test_a_data_set_of_another_layout_is_refused(tmp_path):
    generate(tmp_path / "coco", layout="coco", images=20, size=48)
    with pytest.raises(ConfigError, match="chimera-coco is not in VOC's layout"):
        images_of_test(DATASET.open(tmp_path / "coco"))


def test_a_test_list_of_another_length_than_vocs_is_a_note(tmp_path):
    data = VOC.open(make_voc(tmp_path))
    assert images_of_test(data).ids == TEST
    assert images_of_test(data).size(TEST[0]) == SHAPE
    assert "test has 1 instead of 1456" in data.notices[0]


def test_a_run_does_not_go_with_a_data_set_of_other_classes(work, supervised, tmp_path):
    with pytest.raises(ConfigError, match=rf"voc2012 has other classes than the data of {supervised.run}"):
        export_test_masks(work, supervised.run, VOC.open(make_voc(tmp_path / "voc")), tmp_path, Machine())


def test_a_run_without_a_segmentation_network_says_what_to_do(chimera, tmp_path):
    work = WorkFolder(tmp_path)
    trial = Trial(dataset="chimera", segment=False, selections=["fixed"], settings={"TrainCam.epochs": 1})
    result = run_trial(trial, chimera, work, Machine())
    assert "network" not in described(result)["artifacts"]
    with pytest.raises(ConfigError, match=r"run\.json: names no segmentation network; .*without --no-segment"):
        export_test_masks(work, result.run, chimera, tmp_path / "out", Machine())


def test_the_prediction_is_the_recorded_one(supervised, rrm):
    assert recorded_prediction(described(supervised)) == PredictMasks(scales=(0.5, 1.0), flip=False)
    assert recorded_prediction(described(rrm)) == PredictRrm(scales=(0.5, 1.0), crf="none")


def test_a_prediction_that_this_code_does_not_know_is_refused(supervised):
    description = described(supervised)
    prediction = description["stages"][-1]
    for change, message in (
        ({"stage": "PredictMuskets"}, f"no stage that predicts masks .*PredictMuskets.*{supervised.run}"),
        ({"version": 99}, f"PredictMasks was version 99 and is now {PredictMasks.version}"),
        ({"scalls": [1.0]}, "unknown setting of PredictMasks 'scalls'"),
    ):
        changed = description | {"stages": [*description["stages"][:-1], prediction | change]}
        with pytest.raises(ConfigError, match=message):
            recorded_prediction(changed)


def test_the_command_finds_the_runs_data_set_and_says_where_the_tar_is(
    work, supervised, chimera_root, chimera, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("seedbed.toml").write_text(f'[datasets]\nchimera = "{chimera_root}"\n')
    words = ["--out", "out", "--work", str(work.root), "--workers", "0", "--device", "cpu", "--quiet"]
    tars = []
    for run in (supervised.run, f"run:{supervised.run}"):
        app(["export", "voc-test", run, *words], standalone_mode=False)
        printed = capsys.readouterr()
        count = len(chimera.ids(Split.TEST))
        assert printed.out == f"{count} masks in out/{MASKS}\nfor the server: out/{TAR}\n"
        assert printed.err == ""
        tars.append(Path("out", TAR).read_bytes())
    assert tars[0] == tars[1]
    with pytest.raises(ConfigError, match="unknown data set 'small'"):
        app(["export", "voc-test", supervised.run, *words, "--dataset", "small"], standalone_mode=False)
    with pytest.raises(ConfigError, match=f"no run 'nothing'.*{supervised.run}"):
        app(["export", "voc-test", "run:nothing", *words], standalone_mode=False)
