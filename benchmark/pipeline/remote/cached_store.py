"""A store on an object store, of which each node keeps a local copy of the entries that it uses."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from seedbed.benchmark.pipeline.remote.claims import Claims
from seedbed.benchmark.pipeline.remote.entries import DamagedArchiveError, RemoteEntries
from seedbed.benchmark.pipeline.remote.objects import Objects
from seedbed.benchmark.pipeline.store import Entry, Store

LIST_SECONDS = 10.0
"""For so long `exists` uses one list of all entries."""
CONNECTIONS = 16

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoreLocation:
    """The object store of a work folder."""

    address: str
    """Such as `s3://bucket/folder`, without credentials."""
    cache: str | None = None
    """Absolute path of each node's local copies; None: `store` in the work folder."""


class CachedStore(Store):
    """A store whose entries are in the object store at `address`; `root` is this node's copy of those it used.

    An entry that is computed is uploaded before another node may compute it. If the upload fails or is killed, the
    entry stays in `root`, and the next use uploads it. Methods raise StoreError if the object store is needed and
    cannot be reached.

        unsent/abcdef…                 marks a local entry that may not be in the object store yet
        locks/abcdef….transfer.lock    held by the process that uploads or downloads the entry
    """

    def __init__(self, root: Path, address: str) -> None:
        super().__init__(root)
        self._local = Store(root)
        objects = Objects(address)
        self.address = address
        self._remote = RemoteEntries(objects)
        place = hashlib.sha256(str(root.absolute()).encode()).hexdigest()[:8]
        self._claims = Claims(objects, f"{socket.gethostname()}-{place}")
        self._listed: tuple[float, frozenset[str]] = (-LIST_SECONDS, frozenset())

    def exists(self, key: str) -> bool:
        """Return whether there is an entry here or, as of the last seconds, in the object store."""
        if self._local.exists(key):
            return True
        listed, keys = self._listed
        if time.monotonic() - listed >= LIST_SECONDS:
            keys = frozenset(self._remote.keys())
            self._listed = (time.monotonic(), keys)
        return key in keys

    def folder(self, key: str) -> Path:
        """Return the folder of an entry, downloaded if necessary; it may not exist."""
        self.use(key)
        return self.path(key)

    def get(self, key: str) -> Entry | None:
        """Return a finished entry, of which only the record may be here."""
        if (entry := self._local.get(key)) is not None:
            return entry
        remote = self._remote.find(key)
        return None if remote is None else Entry(key, self.path(key), remote.record)

    def use(self, key: str) -> Entry | None:
        """Return a finished and undamaged entry, downloaded if it is not here."""
        if (entry := self._local.use(key)) is not None:
            self._send(entry, timeout=0)
            return entry
        if self._remote.find(key) is None:
            return None
        with self._transferring(key):
            return self._local.use(key) or self._fetch(key)

    def usable(self, key: str) -> bool:
        """Return whether there is a finished entry, without a download."""
        return self._local.usable(key) or self._remote.find(key) is not None

    def damage(self, key: str) -> str | None:
        """Return what is wrong with the local copy of an entry; None if it is whole or not here."""
        return self._local.damage(key)

    def all_keys(self) -> list[str]:
        """Return the sorted keys of all entries here and in the object store."""
        return sorted({*self._local.all_keys(), *self._remote.keys()})

    def entries(self) -> Iterator[Entry]:
        """Yield all finished entries, in the order of their keys."""
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            yield from filter(None, pool.map(self.get, self.all_keys()))

    def remove(self, key: str) -> None:
        """Remove an entry here and in the object store; other nodes keep their copies."""
        self._remote.remove(key)
        if self.path(key).exists():
            self._local.remove(key)
        (self._unsent / key).unlink(missing_ok=True)

    def push(self) -> int:
        """Upload the entries that only this node has, and return their number."""
        known, count = self._remote.keys(), 0
        for key in self._local.all_keys():
            if key not in known and (entry := self._local.use(key)) is not None:
                self._mark_unsent(key)
                self._send(entry)
                count += 1
        return count

    def collect_garbage(self, older_than_days: float) -> tuple[int, int]:
        """Remove local copies that were not used for some days, and leftovers here and in the object store.

        The object store keeps all entries, and this node those that are not uploaded yet.
        """
        for mark in self._unsent.glob("*"):
            with contextlib.suppress(OSError):
                os.utime(self.path(mark.name))
        removed, leftovers = self._local.collect_garbage(older_than_days)
        before = time.time() - older_than_days * 86_400
        return removed, leftovers + self._remote.remove_leftovers(int(before * 1e9))

    @contextlib.contextmanager
    def _lock(self, key: str, on_wait: Callable[[], object]) -> Iterator[None]:
        """Keep the processes of this node apart by a file, and nodes by a claim."""
        once = functools.cache(on_wait)
        with super()._lock(key, once), self._claims.held(key, once):
            yield

    def _compute(
        self,
        key: str,
        identity: Mapping[str, Any],
        produce: Callable[[Path, Path], None],
        notes: Mapping[str, Any],
    ) -> Entry:
        self._mark_unsent(key)
        entry = super()._compute(key, identity, produce, notes)
        self._send(entry)
        return entry

    def _rewrite(self, entry: Entry, record: Mapping[str, Any]) -> None:
        if entry.path.is_dir():
            super()._rewrite(entry, record)
        if (remote := self._remote.find(entry.key)) is not None:
            self._remote.write_record(replace(remote, record=record))

    @property
    def _unsent(self) -> Path:
        return self.root / "unsent"

    def _mark_unsent(self, key: str) -> None:
        self._unsent.mkdir(parents=True, exist_ok=True)
        (self._unsent / key).touch()

    def _send(self, entry: Entry, timeout: float = -1) -> None:
        """Upload an entry that is not sent yet, unless another process does so for longer than `timeout` s."""
        mark = self._unsent / entry.key
        if not mark.exists():
            return
        with contextlib.suppress(Timeout), self._transferring(entry.key, timeout):
            if mark.exists():
                self._remote.put(entry.key, entry.path, entry.record)
                mark.unlink()

    def _fetch(self, key: str) -> Entry | None:
        """Download an entry; None if there is none, or if it is damaged and therefore removed."""
        if (remote := self._remote.find(key)) is None:
            return None
        incoming = self.root / "partial" / f"fetched-{key}-{uuid.uuid4().hex}"
        try:
            self._remote.fetch(remote, incoming)
            if self.path(key).exists():
                self._local.remove(key)
            return self._publish(key, incoming, remote.record)
        except DamagedArchiveError as error:
            stage = remote.record["identity"]["stage"]
            logger.warning(f"{self.address}: {key[:12]} is damaged ({error}); {stage} is computed again")
            self._remote.remove(key)
            return None
        finally:
            shutil.rmtree(incoming, ignore_errors=True)

    @contextlib.contextmanager
    def _transferring(self, key: str, timeout: float = -1) -> Iterator[None]:
        (self.root / "locks").mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / "locks" / f"{key}.transfer.lock", timeout=timeout):
            yield
