"""The store: atomic, locked, safe against a kill at any moment, honest about a full disk."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from seedbed.benchmark.errors import DataError, StoreError, unwritable
from seedbed.benchmark.evaluation.maps import MapReader
from seedbed.benchmark.pipeline.stage import cache_key
from seedbed.benchmark.pipeline.store import Store, damaged

IDENTITY = {"stage": "Count", "version": 1, "settings": {"n": 3}, "seed": 0, "split": "weak", "inputs": {}}


def test_an_entry_is_computed_once_and_tells_what_made_it(tmp_path):
    store, calls = Store(tmp_path), []

    def produce(out: Path, scratch: Path) -> None:
        calls.append(out)
        (out / "number.txt").write_text("7")

    first, computed = store.get_or_run(IDENTITY, produce)
    second, again = store.get_or_run(IDENTITY, produce)
    assert (computed, again, len(calls)) == (True, False, 1)
    assert first.path == second.path
    assert (first.path / "number.txt").read_text() == "7"
    record = json.loads((first.path / "entry.json").read_text())
    assert record["identity"] == IDENTITY
    assert record["bytes"] == 1
    assert record["environment"]["packages"]["torch"]
    assert cache_key(IDENTITY) == first.key
    assert list((tmp_path / "partial").iterdir()) == []


def test_a_failed_stage_leaves_no_entry_and_keeps_its_scratch(tmp_path):
    store = Store(tmp_path)

    def broken(out: Path, scratch: Path) -> None:
        (out / "half.txt").write_text("half")
        (scratch / "checkpoint").write_text("epoch 3")
        raise ValueError("lightning")

    with pytest.raises(ValueError, match="lightning"):
        store.get_or_run(IDENTITY, broken)
    assert store.get(cache_key(IDENTITY)) is None

    def resumed(out: Path, scratch: Path) -> None:
        assert not (out / "half.txt").exists()
        (out / "whole.txt").write_text((scratch / "checkpoint").read_text())

    entry, _ = store.get_or_run(IDENTITY, resumed)
    assert (entry.path / "whole.txt").read_text() == "epoch 3"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_full_disk_is_one_clear_error(tmp_path, number):
    def full(out: Path, scratch: Path) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(StoreError, match=f"{tmp_path}: cannot write .*seedbed cache gc"):
        Store(tmp_path).get_or_run(IDENTITY, full)


def test_other_os_errors_are_not_taken_for_a_full_disk(tmp_path):
    def missing(out: Path, scratch: Path) -> None:
        (out / "nothing").read_text()

    with pytest.raises(FileNotFoundError):
        Store(tmp_path).get_or_run(IDENTITY, missing)


def _compute_slowly(root: Path, log: Path, waited: Path) -> None:
    def produce(out: Path, scratch: Path) -> None:
        with log.open("a") as file:
            file.write("computed\n")
        time.sleep(0.5)
        (out / "done").write_text("done")

    entry, _ = Store(root).get_or_run(IDENTITY, produce, on_wait=lambda: waited.write_text("waited"))
    assert (entry.path / "done").read_text() == "done"


def test_of_two_processes_one_computes_and_the_other_waits(tmp_path):
    log, waited = tmp_path / "log", tmp_path / "waited"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_compute_slowly, args=(tmp_path, log, waited)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert log.read_text() == "computed\n"
    assert waited.exists()


VICTIM = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from seedbed.benchmark.pipeline.store import Store

    def produce(out, scratch):
        counter = scratch / "counter"
        start = int(counter.read_text()) if counter.exists() else 0
        for step in range(start, 40):
            time.sleep(0.005)
            temporary = scratch / "counter.tmp"
            temporary.write_text(str(step + 1))
            temporary.replace(counter)
        for part in range(20):
            (out / f"part{part}").write_text(str(part) * 1000)

    identity = {"stage": "Count", "version": 1, "settings": {}, "seed": 0, "split": "weak", "inputs": {}}
    Store(Path(sys.argv[1])).get_or_run(identity, produce)
    """
)


