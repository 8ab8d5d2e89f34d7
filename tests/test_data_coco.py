"""COCO's layout: rules of rasterising by hand, classes, tags, and masks that are missing, stale or foreign."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from benchmark.errors import ConfigError, DataError
from datasets import coco2014
from datasets.base import Split
from datasets.coco2014 import DATASET, CocoDataset, Instance, draw_mask, rasterise
from datasets.files import decode_mask

HEIGHT, WIDTH = 6, 8
SOURCE = Path("instances.json")


def rectangle(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    pixels[top:bottom, left:right] = 1
    return pixels


def polygon(top: int, left: int, bottom: int, right: int) -> list[list[float]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


def compressed(pixels: np.ndarray) -> dict[str, Any]:
    coded = coco.encode(np.asfortranarray(pixels))
    return {"size": list(coded["size"]), "counts": coded["counts"].decode()}


def uncompressed(pixels: np.ndarray) -> dict[str, Any]:
    """Runs of 0 and 1 in turn, down the columns, beginning with 0."""
    counts, value = [0], 0
    for pixel in pixels.T.ravel().tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": [HEIGHT, WIDTH], "counts": counts}


def instance(segmentation: Any, label: int = 1, number: int = 1, crowd: bool = False) -> Instance:
    return Instance(number, label, crowd, segmentation)


def drawn(*instances: Instance, crowd="ignore") -> np.ndarray:
    return draw_mask(HEIGHT, WIDTH, list(instances), crowd, SOURCE)


BOX = (1, 2, 4, 7)


# --- one mask


@pytest.mark.parametrize("form", [polygon(*BOX), compressed(rectangle(*BOX)), uncompressed(rectangle(*BOX))])
def test_all_forms_of_segmentation(form: Any):
    np.testing.assert_array_equal(drawn(instance(form, label=7)), 7 * rectangle(*BOX))


def test_an_object_may_be_of_several_polygons():
    parts = polygon(0, 0, 2, 2) + polygon(4, 4, 6, 8)
    np.testing.assert_array_equal(drawn(instance(parts)), rectangle(0, 0, 2, 2) + rectangle(4, 4, 6, 8))


def test_the_smaller_object_is_on_top_whatever_the_order():
    large, small = instance(polygon(0, 0, 5, 6), 1, 1), instance(polygon(1, 1, 3, 3), 2, 2)
    expected = rectangle(0, 0, 5, 6)
    expected[1:3, 1:3] = 2
    for order in ((large, small), (small, large)):
        np.testing.assert_array_equal(drawn(*order), expected)


def test_of_two_equal_objects_the_later_annotation_is_on_top():
    first, second = instance(polygon(0, 0, 4, 4), 1, 10), instance(polygon(0, 2, 4, 6), 2, 11)
    for order in ((first, second), (second, first)):
        assert drawn(*order)[0].tolist() == [1, 1, 2, 2, 2, 2, 0, 0]


def test_a_crowd_is_255_where_no_object_covers_it():
    crowd = instance(uncompressed(rectangle(0, 0, 6, 4)), 3, 1, crowd=True)
    single = instance(polygon(0, 2, 6, 6), 2, 2)
    for order in ((crowd, single), (single, crowd)):
        assert drawn(*order)[3].tolist() == [255, 255, 2, 2, 2, 2, 0, 0]
        assert drawn(*order, crowd="background")[3].tolist() == [0, 0, 2, 2, 2, 2, 0, 0]


def test_objects_without_an_outline_are_not_drawn():
    assert not drawn(instance([]), instance([[1, 1, 4, 4]])).any()


@pytest.mark.parametrize(
    "broken",
    [
        {"size": [HEIGHT, WIDTH + 1], "counts": [9]},
        {"size": [HEIGHT, WIDTH], "counts": [3, 4]},
        {"size": [HEIGHT, WIDTH], "counts": [60, -12]},
        {"size": [HEIGHT, WIDTH], "counts": "~~~~"},
        {"size": [HEIGHT, WIDTH]},
        [["a", 1, 2, 3, 4, 5]],
        None,
    ],
)
def test_a_broken_segmentation_is_named(broken: Any):
    with pytest.raises(DataError, match=r"instances\.json: annotation 77 cannot be drawn"):
        drawn(instance(broken, number=77))


# --- a whole folder


CATEGORIES = [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 13, "name": "airplane"}]


def annotation(number: int, image: int, category: int, segmentation: Any, crowd: int = 0) -> dict[str, Any]:
    fields = ("id", "image_id", "category_id", "segmentation", "iscrowd")
    return dict(zip(fields, (number, image, category, segmentation, crowd), strict=True))


def write_json(root: Path, folder: str, annotations: list[dict[str, Any]], images: int = 3) -> None:
    entries = [
        {"id": i, "file_name": f"COCO_{folder}_{i:012d}.jpg", "height": HEIGHT, "width": WIDTH}
        for i in reversed(range(images))
    ]
    content = {"images": entries, "annotations": annotations, "categories": CATEGORIES}
    (root / "annotations" / f"instances_{folder}.json").write_text(json.dumps(content))


TRAIN = [
    annotation(1, 0, 13, polygon(*BOX)),
    annotation(2, 1, 90, compressed(rectangle(*BOX))),
    annotation(3, 1, 1, uncompressed(rectangle(0, 0, 6, 4)), 1),
]
STEMS = tuple(f"COCO_train2014_{i:012d}" for i in range(3))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "coco"
    for folder in ("annotations", *coco2014.FOLDERS):
        (root / folder).mkdir(parents=True)
    write_json(root, "train2014", TRAIN)
    write_json(root, "val2014", [annotation(9, 0, 1, polygon(*BOX))], images=1)
    for folder, images in (("train2014", 3), ("val2014", 1)):
        for i in range(images):
            Image.new("RGB", (WIDTH, HEIGHT)).save(root / folder / f"COCO_{folder}_{i:012d}.jpg")
    return root


def masks_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.png"))}


def test_classes_ids_tags_and_masks(root: Path):
    shown: list[tuple[int, int]] = []
    assert rasterise(root, progress=lambda done, total: shown.append((done, total))) == 4
    assert shown == [(1, 4), (2, 4), (3, 4), (4, 4)]
    data = DATASET.open(root)
    assert data.classes == ("person", "airplane", "toothbrush")
    assert data.ids(Split.TRAIN) == data.ids(Split.WEAK) == STEMS
    assert data.ids(Split.VAL) == ("COCO_val2014_000000000000",)
    assert data.ids(Split.TEST) == ()
    assert len(data.ids(Split.TUNE)) == 1
    assert [data.tags(i) for i in STEMS] == [(2,), (1, 3), ()]
    view = data.split("train")
    np.testing.assert_array_equal(view.mask(STEMS[0]), 2 * rectangle(*BOX))
    assert view.mask(STEMS[1])[2].tolist() == [255, 255, 3, 3, 3, 3, 3, 0]
    assert not view.mask(STEMS[2]).any()
    assert view.image(STEMS[0]).shape == (HEIGHT, WIDTH, 3)
    assert data.long_side == WIDTH
    with pytest.raises(DataError, match="no image 'x'"):
        data.tags("x")


def test_counts_other_than_the_official_ones_are_a_notice(root: Path):
    rasterise(root)
    (notice,) = DATASET.open(root).notices
    assert "train has 3 instead of 82783" in notice
    assert "val has 1 instead of 40504" in notice
    assert CocoDataset(root, "x", official_counts={Split.TRAIN: 3}).notices == ()


def test_missing_masks_name_the_command(root: Path, tmp_path: Path):
    with pytest.raises(DataError, match=rf"not made yet; run: seedbed data prepare coco --root {root}$"):
        DATASET.open(root)
    with pytest.raises(DataError, match=r"--masks .*elsewhere --crowd background$"):
        DATASET.open(root, masks=tmp_path / "elsewhere", crowd="background")
    with pytest.raises(ConfigError, match="unknown rule for crowds 'drop'"):
        DATASET.open(root, crowd="drop")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="unknown rule for crowds 'drop'"):
        rasterise(root, crowd="drop")  # type: ignore[arg-type]


def test_stale_masks_are_refused_and_made_anew(root: Path):
    rasterise(root)
    with pytest.raises(DataError, match=r"of other annotations or rules.*--crowd background"):
        DATASET.open(root, crowd="background")
    rasterise(root, crowd="background")
    data = DATASET.open(root, crowd="background")
    assert data.split("train").mask(STEMS[1])[2].tolist() == [0, 0, 3, 3, 3, 3, 3, 0]
    changed = copy.deepcopy(TRAIN)
    changed[0]["category_id"] = 90
    write_json(root, "train2014", changed)
    with pytest.raises(DataError, match="of other annotations or rules"):
        DATASET.open(root, crowd="background")
    rasterise(root)
    np.testing.assert_array_equal(DATASET.open(root).split("train").mask(STEMS[0]), 3 * rectangle(*BOX))


def test_another_version_of_the_rules_is_stale(root: Path, monkeypatch: pytest.MonkeyPatch):
    rasterise(root)
    monkeypatch.setattr(coco2014, "VERSION", coco2014.VERSION + 1)
    with pytest.raises(DataError, match="of other annotations or rules"):
        DATASET.open(root)


def test_an_interrupted_call_is_gone_on_with(root: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rasterise(root, progress=interrupt)
    with pytest.raises(DataError, match="not made yet"):
        DATASET.open(root)
    drawn_now: list[str] = []
    original = coco2014._write

    def spy(job: coco2014._Job) -> None:
        drawn_now.append(job.target.stem)
        original(job)

    monkeypatch.setattr(coco2014, "_write", spy)
    assert rasterise(root) == 4
    assert len(drawn_now) == 2
    np.testing.assert_array_equal(DATASET.open(root).split("train").mask(STEMS[0]), 2 * rectangle(*BOX))


def test_masks_of_somebody_else_are_not_touched(root: Path):
    foreign = root / "SegmentationMasks" / "train2014" / f"{STEMS[0]}.png"
    foreign.parent.mkdir(parents=True)
    Image.new("L", (WIDTH, HEIGHT), 5).save(foreign)
    with pytest.raises(DataError, match="holds masks that were not made here"):
        rasterise(root)
    assert decode_mask(foreign).min() == 5


def test_processes_and_the_masks_folder_make_no_difference(root: Path, tmp_path: Path):
    rasterise(root)
    rasterise(root, tmp_path / "masks", processes=2)
    assert masks_of(tmp_path / "masks") == masks_of(root / "SegmentationMasks")
    assert len(masks_of(tmp_path / "masks")) == 4
    view = DATASET.open(root, masks=str(tmp_path / "masks")).split("val")
    np.testing.assert_array_equal(view.mask(view.ids[0]), rectangle(*BOX))


def test_broken_annotations_are_named(root: Path):
    path = root / "annotations" / "instances_train2014.json"
    good = json.loads(path.read_text())

    def refused(content: Any, fault: str) -> None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(DataError, match=rf"instances_train2014\.json: .*{fault}"):
            rasterise(root)

    refused("{", "not valid JSON")
    refused("[]", "expected a JSON object")
    refused({"images": []}, "not COCO annotations")
    refused({**good, "annotations": [annotation(5, 8, 1, [])]}, "annotation 5 is of an unknown image 8")
    refused({**good, "annotations": [annotation(5, 0, 2, [])]}, "annotation 5 is of an unknown category 2")
    refused({**good, "images": good["images"] * 2}, f"lists the image {STEMS[2]}.jpg 2 times")
    bad = annotation(5, 0, 1, {"size": [1, 1], "counts": [1]})
    refused({**good, "annotations": [bad]}, "annotation 5 cannot be drawn")
    path.unlink()
    with pytest.raises(DataError, match=r"instances_train2014\.json: no such file"):
        rasterise(root)


def test_categories_must_be_the_same_in_both_parts(root: Path):
    path = root / "annotations" / "instances_val2014.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "categories": content["categories"][:2]}))
    with pytest.raises(DataError, match=r"instances_val2014\.json: its categories are not those"):
        rasterise(root)


def test_the_digest_follows_masks_and_annotations_and_not_the_place(root: Path, tmp_path: Path):
    rasterise(root)
    digest = DATASET.open(root).digest()
    shutil.copytree(root, tmp_path / "copy")
    assert DATASET.open(tmp_path / "copy").digest() == digest
    rasterise(root, crowd="background")
    assert DATASET.open(root, crowd="background").digest() != digest
