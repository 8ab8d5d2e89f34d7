"""The content-addressed artifact store: what was computed once is never computed again.

    entries/ab/abcdef…/   the files of a finished stage, and `entry.json`, which tells what made it
    partial/abcdef…/      a stage that runs, or was killed: `out` and `scratch` (its resumable checkpoints)
    locks/abcdef….lock    held by the process that computes the entry; freed by the kernel when it dies

An entry appears by one rename, so it is either whole or absent, whenever a process is killed.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from benchmark.environment import environment
from benchmark.errors import StoreError
from benchmark.stage import cache_key

ENTRY_FILE = "entry.json"


@dataclass(frozen=True)
class Entry:
    """A finished stage in the store."""

    key: str
    path: Path
    record: Mapping[str, Any]
    """The content of `entry.json`: identity, environment, conditions, start, seconds, bytes."""

    @property
    def stage(self) -> str:
        return str(self.record["identity"]["stage"])

    @property
    def seconds(self) -> float:
        return float(self.record["seconds"])


class Store:
    """A store in the folder `root`, shared by any number of processes and nodes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, key: str) -> Path:
        """Return where the entry `key` is, or would be."""
        return self.root / "entries" / key[:2] / key

    def get(self, key: str) -> Entry | None:
        """Return a finished entry, None where there is none."""
        path = self.path(key)
        try:
            return Entry(key, path, json.loads((path / ENTRY_FILE).read_text()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StoreError(
                f"{path / ENTRY_FILE}: unreadable ({error}); remove it: seedbed cache rm {key[:12]}"
            ) from None

    def use(self, key: str) -> Entry | None:
        """Return a finished entry as `get`, and remember that it was used now (see `collect_garbage`)."""
        if (entry := self.get(key)) is not None:
            os.utime(entry.path)
        return entry

    def get_or_run(
        self,
        identity: Mapping[str, Any],
        produce: Callable[[Path, Path], None],
        on_wait: Callable[[], object] = lambda: None,
        conditions: Mapping[str, Any] | None = None,
    ) -> tuple[Entry, bool]:
        """Return the entry of `identity` and whether it was computed now, by `produce(out, scratch)`.

        Of several processes that ask for the same entry one computes it; the others wait (`on_wait` is called
        once) and get its result. What `produce` leaves in `scratch` is there again after a kill. `conditions`
        (benchmark/cost.py) are recorded beside the duration and are no part of the key. Raises
        StoreError where the disk is full or not writable; errors of `produce` pass through.
        """
        key = cache_key(identity)
        if (entry := self.use(key)) is not None:
            return entry, False
        try:
            (self.root / "locks").mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / "locks" / f"{key}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                on_wait()
                lock.acquire()
            try:
                if (entry := self.get(key)) is not None:
                    return entry, False
                return self._compute(key, identity, produce, conditions or {}), True
            finally:
                lock.release()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
                raise StoreError(
                    f"{self.root}: cannot write ({error.strerror}); free space with `seedbed cache gc`, "
                    "or choose another folder with --work. What was finished is kept."
                ) from error
            raise

    def _compute(
        self,
        key: str,
        identity: Mapping[str, Any],
        produce: Callable[[Path, Path], None],
        conditions: Mapping[str, Any],
    ) -> Entry:
        partial = self.root / "partial" / key
        out, scratch = partial / "out", partial / "scratch"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        scratch.mkdir(exist_ok=True)
        started, clock = time.time(), time.monotonic()
        produce(out, scratch)
        record = {
            "key": key,
            "identity": identity,
            "environment": environment(),
            "conditions": conditions,
            "started": started,
            "seconds": round(time.monotonic() - clock, 3),
            "bytes": sum(f.stat().st_size for f in out.rglob("*") if f.is_file()),
        }
        (out / ENTRY_FILE).write_text(json.dumps(record, indent=1))
        _flush(out)
        final = self.path(key)
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            out.rename(final)
        except OSError:
            # On a network file system an entry of another node may become visible only now.
            if (entry := self.get(key)) is None:
                raise
            return entry
        shutil.rmtree(partial, ignore_errors=True)
        return Entry(key, final, record)

    def entries(self) -> Iterator[Entry]:
        """Yield all finished entries in the order of their keys."""
        for path in sorted((self.root / "entries").glob("*/*")):
            if (entry := self.get(path.name)) is not None:
                yield entry

    def remove(self, key: str) -> None:
        """Remove one entry. The name goes first, so that no half entry is ever seen."""
        doomed = self.root / "partial" / f"removed-{key}-{os.getpid()}"
        doomed.parent.mkdir(parents=True, exist_ok=True)
        self.path(key).rename(doomed)
        shutil.rmtree(doomed)

    def collect_garbage(self, older_than_days: float) -> tuple[int, int]:
        """Remove entries not used for so many days, and left-overs of killed stages that old.

        Returns the number of removed entries and of removed left-overs. What a process works on is kept.
        """
        horizon = time.time() - older_than_days * 86_400
        removed = 0
        for entry in list(self.entries()):
            if entry.path.stat().st_mtime < horizon:
                self.remove(entry.key)
                removed += 1
        leftovers = 0
        for partial in sorted((self.root / "partial").glob("*")):
            newest = max((f.stat().st_mtime for f in [partial, *partial.rglob("*")]), default=0.0)
            if newest >= horizon:
                continue
            try:
                with FileLock(self.root / "locks" / f"{partial.name}.lock", timeout=0):
                    shutil.rmtree(partial)
                    leftovers += 1
            except Timeout:
                continue
        return removed, leftovers


def _flush(folder: Path) -> None:
    """Put the files of `folder` on the disk, so that the rename cannot outlive their content."""
    files = [f for f in folder.rglob("*") if f.is_file()]
    if len(files) > 256:
        os.sync()
        return
    for path in files:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
