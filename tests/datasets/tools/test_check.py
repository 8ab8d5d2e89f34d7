"""`check` lists every fault with its file, whatever else is broken; `statistics` counts by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seedbed.datasets.base import Dataset, Problem
from seedbed.datasets.io.images import write_mask
from seedbed.datasets.tools.check import check
from seedbed.datasets.tools.stats import statistics
from seedbed.datasets.voc2012 import DATASET, LISTS
from tests.helpers.voc_folder import (
    EXTRA,
    LABELS,
    SHAPE,
    TEST,
    TRAIN,
    VAL,
    make_voc,
    mask_of,
    write_list,
    write_xml,
)

UNTRAINED = "classes have no image in `weak`"
"""True of the miniature, and tested by itself."""


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return make_voc(tmp_path / "VOC2012")


def image(root: Path, image_id: str) -> Path:
    return root / "JPEGImages" / f"{image_id}.jpg"


def mask(root: Path, image_id: str) -> Path:
    return root / ("SegmentationClassAug" if image_id in EXTRA else "SegmentationClass") / f"{image_id}.png"


def found(root: Path, **options) -> list[tuple[str, str, str]]:
    problems = check(DATASET.open(root, **options))
    shown = [(p.severity, p.file.name, p.message) for p in problems]
    return [p for p in shown if UNTRAINED not in p[2]]


def only(problems: list[tuple[str, str, str]]) -> tuple[str, str, str]:
    assert len(problems) == 1, problems
    return problems[0]


def test_a_healthy_data_set_has_no_problems(voc: Path):
    assert found(voc) == []


@pytest.mark.parametrize("layout", ["voc", "coco"])
def test_chimera_is_healthy_but_for_its_crowds(tmp_path: Path, layout):
    from seedbed.datasets import chimera

    chimera.generate(tmp_path / "c", layout, 20, 48, 0)
    problems = check(chimera.DATASET.open(tmp_path / "c"))
    assert {p.severity for p in problems} <= {"warning"}
    assert len(problems) <= (0 if layout == "voc" else 2)


def test_images(voc: Path):
    image(voc, TRAIN[0]).unlink()
    content = image(voc, VAL[0]).read_bytes()
    image(voc, VAL[0]).write_bytes(content[:-30])
    image(voc, EXTRA[0]).write_text("<html>404</html>")
    problems = found(voc)
    assert [(s, f) for s, f, _ in problems] == [("error", f"{i}.jpg") for i in (TRAIN[0], EXTRA[0], VAL[0])]
    for (_, _, message), fault in zip(problems, ("no such file", "not a readable", "truncated"), strict=True):
        assert fault in message


def test_images_of_test(voc: Path):
    write_list(voc, "test", [*TEST, "2009_000002"])
    severity, file, message = only(found(voc))
    assert (severity, file) == ("error", "2009_000002.jpg")
    assert "no such file" in message


def test_masks(voc: Path):
    mask(voc, TRAIN[0]).unlink()
    mask(voc, TRAIN[1]).write_bytes(mask(voc, VAL[0]).read_bytes()[:-28])
    write_mask(mask(voc, EXTRA[0]), np.zeros((5, 7), np.uint8))
    write_mask(mask(voc, VAL[0]), np.full(SHAPE, 21, np.uint8))
    write_xml(voc, EXTRA[0])
    write_xml(voc, VAL[0])
    faults = [f"{TRAIN[0]}.png: no such file", f"{TRAIN[1]}.png: broken or truncated"]
    faults += [f"{EXTRA[0]}.png: is 7x5 pixels, its image 16x12", rf"{VAL[0]}.png: labels [21] are outside 0..20"]
    problems = found(voc)
    assert [severity for severity, _, _ in problems] == ["error"] * 4
    for (_, file, message), fault in zip(problems, faults, strict=True):
        assert f"{file}: {message}".startswith(fault)


def test_weak_may_do_without_masks(voc: Path):
    mask(voc, EXTRA[0]).unlink()
    severity, file, message = only(found(voc))
    assert (severity, file) == ("warning", f"{EXTRA[0]}.png")
    assert message.startswith("1 images of `weak` have no mask")


def test_ids_in_two_places(voc: Path):
    write_list(voc, "train_aug", [*TRAIN, *EXTRA, TRAIN[1], *VAL])
    write_list(voc, "test", [*TEST, *VAL])
    problems = found(voc)
    assert ("error", "train_aug.txt", f"{TRAIN[1]} is listed 2 times in `weak`") in problems
    assert ("error", "val.txt", f"{VAL[0]} is in `val` and in `weak`") in problems
    assert ("error", "test.txt", f"{VAL[0]} is in `test` and in `val`") in problems
    assert len(problems) == 3


def test_empty_and_missing_lists(voc: Path):
    write_list(voc, "val", [])
    assert only(found(voc)) == ("error", "val.txt", "the split `val` is empty")
    (voc / LISTS / "train.txt").unlink()
    assert [p[:2] for p in found(voc)] == [("error", "train.txt"), ("error", "train.txt"), ("error", "val.txt")]
    for path in (voc / LISTS).iterdir():
        path.unlink()
    files = [file for _, file, _ in found(voc)]
    assert "train.txt" in files
    assert "val.txt" in files


def test_tags(voc: Path):
    write_xml(voc, TRAIN[0], "unicorn")
    (voc / "Annotations" / f"{EXTRA[0]}.xml").unlink()
    (voc / "Annotations" / f"{TRAIN[1]}.xml").write_text("<annotation")
    problems = found(voc)
    assert [(s, f) for s, f, _ in problems] == [("error", f"{i}.xml") for i in (*TRAIN, *EXTRA)]
    assert "unknown class 'unicorn'" in problems[0][2]


def test_tags_that_disagree_with_the_mask_are_a_warning(voc: Path):
    write_xml(voc, TRAIN[0], "aeroplane", "cat")
    message = "shows aeroplane person, the tags are aeroplane cat"
    assert only(found(voc)) == ("warning", f"{TRAIN[0]}.png", message)


def test_saliency(voc: Path, tmp_path: Path):
    folder = tmp_path / "saliency"
    folder.mkdir()
    for image_id in (*TRAIN, *EXTRA):
        Image.fromarray(np.zeros(SHAPE, np.uint8)).save(folder / f"{image_id}.png")
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(folder / f"{TRAIN[1]}.png")
    problems = [p for p in check(DATASET.open(voc, saliency=folder)) if p.severity == "error"]
    assert [p.file for p in problems] == [folder / f"{i}.png" for i in (TRAIN[1], VAL[0])]
    assert problems[0].message == "is 4x3 pixels, its image 16x12"
    assert "no such file" in problems[1].message


def saliency_maps(voc: Path, folder: Path, change) -> list[tuple[str, str]]:
    """Write the masks' objects as saliency maps, changed, and return what `check` says of the folder."""
    folder.mkdir(exist_ok=True)
    for image_id in (*TRAIN, *EXTRA, *VAL):
        objects = mask_of(LABELS[image_id]) > 0
        Image.fromarray(change(objects).astype(np.uint8)).save(folder / f"{image_id}.png")
    problems = check(DATASET.open(voc, saliency=folder))
    return [(p.severity, p.message) for p in problems if p.file == folder]


