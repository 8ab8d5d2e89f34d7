"""What the pages of a leaderboard are made from, as one digest: if it is the same, the pages would be, too.

    collected   the snapshot and the statistics of images, by content
    code        the files of Seedbed and of plug-ins, by content; Python's version, the installed distributions
    studies     their tables, by content
    gallery     of each complete confirming trial its files, by content, and the store's entries that it names,
                by their records, as entries are never changed; of each data set its files, by size and time

The predictions in the gallery follow from the entry of the network.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from seedbed.benchmark import plugins
from seedbed.benchmark.errors import SeedbedError
from seedbed.benchmark.pipeline.store import ENTRY_FILE, Store, record_text
from seedbed.benchmark.pipeline.work_folder import DatasetSpec, WorkFolder
from seedbed.benchmark.studies.result import FILE as STUDY
from seedbed.datasets.io.digest import file_digest

PACKAGES = ("benchmark", "methods", "datasets", "leaderboard")


def inputs_digest(snapshot: Path, images: Path, work: WorkFolder | None, pictures: int) -> str:
    """Return the digest of everything that the pages are made from.

    `work` has the studies and the files of the trials, if it is given; the gallery has `pictures` images of each
    data set.
    """
    found: dict[str, Any] = {"collected": [file_digest(snapshot), file_digest(images)]}
    found["code"] = _code(plugins.as_text())
    if work is not None:
        studies = work.root / "studies"
        found["studies"] = _contents(studies, studies.glob(f"*/*/{STUDY}"))
        found["gallery"] = [pictures, *(_gallery(snapshot, work) if pictures else ())]
    return _digest(found)


# A process imports each module once, so its code is that of the first call.
@functools.cache
def _code(given: str) -> str:
    """Return the digest of all code with the `given` plug-ins (plugins.as_text)."""
    own = [_contents(plugins.ROOT, (plugins.ROOT / package).rglob("*")) for package in PACKAGES]
    others = [
        _contents(plugin.place.parent, [plugin.path, *plugin.place.rglob("*")])
        for plugin in (*plugins.given(), *plugins.installed())
    ]
    distributions = sorted(path.name for place in sys.path for path in Path(place).glob("*.dist-info"))
    return _digest([own, given, others, sys.version, distributions])


def _gallery(snapshot: Path, work: WorkFolder) -> Iterator[object]:
    """Yield what identifies the files that the gallery may show."""
    # Not by `read_table` and `equal`, which import pandas.
    table = pq.ParquetFile(snapshot).read(columns=["sweep", "key", "data_digest", "phase", "status"])
    confirming = table.filter(pc.starts_with(table["phase"], "confirm")).to_pylist()
    datasets: dict[str, str] = {}
    for sweep, key, data_digest, _, status in sorted({tuple(row.values()) for row in confirming}):
        folder = work.sweeps / sweep / "trials" / key
        files = [folder / "config.json", folder / "job.json"]
        if status != "complete" or not files[0].is_file():
            continue
        config, job = (json.loads(path.read_text("utf-8")) for path in files)
        entries = sorted(set(config["artifacts"].values()))
        yield key, config, job, [_record(work.store, entry) for entry in entries]
        datasets.setdefault(json.dumps(job["place"], sort_keys=True), data_digest)
    for place, digest in datasets.items():
        yield place, _files(work, DatasetSpec(**json.loads(place)), digest)


def _record(store: Store, key: str) -> str | None:
    """Return the digest of the record of an entry in the store; None if there is no entry."""
    record = store.path(key) / ENTRY_FILE
    if record.is_file():
        return file_digest(record)
    # In an object store: the text that its local copy would have.
    entry = store.get(key)
    return None if entry is None else hashlib.sha256(record_text(entry.record).encode()).hexdigest()


def _files(work: WorkFolder, spec: DatasetSpec, digest: str) -> list[tuple[str, int, int]]:
    """Return path, size and time of modification (ns) of each file of a data set; none if it is gone."""
    try:
        places = work.current(spec, digest).folders()
    except SeedbedError:
        return []
    files = [Path(place) for place in places if Path(place).is_file()]
    found = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return [*found, *(file for place in places if Path(place).is_dir() for file in _below(place))]


def _below(folder: str) -> Iterator[tuple[str, int, int]]:
    # A data set has 100,000 files; `scandir` is several times faster than `Path.rglob`.
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _below(entry.path)
        elif entry.is_file():
            yield entry.path, entry.stat().st_size, entry.stat().st_mtime_ns


def _contents(root: Path, paths: Iterable[Path]) -> dict[str, str]:
    """Return the digest of each of the files by its path below `root`, without compiled Python."""
    return {
        path.relative_to(root).as_posix(): file_digest(path)
        for path in paths
        if path.suffix != ".pyc" and path.is_file()
    }


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
