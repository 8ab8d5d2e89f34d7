"""Chimera: the same bytes for the same seed, the layouts agree, and the world is what its docstring says."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seedbed.benchmark.errors import ConfigError, DataError
from seedbed.datasets import chimera as module
from seedbed.datasets.base import Dataset, Split
from seedbed.datasets.chimera import DATASET, contact_sheet, generate, split_sizes
from seedbed.datasets.chimera.world import CLASSES, CO_OCCURRENCE, Scene, draw_scene, outlines

IMAGES, SIZE, SEED = 40, 64, 5


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("chimera")
    for layout in ("voc", "coco"):
        generate(folder / layout, layout, IMAGES, SIZE, SEED)
    return {layout: folder / layout for layout in ("voc", "coco")}


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(0, index, 96) for index in range(240)]


def contents(root: Path) -> dict[str, str]:
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


# --- files


@pytest.mark.parametrize("layout", ["voc", "coco"])
def test_the_same_seed_gives_the_same_bytes_of_every_file(roots: dict[str, Path], tmp_path: Path, layout):
    generate(tmp_path / "again", layout, IMAGES, SIZE, SEED)
    first, again = contents(roots[layout]), contents(tmp_path / "again")
    assert first == again
    assert len(first) > 3 * IMAGES
    generate(tmp_path / "other", layout, IMAGES, SIZE, SEED + 1)
    same = {name for name, digest in contents(tmp_path / "other").items() if first.get(name) == digest}
    assert not any(name.endswith(".jpg") for name in same)


def test_voc_layout(roots: dict[str, Path]):
    data = DATASET.open(roots["voc"])
    assert (data.name, data.classes, data.tag_source) == ("chimera-voc", CLASSES, "Annotations/*.xml")
    counts = {split.value: len(data.ids(split)) for split in Split}
    assert counts == {"weak": 28, "tune": 3, "train": 17, "val": 8, "test": 4}
    assert set(data.ids(Split.TRAIN)) < set(data.ids(Split.WEAK))
    for image_id in data.ids(Split.TEST):
        assert not data.mask_path(image_id).exists()
        assert not (roots["voc"] / "Annotations" / f"{image_id}.xml").exists()
    trainval = (roots["voc"] / "ImageSets/Segmentation/trainval.txt").read_text().split()
    assert tuple(trainval) == (*data.ids(Split.TRAIN), *data.ids(Split.VAL))


def test_coco_layout(roots: dict[str, Path]):
    data = DATASET.open(roots["coco"])
    assert (data.name, data.classes) == ("chimera-coco", CLASSES)
    counts = {split.value: len(data.ids(split)) for split in Split}
    assert counts == {"weak": 32, "tune": 6, "train": 32, "val": 8, "test": 0}
    content = json.loads((roots["coco"] / "annotations/instances_train2014.json").read_text())
    crowds = [a for a in content["annotations"] if a["iscrowd"]]
    assert crowds
    singles = [a["segmentation"] for a in content["annotations"] if not a["iscrowd"]]
    forms = {type(s) if isinstance(s, list) else type(s["counts"]) for s in singles}
    assert forms == {list, str}
    assert any(isinstance(s, dict) and isinstance(s["counts"], list) for s in singles)
    assert all(isinstance(a["segmentation"]["counts"], list) for a in crowds)


def test_both_layouts_show_the_same_images_and_nearly_the_same_masks(roots: dict[str, Path]):
    """COCO's has no outlines, its crowds are 255, and its polygons cut corners."""
    voc, coco = DATASET.open(roots["voc"]), DATASET.open(roots["coco"])
    compared = wrong = 0
    for index, image_id in enumerate(voc.ids(Split.TRAIN)):
        other = coco.ids(Split.TRAIN)[index]
        assert other.endswith(f"{index:012d}")
        assert voc.tags(image_id) == coco.tags(other)
        np.testing.assert_array_equal(voc.split("train").image(image_id), coco.split("train").image(other))
        a, b = voc.split("train").mask(image_id), coco.split("train").mask(other)
        clear = (a != 255) & (b != 255)
        compared, wrong = compared + clear.sum(), wrong + (a != b)[clear].sum()
    assert compared > 0.8 * 17 * SIZE**2
    assert wrong < 0.001 * compared


