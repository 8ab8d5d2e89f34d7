"""A sweep on nodes that share an object store and nothing else, and what kills change: nothing."""

from __future__ import annotations

import itertools
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from seedbed.benchmark import plugins
from seedbed.benchmark.pipeline.remote import claims
from seedbed.benchmark.pipeline.remote.cached_store import StoreLocation
from seedbed.benchmark.pipeline.remote.objects import Objects
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.sweeps import driver as driver_module
from seedbed.benchmark.sweeps.cluster import _counts, problems_of_node
from seedbed.benchmark.sweeps.driver import TrialActor, run_sweep
from seedbed.benchmark.sweeps.remote import node
from seedbed.benchmark.sweeps.settings import SweepSettings
from seedbed.benchmark.sweeps.trial_files import TrialSpec
from seedbed.benchmark.sweeps.worker import run_sweep_trial
from seedbed.benchmark.trials.plan import TrialPlan
from seedbed.benchmark.trials.progress_log import read_lines
from tests.conftest import CHECKOUT
from tests.helpers.cluster import OneProcess, ray_cluster
from tests.helpers.command_line import seedbed, start_seedbed
from tests.helpers.plugins import METHOD
from tests.helpers.sweeping import scheduler_of, small

pytestmark = pytest.mark.usefixtures("no_plugins")
NUMBERS = ("records.parquet", "per_class.csv", "per_image/*.parquet")
LOSSES = '        """Return the loss."""\n'
GATE = """        import time
        from pathlib import Path

        while Path("{gate}").exists():
            time.sleep(0.05)
"""
# Only for 20 seconds, not for three minutes, do others wait for a worker that died.
EXPIRY = """
from seedbed.benchmark.pipeline.remote import claims

claims.EXPIRY, claims.RENEWAL = 20.0, 2.0
"""


@dataclass(frozen=True)
class Given:
    """A sweep of three trials of a user's own method: two can run before the search ends."""

    settings: SweepSettings
    gate: Path
    """The method does not train while there is this file."""
    expected: Path
    """A work folder in which all trials ran in one process."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("given")


@pytest.fixture
def given(chimera_root: Path, folder: Path, no_plugins: None, monkeypatch: pytest.MonkeyPatch) -> Given:
    for name in ("EXPIRY", "RENEWAL"):  # The method is imported here, too.
        monkeypatch.setattr(claims, name, getattr(claims, name))
    method, gate, here = folder / "squared.py", folder / "gate", folder / "here"
    assert LOSSES in METHOD
    method.write_text(METHOD.replace(LOSSES, LOSSES + GATE.format(gate=gate)) + EXPIRY)
    settings = small(
        chimera_root,
        methods=["squared"],
        plugins=[str(method)],
        refiners=["none"],
        trials=1,
        seeds=[0],
        segment=False,
        precision="fp32",
        settings={"TrainSquared.epochs": 1, "InferCam.scales": [1.0]},
    ).resolved()
    if not here.exists():
        scheduler = scheduler_of(settings, here)
        while (spec := scheduler.next_trial()) is not None:
            scheduler.finish(run_sweep_trial(spec, WorkFolder(here), "cpu", 0))
        assert scheduler.done
        assert len(numbers(here)) > 8
    return Given(settings, gate, here)


def numbers(work: Path) -> dict[str, bytes]:
    trials = work / "sweeps" / "small" / "trials"
    found = [path for pattern in NUMBERS for path in trials.glob(f"*/{pattern}")]
    return {path.relative_to(trials).as_posix(): path.read_bytes() for path in found}


def trainings(work: Path) -> list[int]:
    """Return how often a process has begun to train, of each trial that the driver's folder shows."""
    logs = work.glob("sweeps/small/trials/*/progress.jsonl")
    return [sum(line.get("stage") == "TrainSquared" for line in read_lines(log)) for log in sorted(logs)]


class Killed(BaseException):
    """The end of a process."""


