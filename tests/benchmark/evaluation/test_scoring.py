"""Scoring saved results: formats agree exactly, processes change nothing, every fault is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from seedbed.benchmark.cli.main import app
from seedbed.benchmark.errors import ConfigError, DataError, MaskForbiddenError
from seedbed.benchmark.evaluation.formats import IrnMaps, MapSource, PngMasks, PsaMaps, open_maps, open_masks
from seedbed.benchmark.evaluation.maps import MapReader, MapWriter, ScoreMaps
from seedbed.benchmark.evaluation.metrics import Confusion, thresholds_with
from seedbed.benchmark.evaluation.per_image import read_confusions
from seedbed.benchmark.evaluation.records import (
    Record,
    read_records,
    records_of_map_scores,
    records_of_mask_scores,
    write_records,
)
from seedbed.benchmark.evaluation.scoring import CHUNK, score_maps, score_masks
from seedbed.datasets.base import SplitView
from seedbed.datasets.io.images import write_mask
from tests.helpers.fakes import FolderDataset, random_scene

IMAGES = CHUNK + 8
Content = dict[str, ScoreMaps]


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> SplitView:
    images, masks = {}, {}
    for number in range(IMAGES):
        labels = [[1], [2], [1, 2]][number % 3]
        image, mask = random_scene(number, 18 + number % 3, 24, labels)
        mask[:, 5] = 255
        images[f"i{number:03}"], masks[f"i{number:03}"] = image, mask
    return FolderDataset(tmp_path_factory.mktemp("data"), images, masks).split("val")


@pytest.fixture(scope="module")
def content(view: SplitView) -> Content:
    """Maps at the images' size, in float16, so that every format holds them exactly."""
    generator = np.random.default_rng(0)
    return {
        i: ScoreMaps(
            np.array(view.tags(i), np.int16),
            generator.random((len(view.tags(i)), *view.size(i))).astype(np.float16),
            view.size(i),
        )
        for i in view.ids
    }


def write_arrow(folder: Path, content: Content) -> MapSource:
    with MapWriter(folder) as writer:
        for image_id, maps in content.items():
            writer.write(image_id, maps)
    return MapReader(folder)


def save(path: Path, value: object) -> None:
    np.save(path, np.array(value, object), allow_pickle=True)


def write_irn(folder: Path, content: Content) -> MapSource:
    for image_id, maps in content.items():
        full = maps.scores.astype(np.float32)
        # IRN's classes come in any order and count from 0.
        save(folder / f"{image_id}.npy", {"keys": maps.labels[::-1] - 1, "cam": full, "high_res": full[::-1]})
    return IrnMaps(folder)


def write_psa(folder: Path, content: Content) -> MapSource:
    for image_id, maps in content.items():
        full = maps.scores.astype(np.float32)
        pairs = [(int(label) - 1, full[row]) for row, label in enumerate(maps.labels)]
        save(folder / f"{image_id}.npy", dict(reversed(pairs)))
    return PsaMaps(folder)


FORMATS = pytest.mark.parametrize("write", [write_arrow, write_irn, write_psa])
Writer = Callable[[Path, Content], MapSource]


def records_of(source: MapSource, view: SplitView, **options) -> list[Record]:
    return records_of_map_scores(score_maps(source, view, **options), view.classes, "seed", "val", 0.15, 0.3)


@FORMATS
def test_formats_give_the_same_numbers_exactly(tmp_path, view, content, write: Writer):
    ours = tmp_path / "ours"
    ours.mkdir()
    expected = records_of(write_arrow(ours, content), view)
    source = write(tmp_path, content)
    assert records_of(source, view) == expected
    assert type(open_maps(tmp_path)) is type(source)
    assert records_of(open_maps(tmp_path), view) == expected


def test_numbers_equal_a_plain_loop(tmp_path, view, content):
    scores = score_maps(write_arrow(tmp_path, content), view)
    for threshold in (0.0, 0.15, 0.59, 0.99):
        confusion = Confusion.empty(2)
        for image_id, maps in content.items():
            full = np.concatenate([np.full((1, *maps.size), threshold), maps.scores]).astype(np.float32)
            confusion.update(view.mask(image_id), np.array([0, *maps.labels], np.uint8)[full.argmax(0)])
        np.testing.assert_array_equal(scores.curve.at(threshold).matrix, confusion.matrix)
    assert scores.images == IMAGES


