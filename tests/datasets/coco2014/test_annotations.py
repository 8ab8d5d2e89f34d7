"""COCO's JSON: names and ids that must differ, sizes, categories, and other people's ways to write them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from seedbed.benchmark.errors import DataError
from seedbed.datasets.base import Split
from seedbed.datasets.coco2014 import DATASET
from seedbed.datasets.coco2014.masks import FOLDERS, rasterise
from seedbed.datasets.tools.check import check

SIDE = 8
SQUARE = [[1, 1, 5, 1, 5, 5, 1, 5]]
Content = dict[str, Any]
Names = dict[str, list[str]]


def make(
    root: Path, names: dict[str, list[str]], on_disk: dict[str, list[str]] | None = None
) -> dict[str, Content]:
    """Write images, and JSONs with one object an image; return the JSONs' contents."""
    contents: dict[str, Content] = {}
    number = 0
    for folder in FOLDERS:
        images, annotations = [], []
        for name in names[folder]:
            number += 1
            images.append({"id": number, "file_name": name, "height": SIDE, "width": SIDE})
            annotations.append({"id": number, "image_id": number, "category_id": 3, "segmentation": SQUARE})
        for name in (on_disk or names)[folder]:
            path = root / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (SIDE, SIDE), (number * 40, 0, 0)).save(path)
        contents[folder] = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        }
        write(root, folder, contents[folder])
    return contents


def write(root: Path, folder: str, content: Content) -> None:
    path = root / "annotations" / f"instances_{folder}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


PLAIN = {"train2014": ["a.jpg", "b.jpg"], "val2014": ["c.jpg"]}


# --- names


@pytest.mark.parametrize(
    ("names", "on_disk"),
    [
        (["a.png", "b.JPG"], ["a.png", "b.JPG"]),
        (["part0/a.jpg", "part1/b.jpeg"], ["part0/a.jpg", "part1/b.jpeg"]),
        (["part0/a.jpg", "part1/b.jpg"], ["a.jpg", "b.jpg"]),
        (["train2014/a.jpg", "/data/coco/train2014/b.jpg"], ["a.jpg", "b.jpg"]),
        (["./a.jpg", "part0\\b.jpg"], ["a.jpg", "part0/b.jpg"]),
        (["an image.jpg", "größe.v1.jpg"], ["an image.jpg", "größe.v1.jpg"]),
    ],
)
def test_images_are_found_by_their_file_name(tmp_path: Path, names: list[str], on_disk: list[str]):
    make(tmp_path, {"train2014": names, "val2014": ["c.jpg"]}, {"train2014": on_disk, "val2014": ["c.jpg"]})
    assert rasterise(tmp_path) == 3
    data = DATASET.open(tmp_path)
    assert data.ids(Split.TRAIN) == tuple(sorted(Path(name).stem for name in on_disk))
    assert [p for p in check(data) if p.severity == "error"] == []
    for image_id, name in zip(data.ids(Split.TRAIN), sorted(on_disk, key=lambda n: Path(n).stem), strict=True):
        assert data.image_path(image_id) == tmp_path / "train2014" / name


def test_splits_that_number_their_images_alike_are_refused(tmp_path: Path):
    make(tmp_path, {"train2014": ["1.jpg", "2.jpg"], "val2014": ["2.png", "3.jpg"]})
    with pytest.raises(DataError, match=r"1 images .*train2014/2\.jpg and .*val2014/2\.png"):
        rasterise(tmp_path)


def test_masks_of_splits_that_number_their_images_alike_are_not_opened(tmp_path: Path):
    """An earlier version made such masks."""
    make(tmp_path, PLAIN)
    rasterise(tmp_path)
    labels = tmp_path / "SegmentationMasks" / "labels.json"
    content = json.loads(labels.read_text())
    content["images"]["val2014"] = {"a": [1]}
    labels.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"train2014/a\.jpg and .*val2014/a\.jpg"):
        DATASET.open(tmp_path)


def test_masks_of_images_that_fell_together_are_not_opened(tmp_path: Path):
    make(tmp_path, PLAIN)
    rasterise(tmp_path)
    manifest = tmp_path / "SegmentationMasks" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "masks": 4}))
    with pytest.raises(DataError, match=r"labels\.json: does not have every image .*data prepare coco2014"):
        DATASET.open(tmp_path)


@pytest.mark.parametrize("twin", ["a.png", "a.JPG", "cam1/a.jpg", "cam1\\a.jpg"])
def test_images_that_differ_in_folder_or_suffix_alone_are_refused(tmp_path: Path, twin: str):
    make(tmp_path, {"train2014": ["a.jpg", twin], "val2014": ["c.jpg"]})
    name = twin.replace("\\", "/")
    with pytest.raises(DataError, match=rf"train2014\.json: the images a\.jpg and {name} would both be 'a'"):
        rasterise(tmp_path)
    assert not (tmp_path / "SegmentationMasks").exists()


def test_an_image_id_or_a_file_name_twice_is_refused(tmp_path: Path):
    contents = make(tmp_path, PLAIN)
    images = contents["train2014"]["images"]
    images[1]["id"] = "1"
    write(tmp_path, "train2014", contents["train2014"])
    with pytest.raises(DataError, match=r"the images a\.jpg and b\.jpg have the same id 1"):
        rasterise(tmp_path)
    images[1] |= {"id": 2, "file_name": "train2014/a.jpg"}
    write(tmp_path, "train2014", contents["train2014"])
    with pytest.raises(DataError, match=r"instances_train2014\.json: lists the image a\.jpg 2 times"):
        rasterise(tmp_path)


