"""The content-addressed artifact store: nothing is computed twice.

    entries/ab/abcdef…/   the files of a finished stage, and `entry.json`, its record
    partial/abcdef…/      a stage that runs, or was killed: `out`, and `scratch`, its resumable checkpoints
    locks/abcdef….lock    held by the process that computes the entry; freed by the kernel when it dies

An entry appears by one rename, so it is either whole or absent, even after a kill. Later damage, for example by a
power loss, is recognised by `entry.json` and the size of the files; the entry is then computed again. Files that
are damaged in another way raise StoreError when they are read (`damaged`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from seedbed.benchmark.environment import environment
from seedbed.benchmark.errors import SeedbedError, StoreError, unwritable
from seedbed.benchmark.files import write_text
from seedbed.benchmark.pipeline.stage import cache_key
from seedbed.benchmark.source.closure import differences

ENTRY_FILE = "entry.json"
TYPES = (".arrow", ".json", ".parquet", ".pt")
"""Suffixes of the files of which an entry has one or few; none of these files begins with zeros."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """A finished stage in the store."""

    key: str
    path: Path
    record: Mapping[str, Any]
    """The content of `entry.json`: identity, environment, conditions, start, seconds, bytes, source, accepted."""

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
        """Return the path of the entry `key`, which may not exist."""
        return self.root / "entries" / key[:2] / key

    def get(self, key: str) -> Entry | None:
        """Return a finished entry; None if there is none, or if its `entry.json` is damaged."""
        path = self.path(key)
        try:
            record = json.loads((path / ENTRY_FILE).read_text())
            if record["key"] == key and isinstance(record["identity"]["stage"], str):
                return Entry(key, path, record)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            return None
        except OSError as error:
            raise StoreError(f"{path / ENTRY_FILE}: cannot be read ({error.strerror})") from None
        return None

    def exists(self, key: str) -> bool:
        """Return whether there is an entry, which may be damaged."""
        return self.path(key).exists()

    def folder(self, key: str) -> Path:
        """Return the folder of an entry for reading; it may not exist."""
        return self.path(key)

    def use(self, key: str) -> Entry | None:
        """Return a finished and undamaged entry, and note the time of use (see `collect_garbage`)."""
        entry = self.get(key)
        if entry is None or self.damage(key) is not None:
            return None
        # A read-only store works, too.
        with contextlib.suppress(OSError):
            os.utime(entry.path)
        return entry

    def usable(self, key: str) -> bool:
        """Return whether there is a finished and undamaged entry, and note the time of use."""
        return self.use(key) is not None

    def damage(self, key: str) -> str | None:
        """Return what is wrong with an entry; None if it is whole or does not exist."""
        if not self.path(key).exists():
            return None
        if (entry := self.get(key)) is None:
            return f"{ENTRY_FILE} is missing or damaged"
        there, recorded = _size(entry.path), int(entry.record["bytes"])
        if there < recorded:
            return f"{recorded - there} of {recorded} bytes are missing"
        zeros = next((f.name for f in entry.path.iterdir() if f.suffix in TYPES and _begins_with_zeros(f)), None)
        return f"{zeros} holds zeros only" if zeros else None

    def get_or_run(
        self,
        identity: Mapping[str, Any],
        produce: Callable[[Path, Path], None],
        on_wait: Callable[[], object] = lambda: None,
        notes: Mapping[str, Any] | None = None,
    ) -> tuple[Entry, bool]:
        """Return the entry of `identity` and whether it was computed now, by `produce(out, scratch)`.

        If several processes ask for the same entry, one computes it; the others wait (`on_wait` is called once)
        and get its result. `scratch` survives a kill unless the code has changed. A damaged entry is computed
        again. `notes` are recorded beside the identity and are not part of the key: `conditions`
        (benchmark/pipeline/cost.py) and `source` (benchmark/pipeline/changed_code.py).
        Raises StoreError if the disk is full or not writable; other errors of `produce` pass through.
        """
        key = cache_key(identity)
        if (entry := self.use(key)) is not None:
            return entry, False
        try:
            with self._lock(key, on_wait):
                if (entry := self.use(key)) is not None:
                    return entry, False
                if (fault := self.damage(key)) is not None:
                    logger.warning(f"{self.path(key)}: damaged ({fault}); {identity['stage']} is computed again")
                    self.remove(key)
                return self._compute(key, identity, produce, notes or {}), True
        except SeedbedError:
            raise
        except Exception as error:
            name = getattr(error, "filename", None)
            # An unreadable file of the data set is not an error of the store.
            elsewhere = name is not None and not Path(str(name)).absolute().is_relative_to(self.root.absolute())
            if elsewhere or (reason := unwritable(error)) is None:
                raise
            raise StoreError(
                f"{self.root}: cannot write ({reason}); free space with `seedbed cache gc`, "
                "or choose another folder with --work. Finished stages are kept."
            ) from error

    @contextlib.contextmanager
    def _lock(self, key: str, on_wait: Callable[[], object]) -> Iterator[None]:
        """Hold the lock of an entry; `on_wait` is called if another process has it."""
        (self.root / "locks").mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.root / "locks" / f"{key}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            on_wait()
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _compute(
        self,
        key: str,
        identity: Mapping[str, Any],
        produce: Callable[[Path, Path], None],
        notes: Mapping[str, Any],
    ) -> Entry:
        partial = self.root / "partial" / key
        out, scratch = partial / "out", partial / "scratch"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        scratch.mkdir(exist_ok=True)
        _keep_if_same_code(partial, scratch, notes.get("source", {}))
        started, clock = time.time(), time.monotonic()
        produce(out, scratch)
        record = {
            "key": key,
            "identity": identity,
            "environment": environment(),
            **notes,
            "started": started,
            "seconds": round(time.monotonic() - clock, 3),
            "bytes": _size(out),
        }
        entry = self._publish(key, out, record)
        shutil.rmtree(partial, ignore_errors=True)
        return entry

    def _publish(self, key: str, folder: Path, record: Mapping[str, Any]) -> Entry:
        """Turn the files in `folder` into an entry by one rename."""
        (folder / ENTRY_FILE).write_text(record_text(record))
        _flush(folder)
        final = self.path(key)
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.rename(final)
        except OSError:
            # On a network file system an entry of another node may become visible only now.
            if (entry := self.use(key)) is None:
                raise
            return entry
        return Entry(key, final, record)

    def accept(self, entry: Entry, source: Mapping[str, Any]) -> None:
        """Record in an entry that the code `source` gives the same result."""
        self._rewrite(entry, {**entry.record, "accepted": [*entry.record.get("accepted", ()), source]})

    def _rewrite(self, entry: Entry, record: Mapping[str, Any]) -> None:
        write_text(entry.path / ENTRY_FILE, record_text(record))

    def all_keys(self) -> list[str]:
        """Return the sorted keys of all entries, including damaged ones."""
        return sorted(path.name for path in (self.root / "entries").glob("*/*") if path.is_dir())

    def entries(self) -> Iterator[Entry]:
        """Yield all finished entries whose `entry.json` can be read, in the order of their keys."""
        for key in self.all_keys():
            if (entry := self.get(key)) is not None:
                yield entry

    def remove(self, key: str) -> None:
        """Remove one entry. It is renamed first, so that no partial entry is ever seen."""
        doomed = self.root / "partial" / f"removed-{key}-{os.getpid()}"
        doomed.parent.mkdir(parents=True, exist_ok=True)
        self.path(key).rename(doomed)
        shutil.rmtree(doomed)

    def collect_garbage(self, older_than_days: float) -> tuple[int, int]:
        """Remove entries and leftovers of killed stages that were not used for some days.

        Returns the number of removed entries and of removed leftovers. Entries in use by a process are kept.
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


