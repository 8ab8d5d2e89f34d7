"""Upload to MLflow: one run per trial whatever happens, whole, in batches, and never in a trial's way."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock
from mlflow.entities import ViewType
from PIL import Image

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.evaluation.records import Record, write_records
from seedbed.benchmark.files import write_text
from seedbed.benchmark.paths import sqlite_url
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.sweeps.trial_files import Outcome, read_outcome, write_outcome
from seedbed.benchmark.tracking.client import METRICS_A_CALL, Tracker
from seedbed.benchmark.tracking.store import EXPERIMENT, default_uri, unusable
from seedbed.benchmark.tracking.sync import sync, uri_of
from seedbed.benchmark.tracking.uploader import MlflowUploader
from seedbed.leaderboard.data.collect import SweepReader
from tests.helpers.sweeping import scheduler_of, small


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Return a work folder with a new SQLite store, whose making takes seconds."""
    work = WorkFolder(tmp_path_factory.mktemp("work"))
    Tracker(None, work)
    return work


@pytest.fixture
def work(store, tmp_path):
    """Return a work folder of the test's own with a copy of the empty store."""
    import shutil
    import sqlite3

    work = WorkFolder(tmp_path)
    shutil.copytree(store.root / "mlflow", work.root / "mlflow")
    # The experiment remembers where its artifacts lie.
    with sqlite3.connect(work.root / "mlflow" / "mlflow.db") as database:
        location = (work.root / "mlflow" / "artifacts").as_uri()
        database.execute("update experiments set artifact_location = ? where name = ?", (location, EXPERIMENT))
    database.close()
    return work


@pytest.fixture
def trials(chimera_root, work):
    """Return the folders of two ended trials, one complete and one failed, and the sweep's folder."""
    scheduler = scheduler_of(small(chimera_root, refiners=["none"]), work.root)
    folders = []
    for status in ("complete", "failed"):
        spec = scheduler.next_trial()
        folder = scheduler.folder(spec)
        reason = "" if status == "complete" else "TrainCam: the loss is nan"
        objective = 0.25 if status == "complete" else None
        stages = {"a1b2c3d4e5f6": 1.5}
        outcome = Outcome(spec.key, status, reason, objective, (), stages, 1.5, 1e9, 1e9 + 2, "cpu", "a processor")
        if status == "complete":
            write_records(folder / "records.parquet", records(20))
            for name in ("examples.png", "figures/clusters.png"):
                (folder / name).parent.mkdir(exist_ok=True)
                Image.new("RGB", (8, 8)).save(folder / name)
            (folder / "per_image").mkdir()
            write_records(folder / "per_image" / "segmentation.val.parquet", records(1))
        config = {
            "stages": [{"stage": "TrainCam", "version": 1, "lr": 0.1, "scales": [1.0, 0.5]}],
            "data": {"tags": "xml", "masks": "png", "images": {"weak": 20}},
            "environment": {"code": "abc+dirty"},
        }
        write_text(folder / "config.json", json.dumps(config))
        write_text(
            folder / "losses.json", json.dumps({"TrainCam": [{"classification": 0.5}, {"classification": 0.25}]})
        )
        write_text(folder / "system.json", json.dumps({"system/cpu_utilization_percentage": [[1e12, 50.0]]}))
        write_outcome(folder, outcome)
        scheduler.finish(outcome)
        folders.append(folder)
    description = {**scheduler.plan.description(), "expected": scheduler.plan.expected(), "code": "abc+dirty"}
    write_text(scheduler.plan.folder / "sweep.json", json.dumps(description))
    return folders


def records(count: int) -> list[Record]:
    rows = [Record("seed", "train", "mIoU", s, None, 0.1, 7) for s in ("fixed", "tuned", "oracle")]
    rows += [Record("segmentation", "val", "IoU", "none", f"class {n}", n / count, None) for n in range(count)]
    return [*rows, Record("segmentation", "val", "IoU", "none", "absent", None, None)]


