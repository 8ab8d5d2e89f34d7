"""Class names: what a data set may call its classes, and how a name becomes part of a key or a file name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from seedbed.benchmark.errors import DataError

MOST_CLASSES = 254
"""Masks are 8-bit: 0 is background and 255 is not counted."""
LONGEST_NAME = 100
"""Characters. Trackers and file systems limit the names that a class name becomes a part of."""


def class_key(name: str) -> str:
    """Return the name with `_` for every character that a file name or a metric's name may not hold."""
    return re.sub(r"[^\w. -]", "_", name)


def check_classes(names: Sequence[object], file: Path) -> tuple[str, ...]:
    """Return the foreground class names without blanks at their ends.

    Raises DataError, naming `file`, if there are none or more than 254, if a name is not a text, empty, longer
    than 100 characters or `background`, and if two names have the same key apart from upper and lower case.
    """
    if not names:
        raise DataError(f"{file}: has no classes")
    if len(names) > MOST_CLASSES:
        raise DataError(
            f"{file}: has {len(names)} classes; the limit is {MOST_CLASSES}, as masks are 8-bit, 0 is background "
            "and 255 is not counted. Merge classes or leave some out"
        )
    checked: dict[str, str] = {}
    for name in names:
        if not isinstance(name, str) or not name.strip() or len(name) > LONGEST_NAME:
            raise DataError(
                f"{file}: a class is named {name!r}; expected a text of 1 to {LONGEST_NAME} characters"
            )
        name = name.strip()
        key = class_key(name).casefold()
        if key.strip("_ ") == "background":
            raise DataError(
                f"{file}: a class is named {name!r}. Background is label 0 and not a class; remove this category"
            )
        if key in checked:
            raise DataError(
                f"{file}: two classes are named {checked[key]!r} and {name!r}, which results cannot tell apart; "
                "rename one"
            )
        checked[key] = name
    return tuple(checked.values())
