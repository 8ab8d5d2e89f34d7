"""Submitted and exported results: scored, written, read, refused if changed, and on a leaderboard with ours."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from seedbed.benchmark.cli.main import app
from seedbed.benchmark.errors import ConfigError, DataError
from seedbed.benchmark.evaluation.formats import PngMasks
from seedbed.benchmark.evaluation.records import records_of_mask_scores
from seedbed.benchmark.evaluation.scoring import score_masks
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.tracking.single_run import RunRecorder
from seedbed.datasets.base import Split
from seedbed.datasets.chimera import DATASET
from seedbed.datasets.io.images import decode_mask, write_mask
from seedbed.leaderboard.build import Sources, build
from seedbed.leaderboard.data.per_image import RunImages
from seedbed.leaderboard.data.result_file import SUFFIX, Result, read_result, statistics_of, write_result
from seedbed.leaderboard.data.snapshot import read_snapshot, runs_of
from seedbed.leaderboard.data.submission import LONGEST, Submission
from tests.helpers.board_with_images import confirmed
from tests.helpers.site_content import predict_nothing
from tests.helpers.sweeping import run_sweep_here, small
from tests.helpers.tracker import Tracker, record
from tests.leaderboard.tables.test_leaderboard import make

STATED = {
    "name": "Mine",
    "refiner": "none",
    "seed": 0,
    "supervision": "I",
    "backbone": "tiny",
    "initialisation": "none",
    "precision": "fp32",
    "crf": "none",
    "scales": "none",
    "selection": "none",
    "tuning_masks": 0,
    "paper": "Doe, 2026",
    "code": "https://example.org/mine",
}


@pytest.fixture(scope="module")
def saved(chimera_root, tmp_path_factory) -> Path:
    """Return folders of saved results of seeds 0, 1, 2: masks/SEED, val/SEED, and IRN's maps in irn/SEED."""
    data, folder = DATASET.open(chimera_root), tmp_path_factory.mktemp("saved")
    for seed in range(3):
        generator = np.random.default_rng(seed)
        places = {name: folder / name / str(seed) for name in ("masks", "val", "irn")}
        for place in places.values():
            place.mkdir(parents=True)
        for split, name in ((Split.TRAIN, "masks"), (Split.VAL, "val")):
            for image_id in data.ids(split):
                truth = decode_mask(data.mask_path(image_id))
                seen = generator.random(truth.shape) < 0.7
                write_mask(
                    places[name] / f"{image_id}.png", np.where((truth != 255) & seen, truth, 0).astype(np.uint8)
                )
        for image_id in data.ids(Split.TRAIN):
            truth, tags = decode_mask(data.mask_path(image_id)), np.array(data.tags(image_id))
            maps = np.where(truth == tags[:, None, None], 0.8, 0.1).astype(np.float32)
            maps *= generator.random(maps.shape, np.float32)
            np.save(places["irn"] / f"{image_id}.npy", {"keys": tags - 1, "high_res": maps}, allow_pickle=True)  # type: ignore[arg-type]
    return folder


def words(chimera_root: Path, work: Path, *more: object) -> list[str]:
    """Return the words of `seedbed submit`."""
    found = ["submit", "--dataset=chimera-voc", f"--root={chimera_root}", f"--work={work}", "--workers=0"]
    return [*found, *map(str, more)]


def submitted(work: Path) -> list[Result]:
    return [read_result(path) for path in sorted((work / "submitted").glob(f"*{SUFFIX}"))]


