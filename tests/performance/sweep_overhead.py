"""What a sweep costs beyond the work of its trials: `python -m tests.performance.sweep_overhead [trials]`.

Trials that only choose another threshold on a tiny Chimera are as good as nothing to do, so nearly all of the wall
time is Ray Tune, Optuna, the files of a trial and MLflow. The clock runs from the end of the second trial (workers
have started, libraries are loaded) to the last record in MLflow.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.sweeps.driver import run_sweep
from seedbed.benchmark.sweeps.settings import settings_of
from seedbed.benchmark.tracking.uploader import MlflowUploader
from seedbed.datasets.chimera import generate


def main() -> None:
    """Run the sweep and print what it cost."""
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        generate(root / "data", layout="voc", images=48, size=64, seed=0)
        settings = settings_of(
            {
                "name": "overhead",
                "datasets": [f"chimera-voc={root / 'data'}"],
                "refiners": ["none"],
                "trials": trials,
                "window": 8,
                "seeds": [0],
                "segment": False,
                "tune": ["threshold"],
                "settings": {"TrainCam.epochs": 1},
            }
        )
        work = WorkFolder(root / "work")
        uploader = MlflowUploader(None, work)
        result = run_sweep(settings, work, [uploader])
        ended = time.time()
        outcomes = [json.loads(p.read_text()) for p in result.folder.glob("trials/*/result.json")]
        outcomes.sort(key=lambda outcome: outcome["finished"])
        wall = ended - outcomes[1]["finished"]
        own = sum(outcome["finished"] - outcome["started"] for outcome in outcomes[2:])
        count = len(outcomes) - 2
        print(f"{count} trials after the first two: {wall:.1f} s of wall time, {wall / count:.3f} s a trial")
        print(f"own work {own:.1f} s, {own / count:.3f} s a trial; two ran at a time")
        print(f"beyond their own work: {(wall - own / 2) / count:.3f} s a trial, not uploaded {uploader.left}")


if __name__ == "__main__":
    main()