def runs_of(work, kind="trial"):
    client = Tracker(None, work).client
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    return client, client.search_runs([experiment], f"tags.`seedbed.kind` = '{kind}'", ViewType.ALL)


def upload_all(work):
    uploader = MlflowUploader(None, work)
    uploader.sweep_started(work.sweeps / "small")
    uploader.sweep_stopped(finished=True)
    return uploader


def test_a_trial_becomes_one_run_with_all_that_it_left(work, trials):
    upload_all(work)
    client, runs = runs_of(work)
    assert len(runs) == 2
    run = next(r for r in runs if r.data.tags["status"] == "complete")
    assert run.info.status == "FINISHED"
    assert run.data.params == {"TrainCam.lr": "0.1", "TrainCam.scales": "1.0,0.5"}
    assert run.data.metrics["seed.train/mIoU_tuned"] == 0.1
    assert run.data.metrics["val/IoU_class 3"] == 3 / 20
    assert not any("absent" in name for name in run.data.metrics)
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "TrainCam/classification")] == [
        (1, 0.5),
        (2, 0.25),
    ]
    assert run.data.metrics["system/cpu_utilization_percentage"] == 50.0
    tags = run.data.tags
    for name in ("method", "refiner", "dataset", "seed", "phase", "settings", "selection", "supervision"):
        assert tags[name], name
    for name in ("segmentation_backbone", "segmentation_initialisation"):
        assert tags[name], name
    for name in ("backbone", "initialisation", "crf_preset", "data_digest", "hardware", "tuning_masks"):
        assert tags[name], name
    assert (tags["code"], tags["dirty"]) == ("abc", "true")
    note = tags["mlflow.note.content"]
    assert "Method **cam**, refiner **none**, data set **chimera-voc**, random seed 1000. Search trial 0" in note
    assert tags["command"] in note
    assert f"![examples](get-artifact?path=examples.png&run_uuid={run.info.run_id})" in note
    assert tags["command"].startswith("seedbed run --method cam --refiner none --dataset chimera-voc --root DIR")
    assert json.loads(tags["parameters"]).keys() == json.loads(tags["space"]).keys() != set()
    assert json.loads(tags["stages"]) == {"a1b2c3d4e5f6": 1.5}
    assert run.inputs.dataset_inputs[0].dataset.name == "chimera-voc"
    images = [artifact.path for artifact in client.list_artifacts(run.info.run_id, "images")]
    assert {re.match(r"images/(\w+)[+%]step", path)[1] for path in images} == {"examples", "clusters"}
    (trials[0] / "delivered.json").unlink()
    upload_all(work)
    assert len(client.list_artifacts(run.info.run_id, "images")) == len(images)
    artifacts = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert {"config.json", "records.parquet", "per_image", "stages.json"} <= artifacts


def test_a_failed_trial_is_a_failed_run_with_its_reason(work, trials):
    upload_all(work)
    _, runs = runs_of(work)
    failed = next(r for r in runs if r.data.tags["status"] == "failed")
    assert failed.info.status == "FAILED"
    assert failed.data.tags["reason"] == "TrainCam: the loss is nan"


def test_the_parent_run_is_the_sweep(work, trials):
    upload_all(work)
    client, (parent,) = runs_of(work, "sweep")
    assert parent.info.status == "FINISHED"
    assert parent.info.run_name == "small"
    _, runs = runs_of(work)
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {parent.info.run_id}
    local = client.download_artifacts(parent.info.run_id, "sweep.json")
    assert json.loads(Path(local).read_text())["cells"][0]["method"] == "cam"


def test_another_sweep_of_the_same_name_is_not_mixed_with_it(work, trials):
    """On a server that a group shares."""
    Tracker(None, work).sweep("small", {"id": "a colleague's"}, "abc")
    assert sync(work, None) == (0, 2)
    assert upload_all(work).left == 2
    assert runs_of(work)[1] == []


