"""Runs of trials that still run: there from the first second, growing, never twice, and ended after a kill."""

from __future__ import annotations

import contextlib
import json
import shutil
import time

import pytest
from filelock import FileLock
from mlflow.entities import ViewType

from seedbed.benchmark.files import write_text
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.sweeps.trial_files import BEGUN, RUNNING, SYSTEM, Outcome, write_outcome
from seedbed.benchmark.tracking import trial_run, uploader
from seedbed.benchmark.tracking.client import Tracker
from seedbed.benchmark.tracking.lost_runs import end_lost_runs
from seedbed.benchmark.tracking.store import EXPERIMENT
from seedbed.benchmark.tracking.sync import sync
from seedbed.benchmark.tracking.trial_run import LiveRun
from seedbed.benchmark.tracking.uploader import CLOSED, MlflowUploader
from seedbed.benchmark.trials.progress_log import PROGRESS, append_line
from tests.helpers.sweeping import scheduler_of, small

LOSS = "TrainCam/classification"


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """Return a work folder with a new SQLite store, whose making takes seconds."""
    work = WorkFolder(tmp_path_factory.mktemp("work"))
    Tracker(None, work)
    return work


class Trial:
    """A trial that a worker runs, as its files say it."""

    def __init__(self, scheduler) -> None:
        self.scheduler, self.spec = scheduler, scheduler.next_trial()
        self.folder = scheduler.folder(self.spec)
        self.lock = FileLock(self.folder / RUNNING)
        self.epochs = 0

    def begin(self, started: float = 1e9) -> None:
        """Do what a worker does first."""
        self.lock.acquire()
        (self.folder / BEGUN).touch()
        stages = [{"stage": "TrainCam", "version": 1, "lr": 0.1}]
        config = {"stages": stages, "data": {}, "environment": {"code": "abc"}}
        write_text(self.folder / "config.json", json.dumps(config))
        append_line(self.folder / PROGRESS, {"time": started, "stages": 2, "anew": self.epochs == 0})
        stage = {"stage": "TrainCam", "split": "weak", "epochs": 4, "training": "TrainCam"}
        append_line(self.folder / PROGRESS, {"time": started + 1, **stage})

    def epoch(self, loss: float, moment: float) -> None:
        """Complete an epoch."""
        self.epochs += 1
        line = {"time": moment, "training": "TrainCam", "epoch": self.epochs, "losses": {"classification": loss}}
        append_line(self.folder / PROGRESS, line)
        append_line(self.folder / SYSTEM, {"time": moment, "system/cpu_utilization_percentage": 50.0})

    def end(self, status="complete") -> None:
        """Write the result."""
        outcome = Outcome(self.spec.key, status, objective=0.5, started=1e9 + 60, finished=1e9 + 100)
        write_outcome(self.folder, outcome)
        self.scheduler.finish(outcome)
        self.lock.release()


@pytest.fixture
def work(empty_store, tmp_path, monkeypatch):
    """Return a work folder of the test's own; nothing waits between two deliveries."""
    shutil.copytree(empty_store.root / "mlflow", tmp_path / "mlflow")
    monkeypatch.setattr(trial_run, "INTERVAL", 0.0)
    monkeypatch.setattr(uploader, "INTERVAL", 0.0)
    monkeypatch.setattr(uploader, "POLL", 0.02)
    return WorkFolder(tmp_path)


@pytest.fixture
def scheduler(chimera_root, work):
    """Return the scheduler of a sweep with four trials that has just started."""
    scheduler = scheduler_of(small(chimera_root, refiners=["none"], trials=2, seeds=[0]), work.root)
    description = {**scheduler.plan.description(), "expected": 4, "code": "abc", "id": "mine"}
    write_text(scheduler.plan.folder / "sweep.json", json.dumps(description))
    return scheduler


@pytest.fixture
def trial(scheduler):
    return Trial(scheduler)


def tracker_of(work, scheduler):
    """Return a tracker, and the parent run of the sweep."""
    tracker = Tracker(None, work)
    description = json.loads((scheduler.plan.folder / "sweep.json").read_text())
    return tracker, tracker.sweep("small", description, "abc", scheduler.plan.folder)


def runs_of(tracker, view=ViewType.ACTIVE_ONLY, kind="trial"):
    experiment = tracker.client.get_experiment_by_name(EXPERIMENT).experiment_id
    return list(tracker.client.search_runs([experiment], f"tags.`seedbed.kind` = '{kind}'", view))


def losses(tracker, run):
    history = tracker.client.get_metric_history(run.info.run_id, LOSS)
    return sorted((metric.step, metric.value, metric.timestamp) for metric in history)


