"""Adding a metric of counted pixels: three files of a copy of the packages are edited, and nothing else.

The metric must then be measured, tracked in MLflow, and shown on the leaderboard with an interval.
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
F2 = '    "F2": lambda both, truth, predicted: (5 * both, 4 * truth + predicted),\n'
MEASURE = """    Measure(
        "val_F2",
        "Segmentation",
        "val F2",
        "the F score of the same network that weighs recall twice as much as precision",
        (RecordName("segmentation", "val", "mF2"),),
    ),
"""
EDITS = {
    # What it is.
    "benchmark/evaluation/metrics.py": [
        (
            '    "F": lambda both, truth, predicted: (2 * both, truth + predicted),\n',
            '    "F": lambda both, truth, predicted: (2 * both, truth + predicted),\n' + F2,
        )
    ],
    # Results in the store lack it: they are measured again.
    "benchmark/evaluation/stages.py": [
        (
            "    version = 1\n    consumes = (Kind.SCORES, Kind.THRESHOLD)",
            "    version = 2\n    consumes = (Kind.SCORES, Kind.THRESHOLD)",
        ),
        ("    version = 1\n    consumes = (Kind.MASKS,)", "    version = 2\n    consumes = (Kind.MASKS,)"),
    ],
    # How it is shown.
    "leaderboard/analysis/ranking.py": [
        ("        records.VAL,\n    ),\n", "        records.VAL,\n    ),\n" + MEASURE),
    ],
}
SCRIPT = """
import json, sys
from pathlib import Path
import numpy as np
from seedbed.benchmark.evaluation.records import read_records
from seedbed.benchmark.evaluation.stages import MeasureMasks
from seedbed.benchmark.pipeline.stage import Context, Kind
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.progress import Reporter
from seedbed.benchmark.sweeps.trial_files import write_text
from seedbed.benchmark.tracking.delivery import sync
from seedbed.benchmark.tracking.mlflow_store import default_uri
from seedbed.datasets.base import Split
from seedbed.datasets.chimera import DATASET, generate
from seedbed.datasets.io.images import write_mask
from seedbed.leaderboard.build import build
from tests.helpers.sweeping import end, scheduler_of, small

folder = Path(sys.argv[1])
generate(folder / "voc", layout="voc", images=24, size=48)
data = DATASET.open(folder / "voc")
view = data.split(Split.VAL)
scheduler = scheduler_of(small(folder / "voc", refiners=["none"], trials=0, seeds=[0, 1, 2]), folder / "work")
while (spec := scheduler.next_trial()) is not None:
    generator, trial = np.random.default_rng(spec.trial.seed), scheduler.folder(spec)
    masks = trial / "masks"
    masks.mkdir()
    for image_id in view.ids:
        # A tenth of the pixels become background.
        truth = view.mask(image_id)
        write_mask(masks / f"{image_id}.png", np.where(generator.random(truth.shape) < 0.1, 0, truth))
    context = Context(spec.trial.seed, Split.VAL, trial)
    MeasureMasks(level="segmentation").run(data, {Kind.MASKS: masks}, trial, context)
    (trial / "per_image").mkdir()
    (trial / "per_image.parquet").rename(trial / "per_image" / "segmentation.val.parquet")
    end(scheduler, spec)
write_text(scheduler.plan.folder / "sweep.json", json.dumps({**scheduler.plan.description(), "code": "abc"}))
work = WorkFolder(folder / "work")
sync(work, None, Reporter())
build(default_uri(work), "small", folder / "site")
from seedbed.leaderboard.data.collect import Store
(run, *_) = Store(default_uri(work)).trials("small")
print(json.dumps({name: value for name, value in run.data.metrics.items() if "F2" in name}))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> tuple[Path, str]:
    """Return the leaderboard that an edited copy of the packages makes, and the metrics of a run in MLflow."""
    folder = tmp_path_factory.mktemp("copy")
    for package in ("benchmark", "datasets", "leaderboard", "methods", "tests"):
        shutil.copytree(CHECKOUT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "seedbed.py"):
        shutil.copy(CHECKOUT / name, folder)
    for name, edits in EDITS.items():
        text = (folder / name).read_text("utf-8")
        for before, after in edits:
            assert text.count(before) == 1, (name, before)
            text = text.replace(before, after)
        (folder / name).write_text(text, "utf-8")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "SEEDBED_"))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / "site", done.stdout


def test_at_most_three_files_are_edited():
    assert len(EDITS) <= 3


def test_the_metric_is_measured_and_tracked(site):
    *_, metrics = site[1].splitlines()
    assert '"val/mF2": 0.9' in metrics
    assert '"val/F2_background": 0.9' in metrics


def test_the_leaderboard_shows_it_with_an_interval(site):
    (row,) = csv.DictReader((site[0] / "leaderboard.csv").open(newline=""))
    low, mean, high = (float(row[f"val_F2_{what}"]) for what in ("low", "mean", "high"))
    assert 0.9 < low < mean < high < 1
    text = (site[0] / "leaderboard.md").read_text("utf-8")
    assert f"| {100 * mean:.2f} ± " in text
    assert f"| {100 * low:.2f} … {100 * high:.2f} |" in text
    assert "- **val F2 95 %**: 95 % interval of the number before it" in text
    assert r"val F2 95 \%" in (site[0] / "leaderboard.tex").read_text("utf-8")
    assert "val F2" in (site[0] / "index.html").read_text("utf-8")
