"""Output that never ends in a traceback: other encodings, a pipe whose reader has gone, a full device."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

READER_GONE = 141
"""The exit code of a program that SIGPIPE ends, as shells show it."""


@contextmanager
def safe_output() -> Iterator[None]:
    """Run a command, which ends in SystemExit, so that standard output and standard error cannot break it.

    A sign that the encoding of a stream lacks is written as an escape (`\\u2026`). If the reader of a pipe has
    gone, the command ends silently with exit code 141. If the output cannot be written, it ends with one line and
    exit code 1.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except SystemExit as stopped:
        # Typer turns a broken pipe into exit code 1.
        _finish(stopped.code, isinstance(stopped.__context__, BrokenPipeError))
        raise
    except BrokenPipeError:
        _finish(1, gone=True)


def _finish(code: str | int | None, gone: bool) -> None:
    """Write what is left in the buffer: at the interpreter's exit its failure would be a traceback."""
    try:
        # Both are None in a process without them.
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
    except BrokenPipeError:
        gone = True
    except OSError as error:
        _discard()
        if not code:
            print(f"error: the output cannot be written: {error.strerror}", file=sys.stderr)
            sys.exit(1)
    if gone:
        _discard()
        sys.exit(READER_GONE)


def _discard() -> None:
    """Let what is left in the buffers of standard output and standard error go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