def run(*given: str) -> str:
    """Run a command of `seedbed`; return what it printed."""
    done = CliRunner().invoke(app, [*given], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def result(key: str = "k", **changes: Any) -> Result:
    """Return a result of two images of 4 × 4 pixels and the classes a, b."""
    counts = np.zeros((2, 3, 3), np.int64)
    counts[0] = [[8, 2, 0], [10, 6, 0], [12, 4, 0]]
    counts[1] = [[10, 0, 3], [10, 2, 4], [12, 0, 4]]
    images = RunImages.of(("i0", "i1"), counts)
    return Result.of(replace(make(**changes), key=key), ("a", "b"), {"val/mIoU": images})


# The numbers


def test_the_numbers_follow_from_the_counts():
    metrics = result().run.metrics
    # Background: 18 of 20 + 24 − 18; a: 2 of 8 + 4 − 2; b: 3 of 4 + 4 − 3.
    expected = {"background": 18 / 26, "a": 2 / 10, "b": 3 / 5}
    assert {name: metrics[f"val/IoU_{name}"] for name in expected} == pytest.approx(expected)
    assert metrics["val/mIoU"] == pytest.approx(sum(expected.values()) / 3)
    assert metrics["val/classes"] == 3


def test_the_numbers_are_those_of_the_protocol_to_the_last_bit(saved, chimera_root, tmp_path):
    data = DATASET.open(chimera_root)
    run(*words(chimera_root, tmp_path, "--name=Mine", "--split=val", f"--masks={saved}/val/0", "--tuning-masks=0"))
    (found,) = submitted(tmp_path)
    scores = score_masks(PngMasks(saved / "val/0"), data.split("val"))
    expected = {
        r.name: r.value for r in records_of_mask_scores(scores, data.classes, "segmentation", "val", "none")
    }
    assert dict(found.run.metrics) == expected


# The file


def test_a_result_comes_back_from_its_files(tmp_path):
    path = write_result(tmp_path, result())
    found = read_result(path)
    assert found.run == result().run
    assert found.classes == ("a", "b")
    assert (found.images["val/mIoU"].counts == result().images["val/mIoU"].counts).all()
    first = path.read_bytes(), statistics_of(path).read_bytes()
    write_result(tmp_path, found)
    assert (path.read_bytes(), statistics_of(path).read_bytes()) == first


def test_numbers_in_the_file_are_not_believed(tmp_path):
    made = result()
    better = replace(made, run=replace(made.run, metrics={"val/mIoU": 0.99}))
    assert read_result(write_result(tmp_path, better)).run.metrics == made.run.metrics


@pytest.mark.parametrize("field", ["method", "supervision"])
def test_a_changed_result_is_refused(field, tmp_path):
    path = write_result(tmp_path, result())
    content = json.loads(path.read_text())
    (content["run"] if field == "method" else content["run"]["conditions"])[field] = "other"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"\.seedbed\.json: was changed after it was written"):
        read_result(path)


def test_changed_statistics_are_refused(tmp_path):
    path = write_result(tmp_path, result())
    table = pq.read_table(statistics_of(path))
    pq.write_table(table.slice(1), statistics_of(path))
    with pytest.raises(DataError, match=r"\.parquet: not the file that belongs to .*\.seedbed\.json, or damaged"):
        read_result(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("", "not a result that"),
        ("[1]", "not a result that"),
        ('{"sha256": "", "seedbed_result": 9}', "a result of version 9, this Seedbed reads 1"),
    ],
)
def test_other_files_are_refused(content, message, tmp_path):
    path = tmp_path / f"x{SUFFIX}"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_result(path)


def test_a_file_of_the_pair_alone_is_refused(tmp_path):
    path = write_result(tmp_path, result())
    with pytest.raises(DataError, match=r"not a result; its name ends in \.seedbed\.json"):
        read_result(statistics_of(path))
    statistics_of(path).unlink()
    with pytest.raises(DataError, match=r"\.parquet: no such file; a result has two files"):
        read_result(path)


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": " "}, "give 1 to 80 printable characters"),
        ({"name": "x" * (LONGEST + 1)}, "give 1 to 80"),
        ({"name": "a\nb"}, "printable"),
        ({"name": "cam"}, "Seedbed has a method or reference of this name"),
        ({"tuning_masks": -1}, "give 0 or more"),
        ({"selection": "tuned"}, "--selection tuned needs true masks"),
    ],
)
def test_an_impossible_submission_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        Submission(**{**STATED, **changes})


