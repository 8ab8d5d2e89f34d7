"""Whole sweeps through Ray, as a user starts them, and what is left of them after kills.

All sweeps here have the same settings and so, whatever happens to them, must end in the same leaderboard.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import optuna
import psutil
import pyarrow.parquet as pq
import pytest

from tests.helpers.cluster import OneProcess, ray_cluster
from tests.helpers.command_line import seedbed, start_seedbed
from tests.helpers.process import Program

TABLES = ("leaderboard.md", "index.html", "leaderboard.tex", "leaderboard.csv")
TIMES = re.compile(
    rb"[^\n]*Pareto front of CPU time[^\n]*|<svg.*?</svg>"
    rb'|(data-value="\d+"><span class="value">)?[\d.]+ CPU-(s|min|h)',
    re.DOTALL,
)
"""The sentence about the Pareto front, the figures, and the column of times."""
pytestmark = pytest.mark.slow(25)


def without_times(path: Path) -> bytes:
    """Return a table without what was measured in seconds."""
    if path.suffix != ".csv":
        return TIMES.sub(b"", path.read_bytes())
    rows = [{**row, "cpu_hours": ""} for row in csv.DictReader(path.open(newline=""))]
    return json.dumps(rows).encode()


class Sweep:
    """A sweep in a work folder of its own."""

    def __init__(self, folder: Path, data: Path, *more: str) -> None:
        self.folder, self.more = folder, more
        self.work = folder / "work"
        settings = ["--set", "TrainCam.epochs=1", "TrainSegmentation.epochs=1", "InferCam.scales=1.0"]
        sizes = ["--trials", "3", "--seeds", "0", "1", "--tune", "crf", "lr"]
        self.words = [
            "sweep",
            "--name",
            "s",
            "--methods",
            "cam",
            "--refiners",
            "none",
            "crf",
            "--datasets",
            f"chimera-voc={data}",
            *sizes,
            *settings,
            "--window",
            "2",
            # As on a cluster, where `auto` is fp32.
            "--precision",
            "fp32",
        ]

    def start(self, *words: str) -> Program:
        """Start `seedbed` with some words; its messages are appended to `output.txt`."""
        return start_seedbed(self.folder, *words, "--work", self.work, output=self.folder / "output.txt")

    def run(self, *words: str, code: int = 0) -> None:
        """Run `seedbed` to its end."""
        assert self.start(*words).wait(timeout=400) == code, self.output()

    def run_here(self, *words: str, code: int = 0) -> str:
        """Run `seedbed` to its end in this process, for commands that do not start Ray; return what it prints."""
        done = seedbed(self.folder, *words, "--work", self.work, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def output(self) -> str:
        return (self.folder / "output.txt").read_text()

    def ended(self) -> int:
        return len(list(self.work.glob("sweeps/s/trials/*/result.json")))

    def wait_for(self, count: int, process: Program) -> None:
        """Wait until so many trials have ended, or the process has."""
        limit = time.monotonic() + 600
        while self.ended() < count and process.poll() is None:
            assert time.monotonic() < limit, self.output()
            time.sleep(0.05)

    def tables(self, *words: str) -> dict[str, bytes]:
        """Build the leaderboard and return its pages without times, which are measured anew."""
        self.run_here("leaderboard", "--sweep", "s", "--out", str(self.folder / "board"), *words)
        return {name: without_times(self.folder / "board" / name) for name in TABLES}

    def check(self, uri: str | None = None) -> None:
        """Check that nothing runs for ever, nothing is there twice, and no finished stage was repeated."""
        from mlflow import MlflowClient

        client = MlflowClient(uri or f"sqlite:///{self.work}/mlflow/mlflow.db")
        experiment = client.get_experiment_by_name("seedbed")
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id], max_results=1000)
        keys = Counter(run.data.tags["seedbed.key"] for run in runs)
        assert max(keys.values()) == 1
        # References: the network on true masks with two seeds, background, whole images.
        assert len(keys) == 1 + 2 * (3 + 4) + 4
        unfinished = [(r.info.status, r.data.tags) for r in runs if r.info.status != "FINISHED"]
        assert not unfinished, f"{unfinished}\n{self.output()}"
        storage = f"sqlite:///{self.work}/sweeps/s/studies.db"
        for name in optuna.get_all_study_names(storage):
            study = optuna.load_study(study_name=name, storage=storage)
            assert [t.state.name for t in study.trials] == ["COMPLETE"] * 3
        finished = Counter(
            found
            for log in self.work.glob("sweeps/s/trials/*/log.txt")
            for found in re.findall(r"took [\d.]+ s  \[(\w+)\]", log.read_text())
        )
        assert max(finished.values()) == 1


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return the root of a Chimera of 24 images of 48 pixels."""
    from seedbed.datasets.chimera import generate

    root = tmp_path_factory.mktemp("chimera") / "voc"
    generate(root, layout="voc", images=24, size=48, seed=3)
    return root


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory) -> tuple[Sweep, dict[str, bytes]]:
    """Return a sweep that nothing disturbed, and its leaderboard."""
    sweep = Sweep(tmp_path_factory.mktemp("straight"), data)
    sweep.run(*sweep.words)
    return sweep, sweep.tables()


