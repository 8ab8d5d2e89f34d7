"""docs/plugins.md, followed literally in an empty folder with the toy method of docs/adding-a-method.md."""

from __future__ import annotations

import os
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from seedbed.benchmark import plugins
from seedbed.benchmark.cli.main import app
from tests.helpers.command_line import PROGRAM
from tests.helpers.process import run_python

CHECKOUT = Path(__file__).resolve().parents[2]
PAGE = (CHECKOUT / "docs/plugins.md").read_text()
METHOD_PAGE = (CHECKOUT / "docs/adding-a-method.md").read_text()
pytestmark = pytest.mark.slow


def block(language: str, page: str = PAGE) -> str:
    """Return the first code block in a language."""
    found = re.search(rf"```{language}\n(.*?)```", page, re.S)
    assert found
    return found[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `toy.py` and `toy.yaml`."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "toy.py").write_text(block("python", METHOD_PAGE))
    (folder / "toy.yaml").write_text(block("yaml"))
    return folder


def run_python_here(words: list[str], cwd: Path, *more: Path, **variables: str) -> str:
    """Run `python WORDS…` with the checkout and `more` on its path, and return what it prints."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "SEEDBED_"))}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, [CHECKOUT, *more]))
    done = run_python(words, cwd, environment | variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def in_a_process(command: str, folder: Path, *more: Path) -> str:
    """Run a command of `seedbed` in the user's folder, in a process of its own, and return what it prints."""
    return run_python_here(["-c", PROGRAM, *shlex.split(command)[1:]], folder, *more)


def here(command: str) -> str:
    """Run a command of `seedbed` in this process, which has torch, and return what it prints."""
    done = CliRunner().invoke(app, shlex.split(command)[1:])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_every_command_of_the_page_works(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv(plugins.VARIABLE, "")
    commands = [line for text in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for line in text.splitlines()]
    *own, contracts = commands
    # A sweep starts Ray, which is not to stay in this process.
    outputs = {
        command: in_a_process(command, folder) if " sweep " in command else here(command) for command in own
    }
    shown, _, run, sweep, _ = outputs.values()
    assert "toy: Toy: CAM whose classifier is trained with the focal loss." in shown
    assert "run toy-none-chimera-" in run
    # Two of them are references: masks of background, and of whole images.
    assert "3 of 3 trials finished" in sweep
    (copied,) = (folder / "seedbed-work/sweeps/toy/plugins").rglob("*.py")
    assert copied.read_bytes() == (folder / "toy.py").read_bytes()
    assert "Toy: CAM whose classifier" in (folder / "board/methods/toy.html").read_text()
    assert "--plugin" in (folder / "board/methods/toy.html").read_text()
    assert contracts.startswith(
        "SEEDBED_PLUGINS=/path/to/toy.py python -m pytest tests/contracts/test_contracts.py"
    )


def test_the_contract_tests_find_a_plugin(folder):
    words = ["-m", "pytest", "--collect-only", "-q", "-k", "toy", "tests/contracts/test_contracts.py"]
    listed = run_python_here(words, CHECKOUT, SEEDBED_PLUGINS=str(folder / "toy.py"))
    assert re.search(r"test_contracts\.py::\w+\[toy", listed)


def test_the_entry_point_of_a_package_needs_no_option(folder, tmp_path):
    project = tomllib.loads(block("toml"))["project"]
    site = tmp_path / "site"
    (site / "toys").mkdir(parents=True)
    (site / "toys/__init__.py").write_text("")
    (site / "toys/toy.py").write_text((folder / "toy.py").read_text())
    (metadata := site / "toys-1.0.dist-info").mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 1.0\n")
    points = project["entry-points"]["seedbed.plugins"]
    lines = [f"{name} = {module}" for name, module in points.items()]
    (metadata / "entry_points.txt").write_text("\n".join(["[seedbed.plugins]", *lines, ""]))
    assert "Toy: CAM whose classifier" in in_a_process("seedbed methods", folder, site)
