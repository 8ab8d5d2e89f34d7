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
from typer.testing import CliRunner

from seedbed.benchmark.cli.main import app
from seedbed.benchmark.errors import ConfigError, DataError
from seedbed.datasets.base import Split
from seedbed.datasets.coco2014 import DATASET, CocoDataset
from seedbed.datasets.coco2014 import masks as coco_masks
from seedbed.datasets.coco2014.masks import rasterise
from seedbed.datasets.coco2014.outlines import NO_OUTLINE, SHORT, TINY, Instance, draw_mask
from seedbed.datasets.io.images import decode_mask

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


def instance(segmentation: Any, label: int = 1, number: int | str = 1, crowd: bool = False) -> Instance:
    return Instance(number, label, crowd, segmentation)


def drawn(*instances: Instance, crowd="ignore") -> np.ndarray:
    return draw_mask(HEIGHT, WIDTH, list(instances), crowd, SOURCE).mask


BOX = (1, 2, 4, 7)


# --- one mask


POINTS = [[2, 1], [7, 1], [7, 4], [2, 4]]
NAMED_POINTS = [{"x": x, "y": y} for x, y in POINTS]
FORMS = {
    "polygons": polygon(*BOX),
    "one polygon": polygon(*BOX)[0],
    "one polygon of points": POINTS,
    "polygons of points": [POINTS],
    "one polygon of named points": NAMED_POINTS,
    "polygons of named points": [NAMED_POINTS],
    "compressed RLE": compressed(rectangle(*BOX)),
    "uncompressed RLE": uncompressed(rectangle(*BOX)),
    "RLE of floats": {"size": [6.0, 8.0], "counts": [float(n) for n in uncompressed(rectangle(*BOX))["counts"]]},
    "several RLEs": [compressed(rectangle(1, 2, 4, 5)), uncompressed(rectangle(1, 4, 4, 7))],
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("crowd", [False, True])
def test_all_forms_of_segmentation(form: Any, crowd: bool):
    drawing = draw_mask(HEIGHT, WIDTH, [instance(form, label=7, crowd=crowd)], "ignore", SOURCE)
    np.testing.assert_array_equal(drawing.mask, (255 if crowd else 7) * rectangle(*BOX))
    assert not drawing.left_out


def test_what_lies_outside_the_image_is_cut_off():
    np.testing.assert_array_equal(drawn(instance(polygon(-50, -90, 4, 500))), rectangle(0, 0, 4, 8))


@pytest.mark.parametrize("seed", range(20))
def test_compressed_codes_are_read_as_pycocotools_writes_them(seed: int):
    generator = np.random.default_rng(seed)
    pixels = (generator.random((HEIGHT, WIDTH)) < generator.random()).astype(np.uint8)
    np.testing.assert_array_equal(drawn(instance(compressed(pixels))), pixels)


def test_a_code_that_is_cut_off_is_refused():
    code = compressed(rectangle(*BOX))
    for length in range(len(code["counts"])):
        with pytest.raises(DataError, match="annotation 1 cannot be drawn"):
            drawn(instance({**code, "counts": code["counts"][:length]}))


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (None, NO_OUTLINE),
        ([], NO_OUTLINE),
        ([[1, 1, 4, 1], *polygon(*BOX)], SHORT),
        ([[1, 1, 4, 4]], TINY),
        ([[3, 3, 3, 3, 3, 3]], TINY),
        ([[0.1, 0.1, 0.9, 0.1, 0.9, 0.9]], TINY),
        (polygon(20, 20, 30, 30), TINY),
    ],
)
def test_what_is_left_out_is_told(form: Any, reason: str):
    whole = instance(polygon(0, 0, 2, 2), number=3)
    drawing = draw_mask(HEIGHT, WIDTH, [instance(form, label=2, number=8), whole], "ignore", SOURCE)
    assert drawing.left_out == [(8, reason)]