def test_a_sweep_runs_every_cell_and_records_everything(straight):
    sweep, tables = straight
    sweep.check()
    text = tables["leaderboard.md"].decode()
    assert "crf" in text
    assert "none" in text
    assert "18 of 18 trials finished" in sweep.output()
    assert re.search(r"\[3/18\] cam × \w+ × chimera-voc: .* (min|s) left", sweep.output())
    assert re.search(r"\[\d+/18\] .*: best, seed 1  val mIoU \d", sweep.output())
    assert re.search(r"\[\d+/18\] fully_supervised × chimera-voc: default, seed 1  val mIoU \d", sweep.output())


def test_references_are_on_the_leaderboard_without_ranks_and_comparisons(straight):
    sweep, tables = straight
    rows = json.loads(tables["leaderboard.csv"])
    references = {row["method"]: row for row in rows if row["settings"] == "reference"}
    assert (
        [row["method"] for row in rows[-3:]] == ["fully_supervised", "background", "whole_image"] == [*references]
    )
    bound = float(references["fully_supervised"]["val_mIoU_mean"])
    assert references["fully_supervised"]["random_seeds"] == "0 1"
    assert references["fully_supervised"]["share_of_bound"] == "1.0"
    assert references["background"]["val_mIoU_std"] == references["whole_image"]["val_mIoU_mean"] == ""
    for row in rows[:-1]:
        assert float(row["share_of_bound"]) == pytest.approx(float(row["val_mIoU_mean"]) / bound)
    assert all(float(row["pseudo_mask_mIoU_mean"]) > 0 for row in rows if row["method"] != "fully_supervised")
    assert not {row["rank"] for row in references.values()} - {""}
    compared = (sweep.folder / "board" / "comparisons.csv").read_text()
    assert "cam" in compared
    assert not any(name in compared for name in references)
    # Their statistics are published like those of the other rows.
    images = pq.read_table(sweep.folder / "board" / "per_image.parquet")
    keys = {path.parent.name for path in sweep.work.glob("sweeps/s/trials/*/result.json")}
    searched = {
        p.parent.name for p in sweep.work.glob("sweeps/s/trials/*/job.json") if '"search"' in p.read_text()
    }
    assert {*images["key"].to_pylist()} == keys - searched


def test_the_same_command_again_ends_at_once_without_ray(straight):
    sweep, tables = straight
    assert "starting Ray" not in sweep.run_here(*sweep.words)
    assert sweep.tables() == tables