def test_kill_minus_nine_in_a_loop_and_then_the_right_result(tmp_path):
    identity = {"stage": "Count", "version": 1, "settings": {}, "seed": 0, "split": "weak", "inputs": {}}
    key, moments = cache_key(identity), random.Random(0)
    kills = 0
    while Store(tmp_path).get(key) is None:
        process = subprocess.Popen([sys.executable, "-c", VICTIM, str(tmp_path)])
        try:
            process.wait(timeout=0.3 + 0.4 * moments.random() if kills < 8 else 60)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    entry = Store(tmp_path).get(key)
    assert entry is not None
    names = sorted(p.name for p in entry.path.iterdir() if p.name != "entry.json")
    assert names == sorted(f"part{i}" for i in range(20))
    assert all((entry.path / f"part{i}").read_text() == str(i) * 1000 for i in range(20))


def test_garbage_collection_keeps_what_was_used_lately(tmp_path):
    store = Store(tmp_path)
    old, _ = store.get_or_run({**IDENTITY, "seed": 1}, lambda out, scratch: None)
    new, _ = store.get_or_run({**IDENTITY, "seed": 2}, lambda out, scratch: None)
    long_ago = time.time() - 10 * 86_400
    os.utime(old.path, (long_ago, long_ago))
    leftover = tmp_path / "partial" / "abc"
    leftover.mkdir()
    os.utime(leftover, (long_ago, long_ago))
    assert store.collect_garbage(older_than_days=5) == (1, 1)
    assert [entry.key for entry in store.entries()] == [new.key]
    assert not leftover.exists()


def test_a_hit_counts_as_use(tmp_path):
    store = Store(tmp_path)
    entry, _ = store.get_or_run(IDENTITY, lambda out, scratch: None)
    long_ago = time.time() - 10 * 86_400
    os.utime(entry.path, (long_ago, long_ago))
    store.get_or_run(IDENTITY, lambda out, scratch: None)
    assert store.collect_garbage(older_than_days=5) == (0, 0)


def _write_seven(out: Path, scratch: Path) -> None:
    (out / "number.txt").write_text("7")
    (out / "more.json").write_text("[7]")


def _damages() -> dict[str, Callable[[Path], object]]:
    return {
        "entry.json cut": lambda folder: (folder / "entry.json").write_text("{"),
        "entry.json empty": lambda folder: (folder / "entry.json").write_text(""),
        "entry.json of zeros": lambda folder: (folder / "entry.json").write_bytes(bytes(100)),
        "entry.json of something else": lambda folder: (folder / "entry.json").write_text("[1]"),
        "entry.json missing": lambda folder: (folder / "entry.json").unlink(),
        "file empty": lambda folder: (folder / "number.txt").write_text(""),
        "file of zeros": lambda folder: (folder / "more.json").write_bytes(bytes(3)),
        "file missing": lambda folder: (folder / "number.txt").unlink(),
    }


@pytest.mark.parametrize("damage", _damages())
def test_a_damaged_entry_is_computed_again_with_a_warning(tmp_path, damage, caplog):
    store = Store(tmp_path)
    entry, _ = store.get_or_run(IDENTITY, _write_seven)
    assert store.damage(entry.key) is None
    _damages()[damage](entry.path)
    again, computed = store.get_or_run(IDENTITY, _write_seven)
    assert computed
    assert (again.path / "number.txt").read_text() == "7"
    assert store.use(entry.key) is not None
    (warning,) = caplog.messages
    assert warning.startswith(f"{entry.path}: damaged (")
    assert warning.endswith("Count is computed again")


def test_a_file_that_a_desktop_adds_is_no_damage(tmp_path):
    store = Store(tmp_path)
    entry, _ = store.get_or_run(IDENTITY, _write_seven)
    (entry.path / ".DS_Store").write_text("icons")
    assert store.get_or_run(IDENTITY, _write_seven)[1] is False


def test_a_damaged_entry_is_listed_and_removed(tmp_path, capsys):
    from seedbed.benchmark.cli.cache import list_cache, remove_cache, show_cache

    store = Store(tmp_path / "store")
    entry, _ = store.get_or_run(IDENTITY, _write_seven)
    (entry.path / "entry.json").write_text("")
    list_cache(tmp_path)
    assert "damaged" in capsys.readouterr().out
    with pytest.raises(StoreError, match=f"seedbed cache rm {entry.key[:12]}"):
        show_cache(entry.key[:12], tmp_path)
    remove_cache([entry.key[:12]], tmp_path)
    assert capsys.readouterr().out == f"removed {entry.key[:12]} (damaged)\n"
    assert store.all_keys() == []


