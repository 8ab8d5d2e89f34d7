"""A `seedbed run` as its user watches it in MLflow's UI, and after a kill −9 of everything."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import time
import urllib.request

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType

from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.tracking.store import EXPERIMENT, default_uri
from tests.helpers.chromium import PROGRAM, chromium
from tests.helpers.command_line import seedbed, start_seedbed

TINY = ["--no-segment", "--workers", "0", "--device", "cpu", "--set", "InferCam.scales=1.0"]
LOSS = "TrainCam/classification"
LIMIT = 240.0
"""Seconds that a step may take on a machine with much other work."""
CURVE = f"""Math.max(0, ...[...document.querySelectorAll('.js-plotly-plot')].flatMap(plot =>
    (plot.data || []).filter(line => line.metricKey === '{LOSS}').map(line => line.x.length)))"""
"""The number of points that MLflow's page draws of the loss."""
pytestmark = pytest.mark.slow(40)


def runs_of(work: WorkFolder):
    client = MlflowClient(default_uri(work))
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], "", ViewType.ALL))


def has_losses(work: WorkFolder) -> bool:
    """Say whether the store has losses. MLflow's client would make the store, as the other process does."""
    database = work.root / "mlflow" / "mlflow.db"
    if not database.exists():
        return False
    with contextlib.suppress(sqlite3.OperationalError), contextlib.closing(sqlite3.connect(database)) as opened:
        return opened.execute("select 1 from latest_metrics where key = ?", [LOSS]).fetchone() is not None
    return False


def wait_until(condition, alive) -> None:
    """Wait until a condition holds, as long as a process lives."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert alive.poll() is None, "the process ended"
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> WorkFolder:
    return WorkFolder(tmp_path_factory.mktemp("live") / "work")


@pytest.fixture(scope="module")
def words(work, chimera_root) -> list[object]:
    return ["run", "--dataset", "chimera", "--root", chimera_root, *TINY, "--work", work.root, "--track"]


@pytest.fixture(scope="module")
def running(work, words):
    """Return the process of a run that trains for hours, once MLflow has its first losses."""
    process = start_seedbed(work.root.parent, *words, "--set", "TrainCam.epochs=10000")
    try:
        wait_until(lambda: has_losses(work), process)
        yield process
    finally:
        kill_everything(process)


def kill_everything(process) -> None:
    """Kill −9 a run and the process that delivers it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture
def address(work):
    """Return the address at which `seedbed ui` serves the work folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = start_seedbed(work.root.parent, "ui", "--port", port, "--work", work.root)

    def answers() -> bool:
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200
        return False

    try:
        wait_until(answers, server)
        yield f"http://127.0.0.1:{port}/"
    finally:
        kill_everything(server)


def test_the_loss_curve_of_a_running_trial_grows_in_the_ui(work, running, request):
    if PROGRAM is None:
        pytest.skip("Chromium is not installed; on Debian: apt-get install chromium")
    address = request.getfixturevalue("address")
    (run,) = runs_of(work)
    assert run.info.status == "RUNNING"
    with chromium() as page:
        page.size(1400, 1400)
        points, history = [], MlflowClient(default_uri(work)).get_metric_history
        for _ in range(2):
            known = max([0, *points])
            wait_until(lambda known=known: len(history(run.info.run_id, LOSS)) > known, running)
            page.visit(f"{address}#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}/model-metrics")
            page.wait_for(f"{CURVE} > {known}")
            points.append(page.evaluate(CURVE))
        assert 0 < points[0] < points[1]
        page.visit(f"{address}#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}")
        page.wait_for("document.body.innerText.includes('This command runs it again')")
        assert page.evaluate("document.body.innerText.includes('Running')")


def test_after_kill_minus_nine_of_everything_the_next_command_leaves_nothing_running(work, words, running):
    kill_everything(running)
    (lost,) = runs_of(work)
    assert lost.info.status == "RUNNING"
    done = seedbed(work.root.parent, *words, "--set", "TrainCam.epochs=1")
    assert "MLflow did not take" not in done.stderr
    assert sorted(run.info.status for run in runs_of(work)) == ["FINISHED", "KILLED"]
