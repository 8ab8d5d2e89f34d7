"""A user's own files and installed modules are plug-ins like the checkout's, in this process and in others."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import seedbed
from seedbed.benchmark import plugins
from seedbed.benchmark.cli.main import app
from seedbed.benchmark.errors import ConfigError, SeedbedError, StoreError
from seedbed.benchmark.parallel import map_in_order
from seedbed.benchmark.pipeline.changed_code import source_of
from seedbed.benchmark.pipeline.registry import BACKBONES, DATASETS, METHODS, REFINERS
from seedbed.benchmark.source.closure import closure, forget
from seedbed.benchmark.training.checkpoint import load_network, save_network
from tests.helpers.plugins import FILES, METHOD

CHECKOUT = Path(__file__).resolve().parents[2]
FAMILIES = {"squared": METHODS, "grown": REFINERS, "small": BACKBONES, "renamed": DATASETS}
Write = Callable[..., Path]


pytestmark = pytest.mark.usefixtures("no_plugins")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes a plug-in of `FILES`, or a text, and returns its file."""

    def to_file(name: str, text: str | None = None) -> Path:
        path = tmp_path / f"{name}.py"
        path.write_text(FILES[name] if text is None else text)
        return path

    return to_file


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_a_plugin_as_if_it_lay_in_the_checkout(name, write):
    path, family = write(name), FAMILIES[name]
    with pytest.raises(ConfigError, match=rf"unknown {family.what} '{name}'.*by --plugin"):
        family.load(name)
    assert seedbed.add_plugin(path) == name
    assert name in family.names()
    assert family.module(name).__name__ == f"{plugins.PACKAGES[family.constant]}.{name}"
    assert family.load(name).name == name
    assert Path(family.module(name).__file__ or "") == path
    assert family.summary(name) == FILES[name].splitlines()[0].strip('"')
    # A second time is no other plug-in.
    plugins.add(path)
    assert [str(plugin) for plugin in plugins.given()] == [str(path)]


def test_a_folder_is_a_plugin_of_several_files(tmp_path, write):
    folder = tmp_path / "squared"
    folder.mkdir()
    (folder / "__init__.py").write_text(METHOD + "\nfrom .losses import x\n")
    (folder / "losses.py").write_text("x = 1\n")
    plugins.add(folder)
    assert METHODS.module("squared").x == 1
    assert "seedbed.methods.squared.losses" in sys.modules
    assert "seedbed.methods.squared.losses.x" in closure(["seedbed.methods.squared.losses.x"])
    assert [str(plugin) for plugin in plugins.given()] == [str(folder)]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "mine",
            "x = 1\n",
            r"mine\.py: a plug-in defines one of METHOD, REFINER, .* this file defines none",
        ),
        ("mine", "METHOD = 1\nREFINER = 2\n", "this file defines several"),
        ("my-method", "METHOD = 1\n", r"'my-method' is not a Python name; rename it, for example my_method"),
        ("cam", "METHOD = 1\n", r"its name 'cam' is used by .*methods/cam\.py; rename the file and the `name`"),
        ("mine", "METHOD = = 1\n", r"mine\.py: line 1: invalid syntax"),
    ],
)
def test_a_file_that_is_no_plugin_is_refused(name, text, message, write):
    with pytest.raises(SeedbedError, match=message):
        plugins.add(write(name, text))
    assert plugins.given() == ()
    assert "mine" not in METHODS.names()


def test_two_files_of_one_name_are_refused_and_two_kinds_of_one_name_are_not(tmp_path, write):
    plugins.add(write("squared"))
    other = tmp_path / "other"
    other.mkdir()
    (other / "squared.py").write_text(METHOD)
    with pytest.raises(ConfigError, match=r"other/squared\.py: its name 'squared' is used by .*/squared\.py"):
        plugins.add(other / "squared.py")
    (other / "squared.py").write_text(FILES["small"].replace("small", "squared"))
    plugins.add(other / "squared.py")
    assert BACKBONES.load("squared") is not METHODS.load("squared")


def test_a_collection_is_a_plugin_whose_name_no_backbone_may_have(write):
    small = FILES["small"].replace("BACKBONE = BackboneFamily", "SMALL = BackboneFamily")
    made = "\nfrom seedbed.methods.backbones.base import BackboneCollection\n"
    made += "BACKBONE_COLLECTION = BackboneCollection(name='ours', member={'one': SMALL}.__getitem__)\n"
    plugins.add(write("ours", small + made))
    assert BACKBONES.collections() == ("ours:NAME", "timm:NAME")
    assert BACKBONES.load("ours:one").name == "small"
    with pytest.raises(ConfigError, match=r"timm\.py: its name 'timm' is used by .*methods/backbones/timm\.py"):
        plugins.add(write("timm", FILES["small"].replace("small", "timm")))


