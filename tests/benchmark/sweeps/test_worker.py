"""One trial of a sweep, run in this process: what it leaves, and how it ends when something goes wrong."""

from __future__ import annotations

import errno
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from seedbed.benchmark.evaluation.records import read_records
from seedbed.benchmark.pipeline.remote.cached_store import CachedStore, StoreLocation
from seedbed.benchmark.pipeline.store import Store
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.sweeps import worker
from seedbed.benchmark.sweeps.trial_files import BEGUN, read_outcome, read_spec
from seedbed.benchmark.sweeps.worker import reason_of, run_sweep_trial
from seedbed.benchmark.trials import progress_log
from seedbed.benchmark.trials.progress_log import PROGRESS, curves, read_lines, read_progress
from tests.helpers.sweeping import scheduler_of, small


@pytest.fixture(scope="module")
def started(chimera_root, tmp_path_factory):
    """Return a scheduler, its work folder, and the first search and confirming trial of CAM with a CRF."""
    work = WorkFolder(tmp_path_factory.mktemp("work"))
    scheduler = scheduler_of(small(chimera_root, refiners=["crf"], trials=1, seeds=[0]), work.root)
    search = scheduler.next_trial()
    outcome = run_sweep_trial(search, work, "cpu", 0)
    scheduler.finish(outcome)
    confirm = scheduler.next_trial()
    return work, scheduler, search, confirm


def test_a_search_trial_measures_the_pseudo_masks_on_tune(started):
    _, scheduler, search, _ = started
    outcome = read_outcome(scheduler.folder(search))
    records = read_records(scheduler.folder(search) / "records.parquet")
    assert {(r.level, r.split) for r in records} == {("pseudo_mask", "tune")}
    miou = next(r.value for r in records if r.metric == "mIoU")
    assert outcome.status == "complete"
    assert outcome.objective == miou
    assert not (scheduler.folder(search) / "examples.png").exists()


def test_another_node_takes_everything_from_the_object_store(started, tmp_path):
    work, scheduler, search, _ = started
    address = f"file://{tmp_path}/objects"
    assert CachedStore(work.root / "store", address).push() > 0
    other = WorkFolder(tmp_path / "other", StoreLocation(address, str(tmp_path / "cache")))
    outcome = run_sweep_trial(search, other, "cpu", 0)
    assert (outcome.status, outcome.computed) == ("complete", 0.0)
    here, there = scheduler.folder(search), other.sweeps / search.sweep / "trials" / search.key
    for file in ("losses.json", "per_class.csv", "records.parquet"):
        assert (there / file).read_bytes() == (here / file).read_bytes(), file
    assert json.loads((there / "losses.json").read_text())["TrainCam"]
    assert outcome.stages == read_outcome(here).stages
    assert not (other.root / "store").exists()


def test_a_confirming_trial_leaves_all_that_the_tracker_shows(started):
    work, scheduler, _, confirm = started
    outcome = run_sweep_trial(confirm, work, "cpu", 0)
    folder = scheduler.folder(confirm)
    assert outcome.status == "complete", outcome.reason
    names = {record.name for record in read_records(folder / "records.parquet")}
    for name in ("seed.train/mIoU_fixed", "seed.train/mIoU_tuned", "seed.train/mIoU_oracle", "val/mIoU"):
        assert name in names
    assert {"seed.train/msoft_overlap", "pseudo_mask.train/mIoU_tuned", "pseudo_mask.tune/mIoU_tuned"} <= names
    for file in (
        "job.json",
        "config.json",
        "per_class.csv",
        "examples.png",
        "losses.json",
        "progress.jsonl",
        "system.jsonl",
        "log.txt",
    ):
        assert (folder / file).stat().st_size > 0, file
    assert read_spec(folder).to_json() == confirm.to_json()
    images = pq.read_table(folder / "per_image" / "segmentation.val.parquet")
    assert images.num_rows > 0
    assert (folder / "per_image" / "seed.train.parquet").exists()
    assert (folder / "per_image" / "seed_soft.train.parquet").exists()
    assert (folder / "per_image" / "pseudo_mask.train_tuned.parquet").exists()
    losses = json.loads((folder / "losses.json").read_text())
    assert [sorted(losses[stage][0]) for stage in ("TrainCam", "TrainSegmentation")] == [
        ["classification"],
        ["cross_entropy"],
    ]
    header, *rows = (folder / "per_class.csv").read_text().splitlines()
    assert header.startswith("level,split,selection,class,IoU")
    assert any(row.startswith("segmentation,val,none,background,") for row in rows)
    progress = read_progress(folder)
    for stage, history in losses.items():
        assert [epoch.losses for epoch in progress.history[stage]] == history
        assert all(progress.started <= epoch.time <= outcome.finished for epoch in progress.history[stage])
    assert progress.number == progress.planned == len(progress.stages) > 5
    (sample, *_) = read_lines(folder / "system.jsonl")
    assert sample["system/system_memory_usage_percentage"] > 0
    assert outcome.started <= sample["time"] <= outcome.finished


