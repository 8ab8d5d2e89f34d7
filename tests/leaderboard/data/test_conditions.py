"""A setting that is declared as a condition arrives everywhere: MLflow, `sweep.json`, the snapshot, the tables."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest

from seedbed.benchmark.evaluation.records import Record, write_records
from seedbed.benchmark.files import write_text
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.sweeps.trial_files import TrialSpec, read_spec
from seedbed.benchmark.tracking.store import default_uri
from seedbed.benchmark.tracking.sync import sync
from seedbed.leaderboard.analysis.ranking import board_of
from seedbed.leaderboard.build import write_leaderboard
from seedbed.leaderboard.data.collect import SweepReader, collect
from seedbed.leaderboard.data.conditions import CONDITIONS, RANK_NEEDS, column_names, shown
from seedbed.leaderboard.data.snapshot import read_snapshot, runs_of, schema_of, table_of, write_snapshot
from seedbed.methods.cam import TrainCam
from tests.helpers.sweeping import end, scheduler_of, small
from tests.leaderboard.tables.test_leaderboard import line, make, only_group

RESULT = Record("segmentation", "val", "mIoU", "none", None, 0.5, 7)


@pytest.fixture
def reported(monkeypatch):
    """Declare `TrainCam.epochs` with `report_as="training_epochs"`."""
    field = TrainCam.__dataclass_fields__["epochs"]
    declaration = replace(field.metadata["hp"], report_as="training_epochs")
    monkeypatch.setattr(field, "metadata", {"hp": declaration})


@pytest.fixture
def recorded(reported, chimera_root, tmp_path):
    """Return the work folder of a sweep of CAM that has ended, but for its last seed, and is in MLflow."""
    settings = {"refiners": ["none"], "trials": 0, "seeds": [0, 1, 2], "settings": {"TrainCam.epochs": 7}}
    scheduler = scheduler_of(small(chimera_root, **settings), tmp_path)
    for _ in range(2):
        spec = scheduler.next_trial()
        write_records(scheduler.folder(spec) / "records.parquet", [RESULT])
        end(scheduler, spec)
    description = {**scheduler.plan.description(), "expected": 3, "code": "abc"}
    write_text(scheduler.plan.folder / "sweep.json", json.dumps(description))
    assert sync(WorkFolder(tmp_path), None) == (2, 0)
    return WorkFolder(tmp_path)


def test_a_new_condition_is_in_mlflow_in_the_snapshot_and_a_column(recorded, tmp_path):
    uri = default_uri(recorded)
    assert {run.tags["training_epochs"] for run in SweepReader(uri).trials("small")} == {"7"}
    table = collect(uri, "small")
    assert table["training_epochs"].unique().to_pylist() == ["7"]
    assert [run.status for run in runs_of(table)] == ["complete", "complete", "missing"]
    write_snapshot(tmp_path / "results.parquet", table)
    assert read_snapshot(tmp_path / "results.parquet").equals(table)
    write_leaderboard(table, tmp_path / "site")
    (row,) = csv.DictReader((tmp_path / "site/leaderboard.csv").open(newline=""))
    assert row["training_epochs"] == "7"
    text = (tmp_path / "site/leaderboard.md").read_text("utf-8")
    heading, values = (next(line for line in text.splitlines() if word in line) for word in ("| # |", "| cam |"))
    assert dict(zip(heading.split(" | "), values.split(" | "), strict=True))["Training epochs"] == "7"
    assert "- **Training epochs**: the setting `training_epochs`" in text
    for name in ("index.html", "leaderboard.tex"):
        assert "Training epochs" in (tmp_path / "site" / name).read_text("utf-8")


def test_a_trial_of_an_earlier_version_has_its_facts_as_conditions(reported, chimera_root, tmp_path):
    """They had the cell among them, and the digest of the data."""
    scheduler = scheduler_of(small(chimera_root, refiners=["none"]), tmp_path)
    spec = scheduler.next_trial()
    content = json.loads(spec.to_json())
    assert content["facts"]["training_epochs"] == "1"
    cell = {"method": "cam", "refiner": "none", "dataset": "d", "variant": "", "data_digest": "x", "segment": True}
    content["facts"] = cell | {name: spec.conditions[name] for name in CONDITIONS}
    earlier = TrialSpec.from_json(json.dumps(content))
    assert earlier.conditions == {name: spec.conditions[name] for name in CONDITIONS}
    write_text(scheduler.folder(spec) / "job.json", json.dumps(content))
    assert read_spec(scheduler.folder(spec)) == earlier


def test_the_conditions_of_a_trial_by_hand(chimera_root, tmp_path):
    settings = {"InferCam.scales": [1.0, 0.5], "CrfMasks.preset": "psa", "PredictMasks.scales": [2.0]}
    more = {"segmentation_backbone": "resnet50", "segmentation_weights": "none", "refiners": ["crf", "none"]}
    plan = scheduler_of(small(chimera_root, settings=settings, precision="fp32", **more), tmp_path).plan
    crf, none = (cell.conditions for cell in plan.cells)
    assert crf == {
        "supervision": "I",
        "backbone": "tiny",
        "initialisation": "none",
        "segmentation_backbone": "resnet50",
        "segmentation_initialisation": "none",
        "precision": "fp32",
        "crf_preset": "psa",
        "multi_scale": "1,0.5",
        "segmentation": "deeplab",
        "selection": "tuned",
        "tuning_masks": crf["tuning_masks"],
    }
    assert none == crf | {"crf_preset": "none"}
    described = plan.cells[0].description()
    assert [*described][:4] == ["method", "refiner", "dataset", "variant"]
    assert [*described][-3:] == ["data_digest", "segment", "trials"]


def test_an_oracles_threshold_counts_the_masks_of_train(chimera_root, chimera, tmp_path):
    tuned = small(chimera_root, refiners=["none"])
    oracle = small(chimera_root, refiners=["none"], settings={"SelectThreshold.selection": "oracle"})
    (found,) = (cell.conditions for cell in scheduler_of(oracle, tmp_path).plan.cells)
    assert (found["selection"], found["tuning_masks"]) == ("oracle", len(chimera.ids("train")))
    (found,) = (cell.conditions for cell in scheduler_of(tuned, tmp_path).plan.cells)
    assert (found["selection"], found["tuning_masks"]) == ("tuned", len(chimera.ids("tune")))


# The leaderboard


def test_a_condition_that_only_some_runs_have_is_no_bar_to_a_rank():
    group = only_group(*line(0.5, 0.5, 0.5), *line(0.6, 0.6, 0.6, method="b", noise="half"))
    assert {row.method: (row.rank, row.conditions["noise"]) for row in group.rows} == {
        "b": (1, "half"),
        "cam": (2, "–"),
    }


def test_seeds_that_differ_in_a_new_condition_are_not_one_number():
    group = only_group(make(0.5, noise="half"), *line(0.5, 0.5, 0.5, noise="single")[1:])
    assert group.rows[0].bars == ("its seeds differ in noise: half, single",)


def test_runs_with_and_without_a_condition_are_the_same_after_the_snapshot():
    runs = [*line(0.6, 0.6, 0.6, method="b", noise="half"), *line(0.5, 0.5, 0.5)]
    table = table_of(runs)
    assert table.schema.equals(schema_of(["noise"]))
    assert runs_of(table) == runs
    assert runs_of(table_of(runs[3:])) == runs[3:]
    assert "noise" not in table_of(runs[3:]).column_names
    assert len(board_of(runs_of(table)).groups) == 1


def test_titles():
    assert shown("crf_preset").title == "CRF"
    assert shown("training_images").title == "Training images"
    assert column_names(["noise", *CONDITIONS, "amount"]) == [*RANK_NEEDS, "amount", "noise"]
