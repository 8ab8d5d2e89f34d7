"""The command line on streams of other encodings, on a pipe whose reader has gone, and on a full device."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys

import pytest

from seedbed.benchmark.cli import main as cli
from seedbed.benchmark.output import safe_output
from seedbed.benchmark.parallel import map_in_order


class Full(io.RawIOBase):
    """A device without space left."""

    def __init__(self) -> None:
        self._real = os.open(os.devnull, os.O_WRONLY)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._real

    def write(self, _: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def encoded(encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding)


def ended(*words: str) -> object:
    """Run `seedbed` in this process, and return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["seedbed", *words])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    return stopped.value.code


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "gbk", "utf-8"])
def test_signs_that_an_encoding_lacks_are_written_as_escapes(encoding, monkeypatch):
    out, err = encoded(encoding), encoded(encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with safe_output():
        print("a → ∑ 漢 é")
        print("≤", file=sys.stderr)
    out.flush()
    err.flush()
    expected = "a → ∑ 漢 é\n".encode(encoding, "backslashreplace")
    assert out.buffer.getvalue() == expected
    assert err.buffer.getvalue() == "≤\n".encode(encoding, "backslashreplace")


@pytest.mark.parametrize("words", [("methods", "show", "cam"), ("run", "--help"), ("--help",)])
def test_commands_end_well_on_ascii(words, monkeypatch):
    out = encoded("ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert ended(*words) == 0
    assert len(out.buffer.getvalue()) > 100


@pytest.mark.parametrize("lines", [1, 20_000])
def test_a_reader_that_has_gone_ends_the_command_silently(lines, monkeypatch, capfd):
    """With few lines the buffer's flush at the end fails, with many a print in the midst."""
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr(sys, "stdout", os.fdopen(writing, "w"))

    def app() -> None:
        for number in range(lines):
            print(number)
        sys.exit(0)

    monkeypatch.setattr(cli, "app", app)
    assert ended() == 141
    sys.stdout.flush()
    assert capfd.readouterr().err == ""


def test_typers_exit_for_a_broken_pipe_has_the_same_code(monkeypatch):
    def app() -> None:
        try:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        except OSError:
            sys.exit(1)

    monkeypatch.setattr(cli, "app", app)
    assert ended() == 141


def test_a_full_device_gets_one_line(monkeypatch):
    err = encoded("utf-8")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(Full()), "utf-8"))
    monkeypatch.setattr(sys, "stderr", err)
    assert ended("--version") == 1
    err.flush()
    assert err.buffer.getvalue().decode() == "error: the output cannot be written: No space left on device\n"


def test_the_version_is_that_of_the_package(capsys):
    from importlib.metadata import version

    assert ended("--version") == 0
    assert capsys.readouterr().out.startswith(f"seedbed {version('seedbed')} (torch ")


def killed(number):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("lost", [killed, "loader", MemoryError(), "cuda"])
def test_lost_workers_and_memory_get_one_line(lost, monkeypatch, capsys):
    def command():
        if callable(lost):
            list(map_in_order(lost, range(2), 2))
        if isinstance(lost, MemoryError):
            raise lost
        raise RuntimeError(
            "DataLoader worker (pid 7) is killed by signal: Killed. "
            if lost == "loader"
            else "CUDA out of memory. Tried to allocate 20.00 MiB."
        )

    monkeypatch.setattr(cli, "app", command)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "memory ran out" in line
    assert "--workers" in line


def test_other_errors_of_the_program_keep_their_traceback(monkeypatch):
    def command():
        raise RuntimeError("a fault of the program")

    monkeypatch.setattr(cli, "app", command)
    with pytest.raises(RuntimeError, match="a fault"):
        cli.main()
