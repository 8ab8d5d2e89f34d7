"""The connection to Ray: start or join it, send the code, check the data on every node, detect its death."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from seedbed.benchmark.environment import CODE_VARIABLE, code_version
from seedbed.benchmark.errors import ConfigError, DataError, SeedbedError
from seedbed.benchmark.pipeline.remote.objects import Objects
from seedbed.benchmark.pipeline.work_folder import DatasetSpec
from seedbed.benchmark.plugins import VARIABLE, package_path, packages_of_plugins
from seedbed.benchmark.sweeps.remote.node import DriverFolder, Node
from seedbed.benchmark.sweeps.settings import SweepSettings
from seedbed.benchmark.training.initialisation import is_file

NOT_SHIPPED = (
    ".git/",
    ".venv/",
    "**/__pycache__/",
    ".mypy_cache/",
    ".ruff_cache/",
    ".pytest_cache/",
    "seedbed-work/",
    "docs/",
    "tests/",
    "dist/",
    "*.pth",
    "*.pt",
    "*.npy",
    "*.arrow",
    "*.db",
    "*.zip",
    "*.tar",
)

logger = logging.getLogger(__name__)


@contextmanager
def connected(settings: SweepSettings, apart: Sequence[Path], plugins: Sequence[str]) -> Iterator[None]:
    """Connect to the cluster, or start Ray on this machine; disconnect or stop it afterwards.

    `apart` are folders and files that are not sent to other nodes if they are in the checkout; `plugins` are
    those of the workers, in folders that all nodes share. What Ray sets in the environment is gone afterwards: a
    program that is forked with its mode of authentication could not talk to a Ray of its own. Raises
    ConfigError if there is no cluster.
    """
    if settings.address is None:
        give_token()  # It stays in the environment: Ray reads the token once per process.
    before, terminated = dict(os.environ), signal.getsignal(signal.SIGTERM)
    main = threading.current_thread() is threading.main_thread()
    try:
        _start(settings, apart, plugins)
        if main:  # Ray has set its own, which prints a stack and aborts.
            signal.signal(signal.SIGTERM, _interrupt)
        yield
    finally:
        ray.shutdown()
        if main:
            signal.signal(signal.SIGTERM, terminated)
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Do at SIGTERM, which batch systems send, what Ctrl-C does, also in the background, where that is ignored."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):
        raise KeyboardInterrupt
    handler(signal.SIGINT, frame)


def _start(settings: SweepSettings, apart: Sequence[Path], plugins: Sequence[str]) -> None:
    os.environ.update(
        TUNE_DISABLE_AUTO_CALLBACK_LOGGERS="1",
        TUNE_GLOBAL_CHECKPOINT_S="600",
        TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S="0",
        RAY_AIR_NEW_OUTPUT="0",
        RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
        RAY_USAGE_STATS_ENABLED="0",
        # Trials set their own variables, so workers that Ray starts in advance would never be used.
        RAY_prestart_worker_first_driver="0",
    )
    if settings.address is not None:
        # More queued trials show the autoscaler how many nodes are needed.
        os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "16")
    # SweepProgress reports each trial; Tune would print a traceback for each worker that dies.
    for name, level in (("ray", logging.ERROR), ("ray.tune", logging.CRITICAL)):
        logging.getLogger(name).setLevel(level)
    variables = {
        "OMP_NUM_THREADS": str(settings.cpus_per_trial),
        "OMP_WAIT_POLICY": "PASSIVE",
        CODE_VARIABLE: code_version(),
        VARIABLE: os.pathsep.join(plugins),
    }
    environment: dict[str, Any] = {"env_vars": variables}
    if settings.address is not None:
        environment |= shipped_code(apart)
    logger.info("starting Ray" if settings.address is None else f"connecting to Ray at {settings.address}")
    try:
        _knock(settings.address)
        ray.init(
            address=settings.address or "local",
            runtime_env=environment,
            include_dashboard=False if settings.address is None else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (OSError, RuntimeError, ValueError) as error:
        text = (str(error).splitlines() or [type(error).__name__])[0]
        where = "Ray cannot start here" if settings.address is None else f"no Ray cluster at {settings.address}"
        raise ConfigError(f"{where} ({text})") from None


def give_token() -> None:
    """Give a local Ray its own token if the home folder, where Ray keeps one, is not writable."""
    try:
        (Path.home() / ".ray").mkdir(parents=True, exist_ok=True)
        writable = os.access(Path.home() / ".ray", os.W_OK)
    except (OSError, RuntimeError):
        writable = False
    if not writable:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _knock(address: str | None, seconds: float = 10.0) -> None:
    """Raise ConnectionError if nothing answers at `address`; Ray itself would retry for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=seconds).close()
        except OSError as error:
            raise ConnectionError(error.strerror or str(error)) from None


