"""What a sweep costs beyond the work of its trials: `python -m tests.performance.sweep_overhead`

Trials that only choose another threshold on a tiny Chimera are as good as nothing to do, so nearly all of the wall
time is Ray Tune, Optuna, the files of a trial and MLflow. The clock runs from the end of the second trial (workers
have started, libraries are loaded) to the last record in MLflow. Two trials run at a time.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.sweeps.driver import run_sweep
from seedbed.benchmark.sweeps.settings import settings_of
from seedbed.benchmark.tracking.uploader import MlflowUploader
from seedbed.datasets.chimera import generate
from tests.helpers.measurement import Row, print_table

TRIALS = 60


def rows() -> Iterator[Row]:
    """Run the sweep, and measure its wall time against the trials' own."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        generate(root / "data", layout="voc", images=48, size=64, seed=0)
        settings = settings_of(
            {
                "name": "overhead",
                "datasets": [f"chimera-voc={root / 'data'}"],
                "refiners": ["none"],
                "trials": TRIALS,
                "window": 8,
                "seeds": [0],
                "segment": False,
                "references": False,
                "tune": ["threshold"],
                "settings": {"TrainCam.epochs": 1},
            }
        )
        work = WorkFolder(root / "work")
        result = run_sweep(settings, work, [MlflowUploader(None, work)])
        ended = time.time()
        outcomes = [json.loads(path.read_text()) for path in result.folder.glob("trials/*/result.json")]
    outcomes.sort(key=lambda outcome: outcome["finished"])
    count = len(outcomes) - 2
    wall = (ended - outcomes[1]["finished"]) / count
    own = sum(outcome["finished"] - outcome["started"] for outcome in outcomes[2:]) / 2 / count
    yield Row("A trial of a sweep, by the wall clock", "s", wall, "half the trial's own work", own)


if __name__ == "__main__":
    print_table({"sweep_overhead": rows})
