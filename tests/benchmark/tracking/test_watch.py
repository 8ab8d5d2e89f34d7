"""`seedbed watch`: the state of a sweep, from files alone."""

from __future__ import annotations

import json
import time

import pytest
from filelock import FileLock

from seedbed.benchmark.files import write_text
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.sweeps.trial_files import BEGUN, RUNNING, SYSTEM
from seedbed.benchmark.trials.progress_log import PROGRESS, append_line
from tests.helpers.command_line import seedbed
from tests.helpers.sweeping import end, scheduler_of, small


@pytest.fixture
def scheduler(chimera_root, tmp_path):
    """Return the scheduler of a sweep of two cells that has just started."""
    settings = small(chimera_root, trials=2, seeds=[0])
    scheduler = scheduler_of(settings, WorkFolder(tmp_path).root)
    settings.save(scheduler.plan.folder / "sweep.yaml")
    write_text(scheduler.plan.folder / "sweep.json", json.dumps(scheduler.plan.description()))
    return scheduler


def watch(tmp_path) -> list[str]:
    return seedbed(tmp_path, "watch", "small", "--work", tmp_path).stdout.splitlines()


def begin(scheduler):
    """Begin the next trial: two of four epochs done, ten seconds each."""
    folder = scheduler.folder(scheduler.next_trial())
    lock, now = FileLock(folder / RUNNING), time.time()
    lock.acquire()
    (folder / BEGUN).touch()
    append_line(folder / PROGRESS, {"time": now - 21, "stages": 5, "anew": True})
    stage = {"stage": "TrainCam", "split": "weak", "epochs": 4, "training": "TrainCam"}
    append_line(folder / PROGRESS, {"time": now - 20, **stage})
    for epoch in (1, 2):
        line = {"training": "TrainCam", "epoch": epoch, "losses": {"classification": 0.5}}
        append_line(folder / PROGRESS, {"time": now - 20 + 10 * epoch, **line})
    append_line(folder / SYSTEM, {"time": now, "system/cpu_utilization_percentage": 97.4})
    return folder, lock


def test_cells_trials_time_failures_and_delivery_are_shown(scheduler, tmp_path):
    end(scheduler, scheduler.next_trial(), 0.25)
    failing = scheduler.next_trial()
    end(scheduler, failing, None, status="failed", reason="TrainCam: the loss is nan")
    (scheduler.folder(failing) / "delivered.json").write_text("{}")
    running, lock = begin(scheduler)
    lines = watch(tmp_path)
    assert lines[0].startswith("sweep small: 2 of 8 trials ended, 1 failed; no driver runs it; continue with: ")
    assert lines[1] == "MLflow: 1 of 2 delivered; the others: seedbed sync"
    rows = {line.split("  ")[0]: line.split()[-4:] for line in lines if line.startswith("cam ×")}
    cells = [rows[f"cam × {refiner} × chimera-voc"] for refiner in ("none", "crf")]
    assert sorted(["0/2" in row or "1/2" in row for row in cells]) == [True, True]
    assert any(row[-1] == "25.00" for row in cells)
    (row,) = (line for line in lines if "stage 1 of 5: TrainCam on weak, epoch 2 of 4" in line)
    assert "training: 20 s left" in row or "training: 19 s left" in row
    assert row.endswith("CPU 97 %")
    assert any("1 failed: TrainCam: the loss is nan" in line for line in lines)
    with FileLock(scheduler.plan.folder / "driver.lock"):
        assert watch(tmp_path)[0].endswith("a driver runs it")
    lock.release()
    (row,) = (line for line in watch(tmp_path) if "was interrupted" in line)
    assert "in stage 1 of 5: TrainCam on weak, epoch 2 of 4" in row
    assert running.exists()


def test_an_unknown_sweep_names_those_there_are_and_a_damaged_one_its_remedy(scheduler, tmp_path):
    done = seedbed(tmp_path, "watch", "smal", "--work", tmp_path, check=False)
    assert "no sweep 'smal'. Valid: small" in done.stderr
    (scheduler.plan.folder / "sweep.json").write_text("{")
    done = seedbed(tmp_path, "watch", "small", "--work", tmp_path, check=False)
    assert "`seedbed sweep --resume small` writes it again" in done.stderr
