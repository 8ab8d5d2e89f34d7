"""Objects on S3, or in any other file system that pyarrow opens by its address."""

from __future__ import annotations

import contextlib
import functools
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from seedbed.benchmark.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

READ_AHEAD = 16 << 20
"""Bytes per request while an object is read."""


class Readable(Protocol):
    """What an object is read from."""

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes, none at the end. Raises StoreError."""


class Writable(Protocol):
    """What an object is written to."""

    def write(self, content: bytes) -> int:
        """Append bytes, and return their number. Raises StoreError."""


@dataclass(frozen=True)
class ObjectInfo:
    """An object in a list."""

    name: str
    """Its name below the listed folder, with slashes."""
    modified: int
    """When it was written, in ns since 1970 on the clock of the object store."""


class Objects:
    """The objects below an address. Their names have slashes.

    Every method raises StoreError, which names the address, if the object store cannot be reached or refuses, and
    ConfigError if pyarrow does not know such an address.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    def read(self, name: str) -> bytes | None:
        """Return the content of an object; None if there is none."""
        try:
            with self.reader(name) as stream:
                return stream.read(-1)
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Write an object, or write it again."""
        with self.writer(name) as stream:
            stream.write(content)

    def check(self) -> None:
        """Write and delete a small object: a bucket that does not exist lists like an empty one."""
        name = f"check-{uuid.uuid4().hex}"
        self.write(name, b"check")
        self.delete(name)

    @contextlib.contextmanager
    def reader(self, name: str) -> Iterator[Readable]:
        """Open an object. Raises FileNotFoundError if there is none."""
        with self._reaching():
            stream = self._files.open_input_stream(self._path(name), buffer_size=READ_AHEAD)
        with stream:
            yield _Reader(self, stream)

    @contextlib.contextmanager
    def writer(self, name: str) -> Iterator[Writable]:
        """Create an object, which appears when the block ends.

        If the block raises, an object with the beginning of the content may appear.
        """
        with self._reaching():
            try:
                stream = self._files.open_output_stream(self._path(name))
            except FileNotFoundError:
                # A file system with folders.
                self._files.create_dir(self._path(name).rpartition("/")[0], recursive=True)
                stream = self._files.open_output_stream(self._path(name))
        try:
            yield _Writer(self, stream)
        finally:
            with self._reaching():
                stream.close()

    def delete(self, name: str) -> None:
        """Delete an object, which may not exist."""
        with self._reaching(), contextlib.suppress(FileNotFoundError):
            self._files.delete_file(self._path(name))

    def delete_folder(self, name: str) -> None:
        """Delete all objects whose names begin with `name` and a slash."""
        with self._reaching(), contextlib.suppress(FileNotFoundError):
            self._files.delete_dir(self._path(name))

    def list(self, folder: str) -> list[ObjectInfo]:
        """Return all objects whose names begin with `folder` and a slash, in the order of their names."""
        from pyarrow import fs

        place = self._path(folder)
        with self._reaching():
            found = self._files.get_file_info(fs.FileSelector(place, allow_not_found=True, recursive=True))
        return sorted(
            (
                ObjectInfo(info.path.removeprefix(f"{place}/"), info.mtime_ns or 0)
                for info in found
                if info.type is fs.FileType.File
            ),
            key=lambda info: info.name,
        )

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise StoreError(
                f"{self.address}: the object store cannot be used ({reason}). Check its address (the table "
                "[store] of seedbed.toml), the network and the credentials on this node, then repeat the command. "
                "Finished stages are kept."
            ) from error

    @functools.cached_property
    def _opened(self) -> tuple[FileSystem, str]:
        from pyarrow import fs

        address = self.address
        if address.startswith("s3://") and "allow_delayed_open" not in address:
            # Small objects by one request in place of three.
            address += f"{'&' if '?' in address else '?'}allow_delayed_open=true"
        try:
            with self._reaching():
                files, prefix = fs.FileSystem.from_uri(address)
        except (ValueError, NotImplementedError, ImportError) as error:
            raise ConfigError(
                f"{self.address}: no address of an object store ({error}). Give one that pyarrow knows, for "
                "example s3://BUCKET/FOLDER?region=REGION, gs://BUCKET/FOLDER or file:///FOLDER"
            ) from None
        return files, prefix.rstrip("/")

    @property
    def _files(self) -> FileSystem:
        return self._opened[0]

    def _path(self, name: str) -> str:
        return f"{self._opened[1]}/{name}"


@dataclass(frozen=True)
class _Reader:
    objects: Objects
    stream: Readable

    def read(self, size: int) -> bytes:
        with self.objects._reaching():
            return self.stream.read(size) if size >= 0 else self.stream.read()  # type: ignore[call-arg]


@dataclass(frozen=True)
class _Writer:
    objects: Objects
    stream: Writable

    def write(self, content: bytes) -> int:
        with self.objects._reaching():
            self.stream.write(content)
        return len(content)