@pytest.mark.parametrize("layout", ["voc", "coco"])
def test_tags_images_masks_and_saliency_agree(roots: dict[str, Path], layout: str):
    data = DATASET.open(roots[layout])
    view = data.split("val")
    agree = inside = outside = 0.0
    for image_id in view.ids:
        mask, saliency = view.mask(image_id), view.saliency(image_id)
        assert view.image(image_id).shape == (SIZE, SIZE, 3)
        assert view.tags(image_id)
        assert {int(v) for v in np.unique(mask)} - {0, 255} <= set(view.tags(image_id))
        assert saliency.shape == mask.shape
        foreground = (mask != 0) & (mask != 255)
        agree += ((saliency > 0.5) == foreground)[mask != 255].mean()
        inside += saliency[foreground].mean() if foreground.any() else 1.0
        outside += saliency[mask == 0].mean()
    assert agree / len(view) > 0.9
    assert 0.7 < inside / len(view) < 0.99
    assert 0.01 < outside / len(view) < 0.25


def test_another_folder_of_saliency_maps(roots: dict[str, Path], tmp_path: Path):
    data = DATASET.open(roots["voc"], saliency=tmp_path)
    assert data.saliency_path("x") == tmp_path / "x.png"


# --- generating


def test_an_existing_folder(roots: dict[str, Path], tmp_path: Path):
    before = contents(roots["voc"])
    calls: list[int] = []
    generate(roots["voc"], "voc", IMAGES, SIZE, SEED, lambda done, _: calls.append(done))
    assert calls == []
    with pytest.raises(DataError, match="something other than this Chimera"):
        generate(roots["voc"], "voc", IMAGES, SIZE, SEED + 1)
    assert contents(roots["voc"]) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match="mine: holds something other"):
        generate(tmp_path / "mine", "voc", IMAGES, SIZE, SEED)
    assert contents(tmp_path / "mine")
    (tmp_path / "empty").mkdir()
    generate(tmp_path / "empty", "voc", 20, 48, 0, lambda done, total: calls.append(done))
    assert calls == list(range(1, 21))
    assert DATASET.open(tmp_path / "empty").ids(Split.TEST)


def test_an_interrupted_generation_leaves_nothing(tmp_path: Path):
    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "out", "voc", 20, 48, 0, interrupt)
    assert list(tmp_path.iterdir()) == []


def test_too_small_a_world_is_refused(tmp_path: Path):
    for images, size in ((19, 96), (20, 47)):
        with pytest.raises(ConfigError, match="at least 20 images of at least 48 pixels"):
            generate(tmp_path / "out", "voc", images, size, 0)


@pytest.mark.parametrize("images", [20, 21, 47, 400])
def test_every_split_has_images(images: int):
    sizes = split_sizes(images)
    assert sum(sizes) == images
    assert min(sizes) >= 1


def test_a_folder_that_is_no_chimera(tmp_path: Path):
    with pytest.raises(DataError, match=r"chimera\.json: no such file.*seedbed data generate"):
        DATASET.open(tmp_path)
    (tmp_path / "chimera.json").write_text("{")
    with pytest.raises(DataError, match=r"chimera\.json: not valid JSON"):
        DATASET.open(tmp_path)
    (tmp_path / "Saliency").mkdir()
    (tmp_path / "chimera.json").write_text('{"layout": "ade"}')
    with pytest.raises(DataError, match="unknown layout 'ade'"):
        DATASET.open(tmp_path)


def test_contact_sheet(chimera: Dataset, tmp_path: Path):
    contact_sheet(chimera, tmp_path / "sheet.png", count=6)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (4 * (2 * 64 + 4), 2 * (64 + 4))
        drawn = np.asarray(sheet)
    view = chimera.split("train")
    np.testing.assert_array_equal(drawn[:64, :64], view.image(view.ids[0]))
    assert tuple(drawn[64, 0]) == (255, 255, 255)


# --- the world


def test_heads_are_a_fifth_of_a_beast_and_bodies_the_rest(scenes: list[Scene]):
    shares = [s.heads.sum() / (s.instances > 0).sum() for s in scenes]
    assert 0.15 < np.mean(shares) < 0.25
    assert all(s.heads[s.instances == 0].sum() == 0 for s in scenes)


def test_scenes_hold_one_to_three_beasts_of_all_classes(scenes: list[Scene]):
    counts = Counter(len(s.labels) for s in scenes)
    assert set(counts) == {1, 2, 3}
    assert np.mean([len(set(s.labels)) > 1 for s in scenes]) > 0.35
    frequency = Counter(label for s in scenes for label in s.labels)
    assert set(frequency) == set(range(1, 7))
    assert max(frequency.values()) < 1.5 * min(frequency.values())


