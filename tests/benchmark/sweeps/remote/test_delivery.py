"""Trials on a node that does not see the driver's work folder: what arrives there, whoever is killed when.

Driver and node are folders of their own. The object store is a real S3 server on this machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from seedbed.benchmark import plugins
from seedbed.benchmark.errors import StoreError
from seedbed.benchmark.pipeline.remote.cached_store import StoreLocation
from seedbed.benchmark.pipeline.remote.objects import Objects
from seedbed.benchmark.sweeps.remote import node, receiver
from seedbed.benchmark.sweeps.remote.exchange import PLUGINS, Exchange, read_growing
from seedbed.benchmark.sweeps.remote.node import DriverFolder, Node
from seedbed.benchmark.sweeps.remote.receiver import Receiver
from seedbed.benchmark.sweeps.trial_files import (
    BEGUN,
    LOG,
    RESULT,
    RUNNING,
    Outcome,
    is_running,
    read_outcome,
    write_outcome,
)
from seedbed.benchmark.trials.progress_log import PROGRESS, append_line, read_progress

KEY, SWEEP = "0123456789abcdef", "5eed" * 8
NOBODY = "s3://bucket/seedbed?endpoint_override=127.0.0.1:1&scheme=http&region=us-east-1"


@pytest.fixture
def trial(tmp_path: Path) -> Path:
    """Return the trial's folder in the driver's work folder."""
    folder = tmp_path / "driver" / "sweeps" / "s" / "trials" / KEY
    folder.mkdir(parents=True)
    (folder / "job.json").write_text("{}")
    return folder


@pytest.fixture
def receiving(address: str, trial: Path) -> Iterator[Callable[[], Receiver]]:
    """Return what starts a driver."""
    started = []

    def start() -> Receiver:
        driver = Receiver(Exchange(address, SWEEP), trial.parents[1])
        driver.sweep_started(trial.parents[1])
        started.append(driver)
        return driver

    yield start
    for driver in started:
        driver.sweep_stopped(finished=False)


class OtherNode:
    """A node with a work folder of its own."""

    def __init__(self, work: Path, address: str) -> None:
        self.trial = work / "sweeps" / "s" / "trials" / KEY
        self.node = Node(None, Exchange(address, SWEEP))  # type: ignore[arg-type]

    def run(self, attempt, result: str = "complete") -> None:
        with self.node.delivering(self.trial, **attempt):
            write_trial(self.trial, result)


def write_trial(folder: Path, result: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG).open("a") as log:
        log.write(f"{folder.parents[3].name}\n")
    (folder / "per_image").mkdir()
    (folder / "per_image" / "seed.train.parquet").write_bytes(bytes(range(256)) * 100)
    (folder / RUNNING).touch()
    write_outcome(folder, Outcome(KEY, result))  # type: ignore[arg-type]


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def objects(address: str) -> list[str]:
    return [info.name for info in Objects(address).list("sweeps")]


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_folder_of_an_ended_trial_arrives_as_the_node_wrote_it(tmp_path, address, trial, receiving):
    driver, other = receiving(), OtherNode(tmp_path / "node", address)
    other.run(driver.attempt(trial))
    assert read_outcome(trial) is None
    driver.bring(trial)
    write_trial(expected := tmp_path / "here" / "sweeps" / "s" / "trials" / KEY, "complete")
    (expected / LOG).write_text("node\n")
    (expected / "job.json").write_text("{}")
    (expected / BEGUN).touch()
    assert files(trial) == files(expected)
    assert not is_running(trial)
    # Nothing is left in the object store, on the node, or beside the trials.
    assert objects(address) == []
    assert not other.trial.exists()
    assert list((trial.parents[1] / "incoming").iterdir()) == []


def test_a_running_trial_is_shown_and_its_lock_held_until_the_driver_knows_its_end(
    tmp_path, address, trial, receiving, monkeypatch
):
    monkeypatch.setattr(node, "INTERVAL", 0.1)
    monkeypatch.setattr(receiver, "POLL", 0.1)
    driver, other = receiving(), OtherNode(tmp_path / "node", address)
    with other.node.delivering(other.trial, **driver.attempt(trial)):
        wait_for((trial / BEGUN).exists)
        assert is_running(trial)
        assert read_progress(trial) is None
        append_line(other.trial / PROGRESS, {"time": 1.0, "stages": 7, "anew": True})
        wait_for(lambda: read_progress(trial) is not None)
        write_trial(other.trial, "complete")
    assert is_running(trial)
    driver.bring(trial)
    assert not is_running(trial)
    assert read_outcome(trial) is not None


@pytest.mark.parametrize("cut_off", [1, 99])
def test_a_file_that_is_written_while_it_is_read_is_read_again(address, monkeypatch, cut_off):
    exchange, read, texts = Exchange(address, SWEEP), Objects.read, []

    def cut(objects: Objects, name: str) -> bytes | None:
        text = read(objects, name)
        texts.append(text)
        return text[:-1] if text and len(texts) <= cut_off else text

    exchange.show("attempt", {LOG: "text"})
    monkeypatch.setattr(Objects, "read", cut)
    assert exchange.shown("attempt") == ({LOG: "text"} if cut_off == 1 else {})
    assert exchange.shown("other") is None


def test_the_lock_is_free_when_the_driver_stops(tmp_path, address, trial, receiving, monkeypatch):
    monkeypatch.setattr(receiver, "POLL", 0.1)
    driver, other = receiving(), OtherNode(tmp_path / "node", address)
    with other.node.delivering(other.trial, **driver.attempt(trial)):
        wait_for(lambda: is_running(trial))
        driver.sweep_stopped(finished=False)
        assert not is_running(trial)
    assert objects(address) != []
    driver.sweep_stopped(finished=True)
    assert objects(address) == []


def test_a_node_that_began_nothing_leaves_no_mark(trial, receiving):
    driver = receiving()
    driver.attempt(trial)
    driver.bring(trial)
    assert [*files(trial)] == ["job.json"]


VICTIM = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from seedbed.benchmark.pipeline.remote import entries
    from seedbed.benchmark.sweeps.remote import node
    from seedbed.benchmark.sweeps.trial_files import LOG
    from tests.benchmark.sweeps.remote.test_delivery import OtherNode, write_trial

    work, address, attempt = sys.argv[1:]

    def stop(*_):
        Path(work, "in the upload").touch()
        time.sleep(600)

    node.INTERVAL = 0.05
    entries.RemoteEntries.write_record = stop  # The archive is on the server, the record is not.
    other = OtherNode(Path(work), address)
    with other.node.delivering(other.trial, attempt, {}):
        write_trial(other.trial, "complete")
        time.sleep(0.5)
    """
)


