"""Fetching a file from a server that drops connections, lies about lengths, or has another file."""

from __future__ import annotations

import hashlib
import logging
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from seedbed.benchmark import progress
from seedbed.benchmark.errors import DataError
from seedbed.benchmark.progress import log_to_console
from seedbed.datasets.tools import fetch as fetching
from seedbed.datasets.tools.fetch import fetch
from tests.conftest import CHECKOUT
from tests.datasets.tools.releases import Fault, Server, serving

CONTENT = np.random.default_rng(0).bytes(40_000)
MD5 = hashlib.md5(CONTENT).hexdigest()
ATTEMPTS = len(fetching.WAITS) + 1


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serve CONTENT as /set.tar; nobody waits before the next attempt."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetching, "WAITS", (0.0,) * len(fetching.WAITS))
    with serving() as server:
        server.files["/set.tar"] = CONTENT
        yield server


def fetched(server: Server, path: Path) -> list[str | None]:
    """Fetch to `path`, check what is there afterwards, and return the ranges that were requested."""
    fetch(f"{server.url}/set.tar", path, len(CONTENT), MD5)
    assert path.read_bytes() == CONTENT
    assert [other.name for other in path.parent.iterdir()] == [path.name]
    return [span for _, span in server.requests]


def refused(server: Server, path: Path, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fetch(f"{server.url}/set.tar", path, len(CONTENT), MD5)
    assert not path.exists()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "set.tar"


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "set.tar.part"


def test_a_file_is_fetched_once(server, path):
    assert fetched(server, path) == [None]
    assert fetched(server, path) == [None]


def test_a_lost_connection_is_continued(server, path):
    server.faults = [Fault(drop=15_000), Fault(drop=7_000)]
    assert fetched(server, path) == [None, "bytes=15000-", "bytes=22000-"]


def test_attempts_are_counted_anew_after_each_that_brings_something(server, path):
    server.always = Fault(drop=4_000)
    assert len(fetched(server, path)) == 10 > ATTEMPTS


def test_what_a_killed_call_received_is_used(server, path, part):
    part.write_bytes(CONTENT[:12_345])
    assert fetched(server, path) == ["bytes=12345-"]


def test_a_process_that_is_killed_is_continued(server, path, part):
    server.faults = [Fault(pause=0.2)]
    arguments = f"{server.url + '/set.tar'!r}, Path({str(path)!r}), {len(CONTENT)}, {MD5!r}"
    program = f"from pathlib import Path\nfrom seedbed.datasets.tools.fetch import fetch\nfetch({arguments})"
    process = subprocess.Popen([sys.executable, "-c", program], cwd=CHECKOUT)
    until = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size) and time.monotonic() < until:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not path.exists()
    held = part.stat().st_size
    assert 0 < held < len(CONTENT)
    assert fetched(server, path) == [None, f"bytes={held}-"]


def test_a_part_that_is_whole_needs_no_request(server, path, part):
    part.write_bytes(CONTENT)
    assert fetched(server, path) == []


def test_a_part_that_is_too_long_is_not_used(server, path, part):
    part.write_bytes(CONTENT + b"more")
    assert fetched(server, path) == [None]


def test_a_server_that_knows_no_ranges_sends_all_again(server, path, part):
    part.write_bytes(b"?" * 12_345)
    server.always = Fault(ranges=False)
    assert fetched(server, path) == ["bytes=12345-"]


def test_a_server_that_knows_no_ranges_and_always_drops_is_given_up(server, path, part):
    server.always = Fault(ranges=False, drop=9_000)
    refused(server, path, rf"closed, {ATTEMPTS} times in a row; run the command again to continue \(9000 of 40000")
    assert len(server.requests) == ATTEMPTS
    assert part.read_bytes() == CONTENT[:9_000]


def test_a_server_that_sends_nothing_is_given_up(server, path):
    server.always = Fault(drop=0)
    refused(server, path, rf"set\.tar: .*closed, {ATTEMPTS} times in a row.*--mirror URL")
    assert len(server.requests) == ATTEMPTS


def test_a_server_that_is_away_is_given_up(server, path):
    server.port = 9
    refused(server, path, rf":9/set\.tar: Connection refused, {ATTEMPTS} times in a row")


