"""Python programs in processes of their own that have the large libraries already: importing them takes seconds.

The processes are forks of a server that has imported the libraries and nothing of Seedbed.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

LIBRARIES = ("torch", "torchvision", "sklearn.metrics", "scipy.stats", "pandas", "pyarrow", "mlflow", "ray.tune")
OURS = ("seedbed", "tests")

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload([*LIBRARIES])


class Program:
    """`python WORDS…` in a process of its own, with the interface of `subprocess.Popen`.

    `words` begin with `-c CODE` or `-m MODULE`; what it prints is appended to the files `stdout` and `stderr`.
    """

    def __init__(
        self, words: Sequence[str], cwd: Path, environment: Mapping[str, str], stdout: Path, stderr: Path
    ) -> None:
        self.words = words
        outputs = (str(stdout), str(stderr))
        self.process = _server.Process(target=_main, args=([*words], str(cwd), dict(environment), *outputs))
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired([*self.words], timeout or 0.0)
        return self.process.exitcode

    def kill(self) -> None:
        self.process.kill()


def run_python(
    words: Sequence[str], cwd: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a `Program` to its end, and return what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, name) for name in ("stdout", "stderr")]
        code = Program(words, cwd, environment, *outputs).wait()
        texts = [path.read_text("utf-8") if path.exists() else "" for path in outputs]
    return subprocess.CompletedProcess([sys.executable, *words], code, *texts)


def _main(words: list[str], cwd: str, environment: dict[str, str], *outputs: str) -> None:
    """Become the program: its outputs, environment, folder, path and modules."""
    gc.freeze()  # A search for garbage would copy the server's memory.
    for descriptor, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    first = [cwd, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.path[:] = [*first, *(path for path in sys.path if path not in ("", *first))]
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]
    # The server has the flags with which pytest was started; see tests/conftest.py.
    sys.dont_write_bytecode = False
    option, what, *arguments = words
    sys.argv = [option if option == "-c" else what, *arguments]
    try:
        if option == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