def test_a_node_killed_in_the_upload_of_a_trial_has_begun_it_and_another_one_ends_it(
    tmp_path, address, trial, receiving
):
    driver, dead = receiving(), tmp_path / "dead"
    attempt = driver.attempt(trial)["attempt"]
    victim = subprocess.Popen([sys.executable, "-c", VICTIM, str(dead), address, attempt])
    wait_for(lambda: (dead / "in the upload").exists() or victim.poll() is not None)
    victim.kill()
    victim.wait()
    assert any(name.endswith(".tar") for name in objects(address))
    driver.bring(trial)
    # `BEGUN` is what counts its death (failures.py).
    assert sorted(files(trial)) == [BEGUN, "job.json", LOG, RUNNING]
    assert not is_running(trial)
    OtherNode(tmp_path / "node", address).run(driver.attempt(trial))
    driver.bring(trial)
    # The log goes on, as in a folder that both nodes see.
    assert (trial / LOG).read_text() == "dead\nnode\n"
    assert read_outcome(trial) == Outcome(KEY, "complete", losses=[], stages={})
    assert objects(address) == []


def test_what_ended_after_the_death_of_the_driver_is_there_when_it_is_resumed(tmp_path, address, trial, receiving):
    OtherNode(tmp_path / "node", address).run(receiving().attempt(trial))
    resumed = receiving()
    assert resumed.bring_all() == 1
    assert read_outcome(trial) is not None
    assert (trial / LOG).read_text() == "node\n"
    assert not any("/folders/" in name for name in objects(address))
    assert resumed.bring_all() == 0


def test_a_driver_killed_while_it_takes_over_a_trial_does_it_again(
    tmp_path, address, trial, receiving, monkeypatch
):
    OtherNode(tmp_path / "node", address).run(receiving().attempt(trial))
    replace = Path.replace

    def killed(path: Path, target: Path) -> Path:
        if path.name == RESULT and "incoming" in path.parts:
            raise KeyboardInterrupt
        return replace(path, target)

    driver = receiving()
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            driver.bring_all()
    assert (trial / LOG).exists()
    assert read_outcome(trial) is None
    assert receiving().bring_all() == 1
    assert read_outcome(trial) is not None


