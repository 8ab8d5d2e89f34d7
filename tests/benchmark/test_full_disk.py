"""A full disk: every command that writes ends in one line with the folder and what to do."""

from __future__ import annotations

import errno

import pytest
from typer.testing import CliRunner

from seedbed.benchmark.cli.main import app
from seedbed.benchmark.errors import StoreError

FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    OSError(errno.EROFS, "Read-only file system"),
    RuntimeError("[enforce fail] PytorchStreamWriter failed writing file: No space left on device"),
    ValueError("(sqlite3.OperationalError) database or disk is full"),
]


@pytest.mark.parametrize("error", FULL, ids=lambda error: str(error)[:30])
def test_the_folder_of_the_command_is_named_with_the_way_out(tmp_path, monkeypatch, error):
    import seedbed.datasets.chimera

    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr(seedbed.datasets.chimera, "_write_voc", full)
    words = ["data", "generate", "chimera", "--out", str(tmp_path / "c"), "--images", "48", "--size", "64"]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, StoreError)
    assert str(done.exception).startswith(f"{tmp_path / 'c'}: cannot write (")
    assert "free space there, or choose another folder" in str(done.exception)
    assert "\n" not in str(done.exception)


def test_errors_of_another_kind_are_not_hidden(tmp_path, monkeypatch):
    import seedbed.datasets.chimera

    def bug(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(seedbed.datasets.chimera, "_write_voc", bug)
    words = ["data", "generate", "chimera", "--out", str(tmp_path / "c"), "--images", "48", "--size", "64"]
    assert isinstance(CliRunner().invoke(app, words).exception, ZeroDivisionError)