def test_a_server_that_stalls_is_asked_again(server, path, monkeypatch, capsys):
    monkeypatch.setattr(fetching, "TIMEOUT", 0.2)
    server.faults = [Fault(drop=1_000, stall=1.0)]
    with log_to_console():
        assert fetched(server, path) == [None, "bytes=1000-"]
    assert capsys.readouterr().err == "set.tar: timed out; next attempt in 0 s\n"


def test_a_slow_server_is_waited_for(server, path, monkeypatch):
    monkeypatch.setattr(fetching, "TIMEOUT", 0.5)
    server.always = Fault(pause=0.02)
    assert fetched(server, path) == [None]


def test_a_server_that_is_busy_is_asked_again(server, path):
    server.faults = [Fault(status=503), Fault(status=429)]
    assert fetched(server, path) == [None, None, None]


@pytest.mark.parametrize("status", [403, 404])
def test_a_server_that_refuses_is_not_asked_again(server, path, status):
    server.always = Fault(status=status)
    refused(server, path, rf"set\.tar: HTTP {status} .*--mirror URL")
    assert len(server.requests) == 1


@pytest.mark.parametrize("length", [39_999, 40_001])
def test_another_length_is_refused_before_a_byte_is_read(server, path, part, length):
    part.write_bytes(CONTENT[:5_000])
    server.always = Fault(length=length)
    refused(server, path, rf"set\.tar: answers .*/{length}', expected 40000: another file")
    server.always = Fault(length=length, ranges=False)
    refused(server, path, rf"set\.tar: has {length} bytes, expected 40000: another file")
    assert part.read_bytes() == CONTENT[:5_000]
    assert len(server.requests) == 2


def test_a_file_that_ends_before_the_part_is_refused(server, path, part):
    part.write_bytes(CONTENT[:5_000])
    server.files["/set.tar"] = CONTENT[:4_000]
    refused(server, path, r"has at most 5000 bytes, expected 40000")


def test_of_a_server_that_tells_no_length_as_many_bytes_are_read_as_the_file_has(server, path, part):
    server.always = Fault(length=0)
    server.files["/set.tar"] = b"?" + CONTENT
    refused(server, path, r"has the MD5 .* and was removed")
    assert not part.exists()
    server.files["/set.tar"] = CONTENT + b"?"
    assert fetched(server, path) == [None, None]


def test_a_shorter_file_of_a_server_that_tells_no_length_is_given_up(server, path):
    server.files["/set.tar"] = b"<html>not found</html>"
    server.always = Fault(length=0, ranges=False)
    refused(server, path, rf"closed, {ATTEMPTS} times in a row.*\(22 of 40000 bytes")


def test_a_wrong_file_is_removed_and_the_right_one_fetched_by_the_next_call(server, path, part):
    server.files["/set.tar"] = wrong = CONTENT[::-1]
    found = hashlib.md5(wrong).hexdigest()
    refused(server, path, rf"{path}: has the MD5 {found}, expected {MD5}, and was removed; .*--mirror URL")
    assert not part.exists()
    server.files["/set.tar"] = CONTENT
    assert fetched(server, path) == [None, None]


def test_a_wrong_file_that_the_user_put_there_stays(server, path):
    for wrong, fault in (
        (CONTENT[::-1], f"has the MD5 .*, expected {MD5}"),
        (b"?", "has 1 bytes, expected 40000"),
    ):
        path.write_bytes(wrong)
        with pytest.raises(DataError, match=rf"{path}: {fault}; move this file away"):
            fetch(f"{server.url}/set.tar", path, len(CONTENT), MD5)
        assert path.read_bytes() == wrong
    assert not server.requests


def test_progress_has_megabytes_and_the_time_left(server, path, part, monkeypatch, capsys):
    monkeypatch.setattr(fetching, "MB", 1_000)
    monkeypatch.setattr(fetching, "BLOCK", 1_000)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    part.write_bytes(CONTENT[:10_000])
    server.faults = [Fault(drop=10_000)]
    with log_to_console():
        fetched(server, path)
    shown = capsys.readouterr().err
    assert "set.tar, MB: 10/40\n" in shown
    assert re.search(r"^set\.tar, MB: 15/40, \d+ s left$", shown, re.M)
    assert "set.tar: the connection was closed; next attempt in 0 s\n" in shown
    assert re.search(r"^checking set\.tar\.part, MB: 40/40, 0 s left$", shown, re.M)
    assert logging.getLogger("seedbed").handlers == []