def test_a_late_result_of_an_earlier_attempt_is_not_that_of_a_later_one(tmp_path, address, trial, receiving):
    driver, cut_off = receiving(), OtherNode(tmp_path / "cut off", address)
    lost = driver.attempt(trial)
    with cut_off.node.delivering(cut_off.trial, **lost):
        driver.bring(trial)  # Ray says that its node died.
        later = driver.attempt(trial)
        write_trial(cut_off.trial, "failed")
    driver.bring(trial)
    assert read_outcome(trial) is None
    OtherNode(tmp_path / "node", address).run(later)
    assert receiving().bring_all() == 1


def test_a_trial_that_has_ended_here_is_not_replaced(tmp_path, address, trial, receiving):
    OtherNode(tmp_path / "node", address).run(receiving().attempt(trial), "failed")
    write_outcome(trial, Outcome(KEY, "complete"))
    assert receiving().bring_all() == 0
    assert read_outcome(trial).status == "complete"
    assert not any("/folders/" in name for name in objects(address))


def test_a_worker_that_cannot_deliver_is_a_lost_worker(tmp_path):
    other = OtherNode(tmp_path / "node", NOBODY)
    with pytest.raises(StoreError, match="the object store cannot be used"):
        other.run({"attempt": "a", "left": {}})


def test_a_damaged_archive_stops_the_sweep_and_its_trial_runs_again(tmp_path, address, trial, receiving):
    driver = receiving()
    OtherNode(tmp_path / "node", address).run(driver.attempt(trial))
    (archive,) = [name for name in objects(address) if name.endswith(".tar")]
    Objects(address).write(f"sweeps/{archive}", b"no archive" * 1000)
    with pytest.raises(StoreError, match=rf"{KEY}-\w+ was damaged .* repeat the command"):
        driver.bring(trial)
    assert receiving().bring_all() == 0


def driver_folder(tmp_path: Path, address: str) -> DriverFolder:
    token = Path("sweeps", "s", "driver.token")
    (tmp_path / "driver" / token).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "driver" / token).write_text("this driver")
    return DriverFolder(str(tmp_path / "driver"), str(token), "this driver", SWEEP, StoreLocation(address))


def test_a_node_that_sees_the_work_folder_uses_it(tmp_path, address, monkeypatch):
    monkeypatch.delenv(node.WORK_VARIABLE, raising=False)
    opened = Node.open(driver_folder(tmp_path, address))
    assert (opened.work.root, opened.exchange) == (tmp_path / "driver", None)
    with opened.delivering(tmp_path / "trial", "", {}):
        pass
    assert objects(address) == []


@pytest.mark.parametrize("there", [None, "another driver"])
def test_a_node_that_does_not_see_it_has_one_of_its_own(tmp_path, address, monkeypatch, there):
    driver, own = driver_folder(tmp_path, address), tmp_path / "own"
    if there:
        (own / driver.token).parent.mkdir(parents=True)
        (own / driver.token).write_text(there)
    monkeypatch.setenv(node.WORK_VARIABLE, str(own))
    opened = Node.open(driver)
    assert opened.work.root == own
    assert opened.work.store.root == own / "store"
    assert opened.exchange is not None


def test_a_node_that_can_write_nowhere_says_what_to_set(tmp_path, address, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv(node.WORK_VARIABLE, str(tmp_path / "file"))
    with pytest.raises(StoreError, match=r"/file: this node cannot write .* set SEEDBED_WORK to a folder"):
        Node.open(driver_folder(tmp_path, address))


def test_the_plugins_of_the_driver_come_to_the_node(tmp_path, address, monkeypatch, receiving, trial):
    driver, own = driver_folder(tmp_path, address), tmp_path / "own"
    theirs = trial.parents[1] / PLUGINS
    monkeypatch.setenv(node.WORK_VARIABLE, str(own))
    for content in ("first", "second"):
        (theirs / "methods").mkdir(parents=True, exist_ok=True)
        (theirs / "methods" / "mine.py").write_text(content)
        receiving().send_plugins(theirs)
        monkeypatch.setenv(
            plugins.VARIABLE, os.pathsep.join([str(theirs / "methods" / "mine.py"), "smalls.small"])
        )
        for _ in range(2):
            Node.open(driver)
            mine, installed = plugins.as_text().split(os.pathsep)
            assert Path(mine).is_relative_to(own)
            assert Path(mine).read_text() == content
            assert installed == "smalls.small"


def test_what_is_shown_are_the_files_that_grow(tmp_path):
    for name in (PROGRESS, LOG, "records.parquet"):
        (tmp_path / name).write_bytes(b"a\xff")
    assert read_growing(tmp_path) == {PROGRESS: "a\ufffd", LOG: "a\ufffd"}