def test_the_ui_shows_the_store_on_this_machine_alone(straight):
    sweep, _ = straight
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = sweep.start("ui", "--port", str(port))
    try:
        wait_for_server(f"http://127.0.0.1:{port}/health", server)
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get-by-name?experiment_name=seedbed"
        )
        assert b"seedbed" in urllib.request.urlopen(request, timeout=30).read()
        listening = {
            connection.laddr.ip
            for process in [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
            for connection in process.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        }
        assert listening == {"127.0.0.1"}
    finally:
        for child in psutil.Process(server.pid).children(recursive=True):
            child.kill()
        server.kill()
        server.wait()


def test_other_settings_under_the_same_name_are_refused(straight):
    sweep, _ = straight
    words = [word if word != "3" else "4" for word in sweep.words]
    assert "a sweep of this name has other settings (trials)" in sweep.run_here(*words, code=1)


def test_a_dry_run_tells_cells_shared_stages_and_cost(straight):
    sweep, _ = straight
    text = sweep.run_here(*[word if word != "s" else "planned" for word in sweep.words], "--dry-run")
    assert "trials: 18, cells: 2, references: 3" in text
    line = next(line for line in text.splitlines() if line.startswith("TrainCam "))
    needed, shared = map(int, line.split()[1:3])
    assert needed == 14
    assert shared == 3  # The two cells share the default settings: one seed of the search, two to confirm.
    assert re.search(r"estimate: \d+\.\d\d hours", text)
    assert not (sweep.work / "sweeps" / "planned").exists()


def children(process: Program, word: str) -> list[psutil.Process]:
    """Return the living processes below a driver whose command has a word in it."""
    found: list[psutil.Process] = []
    if process.poll() is not None:
        return found
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if word in " ".join(child.cmdline()):
                found.append(child)
    return found


def kill_driver(process):
    process.kill()


def kill_worker(process):
    for worker in [*children(process, "Trainable"), *children(process, "TrialActor")][:1]:
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.kill()


def kill_ray(process):
    """Kill every process of Ray; the driver is left to notice, and not for long."""
    for child in children(process, "ray"):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=30)
    process.kill()


def run_with_kills(sweep: Sweep, seed: int, *more: str) -> None:
    """Run a sweep to its end, with −9 for the driver, a worker and all of Ray at moments that chance chooses."""
    chance = np.random.default_rng(seed)
    kills = [kill_driver, kill_worker, kill_ray]
    chance.shuffle(kills)
    words, process = sweep.words, None
    for kill in kills:
        process = process or sweep.start(*words, *more)
        sweep.wait_for(sweep.ended() + int(chance.integers(0, 4)), process)
        time.sleep(float(chance.uniform(0, 2)))
        kill(process)
        if kill is kill_worker:
            # The driver goes on.
            sweep.wait_for(sweep.ended() + 1, process)
            continue
        process.wait()
        process = None
        if (sweep.work / "sweeps" / "s" / "sweep.yaml").exists():
            words = ["sweep", "--resume", "s"]
    process = process or sweep.start(*words, *more)
    assert process.wait(timeout=400) == 0, sweep.output()


def test_kills_at_random_moments_change_no_byte_of_the_leaderboard(straight, data, tmp_path):
    sweep = Sweep(tmp_path, data)
    run_with_kills(sweep, 0)
    sweep.check()
    assert sweep.tables() == straight[1]


def test_sigterm_stops_a_sweep_as_ctrl_c_does(data, tmp_path):
    sweep = Sweep(tmp_path, data)
    process = sweep.start(*sweep.words)
    sweep.wait_for(1, process)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=60) == 1
    last = sweep.output().splitlines()[-1]
    assert re.fullmatch(r"error: stopped after \d+ of \d+ trials; continue with: seedbed sweep --resume s", last)
    assert "SIGTERM" not in sweep.output()


def test_a_second_driver_is_refused(data, tmp_path):
    sweep = Sweep(tmp_path, data)
    first = sweep.start(*sweep.words)
    try:
        limit = time.monotonic() + 60
        while not (sweep.work / "sweeps" / "s" / "driver.lock").exists():
            assert time.monotonic() < limit
            time.sleep(0.05)
        assert "another process drives this sweep" in sweep.run_here(*sweep.words, code=1)
    finally:
        first.kill()
        first.wait()


