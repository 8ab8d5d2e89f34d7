"""Reads MXNet's `.params` files, which hold named arrays, without MXNet.

All numbers are little-endian. A file is the magic 0x112 and a reserved word (64 bits each); the number of arrays
(64 bits) and the arrays; the number of names (64 bits) and the names, each its length (64 bits) and its bytes.
An array is a header, the device it was on (two numbers of 32 bits), the code of its type (32 bits) and its values.
The header has one of four forms, told apart by their first word of 32 bits:

    no magic     that word is the number of dimensions; sizes of 32 bits    the oldest
    0xF993FAC8   number of dimensions, sizes of 64 bits                     version 1
    0xF993FAC9   kind of storage (32 bits), then as version 1               version 2
    0xF993FACA   as version 2; −1 dimensions instead of 0 for no array      version 3
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seedbed.benchmark.errors import DataError

LIST = 0x112
VERSION_1, VERSION_2, VERSION_3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
TYPES = (np.float32, np.float64, np.float16, np.uint8, np.int32, np.int8, np.int64)
"""By MXNet's code of the type."""
DIMENSIONS = 32
"""The most that numpy and MXNet have."""


def read_params(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays by name, as stored: parameters are called `arg:…`, running statistics `aux:…`.

    Raises DataError, naming the file, if it is missing, broken, truncated, or not of this format.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    reader = _Reader(path)
    if reader.size < 16 or reader.number("Q") != LIST:
        raise reader.error("not an MXNet .params file")
    reader.number("Q")
    arrays = [reader.array() for _ in range(reader.number("Q"))]
    names = [reader.text() for _ in range(reader.number("Q"))]
    if len(set(names)) != len(arrays):
        raise reader.error(f"{len(arrays)} arrays have {len(set(names))} names")
    return dict(zip(names, arrays, strict=True))


class _Reader:
    """The bytes of a file, taken from the front."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = memoryview(path.read_bytes())
        self.size, self.position = len(self.content), 0

    def error(self, fault: str) -> DataError:
        return DataError(f"{self.path}: {fault}")

    def take(self, size: int) -> memoryview:
        if size > self.size - self.position:
            raise self.error(
                f"broken or truncated: {size} bytes should follow byte {self.position} of {self.size}"
            )
        self.position += size
        return self.content[self.position - size : self.position]

    def number(self, code: str) -> int:
        value: int = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]
        return value

    def text(self) -> str:
        return bytes(self.take(self.number("Q"))).decode("utf-8", "replace")

    def array(self) -> NDArray[Any]:
        shape = self._shape()
        if shape is None:
            return np.empty(0, np.float32)
        self.take(8)
        code = self.number("i")
        if not 0 <= code < len(TYPES):
            raise self.error(f"broken, or of a newer format: an array has the unknown type {code}")
        kind = np.dtype(TYPES[code]).newbyteorder("<")
        count = 1
        for size in shape:
            count *= size
        values = np.frombuffer(self.take(count * kind.itemsize), kind)
        return values.reshape(shape).astype(TYPES[code])

    def _shape(self) -> tuple[int, ...] | None:
        """Return the sizes that a header gives; None if no array follows."""
        word, width = self.number("I"), "Q"
        if word in (VERSION_2, VERSION_3) and self.number("i") != 0:
            raise self.error("holds a sparse array, which is not supported")
        if word in (VERSION_1, VERSION_2, VERSION_3):
            dimensions = self.number("i")
        else:
            dimensions, width = word, "I"
        if dimensions == (-1 if word == VERSION_3 else 0):
            return None
        if not 0 <= dimensions <= DIMENSIONS:
            raise self.error(f"broken, or of a newer format: an array has {dimensions} dimensions")
        return tuple(self.number(width) for _ in range(dimensions))
