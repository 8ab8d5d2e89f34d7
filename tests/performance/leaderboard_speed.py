"""What a leaderboard of 10,000 runs costs. Run: python -m tests.performance.leaderboard_speed

Fills an MLflow store in SQLite with runs of 40 metrics, 25 parameters and the tags of a sweep, the confirming ones
with statistics of 200 images. Then times `seedbed.leaderboard.build`: into a new folder, again without a change,
and again after one run was tagged anew; and collecting, by MLflow's client and from the SQLite file.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy
from mlflow.tracking import MlflowClient

from seedbed.leaderboard.build import build
from seedbed.leaderboard.data.client_store import ClientStore
from seedbed.leaderboard.data.collect import collect
from seedbed.leaderboard.data.sqlite_store import SqliteStore
from tests.helpers.measurement import Row, print_table

METHODS = ("cam", "splitting_merging", "icd", "rrm", "esol", "mixup_cam", "sc_cam")
REFINERS = ("none", "crf", "irn")
DATASETS = {"voc2012": 20, "chimera": 8}
SEEDS, RUNS, METRICS, PARAMS, IMAGES = (0, 1, 2), 10_000, 40, 25, 200
TRIALS = RUNS // (len(METHODS) * len(REFINERS) * len(DATASETS)) - 2 * len(SEEDS)


def cells() -> list[dict[str, Any]]:
    """Return every method with every refiner on every data set."""
    conditions = {"supervision": "I", "backbone": "resnet50", "initialisation": "imagenet", "crf_preset": "irn"}
    conditions |= {"multi_scale": "0.5,1.0", "segmentation": "deeplab", "data_digest": "d"}
    return [
        {"method": method, "refiner": refiner, "dataset": dataset, "tuning_masks": 293} | conditions
        for method, refiner, dataset in itertools.product(METHODS, REFINERS, DATASETS)
    ]


def trials(cell: dict[str, Any]) -> list[dict[str, str]]:
    """Return the tags of all trials of a cell."""
    search = [("search", "suggested" if number else "default", str(number), "0") for number in range(TRIALS)]
    confirm = [("confirm", settings, "", str(seed)) for settings in ("default", "best") for seed in SEEDS]
    names = ("phase", "settings", "number", "seed")
    fixed = {name: str(value) for name, value in cell.items()}
    fixed |= {
        "seedbed.kind": "trial",
        "seedbed.sweep": "speed",
        "selection": "tuned",
        "code": "abc",
        "dirty": "false",
    }
    fixed |= {"device": "cuda", "hardware": "GPU", "status": "complete", "reason": "", "mlflow.runName": "trial"}
    found = []
    for place in search + confirm:
        key = f"{cell['dataset']}/{cell['method']}/{cell['refiner']}/{'/'.join(place)}"
        stages = {uuid.uuid5(uuid.NAMESPACE_OID, f"{key}{i}").hex[:12]: 100.0 + i for i in range(6)}
        found.append(
            {**fixed, **dict(zip(names, place, strict=True)), "seedbed.key": key, "stages": json.dumps(stages)}
        )
    return found


def metrics(dataset: str, index: int) -> dict[str, float]:
    """Return 40 metrics of a run."""
    value = 0.4 + 0.2 * ((index * 7919) % 1000) / 1000
    seeds = ("mIoU_fixed", "mIoU_tuned", "mIoU_oracle", "msoft_overlap", "msoft_precision", "msoft_recall")
    names = [f"seed.train/{name}" for name in seeds]
    names += ["pseudo_mask.train/mIoU_tuned", "pseudo_mask.tune/mIoU_tuned", "val/mIoU", "TrainCam/classification"]
    names += [f"val/IoU_class{i}" for i in range(DATASETS[dataset])]
    names += [f"pseudo_mask.train/IoU_class{i}_tuned" for i in range(METRICS - len(names))]
    return dict.fromkeys(names, value)


def fill(uri: str, artifacts: Path) -> int:
    """Write the sweep by bulk insertion, which is far faster than logging; return the number of trials."""
    client = MlflowClient(uri)
    experiment = client.create_experiment("seedbed", artifacts.as_uri())
    parent = client.create_run(experiment, tags={"seedbed.kind": "sweep", "seedbed.sweep": "speed"}).info.run_id
    plan = {"version": 1, "name": "speed", "trials": TRIALS, "seeds": list(SEEDS), "cells": cells()}
    client.log_dict(parent, plan, "sweep.json")
    described = {"experiment_id": int(experiment), "lifecycle_stage": "active", "status": "FINISHED"}
    described |= {"user_id": "", "start_time": 0}
    rows: dict[str, list[dict[str, Any]]] = {"runs": [], "tags": [], "params": [], "latest_metrics": []}
    for cell in cells():
        for tags in trials(cell):
            run = {"run_uuid": uuid.uuid4().hex}
            place = {"artifact_uri": f"{artifacts.as_uri()}/{run['run_uuid']}/artifacts"}
            rows["runs"].append(run | described | place)
            rows["tags"] += [run | {"key": key, "value": value} for key, value in tags.items()]
            rows["params"] += [run | {"key": f"Stage.field{i}", "value": "0.1"} for i in range(PARAMS)]
            common = {"timestamp": 0, "step": 0, "is_nan": False}
            named = metrics(cell["dataset"], len(rows["runs"])).items()
            rows["latest_metrics"] += [run | {"key": key, "value": value} | common for key, value in named]
    engine = sqlalchemy.create_engine(uri)
    tables = sqlalchemy.MetaData()
    tables.reflect(engine, only=list(rows))
    with engine.begin() as connection:
        for name, lines in rows.items():
            connection.execute(tables.tables[name].insert(), lines)
    return len(rows["runs"])


def write_images(artifacts: Path, store: SqliteStore) -> None:
    """Write the statistics of images of all confirming runs.

    Their mIoU is not the recorded one, so a build reads them and does not resample them.
    """
    chance = np.random.default_rng(0)
    for run in store.search({"phase": "confirm"}):
        folder = artifacts / run.id / "artifacts" / "per_image"
        folder.mkdir(parents=True)
        cells = {"id": np.repeat([f"image{n:04d}" for n in range(IMAGES)], 4)}
        cells |= {"truth": np.tile(np.array([0, 0, 1, 1], np.uint8), IMAGES)}
        cells |= {"predicted": np.tile(np.array([0, 1, 0, 1], np.uint8), IMAGES)}
        cells |= {"pixels": chance.integers(1, 9999, 4 * IMAGES)}
        pq.write_table(pa.table(cells), folder / "segmentation.val.parquet")


def seconds(task: Callable[[], object], repeats: int = 1) -> float:
    """Return the least CPU seconds of some calls."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        task()
        found.append(time.process_time() - start)
    return min(found)


