"""The layout `folder`: what is read, and that a check lists every problem with its file."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seedbed.benchmark.errors import DataError
from seedbed.datasets.base import Split
from seedbed.datasets.chimera import DATASET as CHIMERA
from seedbed.datasets.chimera import generate
from seedbed.datasets.folder import DATASET
from seedbed.datasets.io.images import write_mask
from seedbed.datasets.tools.check import check, preflight
from tests.helpers.own_folder import CLASSES, LABELS, SPLITS, make_own, write_splits, write_tags
from tests.helpers.voc_folder import SHAPE, mask_of


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return make_own(tmp_path / "own")


def found(root: Path) -> list[tuple[str, str, str]]:
    return [(p.severity, p.file.name, p.message) for p in check(DATASET.open(root))]


def splits_with(root: Path, *rows: tuple[str, str]) -> None:
    write_splits(root, [*SPLITS.items(), *rows])


def tags_with(root: Path, **rows: str) -> None:
    write_tags(root, {i: " ".join(CLASSES[label - 1] for label in labels) for i, labels in LABELS.items()} | rows)


# What is read


def test_what_is_read(own: Path):
    data = DATASET.open(own)
    assert data.classes == CLASSES
    assert data.ids(Split.WEAK) == ("w1", "t1", "t2")
    assert data.ids(Split.TRAIN) == ("t1", "t2")
    assert len(data.ids(Split.TUNE)) == 1
    assert data.ids(Split.VAL) == ("v1",)
    assert data.ids(Split.TEST) == ("x1",)
    assert {i: data.tags(i) for i in LABELS} == LABELS
    assert data.tag_source == "tags.csv"
    assert np.array_equal(data.split("val").mask("v1"), mask_of((2, 3)))
    assert data.split("weak").image("w1").shape == (*SHAPE, 3)
    assert [path.name for path in data.label_files()] == ["classes.txt", "splits.csv", "tags.csv"]
    assert not data.has_saliency
    preflight(data)


def test_a_healthy_data_set_has_no_problems(own: Path):
    assert found(own) == []


def test_images_of_weak_alone_need_no_mask(own: Path):
    (own / "masks" / "w1.png").unlink()
    text = "1 images of `weak` have no mask, this is the first; full supervision needs them"
    assert found(own) == [("warning", "w1.png", text)]
    preflight(DATASET.open(own))


def test_without_weak_and_test(own: Path):
    write_splits(own, [(i, split) for i, split in SPLITS.items() if split in ("train", "val")])
    data = DATASET.open(own)
    assert data.ids(Split.WEAK) == data.ids(Split.TRAIN) == ("t1", "t2")
    assert data.ids(Split.TEST) == ()


def test_without_tags_they_come_from_the_masks(own: Path):
    (own / "tags.csv").unlink()
    data = DATASET.open(own)
    assert data.tag_source == "masks"
    assert data.tags("t1") == (1, 3)
    # Now the extra image needs a mask, for its tags.
    (own / "masks" / "w1.png").unlink()
    ((severity, file, message),) = found(own)
    assert (severity, file) == ("error", "w1.png")
    assert "no such file" in message
    with pytest.raises(DataError, match=r"w1\.png: no such file"):
        preflight(data)
    write_mask(own / "masks" / "w1.png", mask_of((3,)))
    assert found(own) == []
    assert [path.name for path in DATASET.open(own).label_files()] == ["classes.txt", "splits.csv"]


def test_other_spellings(own: Path):
    (own / "images" / "t1.jpg").rename(own / "images" / "t1.JPEG")
    Image.open(own / "images" / "v1.jpg").save(own / "images" / "v1.png")
    (own / "images" / "v1.jpg").unlink()
    (own / "classes.txt").write_text("\ufeff apple\r\n\r\npear\r\nplum\r\n\r\n", "utf-8")
    rows = [f"images/{i}.jpg; {split.capitalize()}" for i, split in SPLITS.items()]
    (own / "splits.csv").write_text("\n".join(["ID;Split", "", *rows]))
    assert found(own) == []
    data = DATASET.open(own)
    assert data.classes == CLASSES
    assert data.ids(Split.WEAK) == ("w1", "t1", "t2")
    assert data.image_path("t1").name == "t1.JPEG"
    assert data.image_path("v1").name == "v1.png"


def test_saliency_maps(own: Path, tmp_path: Path):
    maps = tmp_path / "maps"
    maps.mkdir()
    Image.fromarray(np.full(SHAPE, 51, np.uint8)).save(maps / "v1.png")
    saliency = DATASET.open(own, saliency=maps).split("val").saliency("v1")
    np.testing.assert_allclose(saliency, np.full(SHAPE, 0.2), rtol=1e-6)


def test_the_digest_covers_every_file(own: Path):
    seen = {DATASET.open(own).digest()}
    splits_with(own, ("t1", "weak"))
    assert DATASET.open(own).ids(Split.WEAK) == ("w1", "t1", "t2")
    seen.add(DATASET.open(own).digest())
    tags_with(own, w1="apple")
    seen.add(DATASET.open(own).digest())
    write_mask(own / "masks" / "v1.png", mask_of((2,)))
    seen.add(DATASET.open(own).digest())
    (own / "classes.txt").write_text("apple\npear\nplum\nfig\n")
    seen.add(DATASET.open(own).digest())
    assert len(seen) == 5


def test_chimera_in_this_layout_is_the_same_data_set(tmp_path: Path):
    generate(tmp_path / "voc", layout="voc", images=20, size=48, seed=1)
    chimera, root = CHIMERA.open(tmp_path / "voc"), tmp_path / "own"
    train, val, weak = (chimera.ids(split) for split in (Split.TRAIN, Split.VAL, Split.WEAK))
    for folder, path in (("images", chimera.image_path), ("masks", chimera.mask_path)):
        (root / folder).mkdir(parents=True)
        for image_id in (*weak, *val):
            shutil.copy(path(image_id), root / folder)
    (root / "classes.txt").write_text("\n".join(chimera.classes))
    rows = [(i, "train" if i in train else "weak") for i in weak]
    write_splits(root, [*rows, *((i, "val") for i in val)])
    write_tags(root, {i: " ".join(chimera.classes[t - 1] for t in chimera.tags(i)) for i in (*weak, *val)})
    data = DATASET.open(root)
    for split in (Split.WEAK, Split.TUNE, Split.TRAIN, Split.VAL):
        assert sorted(data.ids(split)) == sorted(chimera.ids(split))
        assert data.ids(split)
        for image_id in data.ids(split):
            assert data.tags(image_id) == chimera.tags(image_id)
            mask = data.split(split, "full").mask(image_id)
            assert np.array_equal(mask, chimera.split(split, "full").mask(image_id))
    assert check(data) == []


# What cannot be opened


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("splits.csv", "no such file; write the header `image_id,split`, and a line such as `ID,train`"),
        ("classes.txt", "no such file; write one foreground class per line"),
        ("images", "no such folder; put the images there"),
        ("masks", "no such folder; put the masks of `train` and `val` there"),
    ],
)
def test_what_is_missing_is_named_with_what_to_write(own: Path, name: str, advice: str):
    (own / name).rename(own / "other")
    with pytest.raises(DataError) as caught:
        DATASET.open(own)
    assert str(caught.value).startswith(f"{own / name}: {advice}")


def test_one_error_names_all_that_is_missing(tmp_path: Path):
    with pytest.raises(DataError) as caught:
        DATASET.open(tmp_path)
    first, *others = str(caught.value).splitlines()
    assert first == f"{tmp_path}: not complete"
    names = ["images", "masks", "classes.txt", "splits.csv"]
    assert [line.strip().partition(": ")[0] for line in others] == [str(tmp_path / name) for name in names]


def test_text_files_that_cannot_be_read(own: Path):
    (own / "splits.csv").write_text("t1,train\nv1,val\n")
    with pytest.raises(DataError, match=r"splits\.csv: expected a CSV file with the header image_id,split, found"):
        DATASET.open(own)
    splits_with(own)
    (own / "tags.csv").write_text("image,label\n")
    with pytest.raises(DataError, match=r"tags\.csv: expected a CSV file with the header image_id,classes, found"):
        DATASET.open(own)
    tags_with(own)
    (own / "classes.txt").write_text("background\napple\n")
    with pytest.raises(DataError, match=r"classes\.txt: a class is named 'background'"):
        DATASET.open(own)
    (own / "classes.txt").write_text("\n")
    with pytest.raises(DataError, match=r"classes\.txt: has no classes"):
        DATASET.open(own)


def test_class_names_that_tags_cannot_have(own: Path):
    (own / "classes.txt").write_text("red apple\npear\nsour,plum\n")
    with pytest.raises(
        DataError, match=r"classes\.txt: 'red apple', 'sour,plum' cannot be told apart in tags\.csv"
    ):
        DATASET.open(own)
    (own / "tags.csv").unlink()
    assert DATASET.open(own).classes == ("red apple", "pear", "sour,plum")


# What a check lists


def test_images_and_masks(own: Path):
    (own / "images" / "t1.jpg").unlink()
    (own / "images" / "x1.jpg").write_text("<html>404</html>")
    (own / "masks" / "t2.png").unlink()
    write_mask(own / "masks" / "v1.png", mask_of((2, 3))[:, :10])
    problems = found(own)
    assert [problem[:2] for problem in problems] == [
        ("error", "t1.jpg"),
        ("error", "t2.png"),
        ("error", "v1.png"),
        ("error", "x1.jpg"),
    ]
    faults = ["no such file", "no such file", "is 10x12 pixels, its image 16x12", "not a readable picture"]
    for (_, _, message), fault in zip(problems, faults, strict=True):
        assert message.startswith(fault)


def test_labels(own: Path):
    write_mask(own / "masks" / "t2.png", mask_of((2, 4)))
    assert found(own) == [("error", "t2.png", "labels [4] are outside 0..3 and 255")]


def test_rows_of_splits(own: Path):
    Image.new("RGB", (16, 12)).save(own / "images" / "n1.jpg")
    splits_with(own, ("n1", "tune"), ("t1", "train"), ("t2", "val"), ("v1,x", "val"), ("", "val"))
    assert found(own)[:4] == [
        ("error", "splits.csv, line 7", "unknown split 'tune' of the image n1. Valid: train, val, test, weak"),
        ("error", "splits.csv, line 8", "t1 again in `train`, as in line 3; remove one of them"),
        ("error", "splits.csv, line 10", "3 columns, expected image_id,split"),
        ("error", "splits.csv, line 11", "no image id"),
    ]
    assert found(own)[4:] == [("error", "splits.csv", "t2 is in `val` and in `train`")]


def test_ids_of_test_and_weak_in_other_splits(own: Path):
    splits_with(own, ("v1", "test"), ("v1", "weak"))
    assert found(own) == [
        ("error", "splits.csv", "v1 is in `val` and in `weak`"),
        ("error", "splits.csv", "v1 is in `test` and in `val`"),
    ]


def test_an_empty_split(own: Path):
    write_splits(own, [(i, split) for i, split in SPLITS.items() if split != "val"])
    assert ("error", "splits.csv", "the split `val` is empty") in found(own)


def test_rows_of_tags(own: Path):
    write_tags(
        own, {"t1": "apple grape", "t2": "pear", "w1": "plum,pear", "z1": "pear", "z2": "fig", "x1": "kiwi"}
    )
    with (own / "tags.csv").open("a") as file:
        file.write("t2,plum\n")
    problems = found(own)
    valid = "Valid: apple, pear, plum"
    # In the order of the file those of images without labels, and with their images the others.
    assert problems == [
        ("error", "tags.csv, line 6", f"unknown class 'fig'. {valid}"),
        ("error", "tags.csv, line 7", f"unknown class 'kiwi'. {valid}"),
        (
            "error",
            "tags.csv, line 8",
            "the image t2 again; expected each image once, with all of its classes",
        ),
        ("warning", "tags.csv", "1 rows are of images that splits.csv does not list; the first is z1"),
        ("error", "tags.csv, line 4", "3 columns, expected image_id,classes; separate classes by spaces"),
        ("error", "tags.csv, line 2", f"unknown class 'grape'. Did you mean 'apple'? {valid}"),
        ("error", "tags.csv", "has no row for the image v1"),
        ("warning", "splits.csv", "2 of 3 classes have no image in `weak`: apple, plum"),
    ]
    with pytest.raises(DataError, match="6 problems, found before any training"):
        preflight(DATASET.open(own))


def test_files_of_images(own: Path):
    image = Image.new("RGB", (16, 12))
    image.save(own / "images" / "extra.png")
    image.save(own / "images" / "t1.png")
    (own / "images" / "v1.jpg").unlink()
    for suffix in ("jpeg", "png"):
        image.save(own / "images" / f"v1.{suffix}")
    assert found(own) == [
        ("error", "v1.jpeg", "several images of one id: v1.jpeg, v1.png; keep one of them"),
        (
            "warning",
            "t1.png",
            "1 images have another file of the same id beside the .jpg, this is the first; the .jpg is read",
        ),
        (
            "warning",
            "extra.png",
            "1 images are in no split, this is the first; add them to splits.csv or remove them",
        ),
    ]
