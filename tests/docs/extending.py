"""Follows a page of docs/: makes its files and changes in a copy of the packages, and runs its commands there."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
from pathlib import Path

from tests.helpers.process import run_python

CHECKOUT = Path(__file__).resolve().parents[2]
PROGRAMS = {"seedbed": ["-c", "from seedbed.benchmark.cli.main import main; main()"], "python": []}


def page(name: str) -> str:
    """Return the text of a page of docs/."""
    return (CHECKOUT / "docs" / name).read_text("utf-8")


def section(title: str) -> str:
    """Return the text of a section of docs/extending.md."""
    (text,) = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", page("extending.md"), re.M | re.S)
    return text


def new_files(text: str) -> dict[str, str]:
    """Return the content of each file that a text tells its reader to save, by path."""
    return dict(re.findall(r"`([\w/.]+)`:\n\n```(?:python|yaml)\n(.*?)^```", text, re.M | re.S))


def changes(text: str) -> list[tuple[str, str, str]]:
    """Return file, lines before and lines after of each change that a text makes."""
    found = []
    for path, lines in re.findall(r"^```diff\n\+\+\+ (\S+)\n(.*?)^```", text, re.M | re.S):
        before = "".join(line[1:] for line in lines.splitlines(keepends=True) if line[0] in " -")
        after = "".join(line[1:] for line in lines.splitlines(keepends=True) if line[0] in " +")
        found.append((path, before, after))
    return found


def commands(text: str) -> list[str]:
    """Return the commands of a text, in order."""
    return [line for block in re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S) for line in block.splitlines()]


def changed_copy(text: str, folder: Path) -> Path:
    """Return a copy of the packages in `folder` with the files and changes of a text."""
    for package in ("benchmark", "datasets", "leaderboard", "methods", "tests"):
        # With the compiled modules, which need not be compiled again.
        shutil.copytree(CHECKOUT / package, folder / package)
    for name in ("pyproject.toml", "seedbed.py"):
        shutil.copy(CHECKOUT / name, folder)
    for path, content in new_files(text).items():
        assert not (folder / path).exists(), f"{path}: exists"
        (folder / path).write_text(content, "utf-8")
    for path, before, after in changes(text):
        content = (folder / path).read_text("utf-8")
        assert content.count(before) == 1, f"{path}: has {content.count(before)} times\n{before}"
        (folder / path).write_text(content.replace(before, after), "utf-8")
    return folder


def run(script: str, copy: Path) -> str:
    """Run Python code with the packages of a copy, and return what it prints."""
    return _run(["-c", script], copy)


def run_commands(lines: list[str], copy: Path) -> dict[str, str]:
    """Run commands `[NAME=VALUE …] seedbed|python …` in a copy, and return what each printed."""
    found = {}
    for line in lines:
        words = shlex.split(line)
        variables = dict(word.split("=", 1) for word in itertools.takewhile(lambda word: "=" in word, words))
        program, *words = words[len(variables) :]
        found[line] = _run([*PROGRAMS[program], *words], copy, **variables)
    return found


def _run(words: list[str], copy: Path, **variables: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "SEEDBED_"))}
    environment |= {"PYTHONPATH": str(copy), "PYTEST_DEBUG_TEMPROOT": str(copy), **variables}
    done = run_python(words, copy, environment)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}{done.stderr}"
    return done.stdout