def test_every_beast_and_its_head_can_be_seen(scenes: list[Scene]):
    for scene in scenes:
        for number in range(1, len(scene.labels) + 1):
            visible = scene.instances == number
            assert visible.sum() > 96**2 / 200
            assert (visible & scene.heads).sum() > 20


def test_beasts_occlude_each_other_sometimes(scenes: list[Scene]):
    several = [s for s in scenes if len(s.labels) > 1]

    def touch(scene: Scene) -> bool:
        shown = np.where(scene.instances == 0, 255, scene.instances)
        right = (shown[:, 1:] != shown[:, :-1]) & (shown[:, 1:] != 255) & (shown[:, :-1] != 255)
        return bool(right.any())

    assert 0.05 < np.mean([touch(s) for s in several]) < 0.5


def test_sizes_vary(scenes: list[Scene]):
    areas = [(s.instances == 1).sum() for s in scenes if len(s.labels) == 1]
    assert np.percentile(areas, 90) > 2 * np.percentile(areas, 10)


def test_some_backgrounds_go_with_a_class(monkeypatch: pytest.MonkeyPatch):
    drawn: list[str] = []

    def spy(random: np.random.Generator, name: str, size: int) -> np.ndarray:
        drawn.append(name)
        return np.zeros((size, size, 3))

    monkeypatch.setattr("seedbed.datasets.chimera.world._background", spy)
    for index in range(0, 600, 6):
        draw_scene(1, index, 48)
    expected = CO_OCCURRENCE + (1 - CO_OCCURRENCE) / 6
    assert Counter(drawn)["meadow"] / 100 == pytest.approx(expected, abs=0.12)
    drawn.clear()
    for index in range(5, 605, 6):
        draw_scene(1, index, 48)
    assert max(Counter(drawn).values()) < 35


def test_outlines_by_hand():
    instances = np.zeros((5, 6), np.uint8)
    instances[:, 3:] = 1
    expected = np.zeros((5, 6), bool)
    expected[:, 2:4] = True
    np.testing.assert_array_equal(outlines(instances, 1), expected)


def test_outlines_are_255_in_masks_as_in_voc(scenes: list[Scene]):
    for scene in scenes[:40]:
        mask = scene.mask
        border = outlines(scene.instances, 1)
        np.testing.assert_array_equal(mask == 255, border)
        np.testing.assert_array_equal(mask[~border], np.array((0, *scene.labels))[scene.instances][~border])


def test_a_scene_depends_on_its_seed_and_index_alone():
    first = draw_scene(3, 7, 64)
    np.random.default_rng(0).random(9)
    draw_scene(3, 6, 64)
    again = draw_scene(3, 7, 64)
    np.testing.assert_array_equal(first.image, again.image)
    assert not np.array_equal(first.image, draw_scene(3, 8, 64).image)
    assert not np.array_equal(first.image, draw_scene(4, 7, 64).image)


def test_colour_of_the_head_tells_the_class_and_of_the_body_does_not(scenes: list[Scene]):
    """A nearest-mean classifier on mean colours: nearly solved from heads, near chance from bodies."""

    def mean_colours(part: str) -> Iterator[tuple[int, np.ndarray]]:
        for scene in scenes:
            for number, label in enumerate(scene.labels, start=1):
                where = (scene.instances == number) & (scene.heads if part == "head" else ~scene.heads)
                if where.sum() > 10:
                    yield label, scene.image[where].mean(0)

    accuracy = {}
    for part in ("head", "body"):
        labels, colours = (np.array(column) for column in zip(*mean_colours(part), strict=True))
        half = len(labels) // 2
        centres = np.stack([colours[:half][labels[:half] == k].mean(0) for k in range(1, 7)])
        nearest = 1 + np.linalg.norm(colours[half:, None] - centres, axis=2).argmin(1)
        accuracy[part] = np.mean(nearest == labels[half:])
    assert accuracy["head"] > 0.95
    assert accuracy["body"] < 0.35


def test_class_names_are_plain_words():
    assert len(set(CLASSES)) == 6
    assert all(re.fullmatch("[a-z]+", name) for name in CLASSES)
    assert module.DATASET.name == "chimera"