def test_stages_are_listed_with_their_seconds_whoever_computed_them(started):
    work, scheduler, _, confirm = started
    first = run_sweep_trial(confirm, work, "cpu", 0)
    (scheduler.folder(confirm) / "result.json").unlink()
    again = run_sweep_trial(confirm, work, "cpu", 0)
    assert again.stages == first.stages
    assert len(again.stages) > 10
    assert first.computed > 0
    assert again.computed == 0


def test_a_worker_marks_a_trial_before_it_does_anything_else(started, monkeypatch):
    """Only the death of a worker that had begun is counted."""
    work, scheduler, search, _ = started
    spec = spec_like(search, 89, **{"TrainCam.weight_decay": 0.006})

    def die(*_):
        assert (scheduler.folder(spec) / BEGUN).exists()
        raise SystemExit

    monkeypatch.setattr(worker, "_run", die)
    with pytest.raises(SystemExit):
        run_sweep_trial(spec, work, "cpu", 0)


def test_what_ended_is_not_run_again(started, monkeypatch):
    work, scheduler, search, _ = started
    monkeypatch.setattr(worker, "plan_trial", lambda *_: pytest.fail("it ran again"))
    assert run_sweep_trial(search, work, "cpu", 0) == read_outcome(scheduler.folder(search))


def spec_like(spec, number, **changes):
    return replace(spec, number=number, trial=replace(spec.trial, settings={**spec.trial.settings, **changes}))


def test_a_nan_ends_the_trial_as_failed_with_its_reason(started, monkeypatch):
    work, _, search, _ = started
    monkeypatch.setattr(
        "seedbed.methods.cam.multi_label_soft_margin",
        lambda logits, tags: logits.sum() * float("nan") + tags.sum(),
    )
    outcome = run_sweep_trial(spec_like(search, 90, **{"TrainCam.weight_decay": 0.001}), work, "cpu", 0)
    assert outcome.status == "failed"
    assert "TrainCam: the loss 'classification' is nan in epoch 1, step 1" in outcome.reason
    assert outcome.objective is None


def test_a_crash_and_a_full_disk_end_the_trial_as_failed(started, monkeypatch):
    work, scheduler, search, _ = started

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Store, "_compute", full)
    outcome = run_sweep_trial(spec_like(search, 91, **{"TrainCam.weight_decay": 0.003}), work, "cpu", 0)
    assert outcome.status == "failed"
    assert "cannot write (No space left on device)" in outcome.reason

    def crash(*_):
        raise ZeroDivisionError("division by zero\nand more")

    monkeypatch.setattr(Store, "_compute", crash)
    spec = spec_like(search, 92, **{"TrainCam.weight_decay": 0.004})
    outcome = run_sweep_trial(spec, work, "cpu", 0)
    assert outcome.reason == "ZeroDivisionError: division by zero"
    assert "Traceback" in (scheduler.folder(spec) / "error.txt").read_text()


def test_a_disk_too_full_for_the_result_still_gives_an_outcome(started, monkeypatch):
    work, scheduler, search, _ = started

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(worker, "write_outcome", full)
    monkeypatch.setattr(worker, "write_text", full)
    spec = spec_like(search, 98, **{"TrainCam.weight_decay": 0.005})
    outcome = run_sweep_trial(spec, work, "cpu", 0)
    assert outcome.status == "complete"
    assert read_outcome(scheduler.folder(spec)) is None


def test_impossible_settings_end_the_trial_as_failed(started):
    work, _, search, _ = started
    outcome = run_sweep_trial(spec_like(search, 93, **{"TrainCam.stride": 7}), work, "cpu", 0)
    assert outcome.status == "failed"
    assert "TrainCam.stride" in outcome.reason


RIVALS = [[0.01] * 6, [0.02] * 6, [0.03] * 6]


def test_a_trial_worse_than_its_rivals_is_stopped_inside_its_first_training(started):
    work, _, search, _ = started
    spec = replace(spec_like(search, 94, **{"TrainCam.epochs": 6}), rivals=RIVALS)
    outcome = run_sweep_trial(spec, work, "cpu", 0)
    assert outcome.status == "pruned"
    assert "above the median" in outcome.reason
    assert len(outcome.losses) == 2
    assert outcome.objective is None


