"""Reading and writing image and mask files, with errors that name the file."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from benchmark.errors import DataError

BROKEN = (OSError, SyntaxError, ValueError, EOFError)
"""What Pillow raises where a file's header is whole and its content is not."""


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the list that names it, or fetch it again") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, *BROKEN) as error:
        raise DataError(f"{path}: not a readable picture ({error}); fetch it again") from None


def image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) from the header. Raises DataError where the file is missing or no picture."""
    with _open(path) as picture:
        return picture.height, picture.width


def decode_image(path: Path) -> NDArray[np.uint8]:
    """Return uint8 (H, W, 3) RGB. Raises DataError where the file is missing, truncated or no picture."""
    with _open(path) as picture:
        try:
            return np.asarray(picture.convert("RGB"))
        except BROKEN as error:
            raise DataError(f"{path}: broken or truncated picture ({error}); fetch it again") from None


def decode_mask(path: Path, palette: bool = True) -> NDArray[np.uint8]:
    """Return uint8 (H, W): palette indices or grey values.

    Raises DataError where the file is missing or broken, is a colour picture, or (`palette=False`) is no
    8-bit grey picture.
    """
    with _open(path) as picture:
        if picture.mode not in (("P", "L") if palette else ("L",)):
            wanted = "a palette or 8-bit grey" if palette else "an 8-bit grey"
            raise DataError(f"{path}: a picture of mode {picture.mode}, expected {wanted} one")
        try:
            return np.asarray(picture)
        except BROKEN as error:
            raise DataError(f"{path}: broken or truncated picture ({error}); fetch it again") from None


@functools.cache
def palette() -> bytes:
    """Return the 768 bytes of PASCAL VOC's colour map (bit-reversed labels, VOCdevkit `VOClabelcolormap`)."""
    table = np.zeros((256, 3), np.uint8)
    for label in range(256):
        value = label
        for shift in range(7, -1, -1):
            for channel in range(3):
                table[label, channel] |= ((value >> channel) & 1) << shift
            value >>= 3
    return table.tobytes()


def write_mask(path: Path, mask: NDArray[np.uint8]) -> None:
    """Write uint8 (H, W) labels as a palette PNG in VOC's colours."""
    picture = Image.fromarray(mask)
    picture.putpalette(palette())
    picture.save(path, format="PNG")


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