def test_maps_at_a_stride_are_resized(tmp_path, view, content):
    small = {i: ScoreMaps(m.labels, m.scores[:, ::4, ::4], m.size) for i, m in content.items()}
    full = {i: ScoreMaps(m.labels, m.at_full_size(), m.size) for i, m in small.items()}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    strided = score_maps(write_arrow(tmp_path / "a", small), view)
    resized = score_maps(write_irn(tmp_path / "b", full), view)
    np.testing.assert_array_equal(strided.curve.counts, resized.curve.counts)
    np.testing.assert_array_equal(strided.soft.sums, resized.soft.sums)


def test_the_number_of_processes_changes_no_byte(tmp_path, view, content):
    source = write_arrow(tmp_path, content)
    results, files = [], []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        out.mkdir()
        seen: list[tuple[int, int]] = []
        results.append(
            records_of(
                source,
                view,
                processes=processes,
                per_image=out / "p.parquet",
                progress=lambda done, total, seen=seen: seen.append((done, total)),
            )
        )
        assert seen[-1] == (IMAGES, IMAGES)
        write_records(out / "records.parquet", results[-1])
        files.append({path.name: path.read_bytes() for path in sorted(out.iterdir())})
    assert results[0] == results[1]
    assert files[0] == files[1]
    assert set(files[0]) == {"p.parquet", "p_soft.parquet", "records.parquet"}


def confusions_at(path, threshold):
    """Return the confusion matrix of each image for 2 classes, and check the counts that are made of them."""
    cells = read_confusions(path, threshold)
    found = {image_id: Confusion.empty(2) for image_id in cells.ids}
    for place, *pair, pixels in zip(cells.image, cells.truth, cells.predicted, cells.pixels, strict=True):
        found[cells.ids[place]].matrix[tuple(pair)] += pixels
    matrices = [confusion.matrix for confusion in found.values()]
    wanted = [np.stack([np.diag(matrix), matrix.sum(1), matrix.sum(0)]) for matrix in matrices]
    np.testing.assert_array_equal(cells.counts(3), wanted)
    return found


def test_per_image_rows_give_every_images_confusion_at_every_threshold(tmp_path, view, content):
    path = tmp_path / "p.parquet"
    scores = score_maps(write_arrow(tmp_path, content), view, per_image=path)
    for threshold in (0.0, 0.37, 0.99):
        by_image = confusions_at(path, threshold)
        assert list(by_image) == list(view.ids)
        total = sum(c.matrix for c in by_image.values())
        np.testing.assert_array_equal(total, scores.curve.at(threshold).matrix)
        maps = content["i002"]
        own = Confusion.empty(2)
        full = np.concatenate([np.full((1, *maps.size), threshold), maps.scores]).astype(np.float32)
        own.update(view.mask("i002"), np.array([0, *maps.labels], np.uint8)[full.argmax(0)])
        np.testing.assert_array_equal(by_image["i002"].matrix, own.matrix)
    soft = pq.read_table(tmp_path / "p_soft.parquet").to_pandas()
    assert soft["overlap"].sum() == pytest.approx(scores.soft.sums[0].sum())


def test_a_threshold_off_the_grid_is_measured_when_asked_for(tmp_path, view, content):
    source, path = write_arrow(tmp_path, content), tmp_path / "p.parquet"
    scores = score_maps(source, view, thresholds=thresholds_with(0.155), per_image=path)
    total = sum(c.matrix for c in confusions_at(path, 0.155).values())
    np.testing.assert_array_equal(total, scores.curve.at(0.155).matrix)
    assert scores.curve.best() == score_maps(source, view).curve.best()
    with pytest.raises(ConfigError, match=r"0\.156"):
        confusions_at(path, 0.156)