def record_text(record: Mapping[str, Any]) -> str:
    """Return the text of an `entry.json`."""
    return json.dumps(record, indent=1)


def damaged(path: Path, error: object) -> StoreError:
    """Return the error for a file of the store that cannot be read, with the command that removes its entry."""
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return StoreError(f"{path}: damaged ({reason}); {way_out(path)}")


def way_out(path: Path) -> str:
    """Return what to do about a damaged file: the command that removes its entry if it is in a store."""
    key = next((path.parts[n + 2] for n, part in enumerate(path.parts[:-2]) if part == "entries"), None)
    return "make it again" if key is None else f"remove it with `seedbed cache rm {key[:12]}`, then run again"


@contextlib.contextmanager
def reading(path: Path) -> Iterator[Path]:
    """Turn any error of reading a file of the store into a StoreError with the way out."""
    try:
        yield path
    except (PermissionError, SeedbedError):
        raise
    except Exception as error:
        raise damaged(path, error) from error


def _keep_if_same_code(partial: Path, scratch: Path, source: Mapping[str, Any]) -> None:
    """Empty the `scratch` of a killed stage if its code has changed since, and record today's code."""
    note = partial / "source.json"
    today = source.get("definitions", {})
    with contextlib.suppress(OSError, ValueError):
        if changed := differences(json.loads(note.read_text()), today):
            logger.warning(
                f"{', '.join(changed[:6])}: changed since the stage was interrupted; it starts from the beginning"
            )
            shutil.rmtree(scratch)
            scratch.mkdir()
    note.write_text(json.dumps(today))


def _begins_with_zeros(path: Path) -> bool:
    """Return whether a file has only zeros, as file systems may leave it after a power loss."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror})") from None
    return bool(head) and not any(head)


def _size(folder: Path) -> int:
    """Return the total size in bytes of an entry's files, without `entry.json`."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file() and f != folder / ENTRY_FILE)


def _flush(folder: Path) -> None:
    """Write the files of `folder` to the disk, so that the rename cannot outlive their content."""
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
