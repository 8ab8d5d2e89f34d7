"""A sweep of a user's own method on a cluster whose nodes have none of the user's files."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
import yaml

from seedbed.benchmark import plugins
from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.sweeps.dry_run import forecast
from seedbed.benchmark.sweeps.settings import change, saved_settings, settings_of
from seedbed.benchmark.tracking.command_line import command_line
from tests.helpers.cluster import ray_cluster
from tests.helpers.command_line import PROGRAM
from tests.helpers.plugins import BACKBONE, DATASET, METHOD
from tests.helpers.process import run_python
from tests.helpers.sweeping import scheduler_of, small

CHECKOUT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.usefixtures("no_plugins")


@pytest.fixture
def own(tmp_path):
    """Return a folder with a method as a file, and a backbone as an installed distribution."""
    (tmp_path / "squared.py").write_text(METHOD)
    site = tmp_path / "site"
    (site / "smalls").mkdir(parents=True)
    (site / "smalls/__init__.py").write_text("")
    (site / "smalls/small.py").write_text(BACKBONE)
    (site / "smalls-1.dist-info").mkdir()
    (site / "smalls-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: smalls\nVersion: 1\n")
    (site / "smalls-1.dist-info/entry_points.txt").write_text("[seedbed.plugins]\nsmall = smalls.small\n")
    return tmp_path


@pytest.mark.slow
def test_the_nodes_of_a_cluster_get_files_and_installed_modules(own, chimera_root):
    """The nodes start without the user's `site`, in another folder; the file is gone when the sweep is resumed."""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    with ray_cluster(workers=0, cwd="/", env=environment) as cluster:
        with_site = {**environment, "PYTHONPATH": os.pathsep.join([str(CHECKOUT), str(own / "site")])}

        def seedbed(*words: str) -> str:
            done = run_python(["-c", PROGRAM, *words, "--work", "work"], own, with_site)
            logs = "".join(path.read_text() for path in own.glob("work/sweeps/*/trials/*/error.txt"))
            assert done.returncode == 0, done.stdout + done.stderr + logs
            return done.stdout

        words = ["--methods", "squared", "--refiners", "none", "--datasets", f"chimera-voc={chimera_root}"]
        words += ["--trials", "0", "--seeds", "0", "--no-segment", "--set", "InferCam.scales=1.0"]
        words += ["--backbone", "small", "--address", cluster.address, "--no-references"]
        assert "1 of 1 trials finished" in seedbed("sweep", "--name", "own", "--plugin", "squared.py", *words)
        settings = yaml.safe_load((own / "work/sweeps/own/sweep.yaml").read_text())
        assert settings["plugins"] == [str(own / "squared.py")]
        stored = "".join(path.read_text() for path in (own / "work/store").rglob("entry.json"))
        assert '"seedbed.methods.squared.TrainSquared.losses"' in stored
        assert '"smalls.small.Small"' in stored
        (own / "squared.py").unlink()
        again = seedbed("sweep", "--resume", "own", "--seeds", "0")
        assert "1 of 1 trials finished" in again


def test_a_sweep_is_told_its_plugins_in_its_file_and_the_command_line_replaces_them(own, chimera_root, tmp_path):
    settings = small(chimera_root, methods=["squared"], plugins=[str(own / "squared.py")])
    resolved = settings.resolved()
    assert resolved.plugins == (str(own / "squared.py"),)
    assert [str(cell) for cell in resolved.cells()] == [
        "squared × none × chimera-voc",
        "squared × crf × chimera-voc",
    ]
    folder = tmp_path / "sweeps/small"
    folder.mkdir(parents=True)
    resolved.save(folder / "sweep.yaml")
    plugins.give("")
    moved = own / "moved"
    moved.mkdir()
    (own / "squared.py").rename(moved / "squared.py")
    with pytest.raises(ConfigError, match=r"squared\.py: no such file \(a plug-in\)"):
        saved_settings(tmp_path / "sweeps", "small").resolved()
    # Where the file lies changes no number.
    plugins.add(moved / "squared.py")
    found = change(saved_settings(tmp_path / "sweeps", "small"), {"plugins": [str(moved / "squared.py")]})
    assert found.resolved().plugins == (str(moved / "squared.py"),)
    assert found.differences(resolved) == []


def test_the_copy_of_a_sweep_stands_for_a_plugin_that_is_gone(own, chimera_root, tmp_path):
    settings = small(chimera_root, methods=["squared"], plugins=[str(own / "squared.py")]).resolved()
    folder = tmp_path / "sweeps/small"
    folder.mkdir(parents=True)
    settings.save(folder / "sweep.yaml")
    (copied,) = plugins.copy_plugins(folder / "plugins")
    plugins.give("")
    (own / "squared.py").unlink()
    assert saved_settings(tmp_path / "sweeps", "small").resolved().plugins == (copied,)


def test_a_dry_run_finds_the_plugins_that_a_sweeps_file_names(own, chimera_root, tmp_path):
    """Also a data set, which is opened before any cell is planned."""
    (own / "renamed.py").write_text(DATASET)
    files = [str(own / "squared.py"), str(own / "renamed.py")]
    settings = settings_of(
        {
            "name": "own",
            "plugins": files,
            "datasets": [f"renamed={chimera_root}"],
            "variants": {"mine": {"method": "squared"}},
            "trials": 0,
        }
    )
    found = forecast(settings, WorkFolder(tmp_path / "work"))
    assert [str(cell.cell) for cell in found.cells] == ["squared × none × renamed × mine"]
    assert "TrainSquared" in {row.stage for row in found.stages}


def test_the_command_that_repeats_a_trial_asks_for_each_file(own, chimera_root, tmp_path):
    (own / "small.py").write_text(BACKBONE)
    files = [str(own / "squared.py"), str(own / "small.py")]
    changes = {"segmentation_backbone": "small", "segmentation_weights": "none", "backbone": "tiny"}
    settings = small(chimera_root, methods=["squared"], refiners=["none"], plugins=files, trials=0, **changes)
    spec = scheduler_of(settings.resolved(), tmp_path / "work").next_trial()
    words = shlex.split(command_line(spec, generated=False))
    assert words.count("--plugin") == 2
    assert words[words.index("--plugin") + 1] == "FILE"
