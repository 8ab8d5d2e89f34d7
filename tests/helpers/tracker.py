"""A small MLflow store in SQLite, with what a sweep writes into it."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from mlflow.entities import Metric
from mlflow.tracking import MlflowClient

from seedbed.benchmark.evaluation.scoring import MASK_SCHEMA
from tests.helpers.board_with_images import confusions
from tests.leaderboard.tables.test_leaderboard import make

TAGS = (
    *("method", "refiner", "dataset", "phase", "settings", "seed", "status", "device", "hardware"),
    *("code", "dirty", "data_digest", "recipe"),
)


@functools.cache
def _empty() -> bytes:
    """Return a database without runs: MLflow takes seconds to make one."""
    with tempfile.TemporaryDirectory() as folder:
        MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
        return Path(folder, "mlflow.db").read_bytes()


class Tracker:
    """A new MLflow store in SQLite, with what a sweep writes into it."""

    def __init__(self, folder: Path) -> None:
        self.database = folder / "mlflow.db"
        self.database.write_bytes(_empty())
        self.uri = f"sqlite:///{self.database}"
        self.client = MlflowClient(self.uri)
        self.experiment = self.client.create_experiment("seedbed", (folder / "artifacts").as_uri())

    def sweep(self, plan: dict) -> str:
        """Write the parent run of a sweep; return its id."""
        tags = {"seedbed.kind": "sweep", "seedbed.sweep": plan["name"], "mlflow.runName": plan["name"]}
        run = self.client.create_run(self.experiment, tags=tags).info.run_id
        self.client.log_dict(run, plan, "sweep.json")
        self.client.set_terminated(run)
        return run

    def trial(self, parent: str, tags: dict, metrics: dict) -> str:
        """Write one trial; return its id."""
        run = self.client.create_run(self.experiment, tags=tags | {"mlflow.parentRunId": parent}).info.run_id
        self.client.log_batch(run, metrics=[Metric(name, value, 0, 0) for name, value in metrics.items()])
        self.client.set_terminated(run)
        return run


def cells_of(matrices):
    """Return the rows that a trial leaves: the cells of each image's confusion matrix that are not zero."""
    rows = [
        {"id": f"image{n:03d}", "truth": t, "predicted": p, "pixels": int(matrix[t, p])}
        for n, matrix in enumerate(matrices)
        for t, p in zip(*np.nonzero(matrix), strict=True)
    ]
    return pa.Table.from_pylist([{**row, "truth": int(row["truth"])} for row in rows], MASK_SCHEMA)


def cell(method: str) -> dict:
    """Return a cell of a plan with the conditions that `make` gives a run."""
    run = make(method=method)
    own = {name: getattr(run, name) for name in ("method", "refiner", "dataset", "data_digest")}
    return {**own, **run.conditions, "tuning_masks": 40}


def record(tracker: Tracker, sweep: str, rows: dict, seeds=(0, 1, 2), without=()) -> None:
    """Write a sweep with a row for each skill; the runs `without` (by place) have no artifacts."""
    members = [(skill, run) for skill, row in rows.items() for run, _ in row]
    methods = sorted({run.method for _, run in members})
    plan = {"version": 1, "name": sweep, "trials": 0, "seeds": list(seeds), "cells": [cell(m) for m in methods]}
    parent = tracker.sweep(plan)
    for place, (skill, run) in enumerate(members):
        tags = {name: str(getattr(run, name)) for name in TAGS} | run.conditions
        tags |= {"seedbed.kind": "trial", "seedbed.sweep": sweep, "seedbed.key": f"{sweep}{place:03d}"}
        metrics = {name: value for name, value in run.metrics.items() if not name.startswith("stage/")}
        tracked = tracker.trial(parent, tags, metrics)
        if place not in without:
            path = tracker.database.with_name("segmentation.val.parquet")
            pq.write_table(cells_of(confusions(skill, run.seed)), path)
            tracker.client.log_artifact(tracked, str(path), "per_image")