def test_a_training_from_the_store_is_judged_as_if_it_had_run_now(started):
    """So that a sweep which is resumed, or finds another sweep's training, decides the same."""
    work, _, search, _ = started
    settings = {"TrainCam.epochs": 6, "TrainCam.weight_decay": 0.002}
    fresh = run_sweep_trial(replace(spec_like(search, 95, **settings), rivals=RIVALS), work, "cpu", 0)
    whole = run_sweep_trial(spec_like(search, 96, **settings), work, "cpu", 0)
    assert len(whole.losses) == 6
    found = run_sweep_trial(replace(spec_like(search, 97, **settings), rivals=RIVALS), work, "cpu", 0)
    assert (found.status, found.reason, found.losses) == (fresh.status, fresh.reason, fresh.losses)
    assert found.losses == whole.losses[:2]


def test_losses_of_a_stage_that_occurs_again_have_names_of_their_own(tmp_path):
    class Step:
        def __init__(self, stage):
            self.stage = stage

    class TrainSub:
        from seedbed.benchmark.pipeline.stage import Kind

        produces = Kind.CHECKPOINT

    class TrialPlan:
        work = WorkFolder(tmp_path)

        def steps(self):
            return {"aa1": Step(TrainSub()), "aa2": Step(TrainSub())}

    for key in ("aa1", "aa2"):
        folder = tmp_path / "store" / "entries" / "aa" / key
        folder.mkdir(parents=True)
        (folder / "training.json").write_text(json.dumps({"history": [{"loss": float(key[-1])}]}))
    assert curves(TrialPlan()) == {"TrainSub": [{"loss": 1.0}], "TrainSub_2": [{"loss": 2.0}]}


def test_a_killed_trial_continues_its_log_and_writes_no_epoch_twice(started, monkeypatch):
    """What MLflow shows of the trial goes on where it stopped, with the times of then."""
    work, scheduler, search, _ = started
    spec = spec_like(search, 88, **{"TrainCam.epochs": 4, "TrainCam.weight_decay": 0.007})
    folder = scheduler.folder(spec)

    class Killed(BaseException):
        """Ends the worker as a kill does: nothing catches it."""

    append = progress_log.append_line

    def append_until_the_second_epoch(path, content):
        append(path, content)
        if content.get("epoch") == 2:
            raise Killed

    monkeypatch.setattr(progress_log, "append_line", append_until_the_second_epoch)
    with pytest.raises(Killed):
        run_sweep_trial(spec, work, "cpu", 0)
    before = read_progress(folder)
    assert str(before) == f"stage 1 of {before.planned}: TrainCam on weak, epoch 2 of 4"
    config = json.loads((folder / "config.json").read_text())
    assert {stage["stage"] for stage in config["stages"]} >= {"TrainCam", "CrfMasks"}
    monkeypatch.undo()
    with (folder / PROGRESS).open("a") as log:
        log.write('{"time": 1, "training": "TrainC')  # Cut off in the middle of a line.
    assert run_sweep_trial(spec, work, "cpu", 0).status == "complete"
    after = read_progress(folder)
    assert after.started == before.started
    assert after.history["TrainCam"][:2] == before.history["TrainCam"]
    assert [epoch.losses for epoch in after.history["TrainCam"]] == json.loads(
        (folder / "losses.json").read_text()
    )["TrainCam"]
    lines = [line for line in read_lines(folder / PROGRESS) if "epoch" in line]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]


def test_a_worker_does_not_know_mlflow_or_ray():
    """The trap: a new SQLite store that several processes touch at once fails in all of them.

    Nor does it import torchvision, which takes longer than torch, unless the backbone is one of torchvision's.
    """
    program = (
        "import sys, seedbed.benchmark.sweeps.worker\n"
        "print([m for m in ('mlflow', 'ray', 'torchvision') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_reasons_are_one_line():
    assert reason_of(ValueError("a\nb")) == "ValueError: a"
    assert reason_of(MemoryError()).startswith("memory ran out (MemoryError); give a smaller batch")
    loader = (
        "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File\n"
    )
    assert reason_of(ValueError(loader + "ValueError: it is broken\n")) == "ValueError: it is broken"
    assert reason_of(RuntimeError("Error(s) in loading:\n\tMissing key")) == (
        "RuntimeError: Error(s) in loading: Missing key"
    )
    assert len(reason_of(ValueError("x" * 9999))) == 500
    assert math.isfinite(len(reason_of(KeyError("x"))))
    assert Path(worker.__file__).name == "worker.py"