@pytest.mark.parametrize(
    ("place", "problem"), [("gone.py", "no such file"), (".", r"a folder without __init__\.py")]
)
def test_a_missing_file_is_refused(place, problem, tmp_path):
    with pytest.raises(ConfigError, match=problem):
        plugins.add(tmp_path / place)


def test_a_plugin_replaces_no_module_of_the_project(tmp_path, write):
    """A folder's file that has the name of ours is not even found."""
    plugins.add(write("squared"))
    write("icd", "raise RuntimeError\n")
    assert METHODS.load("icd").name == "icd"
    with pytest.raises(ModuleNotFoundError):
        __import__("seedbed.methods.nothing")


def grown_in_this_process(_: int) -> tuple[str, ...]:
    return REFINERS.names()


def test_worker_processes_know_plugins_that_were_added_after_the_first_ones_started(write):
    assert all("grown" not in names for names in map_in_order(grown_in_this_process, [1, 2], 2))
    plugins.add(write("grown"))
    assert all("grown" in names for names in map_in_order(grown_in_this_process, [1, 2], 2))
    grow = REFINERS.module("grown").Grow
    with pytest.raises(SeedbedError, match="no such"):
        list(map_in_order(grow(Path("nowhere"), 0.5, Path("nowhere")), ["a", "b"], 2))


def test_a_trial_of_plugins_runs_in_worker_processes_and_its_results_name_their_code(
    write, tmp_path, chimera_root
):
    words = ["run", "--dataset", "renamed", "--root", chimera_root, "--method", "squared", "--refiner", "grown"]
    words += [
        "--backbone",
        "small",
        "--workers",
        "2",
        "--device",
        "cpu",
        "--no-segment",
        "--work",
        tmp_path / "work",
    ]
    words += [word for name in FILES for word in ("--plugin", write(name))]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    assert "run squared-grown-" in done.stdout
    entries = [path.read_text() for path in (tmp_path / "work/store").rglob("entry.json")]
    made = "\n".join(entries)
    assert '"seedbed.methods.squared.TrainSquared.losses"' in made
    assert '"seedbed.methods.refine.grown.Grow.__call__"' in made
    assert '"seedbed.methods.backbones.small.Small"' in made
    # One epoch, as the plug-in's recipe says.
    assert '"epochs": 1' in made


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("squared", ".square()", ".abs()"),
        ("grown", "/ 2", "/ 3"),
        ("small", "class Small(Tiny):", "class Small(Tiny):\n    frozen_norm = True\n"),
        ("renamed", "tuple(sorted(", "tuple(reversed("),
    ],
)
def test_an_edit_of_a_plugin_changes_the_source_of_its_results(name, old, new, write, chimera_root):
    for each in FILES:
        plugins.add(write(each))
    before = sources(chimera_root)
    path = write(name)
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))
    forget()
    after = sources(chimera_root)
    assert before.keys() == after.keys()
    changed = [definition for definition in before if before[definition] != after[definition]]
    assert changed
    assert all(f".{name}." in definition for definition in changed)


def sources(root: Path) -> dict[str, str]:
    """Return the definitions that the masks of a trial depend on."""
    from seedbed.benchmark.pipeline.stage import Machine
    from seedbed.benchmark.pipeline.work_folder import WorkFolder
    from seedbed.benchmark.trials.plan import plan_trial
    from seedbed.benchmark.trials.trial import Trial

    data = DATASETS.load("renamed").open(root)
    trial = Trial(dataset="renamed", method="squared", refiner="grown", backbone="small", segment=False)
    plan = plan_trial(trial, data, WorkFolder(Path("unused")), Machine(), "digest")
    found: dict[str, str] = {}
    for step in plan.steps().values():
        found |= source_of(step, data)["definitions"]
    return found