def test_masks_as_palette_and_as_grey(tmp_path, view):
    generator = np.random.default_rng(1)
    for name in ("palette", "grey"):
        (tmp_path / name).mkdir()
    confusion, dropped = Confusion.empty(2), Confusion.empty(2)
    for image_id in view.ids:
        prediction = generator.choice([0, 1, 2, 255], view.size(image_id)).astype(np.uint8)
        write_mask(tmp_path / "palette" / f"{image_id}.png", prediction)
        Image.fromarray(prediction).save(tmp_path / "grey" / f"{image_id}.png")
        confusion.update(view.mask(image_id), prediction)
        dropped.update(view.mask(image_id), prediction, ignore_predicted=True)
    for name in ("palette", "grey"):
        path = tmp_path / f"{name}.parquet"
        scores = score_masks(PngMasks(tmp_path / name), view, processes=2, per_image=path)
        np.testing.assert_array_equal(scores.confusion.matrix, confusion.matrix)
        rows = pq.read_table(path).to_pandas()
        assert rows["pixels"].sum() == confusion.matrix.sum()
        counted = rows.groupby(["truth", "predicted"])["pixels"].sum()
        assert counted[1, 2] == confusion.matrix[1, 2]
        partial = score_masks(PngMasks(tmp_path / name), view, ignore_predicted=True)
        np.testing.assert_array_equal(partial.confusion.matrix, dropped.matrix)
    assert (tmp_path / "palette.parquet").read_bytes() == (tmp_path / "grey.parquet").read_bytes()


# --- faults ------------------------------------------------------------------------------------------------


@FORMATS
def test_every_missing_and_misfitting_result_is_named_at_once(tmp_path, view, content, write: Writer):
    bad = dict(content)
    del bad["i001"]
    height, width = view.size("i007")
    bad["i007"] = ScoreMaps(
        np.array([1], np.int16), np.ones((1, height, width - 1), np.float16), (height, width - 1)
    )
    bad["i035"] = ScoreMaps(
        np.array([3], np.int16), np.ones((1, *view.size("i035")), np.float16), view.size("i035")
    )
    path = tmp_path / "p.parquet"
    with pytest.raises(DataError) as caught:
        score_maps(write(tmp_path, bad), view, per_image=path)
    text = str(caught.value)
    assert "3 of 40" in text
    assert "i001" in text
    assert "i007" in text
    assert f"{width - 1}x{height}" in text
    assert "i035" in text
    assert "[3]" in text
    assert not list(tmp_path.glob("*.parquet*"))


def test_no_more_than_twenty_faults_are_listed(tmp_path, view, content):
    source = write_arrow(tmp_path, {"i000": content["i000"]})
    with pytest.raises(DataError, match="39 of 40") as caught:
        score_maps(source, view, processes=2)
    assert "i020" in str(caught.value)
    assert "i021" not in str(caught.value)
    assert "19 more" in str(caught.value)


def test_masks_that_are_missing_or_misfit_are_named(tmp_path, view):
    for image_id in view.ids[1:]:
        write_mask(tmp_path / f"{image_id}.png", np.zeros(view.size(image_id), np.uint8))
    write_mask(tmp_path / "i003.png", np.full(view.size("i003"), 9, np.uint8))
    Image.new("RGB", (24, 20)).save(tmp_path / "i004.png")
    (tmp_path / "i005.png").write_bytes((tmp_path / "i006.png").read_bytes()[:40])
    write_mask(tmp_path / "i006.png", np.zeros((3, 4), np.uint8))
    with pytest.raises(DataError, match="5 of 40") as caught:
        score_masks(PngMasks(tmp_path), view)
    for image_id in ("i000", "i003", "i004", "i005", "i006"):
        assert image_id in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"keys": np.array([0]), "cam": np.ones((1, 18, 24))}, "high_res"),
        ({"keys": np.array([0, 1]), "high_res": np.ones((1, 18, 24))}, "2 classes"),
        ({"keys": np.array([0, 0]), "high_res": np.ones((2, 18, 24))}, "must differ"),
        ({"keys": np.array([-1]), "high_res": np.ones((1, 18, 24))}, "counted from 0"),
        ({"keys": np.array([0]), "high_res": np.full((1, 18, 24), np.nan)}, "not finite"),
        ({0: np.ones((18, 24)), 1: np.ones((18, 23))}, "different sizes"),
        ({"keys": np.array([0.5]), "high_res": np.ones((1, 18, 24))}, "expected whole numbers"),
        ({"keys": np.array(["0"]), "high_res": np.ones((1, 18, 24))}, "expected whole numbers"),
        ({"keys": np.array([0]), "high_res": np.full((1, 18, 24), "x")}, "expected numbers"),
        ({"keys": np.array([0]), "high_res": np.ones((1, 18, 24), complex)}, "expected numbers"),
        ({"keys": np.array([0]), "high_res": np.ones((1, 0, 24))}, "no pixels"),
        ({"keys": np.array([0]), "high_res": np.ones((18, 24))}, "1 classes"),
        ({"keys": np.array([70_000]), "high_res": np.ones((1, 18, 24))}, "counted from 0"),
        ({0: np.full((18, 24), np.inf)}, "not finite"),
        ({"cat": np.ones((18, 24))}, "cat"),
        ([1, 2], "dictionary"),
    ],
)
def test_npy_files_of_another_content_are_named(tmp_path, value, message):
    save(tmp_path / "i000.npy", value)
    with pytest.raises(DataError, match=message) as caught:
        open_maps(tmp_path).read("i000")
    assert "i000.npy" in str(caught.value)


