"""A Ray cluster of several nodes on this machine, which share nothing but the disk."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil

PROGRAM = """
import sys
from ray.cluster_utils import Cluster
# Without what reads logs and asks for more nodes.
head = {"num_cpus": 1, "include_log_monitor": False, "no_monitor": True}
cluster = Cluster(initialize_head=True, head_node_args=head)
workers = [cluster.add_node(num_cpus=1) for _ in range(int(sys.argv[1]))]
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


@contextmanager
def ray_cluster(workers: int, **options: Any) -> Iterator[RayCluster]:
    """Start a head node and some worker nodes of one core each; kill all at the end.

    `options` are those of `Popen` for the process that starts the nodes.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(workers)],
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
