"""The `seedbed` command: in this process, which saves the imports, or in one of its own."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import IO
from unittest.mock import patch

from tests.conftest import CHECKOUT

PROGRAM = "import sys; from seedbed.benchmark.cli.main import main; sys.argv[0] = 'seedbed'; main()"


def start_seedbed(
    folder: Path, *words: object, output: IO[bytes] | int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """Start `seedbed` in a process of its own, in `folder`; its messages go to `output`."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, words)],
        cwd=folder,
        stdout=output,
        stderr=output,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
    )


def seedbed_process(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run `seedbed` in a process of its own, in `folder`."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, words)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        check=False,
    )


def seedbed(folder: Path, *words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `seedbed` in this process as if it were one of its own, in `folder`; with `check`, fail if it fails."""
    from seedbed.benchmark.cli.main import main

    arguments = ["seedbed", *map(str, words)]
    output, errors, code = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
        patch.dict(os.environ),
        patch.object(sys, "argv", arguments),
        patch.object(warnings, "formatwarning", warnings.formatwarning),
        warnings.catch_warnings(),
    ):
        # pytest keeps warnings for its summary; a process prints them.
        warnings.showwarning = lambda message, category, name, line, *_: print(
            warnings.formatwarning(message, category, name, line), end="", file=errors
        )
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    done = subprocess.CompletedProcess(arguments, code, output.getvalue(), errors.getvalue())
    assert not check or code == 0, done.stdout + done.stderr
    return done