def test_a_pickle_that_names_a_function_is_refused(tmp_path):
    save(tmp_path / "i000.npy", {"keys": print})
    with pytest.raises(DataError, match=r"i000\.npy.*print"):
        open_maps(tmp_path)


def test_a_folder_without_maps_is_named(tmp_path):
    with pytest.raises(DataError, match="no localisation maps"):
        open_maps(tmp_path)


def test_two_results_of_one_image_are_refused(tmp_path, content):
    write_psa(tmp_path, content)
    write_mask(tmp_path / "i001.png", np.zeros((2, 2), np.uint8))
    for first, second in (("i001.npy", "i001.NPY"), ("i001.png", "i001.PNG")):
        (tmp_path / second).write_bytes((tmp_path / first).read_bytes())
        with pytest.raises(DataError, match=f"both {second} and {first} may be the result"):
            (open_maps if first.endswith("npy") else open_masks)(tmp_path)


def test_files_of_other_names_are_pointed_at(tmp_path):
    write_mask(tmp_path / "i000_pred.png", np.zeros((2, 2), np.uint8))
    with pytest.raises(DataError, match=r"i000\.png: no such file; there is i000_pred\.png"):
        open_masks(tmp_path).read("i000")
    (tmp_path / "deeper" / "results").mkdir(parents=True)
    write_mask(tmp_path / "deeper" / "results" / "i000.png", np.zeros((2, 2), np.uint8))
    with pytest.raises(DataError, match=r"deeper: no PNG masks .*in its folders results"):
        open_masks(tmp_path / "deeper")
    with pytest.raises(DataError, match="absent: no such folder"):
        open_masks(tmp_path / "absent")


def test_files_of_a_mac_and_others_are_no_results(tmp_path, view, content):
    source = write_irn(tmp_path, content)
    expected = records_of(source, view)
    for name in ("._i000.npy", "Thumbs.db", ".DS_Store"):
        (tmp_path / name).write_bytes(b"x")
    assert records_of(open_maps(tmp_path), view) == expected


def test_broken_files_are_all_named_whatever_comes_first(tmp_path, view, content):
    write_irn(tmp_path, content)
    (tmp_path / "i000.npy").write_bytes(b"")
    (tmp_path / "i001.npy").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (tmp_path / "i002.npy").unlink()
    save(tmp_path / "i003.npy", {"keys": np.array([0]), "high_res": np.full((1, 18, 24), np.nan)})
    with pytest.raises(DataError, match="4 of 40") as caught:
        score_maps(open_maps(tmp_path), view)
    for text in ("i000", "i001.npy: a pointer of Git LFS", "i002", "i003"):
        assert text in str(caught.value)


@pytest.mark.parametrize(
    "value", [{}, {"keys": [], "high_res": []}, {"keys": [], "high_res": np.zeros((0, 20, 24))}]
)
def test_an_image_without_classes_has_no_maps(tmp_path, view, content, value):
    """COCO has images without annotations; PSA's dictionary of one is empty."""
    write_irn(tmp_path, content) if "keys" in value else write_psa(tmp_path, content)
    save(tmp_path / "i002.npy", value)
    scores = score_maps(open_maps(tmp_path), view)
    assert scores.images == IMAGES


def test_an_arrow_file_with_an_image_twice_is_refused(tmp_path, content):
    with MapWriter(tmp_path) as writer:
        for image_id in ("i000", "i001"):
            writer._ids.clear()
            writer.write("same", content[image_id])
    with pytest.raises(DataError, match="2 maps of 1 images"):
        open_maps(tmp_path)


# --- signs of another numbering or scale -------------------------------------------------------------------