def test_all_problems_are_listed_and_nothing_is_recorded(saved, chimera_root, tmp_path):
    data = DATASET.open(chimera_root)
    bad = tmp_path / "bad"
    bad.mkdir()
    first, second, third, *others = data.ids(Split.VAL)
    for image_id in others:
        (bad / f"{image_id}.png").write_bytes((saved / f"val/0/{image_id}.png").read_bytes())
    write_mask(bad / f"{second}.png", np.zeros((3, 5), np.uint8))
    write_mask(bad / f"{third}.png", np.full(data.split("val").size(third), 77, np.uint8))
    given = words(chimera_root, tmp_path, "--name=Mine", "--split=val", f"--masks={bad}", "--tuning-masks=0")
    with pytest.raises(DataError, match=r"3 of .* results cannot be scored") as raised:
        CliRunner().invoke(app, given, catch_exceptions=False)
    for part in (
        f"{first}.png: no such file",
        f"{second}: the result is 5x3",
        rf"{third}: the result has labels [77]",
    ):
        assert part in str(raised.value)
    assert not (tmp_path / "submitted").exists()
    assert not (tmp_path / "mlflow").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split=val"], "give one of --maps DIR and --masks DIR"),
        (["--split=val", "--maps=x"], "--split"),
        (["--split=test", "--masks=x"], "--split"),
        (["--split=val", "--masks=x", "--precision=fp8"], "--precision"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message, chimera_root, tmp_path):
    given = words(chimera_root, tmp_path, "--name=Mine", "--tuning-masks=0", *options)
    with pytest.raises(ConfigError, match=message):
        CliRunner().invoke(app, given, catch_exceptions=False)


# On the leaderboard


@pytest.fixture(scope="module")
def work(saved, chimera_root, tmp_path_factory) -> Path:
    """Return a work folder with two seeds of CAM, and three submitted seeds of masks and of IRN's maps."""
    folder = tmp_path_factory.mktemp("work")
    settings = small(chimera_root, refiners=["none"], trials=0, segment=False, precision="fp32")
    run_sweep_here(settings.resolved(), WorkFolder(folder))
    stated = ["--backbone=tiny", "--initialisation=none", "--crf=none", "--scales=none", "--paper=Doe, 2026"]
    for seed in range(3):
        masks = ["--name=Mine", "--split=train", f"--masks={saved}/masks/{seed}", f"--seed={seed}"]
        run(*words(chimera_root, folder, *masks, "--tuning-masks=0", *stated))
        maps = ["--name=IRN", "--split=train", f"--maps={saved}/irn/{seed}", f"--seed={seed}"]
        run(*words(chimera_root, folder, *maps, "--tuning-masks=7", *stated))
    return folder


def site_of(work: Path, out: Path, *published: Path) -> Path:
    """Build the leaderboard of the sweep."""
    from seedbed.benchmark.tracking.store import default_uri

    folder = WorkFolder(work)
    build(default_uri(folder), "small", out, Sources(folder, 0, predict_nothing), published)
    return out


def test_submitted_rows_stand_beside_ours(work, tmp_path):
    site = site_of(work, tmp_path / "site")
    text = (site / "leaderboard.md").read_text()
    (mine,) = [line for line in text.splitlines() if "| Mine | none | submitted |" in line]
    assert "Doe, 2026" in mine
    assert any("| cam | none | default |" in line for line in text.splitlines())
    page = next((site / "methods").glob("mine-*.html")).read_text()
    assert "Saved results of code outside Seedbed" in page
    first = page.partition('<div class="command">')[2].partition("</div>")[0]
    command = " ".join(re.findall(r"<span>(.*?)</span>", first))
    assert command.startswith(
        "seedbed submit --name Mine --dataset chimera-voc --root DIR --split train --masks DIR"
    )
    assert str(work) not in page
    assert [line.split(" | ")[2] for line in text.splitlines() if re.match(r"\| [12] \| [12] \| ", line)] == [
        "IRN",
        "Mine",
    ]
    pairs = csv.DictReader((site / "comparisons.csv").read_text().splitlines())
    assert {(pair["first_method"], pair["second_method"]) for pair in pairs} >= {("IRN", "Mine"), ("IRN", "cam")}


