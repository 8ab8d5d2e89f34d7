"""The wheel carries the four packages with all their files, and they import from it."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.helpers.process import run_python

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGES = ("benchmark", "methods", "datasets", "leaderboard")


def build(kind: str, folder: Path) -> Path:
    """Build a `wheel`, an `editable` wheel or an `sdist` without a network."""
    program = f"import sys; from hatchling.build import build_{kind}; build_{kind}(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, str(folder)], cwd=CHECKOUT, check=True, capture_output=True)
    (path,) = folder.glob("seedbed-*")
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel."""
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def editable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel that `pip install --editable` installs."""
    return build("editable", tmp_path_factory.mktemp("editable"))


def test_the_wheel_has_every_file_of_the_packages_and_no_other(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    tracked = {"seedbed/__init__.py", "seedbed/py.typed"} | {
        f"seedbed/{path.relative_to(CHECKOUT)}"
        for package in PACKAGES
        for path in (CHECKOUT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == tracked


def test_the_packages_import_and_the_command_runs_from_the_wheel(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    program = (
        "import sys; sys.path.insert(0, 'site')\n"
        "from seedbed import benchmark, methods, datasets, leaderboard\n"
        "assert all('site' in m.__path__[0] for m in (benchmark, methods, datasets, leaderboard))\n"
        "from seedbed.benchmark.pipeline.registry import METHODS\n"
        "assert 'cam' in METHODS.names()\n"
        "sys.argv = ['seedbed', 'methods']\n"
        "from seedbed.benchmark.cli.main import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "cam" in done.stdout
    assert "seedbed = seedbed.benchmark.cli.main:main" in "".join(
        path.read_text() for path in (tmp_path / "site").rglob("entry_points.txt")
    )


def test_the_leaderboard_never_imports_torch():
    program = (
        "import pkgutil, importlib, sys; from seedbed import leaderboard\n"
        "for module in pkgutil.walk_packages(leaderboard.__path__, 'seedbed.leaderboard.'):\n"
        "    importlib.import_module(module.name)\n"
        "assert 'seedbed.leaderboard.site.pages' in sys.modules\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_lock_pins_every_package_with_hashes_and_names_no_index():
    lines = (CHECKOUT / "requirements.lock").read_text().splitlines()
    packages = [line for line in lines if line and not line.startswith(("#", " "))]
    assert all("==" in line and line.endswith("\\") for line in packages)
    assert not any("http" in line.partition("==")[2] or line.startswith("--") for line in packages)
    assert len([line for line in lines if "--hash=sha256:" in line]) >= len(packages)


THEIRS = ("benchmark", "datasets", "leaderboard", "methods", "tests")
"""Names that other distributions have: Hugging Face's `datasets`, which MLflow imports if it is there."""


def installed(site: Path, *parts: Path | None) -> Path:
    """Install wheels into a new folder one after another; None stands for the other distributions."""
    site.mkdir()
    for part in parts:
        if part is not None:
            zipfile.ZipFile(part).extractall(site)
            continue
        for name in THEIRS:
            (site / name).mkdir()
            (site / name / "__init__.py").write_text("WHOSE = 'theirs'\n")
    return site


def with_site(site: Path, program: str, *words: str) -> str:
    """Run a program that finds `seedbed` and its neighbours in `site` alone; return what it prints."""
    head = (
        "import sys\n"
        f"others = [path for path in sys.path if path not in ({str(CHECKOUT)!r}, {str(site.parent)!r})]\n"
        f"sys.path = [{str(site)!r}, *others]\n"
        f"sys.argv = ['seedbed', *{list(words)!r}]\n"
    )
    done = run_python(["-c", head + program], site.parent, os.environ)
    assert done.returncode == 0, done.stderr
    return done.stdout


COMMAND = "from seedbed.benchmark.cli.main import main\nmain()\n"


@pytest.mark.parametrize("kind", ["wheel", "editable"])
@pytest.mark.parametrize("ours_first", [True, False], ids=["ours first", "theirs first"])
def test_other_distributions_may_have_packages_of_our_folders_names(ours_first, kind, request, tmp_path):
    ours = request.getfixturevalue(kind)
    site = installed(tmp_path / "site", *((ours, None) if ours_first else (None, ours)))
    whose = (
        f"import {', '.join(THEIRS)}\n"
        f"assert all(package.WHOSE == 'theirs' for package in ({', '.join(THEIRS)}))\n"
        "from seedbed import datasets as ours\n"
        "assert ours.__name__ == 'seedbed.datasets'\n"
    )
    assert "splitting_merging" in with_site(site, whose + COMMAND, "methods")


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_a_library_that_looks_for_a_package_of_such_a_name_does_not_find_ours(kind, request, tmp_path):
    site = installed(tmp_path / "site", request.getfixturevalue(kind))
    program = (
        "from importlib.util import find_spec\n"
        "import seedbed\n"
        f"print([name for name in {THEIRS!r} if (found := find_spec(name)) and {str(CHECKOUT)!r} in str(found)])\n"
    )
    assert with_site(site, program).strip() == "[]"


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_a_run_works_beside_the_other_distributions(kind, request, chimera_root, tmp_path):
    site = installed(tmp_path / "site", None, request.getfixturevalue(kind))
    words = ["run", "--dataset", "chimera", "--root", str(chimera_root), "--no-segment", "--work", "work"]
    options = ["--set", "TrainCam.epochs=1", "--device", "cpu", "--workers", "0"]
    assert "run cam-none-" in with_site(site, COMMAND, *words, *options)


def test_the_source_distribution_has_what_a_public_project_has(tmp_path):
    with tarfile.open(build("sdist", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "README.md", "Makefile", "seedbed.py"}
    assert wanted <= names
    assert {f"{package}/__init__.py" for package in PACKAGES} <= names
