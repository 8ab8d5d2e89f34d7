"""Where the image tags of a VOC-like data set come from: XML files, a tag file, or the masks.

Tags are labels 1..C, ascending. Class names are compared without regard to case.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from seedbed.benchmark.errors import DataError, unknown_name
from seedbed.datasets.io.image_table import image_rows
from seedbed.datasets.io.images import image_id
from seedbed.datasets.io.npy import load_npy

Tags = tuple[int, ...]
SEPARATORS = r"[\s,;|]+"
"""What separates the classes of an image in a CSV file, so that no class name may contain it."""


def xml_names(path: Path) -> list[str]:
    """Return the class names of all objects of a VOC annotation, difficult ones included (docs/methods.md).

    Reads every encoding that Python knows, and files with an XML namespace. Raises DataError if the file is
    missing or broken, is no annotation, or has an object without a name.
    """
    try:
        annotation = ElementTree.fromstring(_xml_text(path.read_bytes()))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; it holds the image's tags") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except ElementTree.ParseError as error:
        raise DataError(f"{path}: broken XML ({error}); fetch it again") from None
    if annotation.tag.rpartition("}")[2] != "annotation":
        raise DataError(f"{path}: not a VOC annotation, its root is <{annotation.tag.rpartition('}')[2]}>")
    # Only direct children: the parts of a person have names too.
    names = [(element.findtext("{*}name") or "").strip() for element in annotation.findall("{*}object")]
    if "" in names:
        raise DataError(f"{path}: object {names.index('') + 1} has no name")
    return names


def tag_table(path: Path, classes: tuple[str, ...]) -> dict[str, Tags]:
    """Return the tags of each image id in a tag file.

    Either a CSV file with the header `image_id,classes` (names separated by spaces), or IRN's and PSA's
    `cls_labels.npy`: a dictionary from ids (`"2007_000032"`, or the integer 2007000032) to (C,) arrays of 0 and 1.
    Raises DataError, naming the line or the image, if the file is missing or of another form.
    """
    table, errors = readable_tags(path, classes)
    for _, error in errors:
        raise error
    return table


def readable_tags(path: Path, classes: tuple[str, ...]) -> tuple[dict[str, Tags], list[tuple[str, DataError]]]:
    """Return the tags of a tag file (see `tag_table`), and of each wrong row its image id and its error.

    The id is empty if the row has none. Raises DataError if the file is missing, has another header, or is a .npy
    file of another form.
    """
    rows = _npy_rows(path, classes) if path.suffix.lower() == ".npy" else _csv_rows(path, classes)
    table: dict[str, Tags] = {}
    errors: list[tuple[str, DataError]] = []
    for place, key, tags in rows:
        if isinstance(tags, DataError):
            errors.append((key, tags))
        elif key in table:
            text = f"{place}: the image {key} again; expected each image once, with all of its classes"
            errors.append((key, DataError(text)))
        else:
            table[key] = tags
    return table, errors


def labels(names: Iterable[str], classes: tuple[str, ...], place: Path | str) -> Tags:
    """Return the labels (1..C, ascending) of class names. Raises DataError, naming `place`, for an unknown one."""
    known = {name.lower(): label for label, name in enumerate(classes, start=1)}
    found = set()
    for name in names:
        if name.lower() not in known:
            raise DataError(f"{place}: {unknown_name('class', name, classes)}")
        found.add(known[name.lower()])
    return tuple(sorted(found))


def mask_labels(mask: NDArray[np.uint8], classes: int) -> Tags:
    """Return the labels (1..C, ascending) that occur in a mask uint8 (H, W)."""
    counts = np.bincount(mask.ravel(), minlength=classes + 1)
    return tuple(int(label) for label in np.flatnonzero(counts[1 : classes + 1]) + 1)


def _xml_text(content: bytes) -> str:
    """Decode an XML file. Expat itself knows neither GBK nor other multi-byte encodings."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace").lstrip()
    declared = re.match(rb"""\s*<\?xml[^>]*encoding\s*=\s*["']([A-Za-z0-9._-]+)["']""", content)
    # A declaration that can be read byte by byte is not in UTF-16, even if it says so.
    encoding = declared[1].decode() if declared and b"16" not in declared[1] else "utf-8"
    try:
        text = content.decode(encoding, errors="replace")
    except (LookupError, UnicodeError):
        text = content.decode("utf-8", errors="replace")
    # Bytes that do not decode are in paths and comments; in a class name they make it unknown.
    return text.lstrip("\ufeff \t\r\n")


def _csv_rows(path: Path, classes: tuple[str, ...]) -> Iterator[tuple[str, str, Tags | DataError]]:
    """Yield file and line, image id, and tags or what is wrong."""
    for place, key, cell in image_rows(path, "classes"):
        if isinstance(cell, DataError):
            yield place, key, cell
            continue
        try:
            yield place, key, labels(filter(None, re.split(SEPARATORS, cell)), classes, place)
        except DataError as error:
            yield place, key, error


def _npy_rows(path: Path, classes: tuple[str, ...]) -> Iterator[tuple[str, str, Tags]]:
    """Yield (file, image id, tags)."""
    content = load_npy(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a dictionary from image ids to arrays, found {type(content).__name__}")
    for key, values in content.items():
        if isinstance(key, bytes):
            key = key.decode("utf-8", errors="replace")
        name = f"{key // 10**6}_{key % 10**6:06d}" if isinstance(key, int | np.integer) else str(key)
        if image_id(name) != name:
            raise DataError(
                f"{path}: its keys are file names such as {name}; expected ids such as {image_id(name)}"
            )
        try:
            found = np.asarray(values)
        except ValueError as error:
            raise DataError(f"{path}: the tags of {name} are not an array ({error})") from None
        if found.shape != (len(classes),):
            raise DataError(f"{path}: the tags of {name} have shape {found.shape}, not ({len(classes)},)")
        if found.dtype.kind not in "biuf" or not np.isin(found, (0, 1)).all():
            raise DataError(f"{path}: the tags of {name} are {_others(found)}; expected only 0 and 1")
        yield str(path), name, tuple(int(index) + 1 for index in np.flatnonzero(found))


def _others(values: NDArray) -> str:
    others = [value for value in dict.fromkeys(values.tolist()) if value not in (0, 1)]
    return ", ".join(map(str, others[:3])) + (", …" if len(others) > 3 else "")