def test_annotations_may_have_texts_as_ids():
    first, second = instance(polygon(0, 0, 4, 4), 1, 10), instance(polygon(0, 2, 4, 6), 2, "b7")
    for order in ((first, second), (second, first)):
        assert drawn(*order)[0].tolist() == [1, 1, 2, 2, 2, 2, 0, 0]


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
        {"size": [HEIGHT, WIDTH], "counts": "0"},  # cut off: no run follows
        {"size": [HEIGHT, WIDTH], "counts": [20.5, 27.5]},
        {},
        "1 2 3 4 5 6",
        [["a", 1, 2, 3, 4, 5]],
        [[1, 1, 4, 1, 4, True, None, 4]],
        [[1, 1, 4, 1, 4, 4, 1]],
        [[1, 1, 4, 1, float("nan"), 4]],
        [[1, 1, 4, 1, float("inf"), 4]],
        [[1, 1, 4, 1, 1e9, 4]],
        [[[1, 1, 1], [4, 1, 1], [4, 4, 1]]],
        [{"x": 1, "z": 1}, {"x": 4, "z": 1}, {"x": 4, "z": 4}],
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
    for folder in ("annotations", *coco_masks.FOLDERS):
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
    with pytest.raises(DataError, match=rf"not made yet; run: seedbed data prepare coco2014 --root {root}$"):
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
    monkeypatch.setattr(coco_masks, "VERSION", coco_masks.VERSION + 1)
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
    original = coco_masks._write

    def spy(job: coco_masks._Job) -> Any:
        drawn_now.append(job.target.stem)
        return original(job)

    monkeypatch.setattr(coco_masks, "_write", spy)
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
        with pytest.raises(DataError, match=rf"(?s)instances_train2014\.json: .*{fault}"):
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


def test_what_is_left_out_is_counted_over_interruptions(root: Path, monkeypatch: pytest.MonkeyPatch):
    """Interrupted after the first image, whose annotation has no outline; in the second one is outside."""
    broken = [annotation(1, 0, 13, None), annotation(2, 1, 90, polygon(20, 20, 30, 30)), *TRAIN[2:]]
    write_json(root, "train2014", broken)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rasterise(root, progress=interrupt)
    assert rasterise(root) == rasterise(root) == 4
    problems = list(DATASET.open(root).layout_problems())
    assert [problem.message for problem in problems] == [
        "1 of 3 annotations have no outline (the first: annotation 1)",
        "1 of 3 annotations cover at most one pixel of their image (the first: annotation 2)",
    ]
    assert {problem.file for problem in problems} == {root / "annotations" / "instances_train2014.json"}


def test_prepare_says_what_is_left_out(root: Path):
    write_json(root, "val2014", [annotation(9, 0, 1, polygon(*BOX)), annotation(10, 0, 13, [])], images=1)
    shown = CliRunner().invoke(app, ["data", "prepare", "coco2014", "--root", str(root), "--workers", "0"])
    assert shown.exit_code == 0
    assert shown.stdout.splitlines() == [
        "4 masks",
        "note: instances_val2014.json: 1 of 2 annotations have no outline (the first: annotation 10)",
    ]
    assert DATASET.open(root, tag_rule="annotated").tags("COCO_val2014_000000000000") == (1, 2)
    assert DATASET.open(root).tags("COCO_val2014_000000000000") == (1,)


# --- the two rules of tags


HIDDEN = [
    annotation(1, 0, 13, polygon(2, 3, 3, 5)),
    annotation(2, 0, 90, polygon(*BOX)),
    annotation(3, 0, 1, polygon(0, 0, 2, 2)),
    annotation(4, 1, 90, polygon(*BOX)),
    annotation(5, 1, 13, polygon(2, 3, 3, 5)),
    annotation(6, 1, 1, uncompressed(rectangle(*BOX)), 1),
]
"""In the first image a larger object covers the small airplane; in the second a crowd covers both objects."""


def test_tags_are_the_classes_that_stay_visible_or_all_annotated_ones(root: Path):
    write_json(root, "train2014", HIDDEN)
    rasterise(root)
    visible, annotated = (DATASET.open(root, tag_rule=rule) for rule in ("visible", "annotated"))
    assert [visible.tags(i) for i in STEMS] == [(1, 3), (1,), ()]
    assert [annotated.tags(i) for i in STEMS] == [(1, 2, 3), (1, 2, 3), ()]
    # The masks do not depend on it: the smaller object is on top, a crowd below.
    assert {*np.unique(visible.split("train").mask(STEMS[0]))} == {0, 1, 2, 3}
    assert {*np.unique(visible.split("train").mask(STEMS[1]))} == {0, 2, 3}
    assert DATASET.open(root).tags(STEMS[0]) == visible.tags(STEMS[0])
    assert CocoDataset(root, "x").tags(STEMS[0]) == annotated.tags(STEMS[0])
    assert visible.digest() != annotated.digest()
    assert visible.tag_source == "annotations/instances_*.json, crowds included, visible classes"
    with pytest.raises(ConfigError, match=r"unknown tag_rule 'drawn'\. Valid: annotated, visible"):
        DATASET.open(root, tag_rule="drawn")  # type: ignore[arg-type]


