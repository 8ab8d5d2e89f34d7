"""`seedbed run` in MLflow: by default, with the names of a sweep's trials, once, and ended whatever happens."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType

from seedbed.benchmark.pipeline.stage import Machine
from seedbed.benchmark.pipeline.work_folder import DatasetSpec, WorkFolder
from seedbed.benchmark.sweeps.trial_files import is_running, read_outcome, read_spec
from seedbed.benchmark.tracking.follow import follow
from seedbed.benchmark.tracking.single_run import RunRecorder
from seedbed.benchmark.tracking.store import EXPERIMENT, default_uri
from seedbed.benchmark.tracking.sync import sync
from seedbed.benchmark.trials.plan import TrialPlan
from seedbed.benchmark.trials.progress_log import read_progress
from seedbed.benchmark.trials.run import run_trial
from seedbed.benchmark.trials.trial import Trial
from tests.helpers.command_line import seedbed

TINY = ["--no-segment", "--workers", "0", "--device", "cpu", "--set", "InferCam.scales=1.0"]


def runs_of(work: WorkFolder):
    client = MlflowClient(default_uri(work))
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return []
    return list(client.search_runs([experiment.experiment_id], "", ViewType.ALL))


@pytest.fixture
def deliveries(monkeypatch):
    """Return the folders that were given to a process for delivery; none is started."""
    given: list[Path] = []
    monkeypatch.setattr(RunRecorder, "_deliver", lambda _, folder: given.append(folder))
    return given


def run(root: Path, work: WorkFolder, data):
    """Run a tiny trial as the command does."""
    settings = {"TrainCam.epochs": 2, "InferCam.scales": (1.0,)}
    trial = Trial(dataset="chimera", settings=settings, segment=False)
    recorder = RunRecorder(trial, DatasetSpec("chimera", "chimera", str(root), {}), work)
    return run_trial(trial, data, work, Machine(), record=recorder.record)


def test_the_files_are_those_of_a_sweeps_trial_and_so_is_the_run(chimera_root, chimera, tmp_path, deliveries):
    work = WorkFolder(tmp_path)
    result = run(chimera_root, work, chimera)
    assert deliveries == [result.folder]
    outcome, spec = read_outcome(result.folder), read_spec(result.folder)
    assert (outcome.status, outcome.key) == ("complete", result.run)
    assert len(outcome.stages) == len(result.executed)
    assert spec.label.startswith("cam × none × chimera: seed 0, TrainCam.epochs=2")
    assert read_progress(result.folder).number == len(result.executed)
    follow(work, result.folder)
    (tracked,) = runs_of(work)
    assert tracked.info.status == "FINISHED"
    assert tracked.info.run_name == spec.label
    tags = tracked.data.tags
    found = [tags[name] for name in ("method", "phase", "settings", "seedbed.sweep")]
    assert found == ["cam", "confirm", "given", ""]
    assert tags["command"].startswith("seedbed run --method cam --refiner none --dataset chimera --root DIR")
    assert tracked.data.params["TrainCam.epochs"] == "2"
    values = {record.name: record.value for record in result.records if record.value is not None}
    assert tracked.data.metrics.items() >= values.items()
    assert {"TrainCam/classification", "system/system_memory_usage_percentage"} <= tracked.data.metrics.keys()
    # The same command again: nothing to compute, nothing to tell.
    run(chimera_root, work, chimera)
    assert len(deliveries) == 1
    assert sync(work, None) == (0, 0)


def test_a_failed_run_is_told_and_the_next_attempt_takes_its_place(
    chimera_root, chimera, tmp_path, deliveries, monkeypatch
):
    work = WorkFolder(tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(
            "seedbed.methods.cam.multi_label_soft_margin",
            lambda logits, tags: logits.sum() * float("nan") + tags.sum(),
        )
        with pytest.raises(Exception, match="the loss 'classification' is nan"):
            run(chimera_root, work, chimera)
    assert "the loss 'classification' is nan" in read_outcome(deliveries[0]).reason
    assert sync(work, None) == (1, 0)
    (failed,) = runs_of(work)
    assert failed.info.status == "FAILED"
    assert "is nan" in failed.data.tags["reason"]
    run(chimera_root, work, chimera)
    assert sync(work, None) == (1, 0)
    assert [r.info.status for r in runs_of(work) if r.info.lifecycle_stage == "active"] == ["FINISHED"]


def test_a_run_that_is_interrupted_has_no_result_and_continues(
    chimera_root, chimera, tmp_path, deliveries, monkeypatch
):
    work = WorkFolder(tmp_path)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr(TrialPlan, "measure", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(chimera_root, work, chimera)
    (folder,) = deliveries
    assert not is_running(folder)
    assert read_outcome(folder) is None
    started = read_progress(folder).started
    run(chimera_root, work, chimera)
    assert read_progress(folder).started == started
    assert read_outcome(folder).status == "complete"


def test_without_tracking_nothing_of_mlflow_is_imported_or_written(chimera_root, tmp_path):
    words = ["run", "--dataset", "chimera", "--root", chimera_root, *TINY, "--work", tmp_path / "work"]
    seedbed(tmp_path, *words, "--set", "TrainCam.epochs=1", "--no-track")
    assert not (tmp_path / "work" / "mlflow").exists()
    (folder,) = (tmp_path / "work" / "runs").iterdir()
    assert not (folder / "job.json").exists()