def test_the_scale_of_saliency_maps_is_judged_by_the_whole_folder(voc: Path, tmp_path: Path):
    folder = tmp_path / "saliency"
    assert saliency_maps(voc, folder, lambda objects: 255 * objects) == []
    assert saliency_maps(voc, folder, lambda objects: 128 * objects) == []
    for peak in (1, 17, 100):  # 17 is how a grey 1 of 4 bits is read
        ((severity, message),) = saliency_maps(voc, folder, lambda objects, peak=peak: peak * objects)
        assert severity == "error"
        assert f"end at {peak};" in message
    ((severity, message),) = saliency_maps(voc, folder, lambda objects: 0 * objects)
    assert (severity, message) == ("warning", "all 4 saliency maps are black")
    ((severity, message),) = saliency_maps(voc, folder, lambda objects: 255 - 255 * objects)
    assert severity == "warning"
    assert "inverted" in message


def test_a_data_set_without_any_tag_is_an_error(tmp_path: Path):
    voc = make_voc(tmp_path / "VOC2012", xml=False)
    for image_id in LABELS:
        write_mask(mask(voc, image_id), np.zeros(SHAPE, np.uint8))
    assert ("error", "train_aug.txt", "no image of `weak` is tagged with a class") in found(voc)


def test_masks_in_another_numbering_than_the_tags_are_a_warning(voc: Path):
    for image_id in (*TRAIN, *VAL):
        labels = np.asarray(Image.open(mask(voc, image_id)))
        Image.fromarray(np.where(labels % 255 == 0, labels, labels - 1)).save(mask(voc, image_id))
    ((severity, _, message),) = [p for p in found(voc) if p[1] == "SegmentationClass"]
    assert severity == "warning"
    # Of the labels 1 15, 2 and 12 there are 14, 1 and 11 left.
    assert message.startswith("3 of 3 classes in the masks are not tags of their images")


