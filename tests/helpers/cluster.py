"""A Ray cluster of several nodes on this machine, and what stands in for Ray in tests that need no cluster."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import ray.tune
from ray.tune.search import Searcher

from seedbed.benchmark.sweeps import driver
from seedbed.benchmark.sweeps.driver import SchedulerSearcher, TrialActor

PROGRAM = """
import json, sys
from ray.cluster_utils import Cluster
head, *workers = json.loads(sys.argv[1])
# Without what reads logs and asks for more nodes.
quiet = {"include_log_monitor": False, "no_monitor": True}
cluster = Cluster(initialize_head=True, head_node_args={**head, **quiet})
workers = [cluster.add_node(**node) for node in workers]
print(cluster.address, flush=True)
for _ in sys.stdin:
    cluster.remove_node(workers.pop(), allow_graceful=False)
    print("removed", flush=True)
"""


@dataclass(frozen=True)
class RayCluster:
    """A running cluster."""

    address: str
    process: subprocess.Popen[str]

    def kill_worker_node(self) -> None:
        """Kill a node that is not the head, and wait for its end."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline().strip() == "removed"

    def trials(self) -> list[psutil.Process]:
        """Return the processes that run trials."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "Trainable" in " ".join(child.cmdline()):
                    found.append(child)
        return found


@contextmanager
def ray_cluster(workers: int, own_work: Sequence[Path] = (), **options: Any) -> Iterator[RayCluster]:
    """Start a head node and some worker nodes of one core each; kill all at the end.

    With `own_work`, the work folders of worker nodes, there is one for each of these, and no trial runs on the
    head. `options` are those of `Popen` for the process that starts the nodes.
    """
    nodes: list[dict[str, Any]] = [{"num_cpus": 0 if own_work else 1, "include_dashboard": False}]
    nodes += [{"num_cpus": 1} for _ in range(workers)]
    nodes += [{"num_cpus": 1, "env_vars": {"SEEDBED_WORK": str(work)}} for work in own_work]
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, json.dumps(nodes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert re.fullmatch(r"[\d.]+:\d+", address)
        yield RayCluster(address, process)
    finally:
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        process.kill()
        process.wait()


class OneProcess:
    """What `run_sweep` needs of Ray until the end of a test: trials run in its process, one after another."""

    searcher: SchedulerSearcher

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(driver, "connected", lambda *_: nullcontext())
        monkeypatch.setattr(driver, "RayWatchdog", lambda _: nullcontext())
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2})
        monkeypatch.setattr(ray.tune, "Tuner", self.tuner)

    def tuner(self, _: Any, tune_config: Any, run_config: Any) -> OneProcess:
        self.searcher = tune_config.search_alg
        return self

    def fit(self) -> None:
        """Run all trials."""
        for number in map(str, itertools.count()):
            config = self.searcher.suggest(number)
            if config == Searcher.FINISHED:
                return
            assert config is not None
            self.run(number, json.loads(json.dumps(config)))

    def run(self, number: str, config: dict[str, Any]) -> None:
        """Run a trial to its end, and tell the searcher."""
        actor = object.__new__(TrialActor)
        actor.setup(config)
        self.searcher.on_trial_complete(number, actor.step())