class Nodes(OneProcess):
    """Nodes that take turns; only SEEDBED_WORK tells them apart."""

    def __init__(self, folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(monkeypatch)
        self.folders, self.variables = itertools.cycle(folders), monkeypatch
        self.driver_dies = False
        self.steps = 0
        monkeypatch.setattr(driver_module, "check_nodes", self.check_nodes)

    def check_nodes(self, specs: Any, driver: Any, *_: Any) -> None:
        self.next_node()
        counts = {spec.name: _counts(spec) for spec in specs}
        assert problems_of_node([asdict(spec) for spec in specs], counts, asdict(driver)) == []

    def next_node(self) -> None:
        self.variables.setenv(node.WORK_VARIABLE, str(next(self.folders)))

    def run(self, number: str, config: dict[str, Any]) -> None:
        self.next_node()
        places = plugins.as_text()
        actor = object.__new__(TrialActor)
        actor.setup(config)
        self.steps += 1
        self.trial = TrialSpec.from_json(config["spec"]).key
        try:
            result = actor.step()
        except Killed:
            self.searcher.on_trial_complete(number, error=True)
            return
        finally:
            plugins.give(places)
        if self.driver_dies:
            raise Killed
        self.searcher.on_trial_complete(number, result)


def test_workers_and_drivers_that_die_change_no_number(given, address, tmp_path, monkeypatch, caplog):
    nodes = [tmp_path / "first", tmp_path / "second"]
    tune, measure, killed = Nodes(nodes, monkeypatch), TrialPlan.measure, []

    def measure_or_die(plan: TrialPlan) -> Any:
        records = measure(plan)
        if not killed:
            killed.append(tune.trial)
            raise Killed
        return records

    monkeypatch.setattr(TrialPlan, "measure", measure_or_die)
    monkeypatch.setattr(node, "INTERVAL", 0.2)
    settings = replace(given.settings, address="somewhere:1")
    work = WorkFolder(tmp_path / "driver", StoreLocation(address))
    tune.driver_dies = True
    with pytest.raises(Killed):
        run_sweep(settings, work)
    # The first attempt died with all of its stages computed, the second delivered its trial to no one.
    assert (len(killed), tune.steps) == (1, 2)
    assert numbers(work.root) == {}
    tune.driver_dies = False
    with caplog.at_level("INFO"):
        assert run_sweep(settings, work).whole
    assert "1 trials had ended on other nodes" in caplog.text
    assert tune.steps == 4
    assert numbers(work.root) == numbers(given.expected)
    # The second attempt took all from the object store: its trial has trained once.
    assert trainings(work.root) == trainings(given.expected)
    assert all(any((own / "store" / "entries").iterdir()) for own in nodes)
    # What is left on the nodes is the folder of the attempt that died.
    left = [path for own in nodes for path in (own / "sweeps" / "small" / "trials").iterdir() if path.is_dir()]
    assert [path.name for path in left] == killed
    assert Objects(address).list("sweeps") == []


@pytest.mark.slow(10)
def test_a_ray_cluster_whose_nodes_share_nothing_but_the_object_store(given, address, tmp_path):
    driver, nodes = tmp_path / "driver", [tmp_path / "first", tmp_path / "second"]
    driver.mkdir()
    given.settings.save(driver / "sweep.yaml")
    (driver / "seedbed.toml").write_text(f"[store]\naddress = '{address}'\n")
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), plugins.VARIABLE: ""}
    work, output = driver / "work", driver / "output.txt"
    with ray_cluster(0, nodes, cwd="/", env=environment) as cluster:

        def watch() -> str:
            return seedbed(driver, "watch", "small", "--work", work).stdout

        given.gate.touch()
        process = start_seedbed(
            driver, "sweep", "sweep.yaml", "--work", work, "--address", cluster.address, output=output
        )
        limit = time.monotonic() + 600
        while trainings(work) != [1, 1]:
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < limit, output.read_text()
            time.sleep(0.2)
        assert watch().count("stage 1 of ") == 2
        assert "interrupted" not in watch()
        cluster.trials()[0].kill()
        given.gate.unlink()
        assert process.wait(timeout=600) == 0, output.read_text()
    assert "3 of 3 trials finished" in output.read_text()
    assert numbers(work) == numbers(given.expected)
    assert all((own / "sweeps" / "small" / "trials").is_dir() for own in nodes)
    assert Objects(address).list("sweeps") == []
