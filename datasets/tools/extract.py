"""Extracts parts of a tar or zip archive that nobody has to trust: no file lands outside, no link is made."""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, BinaryIO

from seedbed.benchmark.errors import DataError
from seedbed.benchmark.progress import progress_bar

MB = 1_000_000
BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)
"""What the libraries raise for archives that are cut, damaged or of a form that they cannot read."""


def extract(archive: Path, targets: Sequence[str]) -> None:
    """Extract files and folders of an archive to the same places in its own folder, each by one rename.

    `targets` are their paths in the archive. Those that are there already are kept. A call that was killed leaves
    only a hidden folder, which the next call removes.

    Raises DataError, and leaves nothing, if the archive is broken or lacks a target, if any path in it is absolute
    or has `..`, and if a target is or contains anything but files and folders, such as a link.
    """
    root, temporary = archive.parent, _unfinished(archive)
    remove_unfinished(archive)
    temporary.mkdir()
    try:
        try:
            _extract(archive, [PurePosixPath(target) for target in targets], temporary)
        except BROKEN as error:
            raise DataError(
                f"{archive}: cannot be extracted ({error}); remove it, and it is fetched again"
            ) from None
        for target in targets:
            if not (temporary / target).exists():
                raise DataError(f"{archive}: has no {target}; it is another archive")
        for target in targets:
            if not is_there(root / target):
                (root / target).parent.mkdir(parents=True, exist_ok=True)
                (temporary / target).rename(root / target)
    finally:
        remove_unfinished(archive)


def remove_unfinished(archive: Path) -> None:
    """Remove what a killed `extract` left."""
    shutil.rmtree(_unfinished(archive), ignore_errors=True)


def is_there(path: Path) -> bool:
    """Return whether a path is a file, or a folder that is not empty."""
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _unfinished(archive: Path) -> Path:
    return archive.with_name(f".{archive.name}.extracting")


@dataclass(frozen=True)
class _Member:
    name: str
    kind: str
    """`file`, `folder` or `other`, such as a link."""
    open: Callable[[], IO[bytes] | None]


def _extract(archive: Path, targets: Sequence[PurePosixPath], folder: Path) -> None:
    size = archive.stat().st_size
    with archive.open("rb") as raw, progress_bar(f"extracting {archive.name}, MB", size // MB) as bar:
        for member in _members(raw):
            path = _safe_path(archive, member.name)
            if not any(target == path or target in path.parents for target in targets):
                continue
            if member.kind == "other":
                raise DataError(f"{archive}: {member.name!r} is a link or a device; nothing was extracted")
            if member.kind == "folder":
                (folder / path).mkdir(parents=True, exist_ok=True)
                continue
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            content = member.open()
            assert content is not None
            with content, (folder / path).open("wb") as file:
                shutil.copyfileobj(content, file)
            bar.show(raw.tell() // MB)


def _safe_path(archive: Path, name: str) -> PurePosixPath:
    """Return a path relative to the archive. Raises DataError if it leads out, by the rules of any system."""
    windows = PureWindowsPath(name)
    if windows.anchor or ".." in windows.parts:
        raise DataError(f"{archive}: {name!r} leads out of the folder; nothing was extracted")
    return PurePosixPath(name)


def _members(raw: BinaryIO) -> Iterator[_Member]:
    if raw.name.endswith(".zip"):
        with zipfile.ZipFile(raw) as archive:
            for entry in archive.infolist():
                # Systems without modes leave 0 there.
                form = stat.S_IFMT(entry.external_attr >> 16)
                kind = "folder" if entry.is_dir() else "file" if form in (0, stat.S_IFREG) else "other"
                yield _Member(entry.filename, kind, partial(archive.open, entry))
    else:
        with tarfile.open(fileobj=raw) as tar:
            for part in tar:
                kind = "folder" if part.isdir() else "file" if part.isreg() else "other"
                yield _Member(part.name, kind, partial(tar.extractfile, part))