def test_maps_are_cut_by_the_protocol_and_say_how_many_masks_were_seen(work, chimera_root, saved):
    data = DATASET.open(chimera_root)
    irn, *_ = [found for found in submitted(work) if found.run.method == "IRN"]
    assert irn.run.conditions["tuning_masks"] == str(7 + len(data.ids(Split.TUNE)))
    assert irn.run.conditions["selection"] == "tuned"
    metrics = irn.run.metrics
    assert metrics["pseudo_mask.train/mIoU_tuned"] == metrics["seed.train/mIoU_tuned"]
    assert (
        metrics["seed.train/mIoU_oracle"]
        >= metrics["seed.train/mIoU_tuned"]
        > metrics["seed.train/mIoU_fixed"]
        > 0
    )


def test_a_submission_is_a_run_in_mlflow_once(saved, chimera_root, tmp_path):
    from mlflow import MlflowClient

    from seedbed.benchmark.tracking.store import EXPERIMENT, default_uri

    given = ["--name=Twice", "--split=train", f"--masks={saved}/masks/0", "--tuning-masks=0"]
    first = run(*words(chimera_root, tmp_path, *given))
    unstated = "the row has no rank without --backbone, --initialisation, --crf, --scales"
    assert unstated in first
    assert "replaces" not in first
    assert "replaces" in run(*words(chimera_root, tmp_path, *given))
    client = MlflowClient(default_uri(WorkFolder(tmp_path)))
    experiment = client.get_experiment_by_name(EXPERIMENT)
    (found,) = client.search_runs([experiment.experiment_id], "tags.method = 'Twice'")
    assert found.info.status == "FINISHED"
    assert found.data.tags["seedbed.kind"] == "result"
    assert found.data.metrics["pseudo_mask.train/mIoU"] > 0.3
    assert len(client.list_artifacts(found.info.run_id)) == 2


def test_masks_of_train_and_val_make_one_row(saved, chimera_root, tmp_path):
    for split, name, count in (("train", "masks", 5), ("val", "val", 0)):
        given = ["--name=Mine", f"--split={split}", f"--masks={saved}/{name}/0", f"--tuning-masks={count}"]
        run(*words(chimera_root, tmp_path, *given))
    (found,) = submitted(tmp_path)
    assert {*found.images} == {"pseudo_mask.train/mIoU", "val/mIoU"}
    assert found.run.conditions["tuning_masks"] == "5"
    assert found.run.command.count(" && ") == 1


def test_an_exported_trial_has_the_numbers_of_its_run(work, tmp_path):
    (trial, *_) = sorted((work / "sweeps/small/trials").iterdir())
    run("export", "result", trial.name, f"--out={tmp_path}", f"--work={work}")
    (path,) = tmp_path.glob(f"*{SUFFIX}")
    found = read_result(path)
    collected = read_snapshot(site_of(work, tmp_path / "site") / "results.parquet")
    (ours,) = [each for each in runs_of(collected) if each.key == trial.name]
    assert found.run.metrics
    assert {name: ours.metrics.get(name) for name in found.run.metrics} == found.run.metrics
    assert {"seed.train/mIoU_fixed", "pseudo_mask.train/mIoU_tuned"} <= found.run.metrics.keys()
    assert replace(found.run, metrics={}) == replace(ours, metrics={})