def test_uploading_again_makes_no_second_run_and_no_second_number(work, trials):
    """The trap: after a kill and a restore there must be no duplicates."""
    for _ in range(3):
        for folder in trials:
            (folder / "delivered.json").unlink(missing_ok=True)
        upload_all(work)
    client, runs = runs_of(work)
    assert len(runs) == 2
    assert len(runs_of(work, "sweep")[1]) == 1
    run = next(r for r in runs if r.data.tags["status"] == "complete")
    assert len(client.get_metric_history(run.info.run_id, "seed.train/mIoU_tuned")) == 1


def test_an_upload_killed_in_the_middle_is_completed(work, trials, monkeypatch):
    monkeypatch.setattr(Tracker, "_log_artifacts", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    tracker = Tracker(None, work)
    parent = tracker.sweep("small", {}, "abc")
    with pytest.raises(KeyboardInterrupt):
        tracker.upload(parent, trials[0])
    _, (half,) = runs_of(work)
    assert half.info.status == "FAILED"  # Closed in any case.
    monkeypatch.undo()
    upload_all(work)
    _, runs = runs_of(work)
    assert len(runs) == 2
    assert {run.info.status for run in runs} == {"FINISHED", "FAILED"}


def test_metrics_go_in_calls_of_at_most_a_thousand(work, trials, monkeypatch):
    """The trap: `log_batch` refuses more, and one call a metric is slow."""
    write_records(trials[0] / "records.parquet", records(2500))
    calls = []
    from mlflow import MlflowClient

    original = MlflowClient.log_batch

    def counted(self, run, metrics=(), params=(), tags=(), **options):
        calls.append(len(metrics))
        return original(self, run, metrics=metrics, params=params, tags=tags, **options)

    monkeypatch.setattr(MlflowClient, "log_batch", counted)
    tracker = Tracker(None, work)
    run = tracker.upload(tracker.sweep("small", {}, "abc"), trials[0])
    assert max(calls) <= METRICS_A_CALL
    assert sum(size > 0 for size in calls) == 3
    assert len(tracker.client.get_run(run).data.metrics) > 2500


def test_numbers_that_are_not_finite_are_left_out(work, trials):
    write_text(trials[0] / "losses.json", '{"TrainCam": [{"classification": NaN}, {"classification": 0.5}]}')
    upload_all(work)
    client, runs = runs_of(work)
    run = next(r for r in runs if r.data.tags["status"] == "complete")
    history = client.get_metric_history(run.info.run_id, "TrainCam/classification")
    assert [(m.step, m.value) for m in history] == [(2, 0.5)]


def test_a_server_that_is_away_delays_nothing_and_sync_uploads_later(work, trials, caplog, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uploader = MlflowUploader("http://127.0.0.1:9", work)
    uploader.sweep_started(work.sweeps / "small")
    uploader.trial_ended(trials[0])
    uploader.sweep_stopped(finished=True)
    assert uploader.left == 2
    assert "`seedbed sync` uploads them" in caplog.text
    with pytest.raises(ConfigError, match="cannot be used"):
        sync(work, "http://127.0.0.1:9")
    assert sync(work, None) == (2, 0)
    assert sync(work, None) == (0, 0)
    _, runs = runs_of(work)
    assert len(runs) == 2


def test_sync_ends_the_parent_of_a_sweep_that_did_not_come_to_its_end(work, trials):
    sync(work, None)
    _, (parent,) = runs_of(work, "sweep")
    assert parent.info.status == "KILLED"


def test_a_trial_that_was_tried_again_leaves_nothing_of_its_first_run(work, trials):
    from dataclasses import replace

    upload_all(work)
    (trials[1] / "delivered.json").unlink()
    write_text(trials[1] / "config.json", '{"stages": [{"stage": "TrainCam", "version": 1, "lr": 0.2}]}')
    again = replace(read_outcome(trials[1]), status="complete", reason="", started=2e9, finished=2e9 + 1)
    write_outcome(trials[1], again)
    assert upload_all(work).left == 0
    _, runs = runs_of(work)
    active = [run for run in runs if run.info.lifecycle_stage == "active"]
    assert len(active) == 2
    assert {run.data.tags["status"] for run in active} == {"complete"}
    assert {run.data.params["TrainCam.lr"] for run in active} == {"0.1", "0.2"}


def test_sync_uploads_to_where_the_sweep_was_told_to(work, trials):
    settings = small(work.root, tracking_uri="http://127.0.0.1:9")
    settings.save(work.sweeps / "small" / "sweep.yaml")
    assert uri_of(work, "small") == "http://127.0.0.1:9"
    with pytest.raises(ConfigError, match=r"MLflow at http://127\.0\.0\.1:9 cannot be used"):
        sync(work, None)
    assert sync(work, default_uri(work)) == (2, 0)


def test_sync_ends_a_parent_that_a_killed_driver_left_running(work, trials):
    upload_all(work)
    (work.sweeps / "small" / "closed").unlink()
    tracker = Tracker(None, work)
    tracker.client.update_run(tracker.find("sweep:small"), status="RUNNING")
    assert sync(work, None) == (0, 0)
    _, (parent,) = runs_of(work, "sweep")
    assert parent.info.status == "KILLED"


def test_sync_leaves_the_parent_of_a_running_sweep_alone(work, trials):
    with FileLock(work.sweeps / "small" / "driver.lock"):
        assert sync(work, None) == (2, 0)
    _, (parent,) = runs_of(work, "sweep")
    assert parent.info.status == "RUNNING"


def test_one_sweep_of_a_taken_name_does_not_keep_others_from_being_uploaded(work, trials):
    Tracker(None, work).sweep("another", {"id": "theirs"}, "abc")
    import shutil

    shutil.copytree(work.sweeps / "small", work.sweeps / "another")
    assert sync(work, None) == (2, 2)


def test_a_copied_work_folder_has_its_own_artifacts_and_never_writes_into_the_original(work, trials, tmp_path):
    import shutil

    upload_all(work)
    before = {path: path.read_bytes() for path in work.root.rglob("*") if path.is_file()}
    # All that a path may hold and a URL may misread.
    copy = WorkFolder(tmp_path / "copy" / "a b?c#d%20e'f{g}größe")
    shutil.copytree(work.root, copy.root, ignore=shutil.ignore_patterns("copy"))
    (path,) = (p for p in trials if read_outcome(p).status == "complete")
    trial = copy.root / path.relative_to(work.root)
    (trial / "delivered.json").unlink()
    write_outcome(trial, read_outcome(trial))
    assert sync(copy, None) == (1, 0)
    assert {p: p.read_bytes() for p in before} == before
    assert [p.name for p in copy.root.parent.iterdir()] == [copy.root.name]
    client, runs = runs_of(copy)
    here = (copy.root / "mlflow/artifacts").as_uri()
    for run in runs:
        assert run.info.artifact_uri == f"{here}/{run.info.run_id}/artifacts"
        assert "stages.json" in {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    # The original is read by its own database still.
    assert runs_of(work)[1][0].info.artifact_uri.startswith((work.root / "mlflow/artifacts").as_uri())


def test_a_moved_work_folder_is_read_without_a_change_to_it(work, trials, tmp_path):
    upload_all(work)
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("mlflow", "sweeps"):
        (work.root / name).rename(moved / name)
    database = moved / "mlflow/mlflow.db"
    before = database.read_bytes()
    store = SweepReader(default_uri(WorkFolder(moved)))
    assert store.expected("small").name == "small"
    for run in store.trials("small"):
        assert store.download(run.id, "stages.json", tmp_path) is not None
    assert database.read_bytes() == before
    assert not (work.root / "mlflow").exists()


def test_a_database_elsewhere_has_its_artifacts_beside_it(work, trials, tmp_path, monkeypatch):
    import shutil

    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    uri = sqlite_url(tmp_path / "other" / "records.db")
    shutil.copytree(work.root / "mlflow", tmp_path / "other")
    (tmp_path / "other/mlflow.db").rename(tmp_path / "other/records.db")
    assert sync(work, uri) == (2, 0)
    assert len(list((tmp_path / "other/artifacts").glob("*/artifacts/stages.json"))) == 2
    assert list((tmp_path / "cwd").iterdir()) == list((work.root / "mlflow/artifacts").iterdir()) == []


def test_published_reasons_show_no_folder_of_the_machine(work, trials, chimera_root):
    (failed,) = (path for path in trials if read_outcome(path).status == "failed")
    outcome = read_outcome(failed)
    reason = f"{chimera_root}/JPEGImages/a.jpg: broken (see /home/me/notes.txt)"
    write_outcome(failed, replace(outcome, reason=reason))
    upload_all(work)
    _, runs = runs_of(work)
    tags = next(run.data.tags for run in runs if run.data.tags["status"] == "failed")
    assert tags["reason"] == "DIR/JPEGImages/a.jpg: broken (see DIR/notes.txt)"


@pytest.mark.parametrize(
    "uri", ["localhost:5000", "htp://localhost:5000", "./mlruns", "http://", "file:///tmp/x", ""]
)
def test_a_tracking_uri_that_mlflow_cannot_use_is_refused_at_once(uri, work):
    with pytest.raises(ConfigError, match="tracking URI"):
        sync(work, uri)
    with pytest.raises(ConfigError, match="tracking URI"):
        SweepReader(uri)


def test_a_server_that_does_not_answer_is_one_line(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigError, match=r"MLflow at http://127\.0\.0\.1:9 cannot be used: ") as caught:
        SweepReader("http://127.0.0.1:9")
    assert "\n" not in str(caught.value)


def test_the_default_store_is_sqlite_in_the_work_folder(work):
    assert default_uri(work) == f"sqlite:///{work.root}/mlflow/mlflow.db"
    experiment = Tracker(None, work).client.get_experiment_by_name(EXPERIMENT)
    assert experiment.artifact_location == (work.root / "mlflow" / "artifacts").as_uri()


def test_a_sweep_whose_description_was_lost_is_still_the_same_one(work, trials):
    """It has a new id then; that its trials were uploaded shows that the store's sweep is this one."""
    path = trials[0].parents[1] / "sweep.json"
    description = json.loads(path.read_text())
    write_text(path, json.dumps({**description, "id": "first"}))
    upload_all(work)
    write_text(path, json.dumps({**description, "id": "second"}))
    (trials[1] / "delivered.json").unlink()
    assert upload_all(work).left == 0
    assert [run.data.tags["seedbed.id"] for run in runs_of(work, "sweep")[1]] == ["second"]
    # A colleague's sweep of this name stays one of its own.
    for trial in trials:
        (trial / "delivered.json").unlink()
    write_text(path, json.dumps({**description, "id": "third"}))
    assert upload_all(work).left == 2


@pytest.mark.parametrize(("name", "content"), [("sweep.json", ""), ("sweep.yaml", "\0\0"), ("sweep.json", "{")])
def test_a_damaged_sweep_does_not_stop_the_upload_of_others(work, trials, name, content, caplog):
    import shutil

    other = work.sweeps / "a-damaged-one"
    shutil.copytree(trials[0].parents[1], other)
    (other / name).write_text(content)
    assert sync(work, None) == (2, 2)
    assert str(other / name) in caplog.messages[0]


def test_a_damaged_result_is_not_uploaded_and_told(work, trials, caplog):
    (trials[0] / "result.json").write_text("")
    assert sync(work, None) == (1, 1)
    assert "1 results are damaged; seedbed sweep --resume small runs them again" in caplog.messages[0]


def test_a_damaged_database_comes_with_the_way_out():
    error = unusable("sqlite:////a/mlflow.db", ValueError("(sqlite3.DatabaseError) file is not a database\nmore"))
    assert str(error) == (
        "MLflow at sqlite:////a/mlflow.db cannot be used: (sqlite3.DatabaseError) file is not a database. Move "
        "the file away; `seedbed sync --all` writes it again from the sweeps' folders"
    )
