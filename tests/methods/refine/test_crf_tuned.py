"""The tuned CRF: one search finds what one CRF run for each strength finds, on `tune` alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from seedbed.benchmark.evaluation.formats import PngMasks
from seedbed.benchmark.evaluation.maps import MapWriter, ScoreMaps
from seedbed.benchmark.evaluation.scoring import score_masks
from seedbed.benchmark.pipeline.pipeline import Pipeline
from seedbed.benchmark.pipeline.stage import Context, Kind, Machine, Meta, Stage
from seedbed.benchmark.pipeline.store import Store
from seedbed.datasets.base import Split
from seedbed.methods.refine.crf import CrfMasks
from seedbed.methods.refine.crf_tuned import COMPATS, REFINER, ChosenCrfMasks, SelectCrf, best_compat
from tests.helpers.fakes import FolderDataset, random_scene

SETTINGS = {"bilateral_sxy": 30.0, "bilateral_srgb": 40.0, "iterations": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return six noisy images of one or two classes, or none; the first four are `tune`."""
    labels = {f"i{n}": [(1,), (2,), (1, 2), (), (1, 2), (2,)][n] for n in range(6)}
    scenes = {i: random_scene(n, 30, 44, labels[i]) for n, i in enumerate(labels)}
    everything, tune = tuple(labels), tuple(labels)[:4]
    splits = {Split.WEAK: everything, Split.TUNE: tune, Split.TRAIN: everything, Split.VAL: everything}
    images, masks = ({i: scene[k] for i, scene in scenes.items()} for k in (0, 1))
    return FolderDataset(tmp_path_factory.mktemp("data"), images, masks, splits=splits)


@pytest.fixture(scope="module")
def inputs(data, tmp_path_factory):
    """Return maps that are the truth moved by some pixels with noise, and a threshold."""
    folder = tmp_path_factory.mktemp("inputs")
    generator = np.random.default_rng(0)
    with MapWriter(folder) as writer:
        for image_id in data.ids(Split.TRAIN):
            mask = data.split(Split.TRAIN).mask(image_id)
            maps = np.array([np.roll(mask == tag, 3, (0, 1)) for tag in data.tags(image_id)], np.float32)
            maps = (0.7 * maps + 0.4 * generator.random(maps.shape)).reshape(-1, *mask.shape)
            writer.write(image_id, ScoreMaps(np.array(data.tags(image_id), np.int16), maps, mask.shape))
    (folder / "threshold.json").write_text(json.dumps({"selection": "tuned", "threshold": 0.5, "miou": 0.25}))
    return {Kind.SCORES: folder, Kind.THRESHOLD: folder}


def result_of(stage: Stage, data: FolderDataset, inputs: dict[Kind, Path], split: Split, out: Path) -> Path:
    out.mkdir()
    stage.run(data, inputs, out, Context(seed=0, split=split, scratch=out))
    return out


@pytest.mark.parametrize("preset", ["irn", "psa", "icd"])
def test_the_search_scores_each_strength_as_its_own_masks(preset, data, inputs, tmp_path):
    found = result_of(SelectCrf(preset=preset, **SETTINGS), data, inputs, Split.TUNE, tmp_path / "found")
    chosen = json.loads((found / "threshold.json").read_text())
    expected = {}
    for compat in COMPATS:
        stage = CrfMasks(preset=preset, bilateral_compat=compat, **SETTINGS)
        masks = result_of(stage, data, inputs, Split.TUNE, tmp_path / f"{compat:g}")
        expected[f"{compat:g}"] = score_masks(PngMasks(masks), data.split(Split.TUNE)).confusion.miou()
    assert chosen["crf"]["miou"] == expected
    best = chosen["crf"]["settings"]["bilateral_compat"]
    assert max(expected.values()) == expected[f"{best:g}"] > min(expected.values())
    assert (chosen["crf"]["split"], chosen["crf"]["images"]) == ("tune", 4)
    assert {name: chosen[name] for name in ("selection", "threshold", "miou")} == {
        "selection": "tuned",
        "threshold": 0.5,
        "miou": 0.25,
    }


def test_the_masks_are_those_of_the_crf_with_the_chosen_settings(data, inputs, tmp_path):
    found = result_of(SelectCrf(**SETTINGS), data, inputs, Split.TUNE, tmp_path / "found")
    settings = json.loads((found / "threshold.json").read_text())["crf"]["settings"]
    assert settings == CrfMasks(bilateral_compat=settings["bilateral_compat"], **SETTINGS).settings()
    chosen = {**inputs, Kind.THRESHOLD: found}
    masks = result_of(ChosenCrfMasks(), data, chosen, Split.TRAIN, tmp_path / "masks")
    expected = result_of(CrfMasks(**settings), data, inputs, Split.TRAIN, tmp_path / "expected")
    names = [f"{image_id}.png" for image_id in data.ids(Split.TRAIN)]
    assert sorted(path.name for path in masks.iterdir()) == names
    assert [(masks / name).read_bytes() for name in names] == [(expected / name).read_bytes() for name in names]


@pytest.mark.parametrize("selection", ["fixed", "tuned", "oracle"])
def test_the_strength_is_chosen_on_tune_whatever_the_threshold_sees(selection, data, tmp_path):
    class GivenScores(SelectCrf):
        consumes = ()
        produces = Kind.SCORES
        on = None

    select, *others = REFINER.refine(Meta(classes=2, long_side=44, backbone="tiny"), 0.3)
    stages = [GivenScores(), type(select)(selection=selection), *others]
    run = Pipeline(stages, data, "digest", 0, Store(tmp_path), Machine(), scope={Kind.SCORES: Split.TRAIN})
    masks = run.step(3, Split.TRAIN)
    assert masks.split is Split.TRAIN
    assert isinstance(masks.inputs[Kind.THRESHOLD].stage, SelectCrf)
    assert masks.inputs[Kind.THRESHOLD].split is Split.TUNE


def test_of_equal_strengths_the_nearest_to_the_preset_is_chosen():
    assert best_compat({1.0: 0.4, 5.0: 0.6, 10.0: 0.5}, usual=10) == 5
    assert best_compat({1.0: 0.6, 7.0: 0.6, 14.0: 0.6}, usual=10) == 7
    assert best_compat({14.0: 0.6, 7.0: 0.5, 6.0: 0.6}, usual=10) == 6


def test_without_a_pixel_that_counts_the_preset_stays(tmp_path):
    image, mask = random_scene(0, 12, 16, (1,))
    nothing = FolderDataset(tmp_path / "data", {"a": image}, {"a": np.full_like(mask, 255)}, tags={"a": (1,)})
    with MapWriter(tmp_path) as writer:
        writer.write("a", ScoreMaps(np.array([1], np.int16), (mask[None] == 1).astype(np.float32), mask.shape))
    (tmp_path / "threshold.json").write_text('{"selection": "fixed", "threshold": 0.3}')
    inputs = {Kind.SCORES: tmp_path, Kind.THRESHOLD: tmp_path}
    found = result_of(SelectCrf(), nothing, inputs, Split.TUNE, tmp_path / "found")
    crf = json.loads((found / "threshold.json").read_text())["crf"]
    assert crf["settings"]["bilateral_compat"] == 10
    assert set(crf["miou"].values()) == {-1.0}
