"""Files are written by one rename: whole, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from seedbed.benchmark.files import atomic, write_text


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "file"
    path.write_text("old")

    def interrupted() -> None:
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("flush", "expected"), [(True, ["flush", "rename"]), (False, ["rename"])])
def test_content_is_on_the_disk_before_the_rename_unless_it_can_be_made_again(
    tmp_path, monkeypatch, flush, expected
):
    happened: list[str] = []
    rename = Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: happened.append("flush"))
    monkeypatch.setattr(Path, "replace", lambda a, b: (happened.append("rename"), rename(a, b))[1])
    with atomic(tmp_path / "new" / "file", flush) as temporary:
        temporary.write_bytes(b"\0content")
    assert happened == expected
    assert (tmp_path / "new" / "file").read_bytes() == b"\0content"


def test_text_is_utf_8_and_replaces_the_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("a longer text than the new one")
    write_text(path, "ä\n")
    assert path.read_bytes() == "ä\n".encode()
