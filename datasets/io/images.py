"""Reading and writing image and mask files, with errors that name the file."""

from __future__ import annotations

import codecs
import functools
import re
from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from seedbed.benchmark.errors import DataError

SUFFIXES = ("jpg", "jpeg", "png", "bmp", "tif", "tiff", "gif", "webp", "xml", "mat", "npy")
"""Suffixes of files that lists and tables name in place of an id."""
BLACK = bytes(3)
ORIENTATION = 274
"""The EXIF tag that says how a viewer turns the picture; 1 is not at all."""
BROKEN = (OSError, SyntaxError, ValueError, EOFError)
"""What Pillow raises if a file's header is intact and its content is not."""


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the list that names it, or fetch it again") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, *BROKEN) as error:
        raise DataError(f"{path}: not a readable picture ({error}); fetch it again") from None


def image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) from the header. Raises DataError if the file is missing or not an image."""
    with _open(path) as picture:
        return picture.height, picture.width


def is_turned(path: Path) -> bool:
    """Return whether viewers turn or mirror a JPEG by its EXIF orientation. `decode_image` does not."""
    with _open(path) as picture:
        try:
            return picture.format == "JPEG" and picture.getexif().get(ORIENTATION, 1) != 1
        except BROKEN:
            return False  # broken EXIF data turn nothing


def jpeg_reduction(size: tuple[int, int], least: tuple[int, int]) -> int:
    """Return the greatest `reduction` (`decode_image`) at which an image of `size` (h, w) is at least `least`."""
    factor = min(size[0] // least[0], size[1] // least[1])
    return next(whole for whole in (8, 4, 2, 1) if whole <= max(1, factor))


def decode_image(path: Path, reduction: int = 1) -> NDArray[np.uint8]:
    """Return uint8 (H, W, 3) RGB, writable.

    A JPEG is decoded at 1/`reduction` of its size, sides rounded up, by an inverse DCT of fewer coefficients;
    `reduction` is 1, 2, 4 or 8. Pictures of other formats keep their size.

    Raises DataError if the file is missing, truncated or no picture, or has grey values of more than 8 bits.
    """
    with _open(path) as picture:
        if picture.mode.startswith(("I", "F")):
            # Pillow would clip the values at 255 and not scale them.
            raise DataError(f"{path}: grey values of more than 8 bits (mode {picture.mode}); save it with 8 bits")
        try:
            if reduction > 1:
                picture.draft(None, (picture.width // reduction, picture.height // reduction))
            # Converting RGB to RGB would copy it.
            return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))
        except BROKEN as error:
            raise DataError(f"{path}: broken or truncated picture ({error}); fetch it again") from None


def decode_mask(path: Path) -> NDArray[np.uint8]:
    """Return the labels uint8 (H, W) of a mask: palette indices, or grey values of up to 8 bits, unscaled.

    Raises DataError if the file is missing, broken or not a PNG, has another mode than palette or grey, or if its
    palette gives a label that occurs the colour of no or another label (see `_check_palette`).
    """
    with _open(path) as picture:
        if picture.format != "PNG":
            raise DataError(f"{path}: a {picture.format} picture; save masks as PNG, which keeps labels exact")
        # Pillow scales grey values of 2 and 4 bits to 0..255, which would make label 17 of label 1.
        scale = _LOW_BITS.get(str(picture.tile[0][3]), 1) if isinstance(picture, ImageFile) and picture.tile else 1
        mask = _pixels(path, picture, ("P", "L"), "a palette or 8-bit grey") // np.uint8(scale)
        if picture.mode == "P":
            _check_palette(path, mask, bytes(picture.getpalette() or b""))
        return mask


def decode_grey(path: Path) -> NDArray[np.uint8]:
    """Return the values uint8 (H, W) of a grey picture, for example a saliency map.

    Raises DataError if the file is missing or broken, or no 8-bit grey picture.
    """
    with _open(path) as picture:
        return _pixels(path, picture, ("L",), "an 8-bit grey")


def _pixels(path: Path, picture: Image.Image, modes: tuple[str, ...], wanted: str) -> NDArray[np.uint8]:
    if picture.mode not in modes:
        raise DataError(f"{path}: a picture of mode {picture.mode}, expected {wanted} one")
    try:
        return np.asarray(picture)
    except BROKEN as error:
        raise DataError(f"{path}: broken or truncated picture ({error}); fetch it again") from None


_LOW_BITS = {"L;2": 85, "L;4": 17}
"""Factor by which Pillow scales grey values, by the raw mode of the file."""


def _check_palette(path: Path, mask: NDArray[np.uint8], colours: bytes) -> None:
    """Raise DataError if the palette contradicts reading its indices as labels.

    Image tools that save a colour mask again number its colours anew, in any order. So the colour of each label
    that occurs must be the label's own in VOC's colour map, or the grey level of the same value. A label may also
    have no colour (a palette of 21 entries and the label 255), or be black padding after a black label 0.
    """
    if colours == palette():
        return
    own = palette()
    for label in np.flatnonzero(np.bincount(mask.ravel(), minlength=256)).tolist():
        colour = colours[3 * label : 3 * label + 3]
        padding = label > 0 and colour == colours[:3] == BLACK
        if len(colour) < 3 or padding or colour in (own[3 * label : 3 * label + 3], bytes([label] * 3)):
            continue
        raise DataError(
            f"{path}: its palette gives index {label} the colour {tuple(colour)}, VOC's colour map "
            f"{tuple(own[3 * label : 3 * label + 3])}; save it with VOC's palette, or as 8-bit grey labels"
        )


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


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8, or in UTF-16 with a byte order mark.

    Byte order marks are removed everywhere, because joined files have them between the lines, and so are spaces
    of no width, which text copied from web pages has.

    Raises DataError if the file cannot be read or has another encoding.
    """
    try:
        content = path.read_bytes()
        marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if marked else "utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a readable text file ({error}); save it as UTF-8") from None
    if "\0" in text:
        raise DataError(f"{path}: not a readable text file (it has zero bytes); save it as UTF-8")
    return text.replace("\ufeff", "").replace("\u200b", "")


