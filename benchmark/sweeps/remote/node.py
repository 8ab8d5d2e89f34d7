"""A node of a sweep: its work folder, and the delivery of its trials if that is not the driver's."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from seedbed.benchmark import plugins
from seedbed.benchmark.errors import DataError, StoreError, unwritable
from seedbed.benchmark.pipeline.remote.cached_store import StoreLocation
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.sweeps.remote.exchange import PLUGINS, Exchange, read_growing
from seedbed.benchmark.sweeps.trial_files import BEGUN

INTERVAL = 10.0
"""Seconds between two deliveries of a running trial's files."""
WORK_VARIABLE = "SEEDBED_WORK"


@dataclass(frozen=True)
class DriverFolder:
    """The driver's work folder, and how a node tells whether it sees it."""

    work: str
    token: str
    """A file below the work folder, by its path from there."""
    content: str = ""
    """What is in this file; empty: anything."""
    sweep: str = ""
    """The name of the sweep's `Exchange`; empty: every node must see the work folder."""
    store: StoreLocation | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> DriverFolder:
        """Return it from what `asdict` made of it."""
        store = config["store"]
        return cls(**{**config, "store": None if store is None else StoreLocation(**store)})


@dataclass(frozen=True)
class Node:
    """A node that can run trials."""

    work: WorkFolder
    """The driver's, or the node's own."""
    exchange: Exchange | None = None
    """Where the trials are delivered; None: their folders are in the driver's work folder."""

    @classmethod
    def open(cls, driver: DriverFolder) -> Node:
        """Return this node, with the driver's plug-ins.

        Its work folder is at the driver's path, or where the variable SEEDBED_WORK says. Raises DataError if it
        must be the driver's and is not; StoreError if the node cannot write one of its own, or if the object store
        cannot be used.
        """
        if not driver.sweep:
            token = Path(driver.work, driver.token)
            if not token.exists():
                raise DataError(
                    f"{token}: not on this node; the work folder must be on a file system that all nodes share, "
                    "or the store on an object store ([store] in seedbed.toml)"
                )
            return cls(WorkFolder(Path(driver.work), driver.store))
        root = Path(os.environ.get(WORK_VARIABLE) or driver.work)
        work = WorkFolder(root, driver.store)
        with contextlib.suppress(OSError):
            if (root / driver.token).read_text("utf-8") == driver.content:
                return cls(work)
        assert driver.store is not None
        exchange = Exchange(driver.store.address, driver.sweep)
        try:
            _take_plugins(exchange, Path(driver.work, driver.token).parent, (root / driver.token).parent)
        except OSError as error:
            raise StoreError(
                f"{root}: this node cannot write a work folder ({unwritable(error) or error}); before Ray starts "
                f"on it, set {WORK_VARIABLE} to a folder on its own disk"
            ) from error
        return cls(work, exchange)

    @contextmanager
    def delivering(self, trial: Path, attempt: str, left: Mapping[str, str]) -> Iterator[None]:
        """Deliver the trial in a folder while it runs in this block, and at its end.

        `left` are the files that earlier attempts have left. Raises StoreError if the object store cannot be used
        at the beginning or at the end.
        """
        if self.exchange is None:
            yield
            return
        trial.parent.mkdir(parents=True, exist_ok=True)
        # A worker of a driver that was killed may still be alive.
        with FileLock(trial.with_name(f"{trial.name}.lock")):
            shutil.rmtree(trial, ignore_errors=True)
            trial.mkdir()
            for name, text in left.items():
                (trial / name).write_text(text, "utf-8")
            (trial / BEGUN).touch()
            with _Showing(self.exchange, trial, attempt):
                yield
            self.exchange.send(attempt, trial)
            shutil.rmtree(trial)


class _Showing:
    """Delivers the growing files of a running trial, at once and then every INTERVAL seconds."""

    def __init__(self, exchange: Exchange, trial: Path, attempt: str) -> None:
        self._exchange, self._trial, self._attempt = exchange, trial, attempt
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        # Before the trial: if it kills its worker, the driver must know that it had begun.
        self._exchange.show(self._attempt, read_growing(self._trial))
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL):
            with contextlib.suppress(StoreError, OSError):
                self._exchange.show(self._attempt, read_growing(self._trial))


def _take_plugins(exchange: Exchange, theirs: Path, ours: Path) -> None:
    """Bring the driver's plug-ins from its folder of the sweep to this node's, and give them to this process."""
    ours.mkdir(parents=True, exist_ok=True)
    if (version := exchange.version(PLUGINS)) is None:
        return
    folder = ours / f"{PLUGINS}-{version}"
    with FileLock(ours / f"{PLUGINS}.lock"):
        if not folder.exists():
            incoming = ours / f"{PLUGINS}.new"
            exchange.fetch(PLUGINS, incoming)
            incoming.rename(folder)
    before, now = f"{theirs / PLUGINS}{os.sep}", f"{folder}{os.sep}"
    places = plugins.as_text().split(os.pathsep)
    plugins.give(os.pathsep.join(place.replace(before, now, 1) for place in places))
