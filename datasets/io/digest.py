"""Content digests of many files, kept in a JSON file so that unchanged files are read once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from seedbed.benchmark.files import write_text

THREADS = 8
BATCH = 256
"""Files after which progress is shown."""


def file_digest(path: Path) -> str:
    """Return the sha256 (hex) of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digests(
    files: Mapping[str, Path],
    root: Path,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, str | None]:
    """Return the sha256 (hex) of each named file's content; None if the file is missing.

    `cache` maps paths relative to `root` to [size, mtime in ns, sha256]; a file whose size and time are the same
    is not read again. A cache that cannot be read is written anew.
    """
    known = _read(cache)
    names, seen, digests = list(files), {}, {}
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(names), BATCH):
            batch = names[start : start + BATCH]
            keys = [os.path.relpath(files[name], root) for name in batch]
            entries = pool.map(_entry, (files[name] for name in batch), (known.get(key) for key in keys))
            for name, key, entry in zip(batch, keys, entries, strict=True):
                digests[name] = None if entry is None else str(entry[2])
                if entry is not None:
                    seen[key] = entry
            if progress is not None:
                progress(start + len(batch), len(names))
    if cache is not None and seen != known:
        write_text(cache, json.dumps(seen))
    return digests


def _entry(path: Path, known: list[int | str] | None) -> list[int | str] | None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    stamp: list[int | str] = [status.st_size, status.st_mtime_ns]
    return known if known is not None and known[:2] == stamp else [*stamp, file_digest(path)]


def _read(cache: Path | None) -> dict[str, list[int | str]]:
    if cache is None:
        return {}
    try:
        content = json.loads(cache.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {key: entry for key, entry in content.items() if isinstance(entry, list) and len(entry) == 3}
