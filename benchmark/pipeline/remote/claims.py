"""Which node computes an entry: claims in place of the locks of a shared file system.

A node claims an entry by an object of its own, `claims/KEY/NODE`, and then lists all claims. If it sees no other,
the entry is its own; else it withdraws its claim and tries again later. Of two nodes, the one that wrote later
sees both claims, so at most one goes ahead. This needs lists that show every finished write, as those of S3 and of
all larger object stores do, and no conditional writes.

A node that computes writes its claim again every RENEWAL seconds. A claim older than EXPIRY is that of a node that
died, and does not count. Both times are those of the object store's clock. If a node that is only cut off is taken
for dead, the entry is computed twice, which costs time and changes nothing.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator

from seedbed.benchmark.errors import StoreError
from seedbed.benchmark.pipeline.remote.objects import Objects

EXPIRY = 180.0
RENEWAL = 45.0
POLL = 5.0
"""Mean number of seconds between two attempts."""


class Claims:
    """The claims of one node, which has at most one process at a time that claims an entry."""

    def __init__(self, objects: Objects, node: str) -> None:
        self._objects, self._node = objects, node

    @contextlib.contextmanager
    def held(self, key: str, on_wait: Callable[[], object]) -> Iterator[None]:
        """Wait until no other node computes an entry, and claim it; `on_wait` is called before each wait."""
        while not self._alone(key):
            on_wait()
            # Two nodes that wait must not meet again and again.
            time.sleep(POLL * random.uniform(0.5, 1.5))
        stop = threading.Event()
        thread = threading.Thread(target=self._renew, args=(key, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            # Else it expires.
            with contextlib.suppress(StoreError):
                self._objects.delete(self._name(key, self._node))

    def _alone(self, key: str) -> bool:
        """Claim an entry, and return whether no other node does."""
        self._objects.write(self._name(key, self._node), b"")
        claims = {info.name: info.modified for info in self._objects.list(f"claims/{key}")}
        now = claims.pop(self._node, 0)
        for node, written in claims.items():
            if now - written < EXPIRY * 1e9:
                self._objects.delete(self._name(key, self._node))
                return False
            self._objects.delete(self._name(key, node))
        return True

    def _renew(self, key: str, stop: threading.Event) -> None:
        while not stop.wait(RENEWAL):
            with contextlib.suppress(StoreError):
                self._objects.write(self._name(key, self._node), b"")

    def _name(self, key: str, node: str) -> str:
        return f"claims/{key}/{node}"
