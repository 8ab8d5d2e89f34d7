"""Files, the five splits, VOC's layout with its sources of masks and tags, and the content digest."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seedbed.benchmark.errors import ConfigError, DataError, MaskForbiddenError
from seedbed.benchmark.pipeline.registry import DATASETS
from seedbed.datasets import voc2012
from seedbed.datasets.base import Split, tune_ids
from seedbed.datasets.io import digest as digest_module
from seedbed.datasets.io.digest import file_digests
from seedbed.datasets.io.images import (
    decode_grey,
    decode_image,
    decode_mask,
    image_size,
    palette,
    write_mask,
)
from seedbed.datasets.voc2012 import CLASSES, DATASET, LISTS, VocDataset
from tests.helpers.fakes import FolderDataset
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


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return make_voc(tmp_path / "VOCdevkit" / "VOC2012")


# --- files


def test_palette_is_vocs():
    """The colours that VOC's development kit documents."""
    colours = [tuple(palette()[3 * i : 3 * i + 3]) for i in (0, 1, 2, 3, 4, 8, 15, 20, 255)]
    aeroplane_to_boat = [(128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]
    assert colours == [(0, 0, 0), *aeroplane_to_boat, (64, 0, 0), (192, 128, 128), (0, 64, 128), (224, 224, 192)]


def test_masks_of_both_modes_are_read_as_labels(tmp_path: Path):
    mask = mask_of((3, 20))
    write_mask(tmp_path / "palette.png", mask)
    Image.fromarray(mask).save(tmp_path / "grey.png")
    with Image.open(tmp_path / "palette.png") as picture:
        assert picture.mode == "P"
    for name in ("palette.png", "grey.png"):
        np.testing.assert_array_equal(decode_mask(tmp_path / name), mask)


def test_a_colour_picture_is_no_mask_and_a_palette_one_no_saliency_map(tmp_path: Path):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "colour.png")
    write_mask(tmp_path / "palette.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(DataError, match=r"colour\.png.*mode RGB"):
        decode_mask(tmp_path / "colour.png")
    with pytest.raises(DataError, match=r"palette\.png.*mode P"):
        decode_grey(tmp_path / "palette.png")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_cut_or_overwritten_file_is_a_data_error_wherever_the_damage_is(tmp_path: Path, suffix: str):
    whole, broken = tmp_path / f"whole.{suffix}", tmp_path / f"broken.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(whole)
    content = whole.read_bytes()
    for cut in (0, 1, 7, 20, 100, len(content) // 2, len(content) - 30):
        broken.write_bytes(content[:cut])
        with pytest.raises(DataError, match=rf"broken\.{suffix}"):
            decode_image(broken)
    for place in range(0, len(content), 97):
        broken.write_bytes(content[:place] + b"\xff\x00\xff\x00" + content[place + 4 :])
        with contextlib.suppress(DataError):
            decode_image(broken)


def test_missing_files_and_folders_are_named(tmp_path: Path):
    for read in (decode_image, decode_mask, image_size):
        with pytest.raises(DataError, match=r"none\.png: no such file"):
            read(tmp_path / "none.png")
        with pytest.raises(DataError, match=str(tmp_path)):
            read(tmp_path)


# --- splits


def test_tune_is_the_fifth_of_train_with_the_lowest_sha256():
    ids = tuple(f"2007_{n:06d}" for n in range(23))
    by_hash = sorted(ids, key=lambda i: hashlib.sha256(i.encode()).hexdigest())
    assert set(tune_ids(ids)) == set(by_hash[:4])
    assert list(tune_ids(ids)) == sorted(tune_ids(ids))
    assert set(tune_ids(ids[::-1])) == set(tune_ids(ids))
    assert tune_ids(ids[:3]) == (min(ids[:3], key=by_hash.index),)
    assert tune_ids(()) == ()


def test_what_each_split_shows(voc: Path):
    data = DATASET.open(voc)
    assert data.ids(Split.TRAIN) == TRAIN
    assert data.ids(Split.WEAK) == (*TRAIN, *EXTRA)
    assert data.ids(Split.VAL) == VAL
    assert data.ids(Split.TEST) == TEST
    assert len(data.ids(Split.TUNE)) == 1
    np.testing.assert_array_equal(data.split("val").mask(VAL[0]), mask_of(LABELS[VAL[0]]))
    for split in ("weak", "test"):
        view = data.split(split)
        with pytest.raises(MaskForbiddenError, match=split):
            view.mask(view.ids[0])
    bound = data.split("weak", supervision="full")
    np.testing.assert_array_equal(bound.mask(EXTRA[0]), mask_of(LABELS[EXTRA[0]]))
    with pytest.raises(ConfigError, match="unknown split 'trian'"):
        data.split("trian")
    assert data.split("val").image(VAL[0]).shape == (*SHAPE, 3)
    assert data.split("val").size(VAL[0]) == SHAPE
    assert data.long_side == 16


def test_a_mask_that_does_not_fit_is_refused(voc: Path):
    view = DATASET.open(voc).split("val")
    path = voc / "SegmentationClass" / f"{VAL[0]}.png"
    write_mask(path, np.zeros((16, 12), np.uint8))
    with pytest.raises(DataError, match=rf"{VAL[0]}\.png.*12x16.*16x12"):
        view.mask(VAL[0])
    write_mask(path, np.full(SHAPE, 21, np.uint8))
    with pytest.raises(DataError, match=r"labels \[21\] are outside 0\.\.20"):
        view.mask(VAL[0])


def test_saliency_maps(voc: Path, tmp_path: Path):
    with pytest.raises(DataError, match="without saliency"):
        DATASET.open(voc).split("val").saliency(VAL[0])
    with pytest.raises(DataError, match=r"absent: no such folder"):
        DATASET.open(voc, saliency=tmp_path / "absent")
    folder = tmp_path / "saliency"
    folder.mkdir()
    Image.fromarray(np.full(SHAPE, 51, np.uint8)).save(folder / f"{VAL[0]}.png")
    saliency = DATASET.open(voc, saliency=str(folder)).split("val").saliency(VAL[0])
    assert saliency.dtype == np.float32
    np.testing.assert_allclose(saliency, np.full(SHAPE, 0.2), rtol=1e-6)
    assert DATASET.open(voc, saliency=folder).has_saliency
    assert not DATASET.open(voc).has_saliency
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(folder / f"{VAL[0]}.png")
    with pytest.raises(DataError, match=rf"{VAL[0]}\.png: the saliency map is 4x3, its image 16x12 pixels"):
        DATASET.open(voc, saliency=folder).split("val").saliency(VAL[0])


# --- VOC's layout


def test_every_data_set_file_is_found_and_has_a_plugin():
    assert set(DATASETS.names()) >= {"chimera", "coco2014", "voc2012"}
    for name in DATASETS.names():
        plugin = DATASETS.load(name)
        assert plugin.official_counts is None or set(plugin.official_counts) <= set(Split)
        with pytest.raises(ConfigError, match=rf"unknown option of {name} 'salency'. Did you mean 'saliency'"):
            plugin.open(Path("nowhere"), salency=Path("x"))


def test_the_root_may_be_one_or_two_levels_up(voc: Path):
    for root in (voc, voc.parent, voc.parent.parent):
        assert DATASET.open(root).root == voc
    with pytest.raises(DataError, match="no VOC data set here"):
        DATASET.open(voc / "JPEGImages")


def test_sources_of_weak(voc: Path):
    write_list(voc, "train_aug", [f"/JPEGImages/{i}.jpg /SegmentationClassAug/{i}.png" for i in EXTRA])
    assert DATASET.open(voc).ids(Split.WEAK) == EXTRA
    (voc / LISTS / "train_aug.txt").rename(voc / LISTS / "trainaug.txt")
    assert DATASET.open(voc).ids(Split.WEAK) == EXTRA
    (voc / LISTS / "trainaug.txt").unlink()
    for image_id in (*VAL, *TRAIN):
        write_mask(voc / "SegmentationClassAug" / f"{image_id}.png", mask_of((1,)))
    assert DATASET.open(voc).ids(Split.WEAK) == (*TRAIN, *EXTRA)
    shutil.rmtree(voc / "SegmentationClassAug")
    data = DATASET.open(voc)
    assert data.ids(Split.WEAK) == TRAIN
    assert [p.severity for p in data.layout_problems()] == ["warning"]


def test_official_masks_go_before_augmented_ones(voc: Path):
    write_mask(voc / "SegmentationClassAug" / f"{VAL[0]}.png", mask_of((7,)))
    data = DATASET.open(voc)
    assert data.mask_path(VAL[0]).parent.name == "SegmentationClass"
    assert data.mask_path(EXTRA[0]).parent.name == "SegmentationClassAug"
    shutil.rmtree(voc / "SegmentationClass")
    data = DATASET.open(voc)
    np.testing.assert_array_equal(data.split("val").mask(VAL[0]), mask_of((7,)))
    assert data.mask_source == "SegmentationClassAug/"


def test_test_is_empty_without_its_images(voc: Path):
    (voc / "JPEGImages" / f"{TEST[0]}.jpg").unlink()
    data = DATASET.open(voc)
    assert data.ids(Split.TEST) == ()
    with pytest.raises(DataError, match="'test' of voc2012 is empty"):
        data.split("test")


def test_other_counts_than_the_official_ones_are_a_notice(voc: Path):
    (notice,) = DATASET.open(voc).notices
    for part in ("train has 2 instead of 1464", "weak has 3 instead of 10582", "val has 1", "test has 1"):
        assert part in notice
    counts = {Split.TRAIN: 2, Split.WEAK: 3, Split.VAL: 1, Split.TEST: 1}
    assert VocDataset(voc, "voc2012", CLASSES, official_counts=counts).notices == ()
    assert DATASET.official_counts == {"train": 1464, "weak": 10582, "val": 1449, "test": 1456}


# --- tags


def all_tags(data) -> dict[str, tuple[int, ...]]:
    return {i: data.tags(i) for i in LABELS}


def test_tags_from_xml_count_difficult_objects_and_no_parts(voc: Path):
    write_xml(voc, TRAIN[0], "person", "cat", "person", difficult=1)
    data = DATASET.open(voc)
    assert data.tag_source == "Annotations/*.xml"
    assert all_tags(data) == {**LABELS, TRAIN[0]: (8, 15)}


def test_a_given_tag_file_goes_before_xml_and_xml_before_a_found_one(voc: Path):
    rows = "".join(f"{i},dog\n" for i in LABELS)
    (voc / "image_labels.csv").write_text("image_id,classes\n" + rows)
    assert all_tags(DATASET.open(voc)) == LABELS
    assert all_tags(DATASET.open(voc, tags=str(voc / "image_labels.csv"))) == dict.fromkeys(LABELS, (12,))
    shutil.rmtree(voc / "Annotations")
    data = DATASET.open(voc)
    assert data.tag_source == "image_labels.csv"
    assert all_tags(data) == dict.fromkeys(LABELS, (12,))


@pytest.mark.parametrize("keys", [str, lambda i: int(i.replace("_", ""))])
def test_tags_from_irns_and_psas_dictionary(voc: Path, keys):
    table = {keys(i): np.isin(np.arange(1, 21), labels).astype(np.float32) for i, labels in LABELS.items()}
    np.save(voc / "cls_labels.npy", table)  # type: ignore[arg-type]
    data = DATASET.open(voc, tags=voc / "cls_labels.npy")
    assert all_tags(data) == LABELS
    assert data.tag_source == "cls_labels.npy"


def test_tags_from_masks_are_decoded_once(voc: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.rmtree(voc / "Annotations")
    data = DATASET.open(voc)
    assert data.tag_source == "masks"
    assert all_tags(data) == LABELS
    monkeypatch.setattr(voc2012, "decode_mask", None)
    assert all_tags(data) == LABELS


def test_faults_of_tags_name_the_file(voc: Path, tmp_path: Path):
    write_xml(voc, TRAIN[0], "persn")
    (voc / "Annotations" / f"{VAL[0]}.xml").write_text("<annotation>")
    (voc / "Annotations" / f"{EXTRA[0]}.xml").unlink()
    data = DATASET.open(voc)
    for image_id, fault in (
        (TRAIN[0], "unknown class 'persn'. Did you mean 'person'"),
        (VAL[0], "broken XML"),
        (EXTRA[0], "no such file"),
    ):
        with pytest.raises(DataError, match=rf"{image_id}\.xml: {fault}"):
            data.tags(image_id)
    table = tmp_path / "tags.csv"
    for content, fault in (("image,tags\n", "header image_id,classes"), ("", "header")):
        table.write_text(content)
        with pytest.raises(DataError, match=rf"tags\.csv.*{fault}"):
            DATASET.open(voc, tags=table)
    table.write_text("image_id,classes\nx,dog\n")
    with pytest.raises(DataError, match=rf"tags\.csv: has no row for the image {VAL[0]}"):
        DATASET.open(voc, tags=table).tags(VAL[0])
    np.save(tmp_path / "tags.npy", {"x": np.zeros(19)})  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"tags\.npy: the tags of x have shape \(19,\)"):
        DATASET.open(voc, tags=tmp_path / "tags.npy")


# --- digest


def test_the_digest_does_not_depend_on_the_place(voc: Path, tmp_path: Path):
    copy = tmp_path / "elsewhere" / "VOC2012"
    shutil.copytree(voc, copy)
    assert DATASET.open(voc).digest() == DATASET.open(copy).digest()
    assert DATASET.open(voc).digest() == DATASET.open(voc.parent).digest()


def test_everything_that_defines_the_data_set_changes_the_digest(voc: Path, tmp_path: Path):
    seen = [DATASET.open(voc).digest()]

    def changed() -> bool:
        seen.append(DATASET.open(voc).digest())
        return seen[-1] not in seen[:-1]

    (voc / "JPEGImages" / f"{TEST[0]}.jpg").write_bytes((voc / "JPEGImages" / f"{TRAIN[0]}.jpg").read_bytes())
    assert changed(), "an image"
    write_mask(voc / "SegmentationClassAug" / f"{EXTRA[0]}.png", mask_of((4,)))
    assert changed(), "a mask"
    write_xml(voc, TRAIN[0], "cat")
    assert changed(), "a tag"
    write_list(voc, "train", TRAIN[::-1])
    assert changed(), "the order of a list"
    (voc / "SegmentationClassAug" / f"{EXTRA[0]}.png").unlink()
    assert changed(), "an absent file"
    folder = tmp_path / "saliency"
    folder.mkdir()
    Image.fromarray(np.zeros(SHAPE, np.uint8)).save(folder / f"{VAL[0]}.png")
    with_saliency = DATASET.open(voc, saliency=folder).digest()
    assert with_saliency not in seen
    renamed = VocDataset(voc, "voc2012", ("plane", *CLASSES[1:]), tags=_empty_tags(tmp_path))
    original = VocDataset(voc, "voc2012", CLASSES, tags=_empty_tags(tmp_path))
    assert renamed.digest() != original.digest()
    assert VocDataset(voc, "other", CLASSES, tags=_empty_tags(tmp_path)).digest() != original.digest()


def test_the_same_files_in_other_splits_are_another_data_set(tmp_path: Path):
    images = {i: np.zeros((4, 4, 3), np.uint8) for i in "abc"}
    masks = {i: np.ones((4, 4), np.uint8) for i in "abc"}
    digests = {
        FolderDataset(tmp_path, images, masks, splits={Split.TRAIN: train, Split.VAL: val}).digest()
        for train, val in (("ab", "c"), ("ba", "c"), ("a", "bc"), ("ab", "c"))
    }
    assert len(digests) == 3


def _empty_tags(folder: Path) -> Path:
    path = folder / "empty.csv"
    path.write_text("image_id,classes\n" + "".join(f"{i},\n" for i in LABELS))
    return path


def test_a_second_digest_reads_only_what_changed(voc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    read: list[str] = []
    original = digest_module.file_digest

    def spy(path: Path) -> str:
        read.append(path.name)
        return original(path)

    monkeypatch.setattr(digest_module, "file_digest", spy)
    cache, shown = tmp_path / "cache.json", []
    first = DATASET.open(voc).digest(cache, lambda done, total: shown.append((done, total)))
    assert len(read) == shown[-1][0] == shown[-1][1] == 5 + 4 + 4
    read.clear()
    assert DATASET.open(voc).digest(cache) == first
    assert read == []
    image = voc / "JPEGImages" / f"{VAL[0]}.jpg"
    content = bytearray(image.read_bytes())
    content[-3] ^= 1
    image.write_bytes(content)
    os.utime(image, ns=(0, 1))
    assert DATASET.open(voc).digest(cache) != first
    assert read == [image.name]
    for rubbish in ("{", "[]", '{"a": 3}'):
        cache.write_text(rubbish)
        assert DATASET.open(voc).digest(cache) == DATASET.open(voc).digest()


def test_file_digests_by_hand(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert file_digests({"x": tmp_path / "a", "y": tmp_path / "b"}, tmp_path) == {"x": expected, "y": None}


# --- the real images


@pytest.mark.real_data
def test_real_voc(real_voc: Path):
    data = DATASET.open(real_voc)
    counts = {split.value: len(data.ids(split)) for split in Split}
    assert counts == {"weak": 800, "tune": 87, "train": 437, "val": 200, "test": 0}
    assert data.tag_source == "masks"
    assert "train has 437 instead of 1464" in data.notices[0]
    view = data.split("train")
    for image_id in view.ids[::40]:
        assert view.tags(image_id) == tuple(sorted({int(v) for v in np.unique(view.mask(image_id))} - {0, 255}))
    assert data.long_side == 500


@pytest.mark.real_data
def test_real_tag_file_differs_from_the_masks_in_a_few_images(real_voc: Path, real_tags: Path):
    """docs/methods.md: tags with difficult objects differ from the masks' classes in about 2.6 % of images."""
    tabled, shown = DATASET.open(real_voc, tags=real_tags), DATASET.open(real_voc)
    ids = shown.ids(Split.WEAK)[::4]
    share = np.mean([tabled.tags(i) != shown.tags(i) for i in ids])
    assert 0.005 < share < 0.06
