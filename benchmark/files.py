"""Writing files by one rename, so that a reader, or a process that is killed, never leaves or sees half a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic(path: Path, flush: bool = True) -> Iterator[Path]:
    """Give a temporary file beside `path` to write to; it becomes `path` at once when the block ends well.

    The content is on the disk before the rename, so that a power loss cannot leave an empty file. That costs
    milliseconds; `flush=False` is for many files that can be written again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if flush:
            handle = os.open(temporary, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, in UTF-8, by one rename."""
    with atomic(path) as temporary:
        temporary.write_text(text, "utf-8")