def rows() -> Iterator[Row]:
    """Measure builds against the first one, and the two ways of collecting."""
    with tempfile.TemporaryDirectory() as folder:
        database, site = Path(folder, "mlflow.db"), Path(folder, "site")
        uri = f"sqlite:///{database}"
        count = fill(uri, Path(folder, "artifacts"))
        store = SqliteStore(uri, database)
        write_images(Path(folder, "artifacts"), store)
        first = seconds(lambda: build(uri, "speed", site))
        unchanged = seconds(lambda: build(uri, "speed", site), repeats=3)
        reference = f"first build of {count:,} runs"
        yield Row("Leaderboard, built again without a change", "s", unchanged, reference, first, goal=1 / 0.15)
        MlflowClient(uri).set_tag(next(store.search({"phase": "confirm"})).id, "hardware", "another GPU")
        tagged = seconds(lambda: build(uri, "speed", site))
        yield Row("Leaderboard, built after one run was tagged anew", "s", tagged, reference, first)
        by_file = seconds(lambda: collect(uri, "speed"))
        with patch("seedbed.leaderboard.data.collect.SqliteStore", lambda uri, database: ClientStore(uri)):
            by_client = seconds(lambda: collect(uri, "speed"))
        yield Row("Collecting the leaderboard's runs from SQLite", "s", by_file, "MLflow's client", by_client)


if __name__ == "__main__":
    print_table({"leaderboard_speed": rows})