@pytest.mark.parametrize("name", [None, "", "  ", 7, ".."])
def test_an_image_without_a_file_name_is_named(tmp_path: Path, name: Any):
    contents = make(tmp_path, PLAIN)
    contents["val2014"]["images"][0]["file_name"] = name
    write(tmp_path, "val2014", contents["val2014"])
    with pytest.raises(DataError, match=r"instances_val2014\.json: the image 3 has the file_name"):
        rasterise(tmp_path)


# --- sizes


def test_sizes_may_be_floats(tmp_path: Path):
    contents = make(tmp_path, PLAIN)
    contents["train2014"]["images"][0] |= {"height": 8.0, "width": 8.0}
    write(tmp_path, "train2014", contents["train2014"])
    rasterise(tmp_path)
    assert [p for p in check(DATASET.open(tmp_path)) if p.severity == "error"] == []


@pytest.mark.parametrize("size", [None, "8", 0, -8, 8.5, float("nan"), float("inf"), 10**6, True, [8]])
@pytest.mark.parametrize("side", ["height", "width"])
@pytest.mark.parametrize("annotated", [True, False])
def test_other_sizes_are_refused_by_image(tmp_path: Path, size: Any, side: str, annotated: bool):
    contents = make(tmp_path, PLAIN)
    contents["train2014"]["images"][1][side] = size
    if not annotated:
        del contents["train2014"]["annotations"][1]
    write(tmp_path, "train2014", contents["train2014"])
    with pytest.raises(DataError, match=rf"instances_train2014\.json: the image b\.jpg has .*{side} .*pixels"):
        rasterise(tmp_path)


def test_a_missing_size_is_refused_by_image(tmp_path: Path):
    contents = make(tmp_path, PLAIN)
    for image in contents["train2014"]["images"]:
        del image["height"]
    write(tmp_path, "train2014", contents["train2014"])
    with pytest.raises(DataError, match=r"(?s)2 problems.*a\.jpg has height None.*b\.jpg has height None"):
        rasterise(tmp_path)


# --- ids and categories


@pytest.mark.parametrize("form", [float, str])
def test_ids_may_be_written_otherwise(tmp_path: Path, form: Any):
    contents = make(tmp_path / "plain", PLAIN)
    rasterise(tmp_path / "plain")
    shutil.copytree(tmp_path / "plain", tmp_path / "other")
    for folder, content in contents.items():
        for a in content["annotations"]:
            a |= {key: form(a[key]) for key in ("id", "image_id", "category_id")}
        write(tmp_path / "other", folder, content)
    rasterise(tmp_path / "other")
    labels = (tmp_path / root / "SegmentationMasks" / "labels.json" for root in ("plain", "other"))
    assert len({path.read_bytes() for path in labels}) == 1


def with_categories(root: Path, *categories: tuple[Any, Any]) -> None:
    for folder, content in make(root, PLAIN).items():
        for a in content["annotations"]:
            a["category_id"] = categories[-1][0]
        write(root, folder, {**content, "categories": [{"id": i, "name": name} for i, name in categories]})


@pytest.mark.parametrize(
    "categories", [[(0, "a"), (1, "b")], [("2", "a"), ("10", "b")], [(13, "a"), (90, "b")], [(7.0, "a"), (8, "b")]]
)
def test_category_ids_may_have_holes_begin_with_0_and_be_texts(tmp_path: Path, categories: list):
    with_categories(tmp_path, *categories)
    rasterise(tmp_path)
    data = DATASET.open(tmp_path)
    assert data.classes == ("a", "b")
    assert data.tags("a") == (2,)
    assert data.split("train").mask("a").max() == 2


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([(1, "a"), (2, "a")], "two classes are named 'a' and 'a'"),
        ([(0, "background"), (1, "a")], "a class is named 'background'"),
        ([(1, "a"), (1, "b")], "2 categories have the id 1: 'a', 'b'"),
        ([("x", "a"), (1, "b")], "the id of the category 'a' is 'x'"),
        ([(1, None), (2, "b")], "a class is named None"),
        ([(n, f"c{n}") for n in range(255)], "has 255 classes; the limit is 254"),
    ],
)
def test_categories_that_cannot_be_classes_are_refused(tmp_path: Path, categories: list, message: str):
    with_categories(tmp_path, *categories)
    with pytest.raises(DataError, match=rf"instances_train2014\.json: {message}"):
        rasterise(tmp_path)


def test_254_classes_are_prepared_and_no_more_are_opened(tmp_path: Path):
    with_categories(tmp_path, *((n, f"c{n}") for n in range(254)))
    rasterise(tmp_path)
    assert DATASET.open(tmp_path).split("val").mask("c").max() == 254
    labels = tmp_path / "SegmentationMasks" / "labels.json"
    content = json.loads(labels.read_text())
    labels.write_text(json.dumps({**content, "classes": [*content["classes"], "one more"]}))
    with pytest.raises(DataError, match=r"labels\.json: has 255 classes; the limit is 254"):
        DATASET.open(tmp_path)


@pytest.mark.parametrize("crowd", ["0", 2, [0]])
def test_an_iscrowd_that_is_neither_0_nor_1_is_refused(tmp_path: Path, crowd: Any):
    contents = make(tmp_path, PLAIN)
    contents["train2014"]["annotations"][1]["iscrowd"] = crowd
    write(tmp_path, "train2014", contents["train2014"])
    with pytest.raises(DataError, match="annotation 2 has the iscrowd"):
        rasterise(tmp_path)
