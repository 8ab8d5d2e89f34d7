"""Nodes that share an object store: nothing is computed twice, lost, or visible before it is whole.

A node is a folder of its own. The object store is a real S3 server on this machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from seedbed.benchmark.errors import ConfigError, StoreError
from seedbed.benchmark.pipeline.remote import claims
from seedbed.benchmark.pipeline.remote.cached_store import CachedStore
from seedbed.benchmark.pipeline.remote.claims import Claims
from seedbed.benchmark.pipeline.remote.objects import Objects
from seedbed.benchmark.pipeline.stage import cache_key
from seedbed.benchmark.pipeline.store import Store

IDENTITY = {"stage": "Count", "version": 1, "settings": {"n": 3}, "seed": 0, "split": "weak", "inputs": {}}
KEY = cache_key(IDENTITY)
NOBODY = "s3://bucket/seedbed?endpoint_override=127.0.0.1:1&scheme=http&region=us-east-1"
"""An address at which nothing listens."""


class Count:
    """Writes files in two folders, and counts how often it runs."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, out: Path, scratch: Path) -> None:
        self.runs += 1
        (out / "number.txt").write_text("7")
        (out / "more").mkdir()
        (out / "more" / "maps.arrow").write_bytes(bytes(range(256)) * 100)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(address: str) -> list[str]:
    return [info.name for info in Objects(address).list("entries")]


def archive_of(address: str) -> str:
    (name,) = [name for name in names(address) if name.endswith(".tar")]
    return f"entries/{name}"


def test_the_second_node_finds_what_the_first_computed(tmp_path, address):
    count = Count()
    first, computed = CachedStore(tmp_path / "a", address).get_or_run(IDENTITY, count)
    second, again = CachedStore(tmp_path / "b", address).get_or_run(IDENTITY, count)
    assert (computed, again, count.runs) == (True, False, 1)
    assert second.path == tmp_path / "b" / "entries" / KEY[:2] / KEY
    assert files(second.path) == files(first.path)
    assert second.record == first.record
    # Nothing is left of claims, uploads and downloads.
    assert Objects(address).list("claims") == []
    assert [*(tmp_path / "a" / "unsent").iterdir(), *(tmp_path / "b" / "partial").glob("*")] == []


def test_the_entry_has_the_key_and_the_bytes_of_a_local_store(tmp_path, address):
    local, _ = Store(tmp_path / "local").get_or_run(IDENTITY, Count())
    CachedStore(tmp_path / "a", address).get_or_run(IDENTITY, Count())
    fetched = CachedStore(tmp_path / "b", address).use(KEY)
    assert fetched is not None
    ours, theirs = files(fetched.path), files(local.path)
    changing = ("started", "seconds")
    records = [json.loads(found.pop("entry.json")) for found in (ours, theirs)]
    assert ours == theirs
    ours, theirs = ({k: v for k, v in record.items() if k not in changing} for record in records)
    assert ours == theirs
    assert list(records[0]) == list(records[1])


def test_a_local_hit_asks_no_server(tmp_path, address):
    CachedStore(tmp_path, address).get_or_run(IDENTITY, Count())
    offline = CachedStore(tmp_path, NOBODY)
    entry = offline.use(KEY)
    assert entry is not None
    assert offline.get(KEY) == entry
    assert offline.folder(KEY) == entry.path
    assert offline.exists(KEY)


def test_what_only_the_object_store_has_is_known_without_a_download(tmp_path, address):
    entry, _ = CachedStore(tmp_path / "a", address).get_or_run(IDENTITY, Count())
    store = CachedStore(tmp_path / "b", address)
    assert store.exists(KEY)
    assert store.usable(KEY)
    assert not store.exists("0" * 64)
    assert not store.usable("0" * 64)
    assert store.all_keys() == [KEY]
    (found,) = store.entries()
    assert found.record == entry.record
    assert not store.path(KEY).exists()
    assert files(store.folder(KEY)) == files(entry.path)


def _cut(objects: Objects, archive: str) -> None:
    objects.write(archive, (objects.read(archive) or b"")[:-5000])


def _flip(objects: Objects, archive: str) -> None:
    content = bytearray(objects.read(archive) or b"")
    content[content.index(200)] = 201  # Of a file: headers are ASCII.
    objects.write(archive, bytes(content))