def image_id(word: str) -> str:
    """Return the image id that a list or a table means: the last part of a path, without a file's suffix."""
    name = re.split(r"[/\\]", word)[-1]
    stem, point, suffix = name.rpartition(".")
    return stem if point and suffix.lower() in SUFFIXES else name


def visible_files(folder: Path, suffixes: Collection[str]) -> list[str]:
    """Return the sorted names of the files with one of the suffixes, in any case (`.jpg`); none without a folder.

    Hidden files are left out: macOS writes one named `._ID.jpg` beside each file on foreign file systems.
    """
    if not folder.is_dir():
        return []
    names = (path.name for path in folder.iterdir())
    return sorted(name for name in names if not name.startswith(".") and Path(name).suffix.lower() in suffixes)


class Folder:
    """The files STEM.SUFFIX of a folder, found under other spellings of the suffix too (`.JPG`, `.jpeg`, `.png`).

    The folder is listed once. Only unusual names are kept, so an official data set keeps none.
    """

    def __init__(self, path: Path, suffix: str, others: Collection[str] = ()) -> None:
        """Takes the usual suffix (`.jpg`) and others that are accepted as well, in lower case."""
        self.path, self._suffix = path, suffix
        names = visible_files(path, {suffix, *others})
        usual = {name.removesuffix(suffix) for name in names if name.endswith(suffix)}
        self._unusual: dict[str, list[str]] = {}
        self.unread: list[str] = []
        """Names of files beside one of the same stem with the usual suffix, which is the one that is read."""
        for name in names:
            stem = Path(name).stem
            if not name.endswith(suffix):
                others_of_stem = self.unread if stem in usual else self._unusual.setdefault(stem, [])
                others_of_stem.append(name)

    def file(self, stem: str) -> Path:
        """Return the file of a stem; with the usual suffix if there is none."""
        return self.path / self._unusual.get(stem, (stem + self._suffix,))[0]

    def doubles(self) -> list[list[str]]:
        """Return the names that share a stem and none of which has the usual suffix."""
        return [names for names in self._unusual.values() if len(names) > 1]
