"""Reading MLflow's SQLite file gives what MLflow's client gives, and its state changes with its content."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow.entities import Metric
from mlflow.tracking import MlflowClient

from seedbed.benchmark.errors import ConfigError
from seedbed.leaderboard.data import client_store, sqlite_store
from seedbed.leaderboard.data.client_store import ClientStore, TrackedRun
from seedbed.leaderboard.data.collect import SweepReader
from seedbed.leaderboard.data.sqlite_store import SqliteStore
from tests.helpers.tracker import Tracker

TRIAL = {"seedbed.kind": "trial", "seedbed.sweep": "o'ne"}
SEARCHES = (
    TRIAL,
    {"seedbed.kind": "sweep"},
    {**TRIAL, "phase": "confirm"},
    {"seedbed.kind": "trial", "seedbed.sweep": "two"},
    {"seedbed.kind": "trial", "seedbed.sweep": "TWO"},
)
METRICS = {"val/mIoU": 0.1 + 0.2, "nan": float("nan"), "inf": float("inf"), "less": -float("inf"), "loss": 1e-300}
FILE = "per_image/segmentation.val.parquet"


@dataclass
class Filled:
    """A store with two sweeps, and the ids of its runs by their keys."""

    tracker: Tracker
    runs: dict[str, str]

    @property
    def database(self) -> Path:
        return self.tracker.database

    def state(self) -> str | None:
        return SweepReader(self.tracker.uri).state(["o'ne"])

    def create(self, key: str, experiment: str | None = None, start: int = 5, **tags: str) -> str:
        named = {**TRIAL, "seedbed.key": key, "phase": "confirm", "text": "ä 'quoted' \"twice\"\n%_"}
        named |= {"seedbed.sweep": tags.pop("sweep", "o'ne"), **tags}
        run = self.tracker.client.create_run(experiment or self.tracker.experiment, start, named).info.run_id
        # The value at the latest step counts, whatever the order of logging.
        steps = [Metric("val/mIoU", 0.9, 0, 1), Metric("val/mIoU", 0.5, 0, 3), Metric("val/mIoU", 0.7, 0, 2)]
        others = [Metric(name, value, 0, 5) for name, value in METRICS.items()]
        self.tracker.client.log_batch(run, metrics=steps if key == "steps" else others)
        self.runs[key] = run
        return run


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Filled:
    """Return a store with two sweeps; most of its runs started at the same time."""
    filled = Filled(Tracker(tmp_path_factory.mktemp("mlflow")), {})
    for name in ("o'ne", "two"):
        filled.tracker.sweep({"version": 1, "name": name, "trials": 0, "seeds": [0], "cells": []})
    for number in range(4):
        filled.create(f"{number}")
    filled.create("steps", start=9)
    filled.create("search", start=7, phase="search")
    filled.create("other", sweep="two")
    client = filled.tracker.client
    client.log_param(filled.runs["0"], "lr", "0.1")
    empty = client.create_run(filled.tracker.experiment, 1, TRIAL).info.run_id
    client.delete_tag(empty, "seedbed.sweep")
    client.set_tag(empty, "seedbed.sweep", "o'ne")
    path = filled.database.with_name("segmentation.val.parquet")
    path.write_text("statistics")
    client.log_artifact(filled.runs["0"], str(path), "per_image")
    return filled


def plain(runs: list[TrackedRun]) -> list[object]:
    """Return runs as values that can be compared: a NaN is like another."""
    named = [(run, {name: repr(value) for name, value in run.metrics.items()}) for run in runs]
    return [(run.id, run.tags, metrics) for run, metrics in named]


def check(filled: Filled) -> None:
    """Check that both ways of reading give the same runs in the same order."""
    uri = filled.tracker.uri
    slow, fast = ClientStore(uri), SqliteStore(uri, filled.database)
    for tags in SEARCHES:
        assert plain(list(fast.search(tags))) == plain(list(slow.search(tags)))


def test_both_ways_of_reading_give_the_same_and_change_nothing(filled, monkeypatch):
    before = {path.name: path.read_bytes() for path in filled.database.parent.iterdir() if path.is_file()}
    check(filled)
    found = list(SqliteStore(filled.tracker.uri, filled.database).search(TRIAL))
    assert [run.tags.get("seedbed.key") for run in found[:2]] == ["steps", "search"]
    assert found[0].metrics == {"val/mIoU": 0.5}
    assert len(found) == 7
    monkeypatch.setattr(client_store, "PAGE", 2)
    check(filled)
    assert {p.name: p.read_bytes() for p in filled.database.parent.iterdir() if p.is_file()} == before


def in_another_experiment(filled: Filled) -> None:
    filled.create("elsewhere", filled.tracker.client.create_experiment("another"))


def artifact(filled: Filled) -> Path:
    return filled.database.parent / "artifacts" / filled.runs["0"] / "artifacts" / FILE


CHANGES: dict[str, Callable[[Filled, MlflowClient, dict[str, str]], object]] = {
    "deleted": lambda _, client, runs: client.delete_run(runs["1"]),
    "restored": lambda _, client, runs: client.restore_run(runs["1"]),
    "delivered again": lambda filled, client, runs: filled.create("2"),
    "tagged anew": lambda _, client, runs: client.set_tag(runs["3"], "status", "failed"),
    "tag deleted": lambda _, client, runs: client.delete_tag(runs["3"], "text"),
    "in another sweep": lambda _, client, runs: client.set_tag(runs["3"], "seedbed.sweep", "two"),
    "measured again": lambda _, client, runs: client.log_metric(runs["0"], "val/mIoU", 0.6, step=9),
    "not a number": lambda _, client, runs: client.log_metric(runs["0"], "val/mIoU", float("nan"), step=10),
    "another experiment": lambda filled, client, runs: in_another_experiment(filled),
    "another artifact": lambda filled, client, runs: artifact(filled).write_text("statistic2"),
    "the artifact is gone": lambda filled, client, runs: artifact(filled).unlink(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_changes_the_state_and_both_ways_of_reading_see_it(filled, change):
    before = filled.state()
    assert before == filled.state() is not None
    change(filled, filled.tracker.client, filled.runs)
    assert filled.state() not in (before, None)
    check(filled)


def test_other_sweeps_and_another_file_are_another_state(filled, tmp_path):
    reader = SweepReader(filled.tracker.uri)
    named = (["o'ne"], ["two"], ["o'ne", "two"], ["unknown"], ["nor this"])
    assert len({reader.state(sweeps) for sweeps in named}) == len(named)
    database = Path(shutil.copy2(filled.database, tmp_path / "mlflow.db"))
    store, before = SqliteStore("", database), SqliteStore("", database).state([])
    shutil.copy2(database, tmp_path / "copy.db")
    assert store.state([]) == before
    (tmp_path / "copy.db").replace(database)
    assert store.state([]) != before


def test_a_write_that_keeps_size_and_times_of_the_file_is_another_state(filled, tmp_path, monkeypatch):
    """The file's times have the resolution of the kernel's clock."""
    database = Path(shutil.copy2(filled.database, tmp_path / "mlflow.db"))
    status = database.stat()
    monkeypatch.setattr(sqlite_store.os, "fstat", lambda file: status)
    before = SqliteStore("", database).state([])
    execute(database, "update tags set value = 'failee' where key = 'status'")
    assert SqliteStore("", database).state([]) != before


def execute(database: Path, query: str) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(query)


def test_with_a_write_ahead_log_or_artifacts_elsewhere_only_reading_tells(filled, tmp_path):
    runs = plain(list(SqliteStore("", filled.database).search(TRIAL)))
    for query in ("pragma journal_mode = wal", "update runs set artifact_uri = 's3://bucket/run'"):
        database = Path(shutil.copy2(filled.database, tmp_path / "mlflow.db"))
        assert SweepReader(f"sqlite:///{database}").state(["o'ne"]) is not None
        execute(database, query)
        assert SweepReader(f"sqlite:///{database}").state(["o'ne"]) is None
        assert plain(list(SqliteStore("", database).search(TRIAL))) == runs


def test_an_artifact_is_beside_the_database_or_where_mlflow_recorded_it(filled, tmp_path, monkeypatch):
    run, database = filled.runs["search"], Path(shutil.copy2(filled.database, tmp_path / "mlflow.db"))
    store = SqliteStore("", database)
    recorded = filled.database.parent / "artifacts" / run / "artifacts" / "a b%.txt"
    with pytest.raises(OSError, match="no such file"):
        store.file(run, recorded.name, tmp_path)
    recorded.parent.mkdir(parents=True)
    recorded.write_text("there")
    assert store.file(run, recorded.name, tmp_path) == recorded
    beside = tmp_path / "artifacts" / run / "artifacts" / recorded.name
    beside.parent.mkdir(parents=True)
    beside.write_text("here")
    assert store.file(run, recorded.name, tmp_path) == beside
    execute(database, "update runs set artifact_uri = 's3://bucket/run'")
    assert store.file(run, recorded.name, tmp_path) == beside
    # Anything else is a matter for MLflow's client; here it reads the original.
    monkeypatch.setattr(sqlite_store, "ClientStore", lambda uri: ClientStore(filled.tracker.uri))
    beside.unlink()
    assert store.file(run, recorded.name, tmp_path).read_text() == "there"
    with pytest.raises(OSError, match="other"):
        store.file(run, "other.txt", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no database" * 100, "Move the file away; `seedbed sync --all`"),
        (b"", "cannot be used: no such table: experiments"),
    ],
)
def test_a_file_that_is_something_else_is_refused_and_kept(tmp_path, content, message):
    path = tmp_path / "mlflow.db"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        SqliteStore(f"sqlite:///{path}", path)
    assert (path.read_bytes(), [*tmp_path.iterdir()]) == (content, [path])


def test_a_store_of_other_experiments_has_no_sweep(filled, tmp_path):
    database = Path(shutil.copy2(filled.database, tmp_path / "mlflow.db"))
    execute(database, "update experiments set name = 'other' where name = 'seedbed'")
    with pytest.raises(ConfigError, match="no sweep was recorded here"):
        SqliteStore("", database)
