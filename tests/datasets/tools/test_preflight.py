"""What lists, tags and the existence of files show is told in one error, before anything is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from seedbed.benchmark.cli.main import app
from seedbed.benchmark.errors import DataError, SeedbedError
from seedbed.benchmark.pipeline.dry_run_folder import DryRunFolder
from seedbed.benchmark.pipeline.stage import Machine
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.sweeps.plan import plan_sweep
from seedbed.benchmark.sweeps.settings import settings_of
from seedbed.benchmark.trials.run import run_trial
from seedbed.benchmark.trials.trial import Trial
from seedbed.datasets.base import Dataset
from seedbed.datasets.io.images import write_mask
from seedbed.datasets.tools.check import preflight, val_in_training
from seedbed.datasets.voc2012 import DATASET
from tests.helpers.voc_folder import EXTRA, SHAPE, TEST, TRAIN, VAL, make_voc, mask_of, write_list, write_xml


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return make_voc(tmp_path / "VOC2012")


def refused(root: Path, **options) -> str:
    saliency = options.pop("saliency", None)
    with pytest.raises(DataError) as caught:
        preflight(DATASET.open(root, saliency=saliency), **options)
    return str(caught.value)


def test_a_healthy_data_set_passes(voc: Path, chimera: Dataset):
    assert preflight(DATASET.open(voc), full_supervision=True, processes=2) == []
    assert preflight(chimera, processes=2) == []


def test_one_problem_is_one_line(voc: Path):
    (voc / "JPEGImages" / f"{VAL[0]}.jpg").unlink()
    assert refused(voc) == f"{voc / 'JPEGImages' / f'{VAL[0]}.jpg'}: no such file"


def test_all_problems_are_told_at_once(voc: Path):
    (voc / "JPEGImages" / f"{TRAIN[0]}.jpg").unlink()
    (voc / "SegmentationClass" / f"{VAL[0]}.png").unlink()
    (voc / "Annotations" / f"{EXTRA[0]}.xml").unlink()
    write_xml(voc, TRAIN[1], "unicorn")
    write_list(voc, "train", [*TRAIN, TRAIN[1]])
    first, *lines = refused(voc).splitlines()
    assert first == f"{voc}: 5 problems, found before any training:"
    ends = [f"{TRAIN[1]} is listed 2 times in `train`", f"{TRAIN[0]}.jpg: no such file", "unknown class 'unicorn'"]
    ends += [f"{EXTRA[0]}.xml: no such file; it holds the image's tags", f"{VAL[0]}.png: no such file"]
    for line, end in zip(lines, ends, strict=True):
        assert end in line


def test_many_problems_are_counted(voc: Path):
    write_list(voc, "train_aug", [*TRAIN, *(f"2009_{n:06d}" for n in range(2, 32))])
    lines = refused(voc).splitlines()
    assert "60 problems" in lines[0]  # image and XML of each
    assert len(lines) == 22
    assert lines[-1].strip() == "… and 40 more"


@pytest.mark.parametrize("name", ["train", "train_aug", "val"])
def test_empty_lists(voc: Path, name):
    write_list(voc, name, [])
    assert "is empty" in refused(voc)


def test_masks_that_are_needed(tmp_path: Path):
    """Those of `weak` are needed by the bound, and if the tags come from them."""
    for xml in (True, False):
        voc = make_voc(tmp_path / str(xml), xml=xml)
        (voc / "SegmentationClassAug" / f"{EXTRA[0]}.png").unlink()
        if xml:
            preflight(DATASET.open(voc))
        assert f"{EXTRA[0]}.png: no such file" in refused(voc, full_supervision=xml)


def test_files_of_test_are_not_needed(voc: Path):
    write_list(voc, "test", [*TEST, *VAL, "2009_000002"])
    assert preflight(DATASET.open(voc)) == []


def test_saliency_maps_that_are_missing_or_of_another_scale(voc: Path, tmp_path: Path):
    folder = tmp_path / "saliency"
    folder.mkdir()
    for image_id in (*TRAIN, *EXTRA):
        Image.fromarray(np.full(SHAPE, 200, np.uint8)).save(folder / f"{image_id}.png")
    preflight(DATASET.open(voc, saliency=folder))
    for image_id in (*TRAIN, *EXTRA):
        Image.fromarray((mask_of((3,)) == 3).astype(np.uint8)).save(folder / f"{image_id}.png")
    assert "end at 1;" in refused(voc, saliency=folder)
    (folder / f"{EXTRA[0]}.png").unlink()
    assert f"{EXTRA[0]}.png: no such file" in refused(voc, saliency=folder)


def test_the_form_of_the_masks_is_that_of_a_few(voc: Path):
    path = voc / "SegmentationClass" / f"{VAL[0]}.png"
    Image.fromarray(np.zeros((*SHAPE, 3), np.uint8)).save(path)
    assert "mode RGB" in refused(voc)
    write_mask(path, np.zeros((5, 7), np.uint8))
    assert "is 7x5 pixels, its image 16x12" in refused(voc)


@pytest.mark.parametrize("xml", [True, False])
def test_a_data_set_without_any_tag(tmp_path: Path, xml):
    voc = make_voc(tmp_path / "VOC2012", xml=xml)
    for image_id in (*TRAIN, *EXTRA):
        if xml:
            write_xml(voc, image_id)
        for folder in ("SegmentationClass", "SegmentationClassAug"):
            write_mask(voc / folder / f"{image_id}.png", np.zeros(SHAPE, np.uint8))
    assert refused(voc).endswith("train_aug.txt: no image of `weak` is tagged with a class")
    if not xml:
        write_mask(voc / "SegmentationClass" / f"{EXTRA[0]}.png", mask_of((3,)))
        preflight(DATASET.open(voc))


def test_masks_in_another_numbering_than_the_tags(voc: Path):
    # The masks show aeroplane and person, bicycle; dog in `val`.
    for image_id in (*TRAIN, *VAL):
        write_xml(voc, image_id, "sheep")
    (warning,) = preflight(DATASET.open(voc))
    assert "SegmentationClass: 4 of 4 classes in the masks are not tags of their images" in warning
    write_xml(voc, TRAIN[0], "aeroplane")
    (warning,) = preflight(DATASET.open(voc))
    assert "SegmentationClass: 3 of 4 classes in the masks are not tags of their images" in warning
    write_xml(voc, TRAIN[0], "aeroplane", "person")
    assert preflight(DATASET.open(voc)) == []


def test_two_images_of_one_id(voc: Path):
    image = voc / "JPEGImages" / f"{VAL[0]}.jpg"
    image.rename(image.with_suffix(".JPG"))
    preflight(DATASET.open(voc))
    Image.new("RGB", SHAPE[::-1]).save(image.with_suffix(".png"))
    assert "several images of one id" in refused(voc)


def test_what_does_not_pickle_is_refused_with_worker_processes_alone(voc: Path):
    data = DATASET.open(voc)
    data.hook = lambda: None  # type: ignore[attr-defined]
    preflight(data)
    with pytest.raises(DataError, match=r"VOC2012: cannot be sent to worker processes .*use --workers 0"):
        preflight(data, processes=1)


# --- training on val


@pytest.fixture
def overlapping(voc: Path) -> Path:
    write_list(voc, "train_aug", [*TRAIN, *EXTRA, *VAL])
    return voc


def test_training_on_val_is_refused_unless_asked_for(overlapping: Path):
    assert val_in_training(DATASET.open(overlapping)) == VAL
    message = refused(overlapping)
    assert message.splitlines()[0].endswith(f"val.txt: {VAL[0]} is in `val` and in `weak`")
    assert "--allow-val-in-training" in message
    preflight(DATASET.open(overlapping), allow_val_in_training=True)
    write_list(overlapping, "train_aug", [*TRAIN, *EXTRA])
    write_list(overlapping, "train", [*TRAIN, *VAL])
    assert f"{VAL[0]} is in `val` and in `train`" in refused(overlapping)


def test_every_command_refuses_it_before_it_reads_an_image(overlapping: Path, tmp_path: Path, monkeypatch):
    def never(*_):
        raise AssertionError("read for the digest")

    for reader in (Dataset, DryRunFolder):
        monkeypatch.setattr(reader, "digest", never)
    work = ["--work", str(tmp_path / "work"), "--quiet"]
    place = ["--dataset", "voc2012", "--root", str(overlapping)]
    for words in (
        ["run", *place],
        ["sweep", "--datasets", f"voc2012={overlapping}", "--name", "s", "--methods", "cam", "--dry-run"],
        ["sweep", "--datasets", f"voc2012={overlapping}", "--name", "s", "--methods", "cam"],
        ["study", "mixup_t2_3", *place, "--dry-run"],
    ):
        result = CliRunner().invoke(app, [*words, *work])
        assert isinstance(result.exception, SeedbedError), (words, result.output, result.exception)
        assert f"{VAL[0]} is in `val` and in `weak`" in str(result.exception)
        with pytest.raises(AssertionError, match="digest"):
            CliRunner().invoke(app, [*words, *work, "--allow-val-in-training"], catch_exceptions=False)


def test_a_broken_image_fails_the_trials_that_read_it_and_refuses_no_sweep(voc: Path, tmp_path: Path):
    """Other cells of the sweep go on, and the leaderboard shows the failed one with its reason."""
    for image in sorted((voc / "JPEGImages").glob("*.jpg"))[:2]:
        image.write_bytes(image.read_bytes()[:100])
    content = {
        "name": "s",
        "datasets": [f"voc2012={voc}"],
        "methods": ["cam"],
        "refiners": ["none"],
        "trials": 0,
        "references": False,
    }
    plan = plan_sweep(settings_of(content), WorkFolder(tmp_path / "work"))
    assert len(plan.cells) == 1
    for image in (voc / "JPEGImages").glob("*.jpg"):
        image.write_bytes(b"")
    with pytest.raises(DataError, match="not a readable picture"):
        plan_sweep(settings_of(content), WorkFolder(tmp_path / "work"))


def test_who_asks_for_it_gets_marked_rows(overlapping: Path, tmp_path: Path):
    content = {
        "name": "s",
        "datasets": [f"voc2012={overlapping}"],
        "methods": ["cam"],
        "refiners": ["none"],
        "references": False,
    }
    settings = settings_of({**content, "allow_val_in_training": True})
    (cell,) = plan_sweep(settings, WorkFolder(tmp_path)).cells
    assert cell.conditions["supervision"] == "I+val images"
    assert cell.default.trial.allow_val_in_training
    assert settings.differences(settings_of(content)) == ["allow_val_in_training"]
    write_list(overlapping, "train_aug", [*TRAIN, *EXTRA])
    (cell,) = plan_sweep(settings, WorkFolder(tmp_path)).cells
    assert cell.conditions["supervision"] == "I"


def test_a_run_looks_before_it_trains(voc: Path, tmp_path: Path):
    (voc / "SegmentationClass" / f"{VAL[0]}.png").unlink()
    with pytest.raises(DataError, match=rf"{VAL[0]}\.png: no such file"):
        run_trial(Trial(dataset="voc2012"), DATASET.open(voc), WorkFolder(tmp_path / "work"), Machine())
    assert not (tmp_path / "work").exists()
