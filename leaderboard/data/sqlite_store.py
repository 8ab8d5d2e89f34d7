"""Reads runs from the SQLite file that MLflow keeps them in, many times faster than MLflow's client.

The tables are those that MLflow has had since its version 1: `experiments`, `runs`, `tags`, `latest_metrics`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from seedbed.benchmark.tracking.store import EXPERIMENT, artifacts_of, unusable
from seedbed.datasets.io.digest import file_digest
from seedbed.leaderboard.data.client_store import ClientStore, TrackedRun, no_experiment

_TIMEOUT = 60
"""Seconds to wait for a process that writes."""
_OF_EXPERIMENT = """where lifecycle_stage = 'active'
    and experiment_id = (select experiment_id from experiments where name = ?)"""
_WITH_TAG = " and exists (select 1 from tags where tags.run_uuid = run.run_uuid and key = ? and value = ?)"


class SqliteStore:
    """The runs of Seedbed's experiment in a local SQLite file, as `ClientStore` reads them."""

    def __init__(self, uri: str, database: Path) -> None:
        """Raises ConfigError for a file that is not MLflow's, or without the experiment."""
        self._uri, self._database = uri, database
        with self._reading() as connection:
            found = connection.execute("select 1 from experiments where name = ?", [EXPERIMENT]).fetchone()
        if found is None:
            raise no_experiment(uri)

    def search(self, tags: Mapping[str, str]) -> Iterator[TrackedRun]:
        """Yield the runs that have all of the tags and are not deleted, the latest first."""
        chosen, values = _chosen(tags)
        with self._reading() as connection:
            ids = connection.execute(f"{chosen} order by start_time desc, run_uuid", values)
            runs = {run: TrackedRun(run) for (run,) in ids}
            of_chosen = f"where run_uuid in ({chosen})"
            for run, key, text in connection.execute(f"select run_uuid, key, value from tags {of_chosen}", values):
                runs[run].tags[key] = text
            metrics = f"select run_uuid, key, value, is_nan from latest_metrics {of_chosen}"
            for run, key, value, is_nan in connection.execute(metrics, values):
                runs[run].metrics[key] = float("nan") if is_nan else value
        yield from runs.values()

    def file(self, run: str, artifact: str, folder: Path) -> Path:
        """Return the path of a run's artifact, downloaded to `folder` if it is not on this machine.

        Raises OSError if there is none.
        """
        with self._reading() as connection:
            found = connection.execute("select artifact_uri from runs where run_uuid = ?", [run]).fetchone()
        location = found[0] if found else None
        paths = [place / artifact for place in self._folders(run, location)]
        for path in paths:
            if path.exists():
                return path
        if _local(location) is None:
            return ClientStore(self._uri).file(run, artifact, folder)
        raise FileNotFoundError(f"{paths[0]}: no such file")

    def state(self, artifacts: Sequence[tuple[Mapping[str, str], str]]) -> str | None:
        """Return a digest that changes with the database, and with the `artifacts`: tags of runs, and a pattern.

        None if only reading tells: some artifacts are not on this machine, or the database has a write-ahead log.
        """
        stamp = _stamp(self._database)
        if stamp is None:
            return None
        digests: dict[str, str] = {}
        for tags, pattern in artifacts:
            chosen, values = _chosen(tags, "run_uuid, artifact_uri")
            with self._reading() as connection:
                found = connection.execute(chosen, values).fetchall()
            for run, location in found:
                if _local(location) is None:
                    return None
                files = [path for place in self._folders(run, location) for path in place.glob(pattern)]
                digests |= {str(path): file_digest(path) for path in files if path.is_file()}
        text = json.dumps([str(self._database.resolve()), stamp, artifacts, digests], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _folders(self, run: str, location: str | None) -> list[Path]:
        """Return the folders on this machine that may have a run's artifacts; the first one with a file counts."""
        # MLflow records absolute locations, which are wrong after a move of the work folder.
        beside, recorded = artifacts_of(self._database, run), _local(location)
        return [beside] if recorded is None else [beside, recorded]

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Open a transaction that sees one state of the database. Raises ConfigError if it cannot be read."""
        url = f"{self._database.resolve().as_uri()}?mode=rw"
        try:
            with closing(sqlite3.connect(url, uri=True, timeout=_TIMEOUT)) as connection:
                connection.execute("begin")
                yield connection
        except sqlite3.Error as error:
            raise unusable(self._uri, error) from None


def _chosen(tags: Mapping[str, str], columns: str = "run_uuid") -> tuple[str, list[str]]:
    """Return a query for the runs that have all of the tags and are not deleted, and its values."""
    query = f"select {columns} from runs as run {_OF_EXPERIMENT}{_WITH_TAG * len(tags)}"
    return query, [EXPERIMENT, *(text for tag in tags.items() for text in tag)]


def _stamp(database: Path) -> list[int] | None:
    """Return numbers that differ between any two states of a database; None with a write-ahead log.

    SQLite counts the transactions that changed a file, in its header: this count tells its own processes if what
    they have cached is still valid (sqlite.org/fileformat.html, File change counter). The other numbers change if
    another file takes its place.
    """
    # Closing the file takes away the locks of this process's open connections, so there must be none.
    with database.open("rb") as file:
        header, status = file.read(28), os.fstat(file.fileno())
    if header[18:20] != b"\1\1":
        return None
    changes = int.from_bytes(header[24:28], "big")
    return [changes, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _local(location: str | None) -> Path | None:
    """Return the folder of an artifact location; None if it is not in this machine's file system."""
    parts = urlsplit(location or "")
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    return None if parts.scheme else Path(parts.path)