def _scramble(objects: Objects, archive: str) -> None:
    objects.write(archive, b"no archive" * 1000)


def _delete(objects: Objects, archive: str) -> None:
    objects.delete(archive)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_cut, "unexpected end of data|bytes are there"),
        (_flip, "its SHA-256 is not the recorded one"),
        (_scramble, "invalid header|not a tar"),
        (_delete, "its archive is missing"),
    ],
)
def test_a_damaged_archive_is_computed_and_uploaded_again(tmp_path, address, caplog, damage, reason):
    count = Count()
    CachedStore(tmp_path / "a", address).get_or_run(IDENTITY, count)
    damage(Objects(address), archive_of(address))
    entry, computed = CachedStore(tmp_path / "b", address).get_or_run(IDENTITY, count)
    assert (computed, count.runs) == (True, 2)
    assert (entry.path / "number.txt").read_text() == "7"
    (message,) = caplog.messages
    assert message.startswith(f"{address}: {KEY[:12]} is damaged (")
    assert message.endswith("Count is computed again")
    assert any(part in message for part in reason.split("|"))
    third = CachedStore(tmp_path / "c", address).use(KEY)
    assert third is not None
    assert files(third.path) == files(entry.path)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"record": {}, "archive": {}}'])
def test_a_damaged_record_is_no_entry(tmp_path, address, text):
    count = Count()
    CachedStore(tmp_path / "a", address).get_or_run(IDENTITY, count)
    Objects(address).write(f"entries/{KEY[:2]}/{KEY}/entry.json", text)
    store = CachedStore(tmp_path / "b", address)
    assert store.use(KEY) is None
    assert store.all_keys() == [KEY]
    assert store.get_or_run(IDENTITY, count)[1]
    assert CachedStore(tmp_path / "c", address).use(KEY) is not None


def test_a_damaged_local_copy_is_downloaded_again(tmp_path, address):
    count = Count()
    entry, _ = CachedStore(tmp_path, address).get_or_run(IDENTITY, count)
    (entry.path / "number.txt").unlink()
    again, computed = CachedStore(tmp_path, address).get_or_run(IDENTITY, count)
    assert (computed, count.runs) == (False, 1)
    assert (again.path / "number.txt").read_text() == "7"


