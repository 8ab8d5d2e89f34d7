"""The wheel carries the four packages with all their files, and they import from it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGES = ("benchmark", "methods", "datasets", "leaderboard")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    program = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", program, str(folder)], cwd=CHECKOUT, check=True, capture_output=True)
    (path,) = folder.glob("seedbed-*.whl")
    return path


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


def _install_theirs(site: Path) -> None:
    for name in THEIRS:
        (site / name).mkdir(parents=True, exist_ok=True)
        (site / name / "__init__.py").write_text("WHOSE = 'theirs'\n")


def _install_ours(site: Path, wheel: Path, *, editable: bool) -> None:
    if editable:
        site.mkdir(parents=True, exist_ok=True)
        (site / "_seedbed.pth").write_text(f"{CHECKOUT}\n")
    else:
        zipfile.ZipFile(wheel).extractall(site)


@pytest.mark.parametrize("editable", [False, True], ids=["wheel", "editable"])
@pytest.mark.parametrize("ours_first", [True, False], ids=["ours first", "theirs first"])
def test_other_distributions_may_have_packages_of_our_folders_names(
    ours_first, editable, wheel, chimera_root, tmp_path
):
    site = tmp_path / "site-packages"
    steps = [lambda: _install_ours(site, wheel, editable=editable), lambda: _install_theirs(site)]
    for install in steps if ours_first else reversed(steps):
        install()
    program = (
        "import site, sys\n"
        f"sys.path = [path for path in sys.path if path != {str(CHECKOUT)!r}]\n"
        f"place = len(sys.path); site.addsitedir({str(site)!r})\n"
        "sys.path = sys.path[place:] + sys.path[:place]\n"
        f"import {', '.join(THEIRS)}\n"
        f"assert all(package.WHOSE == 'theirs' for package in ({', '.join(THEIRS)}))\n"
        "from seedbed import datasets as ours\n"
        "assert ours.__name__ == 'seedbed.datasets'\n"
        "from seedbed.benchmark.cli.main import main\n"
        "sys.argv = ['seedbed', *sys.argv[1:]]\n"
        "main()\n"
    )
    words = ["methods"]
    if not editable and not ours_first:
        words = ["run", "--dataset", "chimera", "--root", str(chimera_root), "--no-segment", "--work", "work"]
        words += ["--set", "TrainCam.epochs=1", "--device", "cpu", "--workers", "0"]
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert ("run cam-none-" if words[0] == "run" else "splitting_merging") in done.stdout