@pytest.fixture
def server(tmp_path) -> Iterator[str]:
    """Start a real MLflow server on this machine, and return its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
    words += ["--artifacts-destination", str(tmp_path / "art")]
    # As in `seedbed ui`: the processes of MLflow's jobs would take most of the test's time.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (tmp_path / "server.txt").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words],
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
    try:
        wait_for_server(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_tracking_server_gets_the_same_and_gives_the_same_leaderboard_with_kills(
    straight, data, server, tmp_path
):
    # The trap of docs/cluster.md: a name that is not among `--allowed-hosts`.
    request = urllib.request.Request(
        f"{server}/api/2.0/mlflow/experiments/get?experiment_id=0", headers={"Host": "elsewhere.example"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=30)
    assert b"Invalid Host header" in refused.value.read()
    sweep = Sweep(tmp_path, data)
    run_with_kills(sweep, 1, "--tracking-uri", server)
    assert not (sweep.work / "mlflow").exists()
    sweep.check(server)
    assert sweep.tables("--tracking-uri", server) == straight[1]
    assert any((tmp_path / "art").rglob("examples.png"))


def wait_for_server(address: str, server: Program | subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + 120
    while time.monotonic() < limit and server.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(address, timeout=2)
            return
        time.sleep(0.2)
    raise AssertionError("the MLflow server did not start")


def test_a_node_of_a_cluster_dies_and_the_sweep_goes_on(straight, data, tmp_path):
    """One of three nodes is killed in the middle."""
    with ray_cluster(workers=2) as cluster:
        sweep = Sweep(tmp_path, data)
        process = sweep.start(*sweep.words, "--precision", "auto", "--address", cluster.address)
        sweep.wait_for(3, process)
        cluster.kill_worker_node()
        assert process.wait(timeout=300) == 0, sweep.output()
        assert "note: trials compute in fp32" in sweep.output()
        sweep.check()
        assert sweep.tables() == straight[1]
        environments = [json.loads(p.read_text()) for p in sweep.work.glob("sweeps/s/trials/*/config.json")]
        assert {e["environment"]["code"] for e in environments} == {code_of(straight[0])}


def code_of(sweep: Sweep) -> str:
    return str(json.loads((sweep.work / "sweeps" / "s" / "sweep.json").read_text())["code"])


def test_what_goes_wrong_when_a_trial_ends_stops_the_sweep_and_is_told():
    """The trap: Tune swallows an error of `on_trial_complete`, and would wait for ever for the lost trial."""
    from seedbed.benchmark.sweeps.driver import SchedulerSearcher
    from seedbed.benchmark.sweeps.trial_files import Outcome

    class TrialSpec:
        key = "k"

        def to_json(self):
            return "{}"

    class Scheduler:
        done = False

        def next_trial(self):
            return TrialSpec()

        def finish(self, outcome):
            raise OSError("no space left")

    searcher = SchedulerSearcher(Scheduler(), lambda spec, outcome: None)
    assert searcher.suggest("a") == {"spec": "{}"}
    searcher.on_trial_complete("a", {"outcome": json.dumps(dataclasses.asdict(Outcome("k", "complete")))})
    with pytest.raises(OSError, match="no space left"):
        searcher.suggest("b")


def test_a_node_that_does_not_see_the_work_folder_takes_no_trial(tmp_path):
    from seedbed.benchmark.errors import DataError
    from seedbed.benchmark.sweeps.driver import TrialActor

    actor = object.__new__(TrialActor)
    driver = {"work": str(tmp_path), "token": "sweep.json", "store": None}
    with pytest.raises(DataError, match=r"sweep\.json: not on this node; .* that all nodes share"):
        actor.setup({"driver": driver})


def test_a_broken_image_fails_the_trials_of_its_data_set_and_no_other(data, tmp_path, monkeypatch):
    """The failed ones say why, in MLflow and on the leaderboard."""
    broken = tmp_path / "broken"
    shutil.copytree(data, broken)
    for image in (broken / "JPEGImages").glob("*.jpg"):
        image.write_bytes(image.read_bytes()[: image.stat().st_size * 3 // 4])
    OneProcess(monkeypatch)
    sweep = Sweep(tmp_path, data)
    sets = ["--datasets", f"chimera-voc={data}", f"chimera-coco={broken}"]
    sizes = ["--trials", "0", "--seeds", "0", "1", "--refiners", "none", "--no-segment", "--no-references"]
    words = ["sweep", "--name", "s", "--methods", "cam", *sets, *sizes, "--set", "TrainCam.epochs=1"]
    printed = sweep.run_here(*words, code=3)
    assert "2 of 4 trials finished, 2 failed" in printed
    assert "`seedbed sweep --resume s --work" in printed
    text = sweep.tables()["leaderboard.md"].decode()
    good, bad = sorted(text.split("## ")[1:3])[::-1]
    assert "failed" not in good.split("Columns")[0]
    assert "failed" in bad
    assert "DIR/JPEGImages/" in bad
    assert "not ranked" in bad
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{sweep.work}/mlflow/mlflow.db")
    runs = client.search_runs(["1"], "tags.dataset = 'chimera-coco'")
    assert {run.info.status for run in runs} == {"FAILED"}
    assert "2 trials run again" in sweep.run_here("sweep", "--resume", "s", code=3)
    assert len(client.search_runs(["1"])) == 1 + 4