def test_the_result_of_another_group_joins_once_and_only_where_its_data_are(work, chimera_root, tmp_path):
    exported, theirs = tmp_path / "exported", tmp_path / "theirs"
    for trial in sorted((work / "sweeps/small/trials").iterdir()):
        run("export", "result", f"run:{trial.name}", f"--out={exported}", f"--work={work}")
    for path in sorted(exported.glob(f"*{SUFFIX}")):
        run("import", str(path), f"--work={theirs}")
    write_result(theirs / "submitted", result(dataset="elsewhere"))
    tracker = Tracker(tmp_path)
    record(tracker, "own", {0.5: confirmed(0.5, seeds=[0, 1], dataset="chimera-voc")}, [0, 1])
    build(tracker.uri, "own", tmp_path / "site", Sources(WorkFolder(theirs), 0, predict_nothing))
    joined = runs_of(read_snapshot(tmp_path / "site/results.parquet"))
    assert sorted({each.sweep for each in joined}) == ["own", "small"]
    # Here they are known already.
    again = runs_of(
        read_snapshot(site_of(work, tmp_path / "again", *exported.glob(f"*{SUFFIX}")) / "results.parquet")
    )
    assert len({each.key for each in again}) == len(again) == 2 + 3 + 3


@pytest.fixture
def single(chimera_root, tmp_path, monkeypatch):
    """Return a function that gives `seedbed run` in a new work folder and returns the folder of its trial."""
    monkeypatch.setenv("SEEDBED_TRACK", "1")
    monkeypatch.setattr(RunRecorder, "_deliver", lambda *_: None)

    def trial(*more: str) -> Path:
        given = ["--dataset=chimera-voc", f"--root={chimera_root}", "--no-segment", "--workers=0", "--device=cpu"]
        before = {*tmp_path.glob("single/runs/*")}
        run("run", *given, f"--work={tmp_path}/single", "--set=TrainCam.epochs=1", *more)
        (folder,) = {*tmp_path.glob("single/runs/*")} - before
        return folder

    return trial


def test_a_single_run_is_exported_and_stands_on_a_leaderboard(work, single, tmp_path):
    out = tmp_path / "out"
    for seed in range(2):
        run(
            "export", "result", f"run:{single(f'--seed={seed}').name}", f"--out={out}", f"--work={tmp_path}/single"
        )
    paths = sorted(out.glob(f"*{SUFFIX}"))
    found = [read_result(path).run for path in paths]
    assert [(each.sweep, each.settings, each.seed) for each in found] == [
        ("seedbed run", "given", n) for n in (0, 1)
    ]
    assert {"seed.train/mIoU_fixed", "pseudo_mask.train/mIoU_tuned"} <= found[0].metrics.keys()
    text = (site_of(work, tmp_path / "site", *paths) / "leaderboard.md").read_text()
    (row,) = [line for line in text.splitlines() if line.startswith("|") and "| given |" in line]
    assert "| 0, 1 |" in row
    # Another setting is another row, which has no place of its own: it is refused by the name of its stage.
    other = single("--seed=2", "--set=InferCam.flip=false")
    run("export", "result", other.name, f"--out={out}", f"--work={tmp_path}/single")
    with pytest.raises(DataError, match=r"the trials .* of 'seedbed run' have different settings of InferCam"):
        site_of(work, tmp_path / "both", *out.glob(f"*{SUFFIX}"))


def test_a_run_that_was_not_recorded_is_not_exported(single, tmp_path):
    folder = single("--no-track")
    with pytest.raises(ConfigError, match="give its command again without --no-track"):
        run("export", "result", folder.name, f"--out={tmp_path}", f"--work={tmp_path}/single")


def test_a_site_is_built_again_when_a_result_is_submitted(work, tmp_path, caplog):
    site = site_of(work, tmp_path / "site")
    first = (site / "results.parquet").read_bytes()
    site_of(work, site)
    assert (site / "results.parquet").read_bytes() == first
    path = write_result(WorkFolder(work).submitted, result(dataset="chimera-voc", method="late"))
    try:
        assert "late" in (site_of(work, site) / "leaderboard.md").read_text()
    finally:
        statistics_of(path).unlink()
        path.unlink()


def test_what_cannot_be_exported_is_told(work, tmp_path):
    with pytest.raises(ConfigError, match=r"no trial 'x' among 2 that ended"):
        CliRunner().invoke(
            app, ["export", "result", "x", f"--out={tmp_path}", f"--work={work}"], catch_exceptions=False
        )