def test_a_run_is_there_from_the_first_second_grows_and_ends_whole(work, scheduler, trial):
    tracker, parent = tracker_of(work, scheduler)
    live = LiveRun(trial.folder)
    live.send(tracker, parent)
    assert runs_of(tracker) == []  # Ray has not placed it yet.
    trial.begin()
    live.send(tracker, parent)
    (run,) = runs_of(tracker)
    assert (run.info.status, run.info.start_time) == ("RUNNING", 10**12)
    assert run.data.params == {"TrainCam.lr": "0.1"}
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert run.data.tags["method"] == "cam"
    assert run.data.tags["command"].startswith("seedbed run --method cam")
    assert run.data.tags["progress"] == "stage 1 of 2: TrainCam on weak, epoch 0 of 4"
    assert "status" not in run.data.tags
    for number, loss in enumerate((0.5, 0.25), 1):
        trial.epoch(loss, 1e9 + 10 * number)
        live.send(tracker, parent)
        (run,) = runs_of(tracker)
        assert run.data.tags["progress"] == f"stage 1 of 2: TrainCam on weak, epoch {number} of 4"
        assert run.data.metrics[LOSS] == loss
    assert run.data.metrics["progress/stage"] == 1
    assert run.data.metrics["system/cpu_utilization_percentage"] == 50
    trial.epoch(0.125, 1e9 + 30)
    trial.end()
    tracker.upload(parent, trial.folder)
    (run,) = runs_of(tracker, ViewType.ALL)
    assert (run.info.status, run.data.tags["status"]) == ("FINISHED", "complete")
    assert (run.info.start_time, run.info.end_time) == (10**12, 10**12 + 100_000)
    expected = [(n, 0.5**n, 10**12 + 10_000 * n) for n in (1, 2, 3)]
    assert losses(tracker, run) == expected
    tracker.upload(parent, trial.folder)
    assert losses(tracker, run) == expected


def test_only_what_is_new_is_sent_and_not_too_often(work, scheduler, trial, monkeypatch):
    tracker, parent = tracker_of(work, scheduler)
    sent = []
    original = tracker.send

    def send(run, numbers, tags):
        sent.append(list(numbers))
        original(run, (), tags)

    monkeypatch.setattr(tracker, "send", send)
    live = LiveRun(trial.folder)
    trial.begin()
    live.send(tracker, parent)
    trial.epoch(0.5, 1e9 + 10)
    live.send(tracker, parent)
    assert [name for name, *_ in sent[-1]] == [LOSS, "system/cpu_utilization_percentage"]
    trial.epoch(0.25, 1e9 + 20)
    monkeypatch.setattr(trial_run, "INTERVAL", 10.0)
    live.send(tracker, parent)
    assert next((name, step) for name, _, _, step in sent[-1]) == (LOSS, 2)
    count = len(sent)
    trial.epoch(0.125, 1e9 + 30)
    live.send(tracker, parent)
    assert len(sent) == count


def test_a_killed_trial_ends_as_killed_and_its_run_goes_on_when_it_is_resumed(work, scheduler, trial):
    tracker, parent = tracker_of(work, scheduler)
    trial.begin()
    trial.epoch(0.5, 1e9 + 10)
    LiveRun(trial.folder).send(tracker, parent)
    assert end_lost_runs(tracker, work, scheduler.plan.folder) == 1
    assert [run.info.status for run in runs_of(tracker)] == ["RUNNING"]
    trial.lock.release()  # As the kernel does when the process dies.
    assert end_lost_runs(tracker, work, scheduler.plan.folder) == 0
    (killed,) = runs_of(tracker)
    assert killed.info.status == "KILLED"
    assert killed.data.tags["progress"] == "stage 1 of 2: TrainCam on weak, epoch 1 of 4"
    trial.begin(started=1e9 + 50)
    trial.epoch(0.25, 1e9 + 60)
    LiveRun(trial.folder).send(tracker, parent)
    (run,) = runs_of(tracker, ViewType.ALL)
    assert (run.info.run_id, run.info.status) == (killed.info.run_id, "RUNNING")
    assert losses(tracker, run) == [(1, 0.5, 10**12 + 10_000), (2, 0.25, 10**12 + 60_000)]


def test_an_attempt_with_other_numbers_or_settings_has_a_run_of_its_own(work, scheduler, trial):
    """Code was changed between a kill and the next start."""
    tracker, parent = tracker_of(work, scheduler)
    trial.begin()
    trial.epoch(0.5, 1e9 + 10)
    live = LiveRun(trial.folder)
    live.send(tracker, parent)
    (first,) = runs_of(tracker)
    append_line(trial.folder / PROGRESS, {"time": 1e9 + 50, "stages": 2, "anew": True})
    trial.epochs = 0
    trial.epoch(0.75, 1e9 + 60)
    live.send(tracker, parent)
    (second,) = runs_of(tracker)
    assert second.info.run_id != first.info.run_id
    assert losses(tracker, second) == [(1, 0.75, 10**12 + 60_000)]
    config = {"stages": [{"stage": "TrainCam", "version": 1, "lr": 0.2}]}
    write_text(trial.folder / "config.json", json.dumps(config))
    LiveRun(trial.folder).send(tracker, parent)
    (third,) = runs_of(tracker)
    assert third.info.run_id != second.info.run_id
    assert third.data.params == {"TrainCam.lr": "0.2"}