def test_images_that_viewers_turn_are_one_warning(voc: Path):
    for image_id, orientation in ((TRAIN[0], 3), (TRAIN[1], 6), (VAL[0], 1)):
        path = voc / "JPEGImages" / f"{image_id}.jpg"
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.open(path).save(path, exif=exif)
    ((_, file, message),) = [p for p in found(voc) if "EXIF" in p[2]]
    assert file == f"{TRAIN[0]}.jpg"
    assert message.startswith("2 images have an EXIF orientation")


@pytest.mark.parametrize("xml", [True, False])
def test_classes_without_a_training_image_are_one_warning(tmp_path: Path, xml):
    voc = make_voc(tmp_path / "VOC2012", xml=xml)
    (problem,) = check(DATASET.open(voc))
    assert (problem.severity, problem.file.name) == ("warning", "train_aug.txt")
    assert problem.message.startswith("15 of 20 classes have no image in `weak`: boat, bottle, bus, car, cat,")
    assert "dog" in problem.message
    assert "aeroplane" not in problem.message


def test_a_split_without_a_counted_pixel_is_a_warning(voc: Path):
    write_mask(mask(voc, VAL[0]), np.full(SHAPE, 255, np.uint8))
    shown = [p for p in found(voc) if "counted" in p[2]]
    assert shown == [("warning", "val.txt", "no pixel of `val` is counted: its masks are 255 everywhere")]


def test_a_palette_in_another_order_is_an_error(voc: Path):
    with Image.open(mask(voc, VAL[0])) as picture:
        picture.convert("RGB").quantize(3).save(mask(voc, VAL[0]))
    severity, file, message = only(found(voc))
    assert (severity, file) == ("error", f"{VAL[0]}.png")
    assert "palette" in message


def test_processes_make_no_difference_and_progress_is_shown(voc: Path):
    image(voc, TRAIN[0]).unlink()
    write_mask(mask(voc, VAL[0]), np.zeros((5, 7), np.uint8))
    shown: list[tuple[int, int]] = []
    alone = check(DATASET.open(voc), 1, lambda done, total: shown.append((done, total)))
    assert alone == check(DATASET.open(voc), 2)
    assert len(alone) == 4
    assert all(isinstance(p, Problem) for p in alone)
    assert shown == [(n, 5) for n in range(1, 6)]


def test_statistics_by_hand(voc: Path):
    write_mask(mask(voc, VAL[0]), mask_of((12,)))
    splits, classes = statistics(DATASET.open(voc))
    rows = {row[0]: row[1:] for row in splits.rows}
    assert rows["weak"] == ["3", "1.67", "16 / 16 / 16", "12 / 12 / 12"]
    assert rows["train"][:2] == ["2", "1.50"]
    assert rows["test"] == ["1", "", "16 / 16 / 16", "12 / 12 / 12"]
    assert all(len(row) == len(splits.header) for row in splits.rows)
    counts = {row[0]: row[1:] for row in classes.rows}
    assert classes.header == ["class", "weak", "train", "val"]
    assert len(counts) == 20
    assert counts["aeroplane"] == ["1", "1", "0"]
    assert counts["bird"] == ["1", "0", "0"]
    assert counts["dog"] == ["0", "0", "1"]


def test_statistics_of_splits_that_are_not_there(voc: Path):
    image(voc, TEST[0]).unlink()
    rows = {row[0]: row[1:] for row in statistics(DATASET.open(voc))[0].rows}
    assert rows["test"] == ["0", "", "", ""]


@pytest.mark.real_data
def test_real_voc_has_no_errors(real_voc: Path):
    class Part(type(DATASET.open(real_voc))):  # type: ignore[misc]
        def ids(self, split):
            return super().ids(split)[:12]

    data: Dataset = DATASET.open(real_voc)
    data.__class__ = Part
    assert [p for p in check(data) if UNTRAINED not in p.message] == []