def test_a_file_of_the_store_that_cannot_be_read_is_named_with_the_command_that_removes_it(tmp_path):
    path = Store(tmp_path).path("abcdef0123456789") / "model.json"
    assert str(damaged(path, ValueError("no JSON\nat all"))) == (
        f"{path}: damaged (no JSON); remove it with `seedbed cache rm abcdef012345`, then run again"
    )


def test_the_scratch_of_a_killed_stage_is_emptied_if_its_code_changed(tmp_path, caplog):
    store = Store(tmp_path)
    notes = {"source": {"roots": ["m.Stage"], "definitions": {"m.loss": "1", "m.Stage": "1"}}}
    changed = {"source": {"roots": ["m.Stage"], "definitions": {"m.loss": "2", "m.Stage": "1"}}}

    def broken(out: Path, scratch: Path) -> None:
        with (scratch / "epochs").open("a") as file:
            file.write("x")
        raise ValueError("lightning")

    for now, expected in ((notes, "x"), (notes, "xx"), (changed, "x"), (changed, "xx")):
        with pytest.raises(ValueError, match="lightning"):
            store.get_or_run(IDENTITY, broken, notes=now)
        assert next((tmp_path / "partial").glob("*/scratch/epochs")).read_text() == expected
    assert caplog.messages == ["m.loss: changed since the stage was interrupted; it starts from the beginning"]


def test_a_picture_that_may_not_be_read_is_not_taken_for_a_full_disk(tmp_path):
    def forbidden(out: Path, scratch: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/data/image.jpg")

    with pytest.raises(PermissionError):
        Store(tmp_path).get_or_run(IDENTITY, forbidden)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.EROFS, "x"), "Read-only file system"),
        (
            RuntimeError("[enforce fail at inline_container.cc] . No space left on device"),
            "No space left on device",
        ),
        (ValueError("database or disk is full"), "database or disk is full"),
        (OSError("encoder error -2 when writing image file"), "encoder error -2 when writing image file"),
        (ValueError("a bug"), None),
        (OSError(errno.ENOENT, "x"), None),
    ],
)
def test_a_full_disk_is_recognised_in_the_errors_of_libraries(error, reason):
    found = unwritable(error)
    assert (found is None) if reason is None else (reason in found)


def test_the_cause_of_an_error_counts_and_what_it_replaced_does_not():
    def chained(clear: bool) -> BaseException:
        try:
            try:
                raise OSError(errno.ENOSPC, "x")
            except OSError as error:
                if clear:
                    raise ValueError("wrapped") from None
                raise ValueError("wrapped") from error
        except ValueError as error:
            return error

    assert unwritable(chained(clear=False)) == "No space left on device"
    assert unwritable(chained(clear=True)) is None


@pytest.mark.parametrize("content", [b"", bytes(400), b"{", b"[]"])
def test_a_file_of_the_right_size_and_the_wrong_content_is_named_where_it_is_read(tmp_path, content):
    from seedbed.benchmark.evaluation.records import read_records
    from seedbed.benchmark.evaluation.threshold import read_threshold
    from seedbed.benchmark.training.checkpoint import load_network, save_network
    from seedbed.methods.cam import CamNetwork

    folder = Store(tmp_path).path("abcdef0123456789")
    folder.mkdir(parents=True)
    for name in ("model.json", "model.pt"):
        save_network(folder, CamNetwork("tiny", 2, 8, 0.0, False))
        (folder / name).write_bytes(content)
        with pytest.raises(
            StoreError, match=rf"{name}: damaged .*`seedbed cache rm abcdef012345`, then run again"
        ):
            load_network(folder)
    (folder / "threshold.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"threshold.json: damaged .*`seedbed cache rm abcdef012345`"):
        read_threshold(folder)
    (folder / "records.parquet").write_bytes(content)
    with pytest.raises(
        DataError, match=r"records.parquet: not a file of records .*`seedbed cache rm abcdef012345`"
    ):
        read_records(folder / "records.parquet")
    (folder / "maps.arrow").write_bytes(content)
    with pytest.raises(
        DataError, match=r"maps.arrow: broken or not an Arrow file .*`seedbed cache rm abcdef012345`"
    ):
        MapReader(folder)
