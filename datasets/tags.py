"""Where the image tags of a VOC-like data set come from: XML files, a tag file, or the masks."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from benchmark.errors import DataError, unknown_name
from datasets.safe_npy import load_npy


def xml_names(path: Path) -> list[str]:
    """Return the class names of all objects of a VOC annotation, difficult ones included (docs/methods.md)."""
    try:
        annotation = ElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; it holds the image's tags") from None
    except ElementTree.ParseError as error:
        raise DataError(f"{path}: broken XML ({error}); fetch it again") from None
    # Only direct children: the parts of a person have names too.
    return [name.strip() for name in (e.findtext("name") for e in annotation.findall("object")) if name]


def tag_table(path: Path, classes: tuple[str, ...]) -> Mapping[str, list[str]]:
    """Return the class names of each image id in a tag file.

    Either a CSV file with the header `image_id,classes` (names separated by spaces), or IRN's and PSA's
    `cls_labels.npy`: a dictionary from ids (`"2007_000032"`, or the integer 2007000032) to (C,) arrays of 0 and 1.
    Raises DataError where the file is missing or of another form.
    """
    return _npy_table(path, classes) if path.suffix == ".npy" else _csv_table(path)


def labels(names: Iterable[str], classes: tuple[str, ...], file: Path) -> tuple[int, ...]:
    """Return the labels (1..C, ascending) of class names. Raises DataError, naming `file`, for an unknown one."""
    found = set()
    for name in names:
        if name not in classes:
            raise DataError(f"{file}: {unknown_name('class', name, classes)}")
        found.add(classes.index(name) + 1)
    return tuple(sorted(found))


def mask_labels(mask: NDArray[np.uint8], classes: int) -> tuple[int, ...]:
    """Return the labels (1..C, ascending) that occur in a mask uint8 (H, W)."""
    counts = np.bincount(mask.ravel(), minlength=classes + 1)
    return tuple(int(label) for label in np.flatnonzero(counts[1 : classes + 1]) + 1)


def _csv_table(path: Path) -> dict[str, list[str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if rows.fieldnames is None or [*rows.fieldnames] != ["image_id", "classes"]:
                raise DataError(f"{path}: expected a CSV file with the header image_id,classes")
            return {row["image_id"]: (row["classes"] or "").split() for row in rows}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a readable tag file ({error})") from None


def _npy_table(path: Path, classes: tuple[str, ...]) -> dict[str, list[str]]:
    content = load_npy(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a dictionary from image ids to arrays")
    table = {}
    for key, values in content.items():
        image_id = f"{key // 10**6}_{key % 10**6:06d}" if isinstance(key, int | np.integer) else str(key)
        if np.shape(values) != (len(classes),):
            raise DataError(f"{path}: the tags of {image_id} have shape {np.shape(values)}, not ({len(classes)},)")
        table[image_id] = [classes[index] for index in np.flatnonzero(values)]
    return table
