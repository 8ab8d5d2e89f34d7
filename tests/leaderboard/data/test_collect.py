"""Collecting from a real MLflow store in SQLite."""

from __future__ import annotations

import json

import pytest

from seedbed.benchmark.errors import ConfigError, DataError
from seedbed.leaderboard.build import build, write_leaderboard
from seedbed.leaderboard.data.collect import collect, is_record, run_of
from seedbed.leaderboard.data.expected import ExpectedTrials
from seedbed.leaderboard.data.snapshot import read_snapshot, runs_of, table_of
from tests.golden.test_leaderboard_golden import GOLDEN, PLAN, TABLES, runs, tracked, without_figures
from tests.helpers.tracker import Tracker


def empty_plan(name: str) -> dict:
    """Return a plan without cells."""
    return {"version": 1, "name": name, "trials": 0, "seeds": [0], "cells": []}


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    """Return a store with the golden sweep and a few broken ones."""
    tracker = Tracker(tmp_path_factory.mktemp("mlflow"))
    parent = tracker.sweep(PLAN)
    for tags, metrics in tracked():
        tracker.trial(
            parent, tags, metrics | {"TrainCam/classification": 0.1, "cost/computed_seconds": 3.0, "epoch": 1.0}
        )
    tags, _ = tracked()[0]
    parent = tracker.sweep(empty_plan("bob's"))
    tracker.trial(parent, tags | {"seedbed.sweep": "bob's"}, {})
    parent = tracker.sweep(empty_plan("twice"))
    for _ in range(2):
        tracker.trial(parent, tags | {"seedbed.sweep": "twice"}, {})
    tracker.sweep(empty_plan("namesakes"))
    tracker.sweep(empty_plan("namesakes"))
    tracker.sweep(empty_plan("empty"))
    return tracker


def test_everything_arrives_and_losses_do_not(tracker):
    assert runs_of(collect(tracker.uri, "golden")) == runs_of(table_of(runs()))


def test_a_trial_that_runs_or_was_killed_is_no_run_yet(tracker):
    """Its losses and tags are in MLflow from its first second."""
    tags, _ = tracked()[0]
    running = {name: text for name, text in tags.items() if name not in ("status", "reason", "stages")}
    running |= {"seedbed.kind": "trial", "seedbed.sweep": "golden", "seedbed.key": "running"}
    ids = [tracker.client.create_run(tracker.experiment, tags=running).info.run_id for _ in range(2)]
    tracker.client.log_metric(ids[0], "TrainCam/classification", 0.5)
    tracker.client.set_terminated(ids[1], "KILLED")
    assert runs_of(collect(tracker.uri, "golden")) == runs_of(table_of(runs()))
    for run in ids:
        tracker.client.delete_run(run)


def test_what_is_collected_gives_the_recorded_tables(tracker, tmp_path):
    write_leaderboard(collect(tracker.uri, "golden"), tmp_path)
    for name in TABLES:
        assert without_figures(tmp_path / name) == (GOLDEN / name).read_bytes()


def test_build_writes_the_statistics_of_images_too_and_says_which_rows_have_none(tracker, tmp_path):
    paths = build(tracker.uri, "golden", tmp_path).paths
    assert [path.name for path in paths][: 1 + len(TABLES)] == ["results.parquet", *TABLES]
    assert tmp_path / "per_image.parquet" in paths
    assert (tmp_path / "leaderboard.csv").read_bytes() == (GOLDEN / "leaderboard.csv").read_bytes()
    assert "MLflow does not have its artifact per_image/" in (tmp_path / "leaderboard.md").read_text("utf-8")


def test_a_sweep_of_variants_is_no_leaderboard(tracker):
    cells = [{**cell, "variant": "beta=3"} for cell in PLAN["cells"]]
    tracker.sweep({**empty_plan("study"), "cells": cells})
    with pytest.raises(ConfigError, match="the sweep 'study' is of variants, or a study: `seedbed study`"):
        collect(tracker.uri, "study")


def test_several_sweeps_make_one_leaderboard(tracker, tmp_path):
    tags, metrics = tracked()[0]
    parent = tracker.sweep(empty_plan("o'ther"))
    own = {"seedbed.sweep": "o'ther", "seedbed.key": "other", "method": "other"}
    tracker.trial(parent, tags | own, metrics)
    paths = build(tracker.uri, ["golden", "o'ther"], tmp_path).paths
    sweeps = {run.sweep for run in runs_of(read_snapshot(paths[0]))}
    assert sweeps == {"golden", "o'ther"}
    assert "golden, o&#39;ther" in (tmp_path / "index.html").read_text("utf-8")


def test_a_name_with_a_quote_is_a_name(tracker):
    assert collect(tracker.uri, "bob's").num_rows > 0


def test_a_sweep_without_cells_and_runs_is_an_empty_leaderboard(tracker, tmp_path):
    build(tracker.uri, "empty", tmp_path)
    assert "Nothing has been measured yet." in (tmp_path / "leaderboard.md").read_text()


def test_an_unknown_sweep_names_the_sweeps_there_are(tracker):
    with pytest.raises(ConfigError, match=r"unknown sweep 'goldn'\. Did you mean 'golden'\? Valid: bob's, empty"):
        collect(tracker.uri, "goldn")


def test_two_runs_of_one_trial_are_refused(tracker):
    with pytest.raises(DataError, match="more than one run of the trial chimera/cam/none/search/default/0/0"):
        collect(tracker.uri, "twice")


def test_two_sweeps_of_one_name_are_refused(tracker):
    with pytest.raises(DataError, match="2 sweeps are named 'namesakes'"):
        collect(tracker.uri, "namesakes")


def test_a_plan_that_is_gone_is_a_data_error(tracker):
    run = tracker.client.create_run(
        tracker.experiment, tags={"seedbed.kind": "sweep", "seedbed.sweep": "planless"}
    )
    with pytest.raises(DataError, match=r"the plan of sweep 'planless', its artifact sweep\.json"):
        collect(tracker.uri, "planless")
    tracker.client.delete_run(run.info.run_id)


def test_a_store_without_sweeps_and_a_file_that_is_not_there(tmp_path):
    missing = tmp_path / "none.db"
    with pytest.raises(ConfigError, match="no such file"):
        collect(f"sqlite:///{missing}", "golden")
    assert not missing.exists()


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("seed.train/mIoU_tuned", True),
        ("val/IoU_traffic light", True),
        ("TrainCam/classification", False),
        ("system/cpu_utilization", False),
        ("cost/computed_seconds", False),
        ("epoch", False),
    ],
)
def test_what_a_record_is(name, record):
    assert is_record(name) is record


def test_what_was_drawn_and_the_command_are_those_of_the_tags():
    tags, _ = tracked()[0]
    told = {"parameters": '{"A.b": 1}', "space": '{"A.b": {}}', "command": "seedbed run --set A.b=1"}
    run = run_of(tags | told, {}, ExpectedTrials.parse(PLAN))
    assert {name: getattr(run, name) for name in told} == told
    assert (run_of(tags, {}, ExpectedTrials.parse(PLAN)).command, run.seed) == ("", int(tags["seed"]))


def test_broken_tags_are_named():
    plan = ExpectedTrials.parse(PLAN)
    tags, _ = tracked()[0]
    for broken in ({"seed": "x"}, {"stages": "["}, {"stages": json.dumps({"a": None})}, {"tuning_masks": "all"}):
        with pytest.raises(DataError, match=r"trial 'chimera/cam.*' of sweep 'golden' has tags"):
            run_of(tags | broken, {}, plan)
