"""What the driver of a sweep and nodes that do not see its work folder exchange through the object store.

    sweeps/ID/running/ATTEMPT      the growing files of a running trial, one JSON object, written again and again
    sweeps/ID/folders/…/ATTEMPT/…  the folder of a trial that ended, as an entry (pipeline/remote/entries.py)
    sweeps/ID/folders/…/plugins/…  the driver's plug-ins, as an entry

ID is the sweep's own (`sweep.json`). ATTEMPT is the trial's key with a random suffix, so that nothing of an
earlier attempt, whose worker may still be alive, is taken for that of a later one. The driver deletes what it has
brought to its work folder; what is here was not brought yet, and a resumed driver brings it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from seedbed.benchmark.errors import StoreError
from seedbed.benchmark.pipeline.remote.entries import DamagedArchiveError, RemoteEntries
from seedbed.benchmark.pipeline.remote.objects import Objects
from seedbed.benchmark.sweeps.trial_files import CONFIG, LOG, SYSTEM
from seedbed.benchmark.trials.progress_log import PROGRESS

GROWING = (PROGRESS, SYSTEM, CONFIG, LOG)
"""The text files of a running trial that the driver shows, and that a later attempt continues."""
PLUGINS = "plugins"
ATTEMPTS = 5
"""How often an object is read that is being written."""


def new_attempt(key: str) -> str:
    """Return the name of a new attempt at a trial."""
    return f"{key}-{uuid.uuid4().hex[:8]}"


def key_of(attempt: str) -> str:
    """Return the key of an attempt's trial."""
    return attempt.rpartition("-")[0]


def read_growing(folder: Path) -> dict[str, str]:
    """Return the texts of the growing files that are in the folder of a trial."""
    paths = [folder / name for name in GROWING]
    return {path.name: path.read_text("utf-8", errors="replace") for path in paths if path.exists()}


class Exchange:
    """The objects of one sweep. Every method raises StoreError if the object store cannot be used."""

    def __init__(self, address: str, sweep: str) -> None:
        self.sweep = sweep
        self._objects, self._place = Objects(address), f"sweeps/{sweep}"
        self._folders = RemoteEntries(self._objects, f"{self._place}/folders")

    def show(self, attempt: str, files: Mapping[str, str]) -> None:
        """Write the texts of a running trial's files."""
        self._objects.write(f"{self._place}/running/{attempt}", json.dumps(files).encode())

    def shown(self, attempt: str) -> dict[str, str] | None:
        """Return the texts of a running trial's files; None if no node has begun the attempt."""
        for _ in range(ATTEMPTS):
            if (text := self._objects.read(f"{self._place}/running/{attempt}")) is None:
                return None
            # It is cut off if it was written again between the two requests of a read.
            with contextlib.suppress(ValueError):
                return dict(json.loads(text))
        return {}

    def running(self) -> dict[str, int]:
        """Return the attempts that nodes have begun, and when they were last shown, in ns since 1970."""
        return {info.name: info.modified for info in self._objects.list(f"{self._place}/running")}

    def send(self, name: str, folder: Path) -> None:
        """Send the files of a folder, which appear as a whole."""
        self._folders.put(name, folder, {"key": name})

    def sent(self) -> set[str]:
        """Return the attempts whose folders are here."""
        return self._folders.keys() - {PLUGINS}

    def version(self, name: str) -> str | None:
        """Return what changes whenever a folder is sent again; None if it is not here."""
        entry = self._folders.find(name)
        return None if entry is None else Path(entry.archive.name).stem

    def fetch(self, name: str, folder: Path) -> bool:
        """Bring a folder to a new place here; return whether it is there. A damaged one is deleted."""
        if (entry := self._folders.find(name)) is None:
            return False
        shutil.rmtree(folder, ignore_errors=True)
        try:
            self._folders.fetch(entry, folder)
        except DamagedArchiveError as error:
            self._folders.remove(name)
            raise StoreError(
                f"{self._objects.address}: {name} was damaged ({error}) and is deleted; repeat the command"
            ) from None
        return True

    def forget(self, name: str) -> None:
        """Delete all of an attempt, or the plug-ins."""
        self._objects.delete(f"{self._place}/running/{name}")
        self._folders.remove(name)

    def forget_all(self) -> None:
        """Delete everything of the sweep."""
        self._objects.delete_folder(self._place)