VICTIM = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from seedbed.benchmark.pipeline.remote import entries, objects
    from seedbed.benchmark.pipeline.remote.cached_store import CachedStore

    folder, address, moment = sys.argv[1:]
    identity = {"stage": "Count", "version": 1, "settings": {"n": 3}, "seed": 0, "split": "weak", "inputs": {}}

    def stop(*_):
        Path(folder, "in the upload").touch()
        time.sleep(600)

    write = objects._Writer.write
    sent = 0

    def write_some(self, content):
        global sent
        sent += len(content)
        if sent > 12 << 20:
            stop()
        return write(self, content)

    if moment == "archive":
        objects._Writer.write = write_some  # Some parts of the archive are on the server already.
    else:
        entries.RemoteEntries.write_record = stop  # The archive is on the server, the record is not.

    def produce(out, scratch):
        (out / "number.txt").write_text("7")
        (out / "large").write_bytes(bytes(range(256)) * (1 << 16))

    CachedStore(Path(folder), address).get_or_run(identity, produce)
    """
)


@pytest.mark.parametrize("moment", ["archive", "record"])
def test_a_node_killed_in_an_upload_leaves_no_entry_and_the_next_completes_it(
    tmp_path, address, moment, monkeypatch
):
    monkeypatch.setattr(claims, "EXPIRY", 3.0)
    monkeypatch.setattr(claims, "POLL", 0.2)
    dead = tmp_path / "dead"
    dead.mkdir()
    victim = subprocess.Popen([sys.executable, "-c", VICTIM, str(dead), address, moment])
    deadline = time.monotonic() + 120
    while not (dead / "in the upload").exists():
        assert victim.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    victim.kill()
    victim.wait()

    count, other = Count(), CachedStore(tmp_path / "other", address)
    assert other.all_keys() == []
    assert other.get(KEY) is None
    assert other.use(KEY) is None
    # The claim of the dead node ends by itself.
    entry, computed = other.get_or_run(IDENTITY, count)
    assert (computed, count.runs) == (True, 1)
    third = CachedStore(tmp_path / "third", address).use(KEY)
    assert third is not None
    assert files(third.path) == files(entry.path)
    # What the dead node had computed is kept there, and it does not replace the other's.
    there = CachedStore(dead, address).use(KEY)
    assert there is not None
    assert there.path.joinpath("number.txt").read_text() == "7"
    assert not (dead / "unsent" / KEY).exists()
    fourth = CachedStore(tmp_path / "fourth", address).use(KEY)
    assert fourth is not None
    assert files(fourth.path) == files(entry.path)
    # The archive that no record names is a leftover.
    before = len(names(address))
    assert other.collect_garbage(older_than_days=-1)[0] == 1
    assert len(names(address)) == 2
    assert before == (3 if moment == "record" else 2)


def test_a_process_killed_on_this_node_does_not_delay_the_next_one_here(tmp_path, address):
    store = CachedStore(tmp_path, address)
    Objects(address).write(f"claims/{KEY}/{store._claims._node}", b"")
    waited: list[int] = []
    _, computed = store.get_or_run(IDENTITY, Count(), on_wait=lambda: waited.append(1))
    assert (computed, waited) == (True, [])


def test_of_two_nodes_one_computes_and_the_other_waits(tmp_path, address, monkeypatch):
    monkeypatch.setattr(claims, "POLL", 0.1)
    count, waited, found = Count(), [], []

    def slow(out: Path, scratch: Path) -> None:
        time.sleep(0.5)
        count(out, scratch)

    def work(name: str) -> None:
        store = CachedStore(tmp_path / name, address)
        found.append(store.get_or_run(IDENTITY, slow, on_wait=lambda: waited.append(name)))

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count.runs == 1
    assert sorted(computed for _, computed in found) == [False, False, True]
    assert len(waited) == len(set(waited)) >= 2
    first, *others = [files(entry.path) for entry, _ in found]
    assert others == [first, first]
    assert len(names(address)) == 2


def test_the_claim_of_a_dead_node_expires(tmp_path, address, monkeypatch):
    monkeypatch.setattr(claims, "EXPIRY", 4.0)
    monkeypatch.setattr(claims, "POLL", 0.2)
    assert Claims(Objects(address), "dead")._alone(KEY)
    count, waited, started = Count(), [], time.monotonic()
    store = CachedStore(tmp_path, address)
    _, computed = store.get_or_run(IDENTITY, count, on_wait=lambda: waited.append(1))
    assert (computed, count.runs, waited) == (True, 1, [1])
    assert time.monotonic() - started > 2.5  # The server's clock shows whole seconds.


def test_a_claim_that_is_renewed_does_not_expire(address, monkeypatch):
    monkeypatch.setattr(claims, "EXPIRY", 2.0)
    monkeypatch.setattr(claims, "RENEWAL", 0.3)
    monkeypatch.setattr(claims, "POLL", 0.1)
    mine, other = Claims(Objects(address), "mine"), Claims(Objects(address), "other")
    with mine.held(KEY, lambda: None):
        time.sleep(3.5)
        assert not other._alone(KEY)
    assert other._alone(KEY)


def test_results_of_a_cut_off_node_are_kept_and_uploaded_later(tmp_path, address):
    count, cut_off = Count(), CachedStore(tmp_path / "a", address)

    def then_cut_off(out: Path, scratch: Path) -> None:
        count(out, scratch)
        cut_off._remote._objects = Objects(NOBODY)

    with pytest.raises(StoreError) as caught:
        cut_off.get_or_run(IDENTITY, then_cut_off)
    message = str(caught.value)
    assert message.startswith(f"{NOBODY}: the object store cannot be used (")
    assert "seedbed.toml" in message
    assert "Finished stages are kept" in message
    assert "\n" not in message
    assert names(address) == []
    # Connected again.
    store = CachedStore(tmp_path / "a", address)
    os.utime(store.path(KEY), (0, 0))
    assert store.collect_garbage(older_than_days=5)[0] == 0
    assert store.get_or_run(IDENTITY, count)[1] is False
    assert count.runs == 1
    assert CachedStore(tmp_path / "b", address).use(KEY) is not None


def test_a_bucket_that_does_not_exist_is_told_before_anything_is_computed(address):
    missing = re.sub(r"s3://[^/]+", "s3://no-such-bucket", address)
    assert Objects(missing).list("claims") == []
    with pytest.raises(
        StoreError, match=r"s3://no-such-bucket/.*the object store cannot be used .*NO_SUCH_BUCKET"
    ):
        Objects(missing).check()
    Objects(address).check()
    assert Objects(address).list("") == []


def test_without_network_nothing_is_computed(tmp_path):
    count = Count()
    with pytest.raises(StoreError, match=r"127.0.0.1:1.*cannot be used .*Check its address"):
        CachedStore(tmp_path, NOBODY).get_or_run(IDENTITY, count)
    assert count.runs == 0


def test_removed_entries_are_gone_here_and_there(tmp_path, address):
    store, other = CachedStore(tmp_path / "a", address), CachedStore(tmp_path / "b", address)
    store.get_or_run(IDENTITY, Count())
    other.remove(KEY)
    assert names(address) == []
    assert Store(store.root).all_keys() == [KEY]
    store.remove(KEY)
    assert store.all_keys() == []


def test_collecting_garbage_keeps_the_object_store(tmp_path, address):
    store = CachedStore(tmp_path, address)
    entry, _ = store.get_or_run(IDENTITY, Count())
    long_ago = time.time() - 10 * 86_400
    os.utime(entry.path, (long_ago, long_ago))
    assert store.collect_garbage(older_than_days=5) == (1, 0)
    assert not entry.path.exists()
    assert store.use(KEY) is not None


def test_accepted_code_is_recorded_in_the_object_store(tmp_path, address):
    store = CachedStore(tmp_path / "a", address)
    store.get_or_run(IDENTITY, Count())
    remote_only = CachedStore(tmp_path / "b", address)
    entry = remote_only.get(KEY)
    assert entry is not None
    remote_only.accept(entry, {"definitions": {}})
    fetched = CachedStore(tmp_path / "c", address).use(KEY)
    assert fetched is not None
    assert fetched.record["accepted"] == [{"definitions": {}}]


def test_a_file_system_with_folders_serves_as_well(tmp_path):
    address, count = f"file://{tmp_path}/shared", Count()
    first, _ = CachedStore(tmp_path / "a", address).get_or_run(IDENTITY, count)
    second, computed = CachedStore(tmp_path / "b", address).get_or_run(IDENTITY, count)
    assert (computed, count.runs) == (False, 1)
    assert files(second.path) == files(first.path)
    (archive,) = (tmp_path / "shared" / "entries" / KEY[:2] / KEY).glob("*.tar")
    record = json.loads(archive.with_name("entry.json").read_text())
    assert record["archive"]["sha256"] == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert record["archive"]["bytes"] == archive.stat().st_size


def test_the_commands_list_show_upload_and_remove_entries_of_the_object_store(
    tmp_path, address, monkeypatch, capsys
):
    from seedbed.benchmark.cli.cache import collect_cache, list_cache, push_cache, remove_cache, show_cache

    monkeypatch.chdir(tmp_path)
    here, there = tmp_path / "here", tmp_path / "there"
    with pytest.raises(ConfigError, match=r"no object store: name one in seedbed.toml, in a table \[store\]"):
        push_cache(here)
    # Computed before there was an object store.
    entry, _ = Store(here / "store").get_or_run(IDENTITY, Count())
    Path("seedbed.toml").write_text(f"[store]\naddress = '{address}'\n")
    push_cache(here)
    push_cache(here)
    assert capsys.readouterr().out == f"uploaded 1 entries to {address}\nuploaded 0 entries to {address}\n"
    list_cache(there)
    assert f"{KEY[:12]}  Count" in capsys.readouterr().out
    show_cache(KEY[:12], there)
    assert json.loads(capsys.readouterr().out) == entry.record
    assert not (there / "store" / "entries").exists()
    collect_cache(0, here)
    assert capsys.readouterr().out == "removed 1 entries and 0 leftovers\n"
    remove_cache(["Count"], there)
    assert capsys.readouterr().out == f"removed {KEY[:12]} Count\n"
    assert names(address) == []
