"""The I+S variants: what they need, what they share with the variants of tags alone, and how they are marked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from seedbed.benchmark.errors import ConfigError, DataError
from seedbed.benchmark.evaluation.records import read_records
from seedbed.benchmark.pipeline.registry import METHODS
from seedbed.benchmark.pipeline.stage import Context, Kind, Machine, Meta
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.trials.plan import plan_trial
from seedbed.benchmark.trials.run import read_run, run_trial
from seedbed.benchmark.trials.trial import Trial, build_chain
from seedbed.datasets.base import Dataset, Split
from seedbed.datasets.chimera import DATASET
from seedbed.datasets.io.images import decode_mask, write_mask
from seedbed.leaderboard.analysis.ranking import board_of
from seedbed.leaderboard.data.expected import ExpectedTrials
from seedbed.leaderboard.data.snapshot import runs_of, table_of
from seedbed.methods.common.saliency_masks import SaliencyMasks, combined, salient_area
from tests.contracts.test_contracts import contents, pipeline, tiny
from tests.helpers.command_line import seedbed
from tests.helpers.fakes import FolderDataset, random_scene
from tests.helpers.sweeping import scheduler_of, small
from tests.helpers.voc_folder import make_voc

META = Meta(classes=6, long_side=64, backbone="tiny")
VARIANTS = {"splitting_merging": "SplittingMerging", "icd": "Icd", "esol": "Esol"}


def chain(method: str, **settings: Any) -> Any:
    """Return the chain of a method with settings `Method.name=value`."""
    named = {f"{VARIANTS[method]}.{name}": value for name, value in settings.items()}
    return build_chain(Trial(dataset="chimera", method=method, segment=False, settings=named), META)


# Masks and saliency maps


def test_not_salient_is_background_and_salient_background_is_ignored():
    """Grey 32 of 255 is salient, 31 is not (OAA's code)."""
    mask = np.array([[0, 0, 2, 2, 255, 255]], np.uint8)
    saliency = np.array([[31, 32, 31, 32, 0, 255]], np.float32) / np.float32(255)
    assert combined(mask, saliency, SaliencyMasks().threshold).tolist() == [[0, 255, 0, 2, 0, 255]]


@pytest.mark.parametrize(("salient", "counts"), [(0, False), (1, False), (2, True), (200, True)])
def test_less_than_1_percent_of_an_image_is_no_salient_area(salient, counts):
    """2 of 200 pixels are 1 %."""
    saliency = np.zeros((10, 20), np.float32)
    saliency.flat[:salient] = 0.6
    area = salient_area(saliency, 0.5)
    assert (area is not None) == counts
    assert area is None or area.sum() == salient
    mask = np.full((10, 20), 3, np.uint8)
    assert (combined(mask, saliency, 0.5) == 3).sum() == (salient if counts else 200)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_stage_combines_each_image_of_the_split_with_its_map(chimera, tmp_path, workers):
    view = chimera.split(Split.TRAIN)
    masks, out = tmp_path / "masks", tmp_path / "out"
    masks.mkdir()
    out.mkdir()
    for image_id in view.ids:
        write_mask(masks / f"{image_id}.png", np.roll(view.mask(image_id), 9, axis=0))
    stage = SaliencyMasks(threshold=0.3)
    stage.run(chimera, {Kind.MASKS: masks}, out, Context(0, Split.TRAIN, tmp_path, workers=workers))
    assert {path.stem for path in out.iterdir()} == set(view.ids)
    for image_id in view.ids:
        given, found = decode_mask(masks / f"{image_id}.png"), decode_mask(out / f"{image_id}.png")
        salient = view.saliency(image_id) >= 0.3
        assert (found[~salient] == 0).all()
        assert (found[salient & (given == 0)] == 255).all()
        np.testing.assert_array_equal(found[salient & (given != 0)], given[salient & (given != 0)])


def test_a_mask_of_another_size_is_named(chimera, tmp_path):
    image_id = chimera.ids(Split.TRAIN)[0]
    write_mask(tmp_path / f"{image_id}.png", np.zeros((64, 63), np.uint8))
    with pytest.raises(DataError, match=rf"{image_id}\.png: the mask is 63x64, its image 64x64 pixels"):
        SaliencyMasks().run(chimera, {Kind.MASKS: tmp_path}, tmp_path, Context(0, Split.TRAIN, tmp_path))


# The variants


@pytest.mark.parametrize("name", VARIANTS)
def test_the_setting_makes_the_method_i_and_s(name):
    assert METHODS.load(name).supervision == "I"
    assert chain(name).method.supervision == "I"
    assert chain(name, saliency="true").method.supervision == "I+S"


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_the_variant_shares_the_training_and_gives_other_masks(name, chimera, tmp_path):
    without, with_saliency = (
        pipeline(tiny(chain(name, saliency=saliency).stages), chimera, tmp_path) for saliency in (False, True)
    )
    checkpoints = [run.latest(Kind.CHECKPOINT, Split.WEAK) for run in (without, with_saliency)]
    assert checkpoints[0] == checkpoints[1]
    scores = [run.latest(Kind.SCORES, Split.TRAIN) for run in (without, with_saliency)]
    # ESOL's saliency maps act on the masks alone.
    assert (scores[0] == scores[1]) == (name == "esol")
    masks = [contents(run.latest(Kind.MASKS, Split.TRAIN)) for run in (without, with_saliency)]
    assert masks[0].keys() == masks[1].keys()
    assert masks[0] != masks[1]


def test_settings_of_the_stage_on_masks_reach_it_and_the_search_measures_it(chimera, tmp_path):
    settings = {"Esol.saliency": "true", "SaliencyMasks.threshold": "0.5"}
    trial = Trial(dataset="chimera", method="esol", refiner="crf", settings=settings, measure_on="tune")
    plan = plan_trial(trial, chimera, WorkFolder(tmp_path), Machine())
    assert [type(stage).__name__ for stage in plan.chain.refine] == [
        "SelectThreshold",
        "CrfMasks",
        "SaliencyMasks",
    ]
    assert plan.chain.refine[-1] == SaliencyMasks(threshold=0.5)
    measured = next(step for step in plan.steps().values() if type(step.stage).__name__ == "MeasureMasks")
    assert type(measured.inputs[Kind.MASKS].stage) is SaliencyMasks
    with pytest.raises(ConfigError, match="unknown stage 'SaliencyMasks'"):
        build_chain(Trial(dataset="chimera", method="esol", settings={"SaliencyMasks.threshold": 0.5}), META)


@pytest.mark.slow
def test_ignored_pixels_go_through_measurements_and_the_segmentation_network(chimera, tmp_path):
    short = {"TrainEsolClassifier.epochs": 2, "Expand.epochs": 1, "Shrink.epochs": 1}
    settings = {"Esol.saliency": True, "TrainSegmentation.epochs": 1, **short}
    work = WorkFolder(tmp_path)
    result = run_trial(Trial(dataset="chimera", method="esol", settings=settings), chimera, work, Machine())
    description = read_run(work, result.run)
    assert description["supervision"] == "I+S"
    mask = decode_mask(work.store.path(description["artifacts"]["masks"]) / f"{chimera.ids(Split.TRAIN)[0]}.png")
    assert (mask == 255).any()
    levels = {record.level for record in read_records(result.folder / "records.parquet")}
    assert {"seed", "pseudo_mask", "segmentation"} <= levels


# Without maps, and with bad ones


@pytest.mark.parametrize("name", VARIANTS)
def test_data_without_saliency_maps_is_refused_before_anything_is_read_or_trained(name, tmp_path, monkeypatch):
    scenes = {f"i{n}": random_scene(n, 40, 56, (1 + n % 2,)) for n in range(4)}
    images, masks = ({i: scene[k] for i, scene in scenes.items()} for k in (0, 1))
    training = dict.fromkeys((Split.WEAK, Split.TUNE, Split.TRAIN), list(scenes)[:3])
    data: Dataset = FolderDataset(tmp_path / "data", images, masks, splits={**training, Split.VAL: ["i3"]})
    trial = Trial(dataset="mine", method=name, settings={f"{VARIANTS[name]}.saliency": True})
    monkeypatch.setattr(type(data), "digest", lambda *_: pytest.fail("the files were read"))
    with pytest.raises(
        ConfigError, match=rf"mine: {name} .*needs saliency maps.*--saliency DIR.*\[datasets\.mine\]"
    ):
        run_trial(trial, data, WorkFolder(tmp_path / "work"), Machine())
    assert not (tmp_path / "work").exists()


@pytest.mark.slow
def test_the_command_says_that_saliency_maps_are_needed(tmp_path):
    make_voc(tmp_path / "VOC2012")
    words = ("run", "--method", "icd", "--dataset", "voc2012", "--root", "VOC2012", "--set", "Icd.saliency=true")
    refused = seedbed(tmp_path, *words, check=False)
    assert refused.returncode == 1
    assert "voc2012: icd with these settings needs saliency maps" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.fixture
def own(chimera_root: Path, tmp_path: Path) -> Dataset:
    """Return the tiny Chimera with saliency maps of the test's own, in `tmp_path/maps`."""
    (tmp_path / "maps").mkdir()
    for path in (chimera_root / "Saliency").iterdir():
        (tmp_path / "maps" / path.name).write_bytes(path.read_bytes())
    return DATASET.open(chimera_root, saliency=tmp_path / "maps")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: Image.new("L", (64, 32)).save(path), "the saliency map is 64x32, its image 64x64 pixels"),
        (lambda path: path.write_bytes(path.read_bytes()[:300]), "broken or truncated picture"),
        (lambda path: Image.new("RGB", (64, 64)).save(path), "expected an 8-bit grey one"),
        (Path.unlink, "no such file"),
    ],
)
def test_a_bad_saliency_map_is_one_error_that_names_it(own, tmp_path, spoil, message):
    view = own.split(Split.TRAIN)
    masks = tmp_path / "masks"
    masks.mkdir()
    for image_id in view.ids:
        write_mask(masks / f"{image_id}.png", view.mask(image_id))
    path = tmp_path / "maps" / f"{view.ids[-1]}.png"
    spoil(path)
    with pytest.raises(DataError, match=rf"^{path}: .*{message}") as caught:
        SaliencyMasks().run(own, {Kind.MASKS: masks}, tmp_path, Context(0, Split.TRAIN, tmp_path, workers=2))
    assert len(str(caught.value).splitlines()) == 1


