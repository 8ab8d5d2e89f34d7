"""What a leaderboard of 10,000 runs costs. Run: python -m tests.performance.leaderboard_speed

Fills an MLflow store in SQLite with runs of 40 metrics, 25 parameters and the tags of a sweep, then times the two
halves of `seedbed.leaderboard.build`: collecting from MLflow, and the tables from the snapshot.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import sqlalchemy
from mlflow.tracking import MlflowClient

from seedbed.leaderboard.build import write_leaderboard
from seedbed.leaderboard.data.collect import collect

METHODS = ("cam", "splitting_merging", "icd", "rrm", "esol", "mixup_cam", "sc_cam")
REFINERS = ("none", "crf", "irn")
DATASETS = {"voc2012": 20, "chimera": 8}
SEEDS, RUNS, METRICS, PARAMS = (0, 1, 2), 10_000, 40, 25
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
    described |= {"user_id": "", "start_time": 0, "artifact_uri": ""}
    rows: dict[str, list[dict[str, Any]]] = {"runs": [], "tags": [], "params": [], "latest_metrics": []}
    for cell in cells():
        for tags in trials(cell):
            run = {"run_uuid": uuid.uuid4().hex}
            rows["runs"].append(run | described)
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


def main() -> None:
    """Print the seconds of filling, collecting and writing, and the size of the snapshot."""
    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{folder}/mlflow.db"
        start = time.perf_counter()
        runs = fill(uri, Path(folder) / "artifacts")
        filled = time.perf_counter()
        table = collect(uri, "speed")
        collected = time.perf_counter()
        paths = write_leaderboard(table, Path(folder) / "leaderboard").paths
        written = time.perf_counter()
        print(f"{runs} runs of {METRICS} metrics; the store took {filled - start:.1f} s to fill")
        print(f"collect  {collected - filled:6.2f} s  ({table.num_rows} rows)")
        print(f"tables   {written - collected:6.2f} s  ({paths[0].stat().st_size / 1e6:.2f} MB of snapshot)")


if __name__ == "__main__":
    main()