def shipped_code(apart: Sequence[Path]) -> dict[str, Any]:
    """Return the part of Ray's `runtime_env` that sends the code and installed plug-ins, without `apart`."""
    root = Path(__file__).resolve().parents[2]
    packages = [str(path) for name in sorted(packages_of_plugins()) if (path := package_path(name)) is not None]
    if not (root / "pyproject.toml").exists():
        return {"py_modules": [str(root), *packages]}
    inside = [f"/{path.relative_to(root)}" for path in apart if root in path.parents]
    code: dict[str, Any] = {"working_dir": str(root), "excludes": [*NOT_SHIPPED, *inside]}
    # Ray fails on an empty list.
    return code | {"py_modules": packages} if packages else code


def check_nodes(all_specs: Sequence[DatasetSpec], driver: DriverFolder, *weights: str | None) -> None:
    """Raise ConfigError, listing all problems, if a node lacks the data, the work folder or the weights.

    With a store on an object store, each node must reach that, and write some work folder.
    """
    specs = [asdict(spec) for spec in all_specs]
    ids = {spec.name: _counts(spec) for spec in all_specs}
    check = ray.remote(num_cpus=0)(problems_of_node)
    asked = {}
    for node in ray.nodes():
        if node["Alive"]:
            strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            name = node.get("NodeManagerAddress", node["NodeID"])
            asked[f"{name} ({node['NodeID'][:8]})"] = check.options(scheduling_strategy=strategy).remote(
                specs, ids, asdict(driver), *weights
            )
    problems = []
    for name, answer in asked.items():
        # A node that dies in the meantime runs no trials either.
        with contextlib.suppress(ray.exceptions.RayError):
            problems += [f"node {name}: {problem}" for problem in ray.get(answer)]
    if problems:
        raise ConfigError("some nodes cannot run trials:\n  " + "\n  ".join(problems))


def _counts(spec: DatasetSpec) -> list[int]:
    from seedbed.datasets.base import Split

    data = spec.open()
    return [len(data.ids(split)) for split in Split]


def problems_of_node(
    specs: list[dict[str, Any]],
    ids: Mapping[str, list[int]],
    driver: Mapping[str, Any],
    *weights: str | None,
) -> list[str]:
    """Return the problems that keep this node from running trials; `ids` are the image counts per split."""
    problems = []
    folder = DriverFolder.of(driver)
    try:
        if folder.store is not None:
            Objects(folder.store.address).check()
        Node.open(folder)
    except SeedbedError as error:
        problems.append(str(error))
    files = [path for path in dict.fromkeys(weights) if is_file(path)]
    problems += [f"{path}: no such file (weights)" for path in files if not Path(str(path)).is_file()]
    for content in specs:
        spec = DatasetSpec(**content)
        try:
            if not Path(spec.root).is_dir():
                raise DataError(f"{spec.root}: no such folder (the root of {spec.name})")
            if (found := _counts(spec)) != ids[spec.name]:
                raise DataError(f"{spec.root}: {spec.name} has different images ({found}, not {ids[spec.name]})")
        except Exception as error:
            problems.append(str(error))
    return problems


class RayWatchdog:
    """Checks every second whether Ray is alive, and calls `died` if it is not."""

    def __init__(self, died: Callable[[], None]) -> None:
        self._died = died
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        ours = psutil.Process().children(recursive=True)
        self._processes = [p for p in ours if p.name() in ("raylet", "gcs_server")]
        self._node = ray.get_runtime_context().get_node_id()

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        missed = 0
        while not self._stop.wait(1):
            missed = 0 if self._alive() else missed + 1
            # A cluster's head that fails to answer once may only be busy.
            if missed >= (1 if self._processes else 10) and not self._stop.is_set():
                self._died()

    def _alive(self) -> bool:
        try:
            if self._processes:
                return all(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in self._processes)
            # In a cluster started by others, the head knows whether this node is alive.
            return any(node["NodeID"] == self._node and node["Alive"] for node in ray.nodes())
        except (psutil.NoSuchProcess, ray.exceptions.RayError, ConnectionError, RuntimeError):
            return False