def numbered(folder: Path, view: SplitView, table: list[int]) -> list[str]:
    """Score the true masks with `table[label]` for each label, and return the warnings."""
    folder.mkdir(exist_ok=True)
    lookup = np.array([*table, *[255] * (256 - len(table))], np.uint8)
    for image_id in view.ids:
        write_mask(folder / f"{image_id}.png", lookup[view.mask(image_id)])
    return list(score_masks(open_masks(folder), view).plausibility.warnings())


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> SplitView:
    """Eight images of eight classes; the JSON's category ids have holes."""
    images, masks = {}, {}
    for number in range(8):
        images[f"i{number}"], mask = random_scene(number, 18, 24, [1])
        masks[f"i{number}"] = np.where(mask == 1, number + 1, 0).astype(np.uint8)
    data = FolderDataset(tmp_path_factory.mktemp("many"), images, masks, [f"c{n}" for n in range(8)])
    data.category_ids = (1, 3, 4, 6, 7, 8, 11, 12)
    return data.split("val")


def test_masks_in_another_numbering_are_told(tmp_path, many):
    assert numbered(tmp_path / "right", many, [0, 1, 2, 3, 4, 5, 6, 7, 8]) == []
    (text,) = numbered(tmp_path / "zero", many, [255, 0, 1, 2, 3, 4, 5, 6, 7])
    assert text.startswith("7 of 7 classes in the results")
    assert "counted from 0 without background, only 0" in text
    (text,) = numbered(tmp_path / "ids", many, [0, 1, 3, 4, 6, 7, 8, 8, 8])
    assert "the JSON's category ids, only 2" in text
    (text,) = numbered(tmp_path / "shuffled", many, [0, 5, 6, 7, 8, 1, 2, 3, 4])
    assert "8 of 8 classes" in text
    assert "a poor result, or another numbering" in text


def test_labels_beyond_the_classes_are_explained(tmp_path, many):
    with pytest.raises(
        DataError, match=r"labels \[11\], outside 0\.\.8 and 255; they may be the JSON's category ids"
    ):
        numbered(tmp_path, many, [0, 1, 3, 4, 6, 7, 8, 11, 12])


@pytest.mark.parametrize("background", [False, True])
def test_maps_whose_keys_are_shifted_are_told(tmp_path, many, background):
    for image_id in many.ids[:7]:
        mask = many.mask(image_id)
        keys, maps = [int(mask.max())], (mask > 0)[None].astype(np.float32)
        if background:
            keys, maps = [0, *keys], np.concatenate([np.full_like(maps, 0.3), maps])
        save(tmp_path / f"{image_id}.npy", {"keys": np.array(keys), "high_res": maps})
    save(tmp_path / "i7.npy", {"keys": np.array([7]), "high_res": (many.mask("i7") > 0)[None].astype(np.float32)})
    (text,) = score_maps(open_maps(tmp_path), many).plausibility.warnings()
    assert "7 of 8 classes" in text
    assert "shifted by one" in text


def test_maps_above_1_are_told(tmp_path, many):
    for image_id in many.ids:
        mask = many.mask(image_id)
        save(tmp_path / f"{image_id}.npy", {int(mask.max()) - 1: (255 * (mask > 0)).astype(np.uint8)})
    (text,) = score_maps(open_maps(tmp_path), many).plausibility.warnings()
    assert text.startswith("scores reach 255, above 1")


@pytest.mark.parametrize(("scale", "shift", "highest"), [(1 / 255, 0, "0.00392157"), (5, -5, "0")])
def test_maps_far_below_1_are_told(tmp_path, many, scale, shift, highest):
    for image_id in many.ids:
        mask = many.mask(image_id)
        objects = ((mask > 0) & (mask < 255)).astype(np.float32)
        save(tmp_path / f"{image_id}.npy", {int(mask.max()) - 1: scale * objects + shift})
    (text,) = score_maps(open_maps(tmp_path), many).plausibility.warnings()
    assert text.startswith(f"scores reach only {highest};")


@pytest.mark.parametrize("label", [0, 255])
def test_results_without_any_class_are_told(tmp_path, many, label):
    assert numbered(tmp_path, many, [label] * 9) == [
        "no result shows a class; the true masks of their images show 8"
    ]


def test_true_masks_in_another_numbering_than_the_tags_are_told(tmp_path):
    images, masks = zip(*(random_scene(n, 18, 24, [1]) for n in range(4)), strict=True)
    names = [f"i{n}" for n in range(4)]
    tags = dict.fromkeys(names, (2,))
    data = FolderDataset(
        tmp_path, dict(zip(names, images, strict=True)), dict(zip(names, masks, strict=True)), tags=tags
    )
    (text,) = numbered(tmp_path / "results", data.split("val"), [0, 1, 2])
    assert text.startswith("4 of 4 classes in the true masks are not tags")


