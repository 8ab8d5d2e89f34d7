"""The `seedbed` command: in this process, which saves the imports, or in one of its own."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import warnings
from pathlib import Path
from unittest.mock import patch

from tests.conftest import CHECKOUT
from tests.helpers.process import Program, run_python

PROGRAM = "import sys; from seedbed.benchmark.cli.main import main; sys.argv[0] = 'seedbed'; main()"


def start_seedbed(folder: Path, *words: object, output: Path = Path(os.devnull)) -> Program:
    """Start `seedbed` in a process of its own, in `folder`; its messages are appended to `output`."""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    return Program(["-c", PROGRAM, *map(str, words)], folder, environment, output, output)


def seedbed_process(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run `seedbed` in a process of its own, in `folder`."""
    return run_python(["-c", PROGRAM, *map(str, words)], folder, {**os.environ, "PYTHONPATH": str(CHECKOUT)})


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