def test_visible_classes_go_by_the_files_order_and_not_by_the_ids():
    boxes = [instance(polygon(*BOX), label, number) for number, label in ((9, 2), (3, 1))]
    assert draw_mask(HEIGHT, WIDTH, boxes, "ignore", SOURCE).visible == (1,)
    assert draw_mask(HEIGHT, WIDTH, boxes[::-1], "ignore", SOURCE).visible == (2,)


def test_masks_of_an_earlier_version_are_kept_and_get_visible_classes(root: Path):
    write_json(root, "train2014", [*HIDDEN, annotation(7, 2, 1, None)])
    rasterise(root)
    digest, annotated = DATASET.open(root).digest(), DATASET.open(root, tag_rule="annotated").digest()
    masks = root / "SegmentationMasks"
    held = {path: path.stat().st_mtime_ns for path in masks.rglob("*.png")}
    for content in (None, "{"):
        (masks / "visible.json").unlink()
        if content is not None:
            (masks / "visible.json").write_text(content)
        with pytest.raises(
            DataError, match=r"visible\.json: does not have every image.* Run: .* \(it keeps the masks"
        ):
            DATASET.open(root)
        assert DATASET.open(root, tag_rule="annotated").digest() == annotated
        rasterise(root)
        assert DATASET.open(root).digest() == digest
        assert {path: path.stat().st_mtime_ns for path in masks.rglob("*.png")} == held
        (problem,) = DATASET.open(root).layout_problems()
        assert problem.message == "1 of 7 annotations have no outline (the first: annotation 7)"


@pytest.mark.parametrize("outline", [None, polygon(20, 20, 30, 30), [[0.2, 0.2, 0.7, 0.2, 0.7, 0.9]]])
def test_a_file_without_a_drawn_object_is_refused(root: Path, outline: Any):
    write_json(root, "val2014", [annotation(n, 0, 1, outline) for n in range(3)], images=1)
    with pytest.raises(DataError, match=r"instances_val2014\.json: none of its 3 annotations .*`segmentation`"):
        rasterise(root)
    with pytest.raises(DataError, match="not made yet"):
        DATASET.open(root)


def test_all_that_cannot_be_drawn_is_told_at_once(root: Path):
    write_json(root, "train2014", [annotation(n, n, 1, {"size": [1, 1], "counts": [1]}) for n in range(3)])
    with pytest.raises(DataError, match=r"(?s)3 problems.*annotation 0 .*annotation 1 .*annotation 2 "):
        rasterise(root)


def test_an_image_of_another_size_than_the_annotations_say_is_named(root: Path):
    Image.new("RGB", (HEIGHT, WIDTH)).save(root / "train2014" / f"{STEMS[1]}.jpg")
    with pytest.raises(DataError, match=rf"{STEMS[1]}\.jpg: the image is 6x8 .*train2014\.json says 8x6"):
        rasterise(root)


def test_masks_of_an_earlier_version_are_told_and_made_anew(root: Path):
    """They were made without a word about what was left out."""
    rasterise(root)
    digest = DATASET.open(root).digest()
    manifest = root / "SegmentationMasks" / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({key: content[key] for key in ("rules", "annotations", "complete", "masks")}))
    assert any("an earlier version made the masks" in notice for notice in DATASET.open(root).notices)
    assert DATASET.open(root).digest() == digest
    rasterise(root)
    assert not any("an earlier version" in notice for notice in DATASET.open(root).notices)
    assert DATASET.open(root).digest() == digest


def test_a_broken_labels_file_is_named(root: Path):
    rasterise(root)
    labels = root / "SegmentationMasks" / "labels.json"
    for content in ("{}", '{"classes": ["a"], "images": []}', ""):
        labels.write_text(content)
        with pytest.raises(DataError, match=r"labels\.json: not "):
            DATASET.open(root)


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