def test_the_command_says_what_it_scored(tmp_path, chimera_root, chimera):
    view = chimera.split("val")
    numbered(tmp_path / "masks", view, [255, *range(len(view.classes))])
    arguments = ["evaluate", "--dataset", "chimera", "--root", str(chimera_root), "--workers", "0", "--quiet"]
    shown = CliRunner().invoke(
        app,
        [*arguments, "--masks", str(tmp_path / "masks"), "--out", str(tmp_path / "out"), "--work", str(tmp_path)],
    )
    assert shown.exit_code == 0
    last = shown.stdout.splitlines()[-1]
    assert last.startswith(f"scored {len(view)} images of val of ")
    assert str(tmp_path / "masks") in last
    assert last.endswith(f"records and per-image statistics in {tmp_path / 'out'}")
    assert shown.stderr.startswith("warning: ")
    assert "counted from 0 without background" in shown.stderr


def test_a_split_without_masks_is_refused(tmp_path, view, content):
    with pytest.raises(MaskForbiddenError, match="weak"):
        score_maps(write_arrow(tmp_path, content), view.dataset.split("weak"))


# --- records -----------------------------------------------------------------------------------------------


def test_records_of_maps(tmp_path, view, content):
    scores = score_maps(write_arrow(tmp_path, content), view)
    records = records_of_map_scores(scores, view.classes, "seed", "train", fixed=0.15, tuned=0.3)
    found = {record.name: record for record in records}
    assert len(found) == len(records)
    assert found["seed.train/mIoU_fixed"].value == scores.curve.at(0.15).miou()
    assert found["seed.train/mIoU_tuned"].value == scores.curve.at(0.3).miou()
    threshold, best = scores.curve.best()
    assert found["seed.train/mIoU_oracle"].value == best
    assert found["seed.train/threshold_oracle"].value == threshold
    assert found["seed.train/IoU_dog_fixed"].value == scores.curve.at(0.15).by_label()[2]
    assert found["seed.train/soft_overlap_cat"].value == scores.soft.by_class()[0, 1]
    assert found["seed.train/soft_overlap_cat"].count == sum(1 in view.tags(i) for i in view.ids)
    assert found["seed.train/pixel_AP_dog"].value == scores.pixel_ap.by_class()[2]
    without = records_of_map_scores(scores, view.classes, "seed", "train", fixed=0.15, tuned=None)
    assert {record.selection for record in without} == {"fixed", "oracle", "none"}


def test_records_of_masks_and_their_names(tmp_path, view):
    for image_id in view.ids:
        mask = view.mask(image_id)
        write_mask(tmp_path / f"{image_id}.png", np.where(mask == 2, 0, mask).astype(np.uint8))
    scores = score_masks(PngMasks(tmp_path), view)
    found = {
        record.name: record
        for record in records_of_mask_scores(scores, view.classes, "segmentation", "val", "none")
    }
    assert found["val/IoU_cat"].value == 1
    assert found["val/IoU_dog"].value == 0
    assert found["val/precision_dog"].value is None
    assert found["val/mIoU"].value == scores.confusion.miou()
    assert found["val/mIoU"].count == found["val/classes"].value == 3


def test_names_in_a_tracker_have_no_folders_of_a_class_name():
    assert (
        Record("segmentation", "val", "IoU", "none", "cabinet//shelf/", 0.5, None).name
        == "val/IoU_cabinet__shelf_"
    )


def test_records_survive_the_file_and_nan_becomes_null(tmp_path):
    records = [
        Record("seed", "train", "IoU", "tuned", "cat", 0.25, None),
        Record("segmentation", "val", "mIoU", "none", None, None, 0),
    ]
    path = tmp_path / "records.parquet"
    write_records(path, records)
    assert read_records(path) == records
    write_records(path, [Record("seed", "train", "IoU", "tuned", "cat", float("nan"), None)])
    assert read_records(path)[0].value is None


def test_files_that_hold_no_records_are_named(tmp_path, view, content):
    with pytest.raises(DataError, match=r"absent\.parquet"):
        read_records(tmp_path / "absent.parquet")
    score_maps(write_arrow(tmp_path, content), view, per_image=tmp_path / "p.parquet")
    with pytest.raises(DataError, match=r"p\.parquet.*version"):
        read_records(tmp_path / "p.parquet")
