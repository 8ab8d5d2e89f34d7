"""The gallery: which images it chooses, and what it draws of the runs' files."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seedbed.benchmark.evaluation.maps import ScoreMaps
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.datasets.base import Dataset
from seedbed.datasets.io.images import decode_mask, write_mask
from seedbed.leaderboard.build import Sources, write_leaderboard
from seedbed.leaderboard.data.snapshot import Run, table_of
from seedbed.leaderboard.site import gallery
from tests.helpers.site_content import predict_nothing, ramp, runs, write_trial
from tests.leaderboard.tables.test_leaderboard import make


class View:
    """A split with given tags."""

    def __init__(self, **tags: tuple[int, ...]) -> None:
        self.ids = tuple(tags)
        self.classes = ("a", "b", "c")
        self._tags = tags

    def tags(self, image_id: str) -> tuple[int, ...]:
        return self._tags[image_id]


@pytest.fixture
def work(tmp_path: Path, chimera: Dataset) -> WorkFolder:
    """Return a work folder with the trials of `runs`, seed 0, whose maps are ramps."""
    work = WorkFolder(tmp_path / "work")
    view = chimera.split("train")
    maps = {image_id: ramp(view.tags(image_id), view.size(image_id)) for image_id in view.ids}
    for run in confirmed():
        if run.seed == 0:
            write_trial(work, run, chimera.root, maps)
    return work


def confirmed() -> list[Run]:
    """Return the complete runs."""
    return [run for run in runs() if run.status == "complete"]


def test_classes_take_turns_in_the_order_of_the_ids_digests():
    # sha256 of the ids begins with: i 0x de, j 0x 18, k 0x 82, l 0x ac, m 0x 62, so the order is j m k l i.
    view = View(i=(3,), j=(1,), k=(1,), l=(1, 2), m=(1,))
    assert gallery.choose(view, 2) == [("j", 1), ("l", 2)]
    assert gallery.choose(view, 4) == [("j", 1), ("l", 2), ("i", 3), ("m", 1)]
    assert gallery.choose(view, 99) == [("j", 1), ("l", 2), ("i", 3), ("m", 1), ("k", 1)]
    assert gallery.choose(View(i=(), j=(2,)), 3) == [("j", 2)]


def test_the_choice_does_not_depend_on_the_order_of_the_split():
    tags = {"i": (3,), "j": (1,), "k": (1,), "l": (1, 2)}
    backwards = dict(reversed(list(tags.items())))
    assert gallery.choose(View(**tags), 3) == gallery.choose(View(**backwards), 3)


def test_a_map_is_grey_from_0_to_1_and_cut_there():
    scores = np.array([[[-1, 0], [0.5, 3]], [[1, 1], [1, 1]]], np.float32)
    maps = ScoreMaps(np.array([2, 5], np.int16), scores, (2, 2))
    assert gallery.grey_map(maps, 2).tolist() == [[0, 0], [128, 255]]
    assert gallery.grey_map(maps, 3).tolist() == [[0, 0], [0, 0]]


def test_a_large_map_becomes_160_pixels_long():
    assert gallery.grey_map(ramp([1], (100, 400)), 1).shape == (40, 160)


def test_only_what_is_greater_than_the_threshold_is_shown():
    grey = np.array([[0, 1, 127, 128, 255]], np.uint8)
    assert gallery.above(grey, 0.0).tolist() == [[False, True, True, True, True]]
    assert gallery.above(grey, 0.5).tolist() == [[False, False, False, True, True]]
    assert not gallery.above(grey, 1.0).any()


@pytest.mark.parametrize(
    ("metrics", "threshold"),
    [
        ({"seed.train/threshold_tuned": 0.4, "seed.train/threshold_fixed": 0.2}, 0.4),
        ({"seed.train/threshold_fixed": 0.2}, 0.2),
        ({"seed.train/threshold_tuned": -0.3}, 0.0),
        ({}, 0.0),
    ],
)
def test_the_threshold_is_the_one_that_was_chosen(metrics, threshold):
    assert gallery.threshold_of(make(metrics=metrics)) == threshold


def test_every_method_shows_the_same_images_of_the_lowest_seed(work, tmp_path):
    (drawn,) = gallery.draw_gallery(confirmed(), work, tmp_path, 3, predict_nothing)
    assert (drawn.dataset, drawn.seed, len(drawn.images)) == ("chimera", 0, 3)
    for image in drawn.images:
        assert len({run.method for run in image.runs}) == len(image.runs) == 3
        assert {run.threshold for run in image.runs} == {0.25}
        assert {run.prediction for run in image.runs} == {None}
    assert len({image.label for image in drawn.images}) == 3


def test_pictures_are_those_of_the_runs_files(work, tmp_path, chimera):
    (drawn,) = gallery.draw_gallery(confirmed(), work, tmp_path / "out", 1, predict_nothing)
    (image,) = drawn.images
    folder, view = tmp_path / "out" / "gallery", chimera.split("train")
    assert (decode_mask(folder / image.truth) == view.mask(image.id)).all()
    run = image.runs[0]
    assert set(np.unique(decode_mask(folder / run.mask))) == {1}
    head, _, data = run.map.partition(",")
    assert head == "data:image/png;base64"
    grey = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert grey.shape == view.size(image.id)
    row = np.linspace(0, 1, grey.shape[1], dtype=np.float32).astype(np.float16).astype(np.float32)
    assert (grey == np.rint(255 * row)).all()
    # The static picture is the photograph left of the threshold, and coloured right of it.
    still, photograph = (np.asarray(Image.open(folder / path)).astype(int) for path in (run.overlay, image.image))
    edge = grey.shape[1] // 4
    difference = np.abs(still - photograph).mean((0, 2))
    assert difference[: edge - 1].max() < 8 < difference[edge + 2 :].min()
    for path in folder.rglob("*.*"):
        assert max(Image.open(path).size) <= 320


def test_the_legend_names_the_labels_that_the_pictures_show(work, tmp_path, chimera):
    (drawn,) = gallery.draw_gallery(confirmed(), work, tmp_path / "out", 2, predict_nothing)
    folder = tmp_path / "out" / "gallery"
    masks = [path for image in drawn.images for path in (image.truth, *(run.mask for run in image.runs))]
    shown = {int(label) for path in masks for label in np.unique(decode_mask(folder / path))}
    names = {0: "background", **dict(enumerate(chimera.classes, 1)), 255: "not counted"}
    assert [name for name, _ in drawn.legend] == [names[label] for label in sorted(shown)]
    assert dict(drawn.legend)["background"] == "#000000"
    colours = {image.label: image.colour for image in drawn.images}
    assert colours.items() <= dict(drawn.legend).items()
    write_leaderboard(table_of(runs()), tmp_path / "site", sources=Sources(work, 2, predict_nothing))
    page = (tmp_path / "site/gallery/chimera.html").read_text("utf-8")
    assert page.count('<span class="swatch"') == len(drawn.legend) + 2


def test_predictions_are_those_that_predict_gives(work, tmp_path):
    asked: list[tuple[str, tuple[str, ...]]] = []

    def predict(folder: Path, ids: Sequence[str]) -> Path:
        asked.append((folder.name, tuple(ids)))
        for image_id in ids:
            write_mask(tmp_path / f"{image_id}.png", np.full((64, 64), 2, np.uint8))
        return tmp_path

    (drawn,) = gallery.draw_gallery(confirmed(), work, tmp_path / "out", 2, predict)
    ids = tuple(image.id for image in drawn.images)
    assert sorted(asked) == [(run.key, ids) for run in confirmed() if run.seed == 0]
    shown = tmp_path / "out/gallery" / drawn.images[1].runs[2].prediction
    assert set(np.unique(decode_mask(shown))) == {2}


def test_what_has_left_the_store_or_failed_is_left_out(work, tmp_path, chimera):
    for path in (work.root / "store/entries").glob("*/aa0-0"):
        path.rename(tmp_path / "gone")
    all_runs = [*confirmed(), replace(confirmed()[0], key="x", method="failed", status="failed")]
    (drawn,) = gallery.draw_gallery(all_runs, work, tmp_path / "out", 1, predict_nothing)
    others = list(drawn.images[0].runs)
    first = next(run for run in others if run.method == "cam")
    others.remove(first)
    assert (first.method, first.map, first.overlay) == ("cam", None, None)
    assert first.mask is not None
    assert len(others) == 2
    assert gallery.draw_gallery(all_runs, WorkFolder(tmp_path / "empty"), tmp_path, 1, predict_nothing) == ()


def test_a_data_set_that_has_moved_is_said(work, tmp_path):
    for spec in work.sweeps.rglob("job.json"):
        spec.write_text(spec.read_text().replace('"root": "', '"root": "/nowhere'))
    (drawn,) = gallery.draw_gallery(confirmed(), work, tmp_path, 1, predict_nothing)
    assert drawn.images == ()
    assert drawn.missing == "The data set is no longer in the folder that the runs read."


@pytest.mark.parametrize(("pictures", "words"), [(0, "It was switched off"), (2, "photographs of the data set")])
def test_the_number_of_images_is_the_users(work, tmp_path, pictures, words):
    out = tmp_path / "site"
    write_leaderboard(table_of(runs()), out, sources=Sources(work, pictures, predict_nothing))
    assert words in " ".join((out / "gallery.html").read_text("utf-8").split())
    assert (out / "gallery").exists() == bool(pictures)
    assert len(list(out.glob("gallery/chimera/*/image.jpg"))) == pictures


def test_all_photographs_and_maps_are_below_one_folder(work, tmp_path):
    write_leaderboard(table_of(runs()), tmp_path / "site", sources=Sources(work, 2, predict_nothing))
    for path in (tmp_path / "site").rglob("*"):
        inside = path.is_relative_to(tmp_path / "site" / "gallery")
        assert inside or path.suffix not in (".jpg", ".png")
        assert inside or path.suffix != ".html" or "data-map" not in path.read_text("utf-8")
