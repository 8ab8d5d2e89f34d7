"""Follows docs/extending.md: makes the changes of a section in a copy of the packages, and runs code there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = CHECKOUT / "docs/extending.md"


def section(title: str) -> str:
    """Return the text of a section of the page."""
    (text,) = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE.read_text("utf-8"), re.M | re.S)
    return text


def changes(title: str) -> list[tuple[str, str, str]]:
    """Return file, text before and text after of each change of a section."""
    found = []
    for path, lines in re.findall(r"^```diff\n\+\+\+ (\S+)\n(.*?)^```", section(title), re.M | re.S):
        before = "".join(line[1:] for line in lines.splitlines(keepends=True) if line[0] in " -")
        after = "".join(line[1:] for line in lines.splitlines(keepends=True) if line[0] in " +")
        found.append((path, before, after))
    return found


def changed_copy(title: str, folder: Path) -> Path:
    """Return a copy of the packages in `folder` with the changes of a section."""
    for package in ("benchmark", "datasets", "leaderboard", "methods", "tests"):
        shutil.copytree(CHECKOUT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "seedbed.py"):
        shutil.copy(CHECKOUT / name, folder)
    for path, before, after in changes(title):
        text = (folder / path).read_text("utf-8")
        assert text.count(before) == 1, f"{path}: has {text.count(before)} times\n{before}"
        (folder / path).write_text(text.replace(before, after), "utf-8")
    return folder


def run(script: str, copy: Path) -> str:
    """Run Python code with the packages of a copy, and return what it prints."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "SEEDBED_"))}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=copy,
        env=environment | {"PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
