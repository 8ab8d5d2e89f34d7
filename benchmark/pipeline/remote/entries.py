"""Entries of the artifact store, and other folders of files, as objects.

    entries/ab/abcdef…/NAME.tar    the files of a finished stage
    entries/ab/abcdef…/entry.json  its record, with the name, size and SHA-256 of the archive

`entry.json` is written last, so an entry is visible only when it is whole. An archive never changes: a second
upload of an entry has another name.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, cast

from seedbed.benchmark.pipeline.remote.objects import Objects, Readable, Writable
from seedbed.benchmark.pipeline.store import ENTRY_FILE

CHUNK = 1 << 20


class DamagedArchiveError(Exception):
    """The archive of an entry is missing, or is not what its record says."""


@dataclass(frozen=True)
class Archive:
    """An archive as an entry's record describes it."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class RemoteEntry:
    """A finished stage, or another folder, in the object store."""

    key: str
    record: Mapping[str, Any]
    """Of a stage as in the `entry.json` of a local store; of other folders the key alone."""
    archive: Archive


class RemoteEntries:
    """The entries below `place` in an object store. The errors are those of `Objects`."""

    def __init__(self, objects: Objects, place: str = "entries") -> None:
        self._objects, self._place = objects, place

    def find(self, key: str) -> RemoteEntry | None:
        """Return an entry by its record; None if there is none, or if the record is damaged."""
        if (text := self._objects.read(f"{self._folder(key)}/{ENTRY_FILE}")) is None:
            return None
        try:
            content = json.loads(text)
            entry = RemoteEntry(key, content["record"], Archive(**content["archive"]))
            whole = entry.record["key"] == key
        except (ValueError, KeyError, TypeError):
            return None
        return entry if whole else None

    def put(self, key: str, folder: Path, record: Mapping[str, Any]) -> None:
        """Upload the files of `folder`, without `entry.json`, as an entry, unless there is one already."""
        if self.find(key) is not None:
            return
        name = f"{uuid.uuid4().hex}.tar"
        with self._objects.writer(f"{self._folder(key)}/{name}") as stream:
            archive = _pack(folder, name, stream)
        if self.find(key) is None:
            self.write_record(RemoteEntry(key, record, archive))
        else:
            # Another node was faster.
            self._objects.delete(f"{self._folder(key)}/{name}")

    def write_record(self, entry: RemoteEntry) -> None:
        """Write the record of an entry whose archive is uploaded."""
        text = json.dumps({"archive": asdict(entry.archive), "record": entry.record}, indent=1)
        self._objects.write(f"{self._folder(entry.key)}/{ENTRY_FILE}", text.encode())

    def fetch(self, entry: RemoteEntry, folder: Path) -> None:
        """Download the files of an entry to `folder`, which must not exist. Raises DamagedArchiveError."""
        folder.mkdir(parents=True)
        try:
            with self._objects.reader(f"{self._folder(entry.key)}/{entry.archive.name}") as stream:
                _unpack(stream, entry.archive, folder)
        except FileNotFoundError:
            raise DamagedArchiveError("its archive is missing") from None

    def remove(self, key: str) -> None:
        """Remove an entry, its record first."""
        self._objects.delete(f"{self._folder(key)}/{ENTRY_FILE}")
        self._objects.delete_folder(self._folder(key))

    def keys(self) -> set[str]:
        """Return the keys of all entries, including damaged ones."""
        names = [info.name.split("/") for info in self._objects.list(self._place)]
        return {name[1] for name in names if len(name) == 3 and name[2] == ENTRY_FILE}

    def remove_leftovers(self, before: int) -> int:
        """Remove archives of killed uploads older than `before` (ns since 1970), and return their number."""
        archives: dict[str, list[str]] = {}
        for info in self._objects.list(self._place):
            folder, _, name = info.name.rpartition("/")
            if name != ENTRY_FILE and info.modified < before:
                archives.setdefault(folder.rpartition("/")[2], []).append(name)
        count = 0
        for key, names in archives.items():
            entry = self.find(key)
            for name in names:
                if entry is None or name != entry.archive.name:
                    self._objects.delete(f"{self._folder(key)}/{name}")
                    count += 1
        return count

    def _folder(self, key: str) -> str:
        return f"{self._place}/{key[:2]}/{key}"


class _Digested:
    """Passes bytes on to or from a stream, and counts and digests them."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.bytes = 0
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def read(self, size: int) -> bytes:
        return self._seen(self._stream.read(size))

    def write(self, content: bytes) -> int:
        self._stream.write(self._seen(content))
        return len(content)

    def _seen(self, content: bytes) -> bytes:
        self.bytes += len(content)
        self._digest.update(content)
        return content


def _pack(folder: Path, name: str, stream: Writable) -> Archive:
    """Write the files of a folder as a tar archive without times and owners."""
    digested = _Digested(stream)
    with tarfile.open(fileobj=cast("IO[bytes]", digested), mode="w|", bufsize=CHUNK) as archive:
        for path in sorted(folder.rglob("*")):
            if path != folder / ENTRY_FILE:
                archive.add(path, path.relative_to(folder).as_posix(), recursive=False, filter=_anonymous)
    return Archive(name, digested.bytes, digested.sha256)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.mtime = member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode = 0o755 if member.isdir() else 0o644
    return member


def _unpack(stream: Readable, expected: Archive, folder: Path) -> None:
    digested = _Digested(stream)
    try:
        with tarfile.open(fileobj=cast("IO[bytes]", digested), mode="r|", bufsize=CHUNK) as archive:
            for member in archive:
                archive.extract(member, folder, set_attrs=False, filter="data")
    except tarfile.TarError as error:
        raise DamagedArchiveError(f"{expected.name}: {error}") from None
    while digested.read(CHUNK):
        pass
    if digested.bytes != expected.bytes:
        raise DamagedArchiveError(f"{expected.name}: {digested.bytes} of {expected.bytes} bytes are there")
    if digested.sha256 != expected.sha256:
        raise DamagedArchiveError(f"{expected.name}: its SHA-256 is not the recorded one")
