"""docs/plugins.md, followed literally in an empty folder with the toy method of docs/adding-a-method.md."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from seedbed.benchmark import plugins
from seedbed.benchmark.cli.main import app

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
    """Return a folder with `toy.py`, `toy.yaml` and a program `seedbed`."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "toy.py").write_text(block("python", METHOD_PAGE))
    (folder / "toy.yaml").write_text(block("yaml"))
    (folder / "bin").mkdir()
    program = folder / "bin/seedbed"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nfrom seedbed.benchmark.cli.main import main\n\n"
        'if __name__ == "__main__":\n    sys.exit(main())\n'
    )
    program.chmod(0o755)
    return folder


def shell(command: str, folder: Path, *more: Path) -> str:
    """Run a command in the user's folder and return what it prints."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "SEEDBED_"))}
    environment["PATH"] = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment["PYTHONPATH"] = os.pathsep.join(map(str, [CHECKOUT, *more]))
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


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
    outputs = {command: shell(command, folder) if " sweep " in command else here(command) for command in own}
    shown, _, run, sweep, _ = outputs.values()
    assert "toy: Toy: CAM whose classifier is trained with the focal loss." in shown
    assert "run toy-none-chimera-" in run
    assert "1 of 1 trials finished" in sweep
    (copied,) = (folder / "seedbed-work/sweeps/toy/plugins").rglob("*.py")
    assert copied.read_bytes() == (folder / "toy.py").read_bytes()
    assert "Toy: CAM whose classifier" in (folder / "board/methods/toy.html").read_text()
    assert "--plugin" in (folder / "board/methods/toy.html").read_text()
    assert contracts.startswith(
        "SEEDBED_PLUGINS=/path/to/toy.py python -m pytest tests/contracts/test_contracts.py"
    )


def test_the_contract_tests_find_a_plugin(folder):
    command = f"SEEDBED_PLUGINS={folder / 'toy.py'} {sys.executable} -m pytest --collect-only -q -k toy"
    listed = shell(f"cd {CHECKOUT} && {command} tests/contracts/test_contracts.py", folder)
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
    assert "Toy: CAM whose classifier" in shell("seedbed methods", folder, site)