# How rows are marked


def test_a_sweep_marks_the_rows_of_the_variants_and_keeps_them_in_a_group_of_their_own(chimera_root, tmp_path):
    settings = {f"{name}.saliency": True for name in VARIANTS.values()} | {"TrainCam.epochs": 1}
    sweep = small(chimera_root, methods=["cam", *VARIANTS], settings=settings)
    scheduler = scheduler_of(sweep, tmp_path)
    wanted = {"cam": "I", **dict.fromkeys(VARIANTS, "I+S")}
    assert {cell.cell.method: cell.conditions["supervision"] for cell in scheduler.plan.cells} == wanted
    first = scheduler.next_trial()
    assert first is not None
    assert first.conditions["supervision"] == wanted[first.cell.method]
    table = table_of(list(ExpectedTrials.parse(scheduler.plan.description()).expected()))
    groups = {
        group.scope.supervision: {row.method for row in group.rows} for group in board_of(runs_of(table)).groups
    }
    assert groups == {"I": {"cam"}, "I+S": set(VARIANTS)}


def test_a_sweep_takes_settings_of_the_stages_that_the_variant_brings_in(chimera_root, tmp_path):
    settings = {"Esol.saliency": "true", "SaliencyMasks.threshold": 0.5}
    scheduler = scheduler_of(small(chimera_root, methods=["esol"], settings=settings), tmp_path)
    assert {cell.default.chain.refine[-1] for cell in scheduler.plan.cells} == {SaliencyMasks(threshold=0.5)}
    without = scheduler_of(
        small(chimera_root, methods=["esol"], settings={"SaliencyMasks.threshold": 0.5}), tmp_path
    )
    assert SaliencyMasks not in {type(cell.default.chain.refine[-1]) for cell in without.plan.cells}


def test_a_sweep_over_data_without_saliency_maps_is_refused(tmp_path):
    root = make_voc(tmp_path / "VOC2012")
    settings = {"Icd.saliency": True}
    with pytest.raises(ConfigError, match="voc2012: icd with these settings needs saliency maps"):
        scheduler_of(small(root, methods=["icd"], datasets=[f"voc2012={root}"], settings=settings), tmp_path)