INSTALLED = {
    "squares/__init__.py": "",
    "squares/squared.py": METHOD.replace("\nfrom seedbed", "\nfrom squares.losses import square\nfrom seedbed", 1)
    .replace("(network", "square(network")
    .replace(".square()", ""),
    "squares/losses.py": "def square(x):\n    return x * x\n",
    "squares/network.py": """
from torch import nn

class Network(nn.Linear):
    def __init__(self, width):
        super().__init__(width, 1)
        self.arguments = {"width": width}
""",
    "squares-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: squares\nVersion: 1.0\n",
    "squares-1.0.dist-info/entry_points.txt": "[seedbed.plugins]\nsquared = squares.squared\n",
}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Return a `site-packages` with a distribution that has an entry point."""
    folder = tmp_path / "site-packages"
    for name, text in INSTALLED.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def program(text: str, **variables: str) -> str:
    """Run a program and return what it prints."""
    path = os.pathsep.join([str(CHECKOUT), variables.pop("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", text],
        env={**os.environ, "PYTHONPATH": path, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_entry_point_is_a_plugin_and_listing_it_imports_nothing(site):
    out = program(
        "import sys; from seedbed.benchmark.pipeline.registry import METHODS\n"
        "print(METHODS.names(), METHODS.summary('squared'), 'squares' in sys.modules)\n"
        "print(METHODS.load('squared'), METHODS.module('squared').__name__)\n"
        "from seedbed.benchmark.source.closure import closure\n"
        "print(*closure(['squares.squared.TrainSquared']))\n",
        PYTHONPATH=str(site),
    )
    assert "'squared'" in out
    assert "Squared: CAM with a squared loss. False" in out
    assert "squares.squared\n" in out
    # Code in `site-packages` counts if it belongs to a plug-in.
    assert "squares.losses.square" in out.splitlines()[-1]


def test_an_entry_point_without_a_module_is_refused_with_its_distribution(site):
    (site / "squares/squared.py").unlink()
    out = program(
        "from seedbed.benchmark.errors import ConfigError\n"
        "from seedbed.benchmark.pipeline.registry import METHODS\n"
        "try:\n    METHODS.names()\nexcept ConfigError as error:\n    print(error)\n",
        PYTHONPATH=str(site),
    )
    assert out == "squares: entry point 'squared': no such module: squares.squared\n"


def test_a_checkpoint_may_name_a_network_of_a_plugin_and_of_no_other_module(site, tmp_path, monkeypatch):
    shutil.rmtree(site / "squares-1.0.dist-info")  # What is installed is a plug-in already.
    monkeypatch.syspath_prepend(str(site))
    network = importlib.import_module("squares.network").Network(2)
    save_network(tmp_path, network)
    with pytest.raises(
        StoreError, match=r"'squares.network' is not a module of `seedbed.methods` or of a plug-in"
    ):
        load_network(tmp_path)
    plugins.add("squares.squared")
    loaded = load_network(tmp_path)
    assert type(loaded) is type(network)
    assert (loaded.weight == network.weight).all()
    for name in [name for name in sys.modules if name.partition(".")[0] == "squares"]:
        monkeypatch.delitem(sys.modules, name)


def test_only_a_plugin_that_is_not_installed_needs_its_file(write, site):
    plugins.add(write("grown"))
    assert plugins.needs_file("REFINER", "grown")
    assert not plugins.needs_file("REFINER", "crf")
    listing = "from seedbed.benchmark.plugins import needs_file; print(needs_file('METHOD', 'squared'))"
    assert program(listing) == "True\n"
    assert program(listing, PYTHONPATH=str(site)) == "False\n"


def test_plugins_are_copied_for_other_machines_with_the_data_files_they_name(write, site, tmp_path, monkeypatch):
    write("squared", METHOD + "\nTABLE = 'table.json'\n")
    (tmp_path / "table.json").write_text("{}")
    (tmp_path / "other.json").write_text("{}")
    folder = tmp_path / "grown"
    folder.mkdir()
    (folder / "__init__.py").write_text(FILES["grown"])
    (folder / "__pycache__").mkdir()
    plugins.add(tmp_path / "squared.py")
    plugins.add(folder)
    shared = tmp_path / "sweep/plugins"
    shared.parent.mkdir()
    copied = plugins.copy_plugins(shared)
    methods = shared / "methods"
    assert copied == [str(methods / "squared.py"), str(methods / "refine/grown")]
    found = [str(path.relative_to(methods)) for path in shared.rglob("*") if path.is_file()]
    assert sorted(found) == ["refine/grown/__init__.py", "squared.py", "table.json"]
    # A resumed sweep whose plug-in is gone has only the copy.
    plugins.give(os.pathsep.join(copied))
    assert plugins.copy_plugins(shared) == copied
    assert (methods / "squared.py").is_file()
    out = program(
        "import seedbed; print(seedbed.list_methods(), seedbed.list_refiners())", SEEDBED_PLUGINS=plugins.as_text()
    )
    assert "'squared'" in out
    assert "'grown'" in out