def test_sync_ends_what_a_kill_of_everything_left_running(work, scheduler, trial):
    tracker, parent = tracker_of(work, scheduler)
    done = Trial(scheduler)
    for one in (trial, done):
        one.begin()
        LiveRun(one.folder).send(tracker, parent)
    done.end()
    # A worker that outlived its driver: its trial runs, and the sweep is not closed for ever.
    assert sync(work, None) == (1, 0)
    assert {run.info.status for run in runs_of(tracker)} == {"RUNNING", "FINISHED"}
    assert not (scheduler.plan.folder / CLOSED).exists()
    trial.lock.release()
    assert sync(work, None) == (0, 0)
    assert {run.info.status for run in runs_of(tracker)} == {"KILLED", "FINISHED"}
    (sweep,) = runs_of(tracker, kind="sweep")
    assert sweep.info.status == "KILLED"
    assert sweep.data.metrics["trials/done"] == 1
    assert (scheduler.plan.folder / CLOSED).read_text() == "KILLED"


def test_the_next_driver_ends_the_runs_of_another_sweep_that_was_killed(work, scheduler, trial):
    tracker, parent = tracker_of(work, scheduler)
    ended = Trial(scheduler)
    for one in (trial, ended):
        one.begin()
        LiveRun(one.folder).send(tracker, parent)
    ended.end()
    trial.lock.release()
    with FileLock(scheduler.plan.folder / "driver.lock"):
        end_lost_runs(tracker, work)
    assert {run.info.status for run in runs_of(tracker)} == {"RUNNING"}  # Its driver cares for them.
    end_lost_runs(tracker, work)
    assert {run.info.status for run in runs_of(tracker)} == {"KILLED", "FINISHED"}
    assert runs_of(tracker, kind="sweep")[0].info.status == "KILLED"


def test_a_colleagues_sweep_of_the_same_name_goes_on(work, scheduler, trial):
    """On a server that a group shares, its trials have the same keys."""
    tracker, parent = tracker_of(work, scheduler)
    trial.begin()
    LiveRun(trial.folder).send(tracker, parent)
    trial.lock.release()
    tracker.client.set_tag(parent, "seedbed.id", "theirs")
    end_lost_runs(tracker, work)
    assert [run.info.status for run in runs_of(tracker)] == ["RUNNING"]
    assert runs_of(tracker, kind="sweep")[0].info.status == "RUNNING"


def test_the_driver_shows_running_trials_and_the_progress_of_the_sweep(work, scheduler, trial):
    tracker, _ = tracker_of(work, scheduler)
    driver = MlflowUploader(None, work)
    driver.sweep_started(scheduler.plan.folder)
    driver.trial_started(trial.folder)
    trial.begin()
    trial.epoch(0.5, 1e9 + 10)
    assert wait_for(lambda: [run.data.metrics.get(LOSS) for run in runs_of(tracker)] == [0.5])
    trial.end()
    driver.trial_ended(trial.folder)
    assert wait_for(lambda: [run.info.status for run in runs_of(tracker)] == ["FINISHED"])
    failing = Trial(scheduler)
    driver.trial_started(failing.folder)
    failing.begin()
    assert wait_for(lambda: len(runs_of(tracker)) == 2)
    failing.end("failed")
    driver.trial_ended(failing.folder)
    lost = Trial(scheduler)
    driver.trial_started(lost.folder)
    lost.begin()
    assert wait_for(lambda: len(runs_of(tracker)) == 3)
    (sweep,) = runs_of(tracker, kind="sweep")
    assert sweep.info.status == "RUNNING"
    lost.lock.release()
    driver.sweep_stopped(finished=False)
    assert sorted(run.info.status for run in runs_of(tracker)) == ["FAILED", "FINISHED", "KILLED"]
    (sweep,) = runs_of(tracker, kind="sweep")
    assert sweep.info.status == "KILLED"
    assert sweep.data.metrics == {
        "trials/done": 2,
        "trials/failed": 1,
        "trials/expected": 4,
        "best_objective/cam none chimera-voc": 0.5,
    }
    history = tracker.client.get_metric_history(sweep.info.run_id, "trials/done")
    assert sorted({metric.step for metric in history}) == [0, 1, 2]


def test_a_server_that_is_away_costs_a_trial_nothing_and_nothing_is_lost(work, scheduler, trial, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    driver = MlflowUploader("http://127.0.0.1:9", work)
    driver.sweep_started(scheduler.plan.folder)
    trial.begin()
    before = time.monotonic()
    driver.trial_started(trial.folder)
    assert time.monotonic() - before < 0.1
    trial.end()
    driver.trial_ended(trial.folder)
    driver.sweep_stopped(finished=False)
    assert driver.left == 1
    assert sync(work, None) == (1, 0)


def wait_for(condition, limit=60.0) -> bool:
    """Wait until a condition holds; return whether it does."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        with contextlib.suppress(IndexError):
            if condition():
                return True
        time.sleep(0.05)
    return False
