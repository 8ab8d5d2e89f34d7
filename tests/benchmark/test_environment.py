"""The surroundings: temporary folders, and what the operating system refuses."""

from __future__ import annotations

import os
import socket
import tempfile

import pytest
from typer.testing import CliRunner

from seedbed.benchmark import environment
from seedbed.benchmark.cli.main import app, main
from seedbed.benchmark.environment import SOCKET_FOLDER, shorten_temporary_folder
from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.sweeps.cluster import give_token


@pytest.fixture
def long_folder(tmp_path, monkeypatch):
    """Let the temporary folder be a long one."""
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def test_a_temporary_folder_that_is_too_long_for_sockets_is_replaced(long_folder):
    shorten_temporary_folder()
    short = tempfile.gettempdir()
    assert os.environ["TMPDIR"] == short
    assert len(short) <= SOCKET_FOLDER
    assert "RAY_TMPDIR" not in os.environ
    # What Ray makes below it, with the largest process id.
    name = f"{short}/ray/session_2026-11-28_22-20-14_123456_{2**22}/sockets/plasma_store"
    assert len(name) <= 107
    with tempfile.NamedTemporaryFile() as file:
        assert file.name.startswith(short)


def test_without_a_short_folder_the_user_is_told(long_folder, monkeypatch):
    monkeypatch.setattr(environment, "SHORT_FOLDERS", ("/nowhere",))
    with pytest.raises(ConfigError, match=r"TMPDIR=.*too long for sockets.*at most 39 characters"):
        shorten_temporary_folder()


def test_a_short_temporary_folder_is_left_alone(monkeypatch):
    monkeypatch.setenv("TMPDIR", "/tmp")
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    shorten_temporary_folder()
    assert os.environ["TMPDIR"] == "/tmp"


def test_paths_on_the_command_line_are_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    result = CliRunner().invoke(app, ["cache", "ls", "--work=~/file"])
    assert str(result.exception) == f"--work {tmp_path}/file: is a file, not a folder"
    result = CliRunner().invoke(app, ["data", "stats", "voc2012", "--root=${HOME}/gone"])
    assert str(result.exception).startswith(f"{tmp_path}/gone: no such folder (the root of voc2012); give its")


def test_what_the_system_refuses_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    words = ["seedbed", "data", "generate", "chimera", "--images=20", f"--out={tmp_path}/file/out", "-q"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {tmp_path}/file")
    assert printed.endswith(": Not a directory\n")
    assert printed.count("\n") == 1


def test_a_port_in_use_is_said(tmp_path, monkeypatch):
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow/mlflow.db").touch()
    monkeypatch.setattr("seedbed.benchmark.tracking.store.relocate_artifacts", lambda database: None)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = CliRunner().invoke(app, ["ui", f"--work={tmp_path}", f"--port={port}"])
    assert str(result.exception) == (
        f"cannot listen at 127.0.0.1:{port} (Address already in use); choose another --port or --host"
    )


def test_the_ui_starts_none_of_mlflows_jobs_unless_asked(tmp_path, monkeypatch):
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow/mlflow.db").touch()
    monkeypatch.setattr("seedbed.benchmark.tracking.store.relocate_artifacts", lambda database: None)
    monkeypatch.setattr("seedbed.benchmark.tracking.links.chart_links", lambda address, database: [])
    started = []
    monkeypatch.setattr(os, "execv", lambda *_: started.append(os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["ui", f"--work={tmp_path}", f"--port={port}"]
    for asked in (None, "true"):
        result = CliRunner().invoke(app, words, env={"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": asked})
        assert result.exception is None
    assert started == ["false", "true"]


def test_without_a_home_folder_to_write_to_ray_has_a_token_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    give_token()
    assert "RAY_AUTH_TOKEN" not in os.environ
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    give_token()
    # Not by `monkeypatch`, which would give the token to the tests after this one.
    assert len(os.environ.pop("RAY_AUTH_TOKEN")) == 64
