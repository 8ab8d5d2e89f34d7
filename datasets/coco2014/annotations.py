"""Reads COCO's JSON (`instances_*.json`) and refuses what cannot be a data set.

Categories become labels 1..C by ascending id. An image's id is the stem of its `file_name`, so the stems must
differ. Ids may be written as 13, 13.0 or "13". All problems of a file are told in one error.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Any

from seedbed.benchmark.errors import DataError, joined
from seedbed.datasets.classes import check_classes
from seedbed.datasets.coco2014.outlines import Instance

LONGEST_SIDE = 65_535
"""Pixels."""


@dataclass(frozen=True)
class CocoImage:
    """One image of a JSON."""

    name: str
    """`file_name` with `/` between folders, relative to `train2014` or `val2014`."""
    height: int
    width: int
    instances: list[Instance] = field(default_factory=list)

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem


@dataclass(frozen=True)
class Annotations:
    """What a JSON says."""

    path: Path
    classes: tuple[str, ...]
    category_ids: list[int | str]
    """In the order of the classes."""
    images: list[CocoImage]
    """In the order of their stems."""

    @property
    def names(self) -> dict[str, str]:
        """File names by stem."""
        return {image.stem: image.name for image in self.images}

    @property
    def tags(self) -> dict[str, list[int]]:
        """Labels by stem, crowds and objects without an outline included."""
        return {image.stem: sorted({i.label for i in image.instances}) for image in self.images}


def annotations_path(root: Path, folder: str) -> Path:
    """Return the annotations of `train2014` or `val2014`."""
    return root / "annotations" / f"instances_{folder}.json"


def read_annotations(path: Path, folder: str) -> Annotations:
    """Read a JSON about the images in `folder` (`train2014`).

    Raises DataError if the file cannot be read, holds no annotations, or has classes that `check_classes`
    refuses; if ids or stems are not unique; if an annotation is of an unknown image or category; if no annotation
    has an outline; and for sizes that are not whole numbers of pixels.
    """
    content = read_json(path)
    problems: list[str] = []
    try:
        labels, classes = _categories(content["categories"], path, problems)
        images = _images(content["images"], folder, problems)
        if not problems:
            problems += _add_instances(content["annotations"], labels, images)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not COCO annotations (at {error}); fetch it again") from None
    if problems:
        raise DataError(joined(f"{path}: ", problems))
    if content["annotations"] and not any(i.segmentation for image in images.values() for i in image.instances):
        raise DataError(
            f"{path}: none of its {len(content['annotations'])} annotations has an outline (`segmentation`), "
            "from which masks are drawn"
        )
    return Annotations(path, classes, list(labels), sorted(images.values(), key=lambda image: image.stem))


def refuse_shared_stems(root: Path, names: Mapping[str, Mapping[str, str]]) -> None:
    """Raise DataError if images in two folders have the same stem; `names` are file names by folder and stem."""
    for (first, some), (second, others) in combinations(names.items(), 2):
        shared = sorted(some.keys() & others.keys())
        if shared:
            paths = root / first / some[shared[0]], root / second / others[shared[0]]
            raise DataError(
                f"{root}: {len(shared)} images of {first} and {second} have the same name, such as {paths[0]} and "
                f"{paths[1]}. Masks, maps and results go by the name: rename the images of one folder, and their "
                "`file_name`"
            )


def find_image(root: Path, folder: str, name: str) -> Path:
    """Return where the image `name` lies: in its own sub-folder or in `folder` itself."""
    own = root / folder / name
    return own if own.exists() else next((p for p in [root / folder / own.name] if p.exists()), own)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises DataError if it is missing or broken."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); fetch or make it again") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a JSON object; fetch or make it again")
    return content


def _categories(entries: Any, path: Path, problems: list[str]) -> tuple[dict[int | str, int], tuple[str, ...]]:
    """Return the labels by category id, and the class names in their order."""
    categories = [(_identity(entry["id"]), entry["name"]) for entry in entries]
    problems += [
        f"the id of the category {name!r} is {number!r}, expected a whole number"
        for number, name in categories
        if isinstance(number, str)
    ]
    if problems:
        return {}, ()
    categories.sort(key=lambda category: category[0])
    for number, count in Counter(number for number, _ in categories).items():
        if count > 1:
            names = ", ".join(repr(name) for other, name in categories if other == number)
            problems.append(f"{count} categories have the id {number}: {names}")
    classes = check_classes([name for _, name in categories], path)
    return {number: label for label, (number, _) in enumerate(categories, start=1)}, classes


def _images(entries: Any, folder: str, problems: list[str]) -> dict[int | str, CocoImage]:
    """Return the images by id, or add to `problems`."""
    images: dict[int | str, CocoImage] = {}
    named: dict[str, str] = {}
    for entry in entries:
        number, written = _identity(entry["id"]), entry.get("file_name")
        name = _relative(written, folder) if isinstance(written, str) else ""
        if not name.strip():
            problems.append(f"the image {number} has the file_name {written!r}, expected the name of a file")
            continue
        height, width = (_side(entry.get(side)) for side in ("height", "width"))
        if height is None or width is None:
            found = f"height {entry.get('height')!r} and width {entry.get('width')!r}"
            problems.append(f"the image {name} has {found}, expected whole numbers of pixels")
            continue
        image = CocoImage(name, height, width)
        other = named.setdefault(image.stem, name)
        if number in images and images[number].name != name:
            problems.append(f"the images {images[number].name} and {name} have the same id {number}")
        elif other != name:
            problems.append(
                f"the images {other} and {name} would both be {image.stem!r}: the names of images must differ in "
                "more than folder and suffix"
            )
        images.setdefault(number, image)
    counts = Counter(_relative(str(entry.get("file_name")), folder) for entry in entries)
    problems[:0] = [f"lists the image {name} {count} times" for name, count in counts.items() if count > 1]
    return images


def _add_instances(
    entries: Any, labels: Mapping[int | str, int], images: Mapping[int | str, CocoImage]
) -> Iterator[str]:
    """Add the annotations to their images, and yield what is wrong with them."""
    for entry in entries:
        number, image, category = (_identity(entry[key]) for key in ("id", "image_id", "category_id"))
        crowd = entry.get("iscrowd") or 0
        if image not in images:
            yield f"annotation {number} is of an unknown image {image}"
        elif category not in labels:
            yield f"annotation {number} is of an unknown category {category}"
        elif crowd not in (0, 1):
            yield f"annotation {number} has the iscrowd {crowd!r}, expected 0 or 1"
        else:
            instance = Instance(number, labels[category], crowd == 1, entry.get("segmentation"))
            images[image].instances.append(instance)


def _identity(value: Any) -> int | str:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(f"the id {value!r}")
    if isinstance(value, float):
        if not value.is_integer():
            raise TypeError(f"the id {value!r}")
        return int(value)
    if isinstance(value, str) and value.isdecimal() and str(int(value)) == value:
        return int(value)
    return value


def _side(value: Any) -> int | None:
    """Return a number of pixels, None if it is not one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or not value >= 1:
        return None
    return int(value) if value <= LONGEST_SIDE and value == int(value) else None


def _relative(name: str, folder: str) -> str:
    """Return a file name relative to `folder`; some JSONs have Windows' separators, or name the folder too."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    inside = parts[parts.index(folder) + 1 :] if folder in parts[:-1] else parts
    return "/".join(part for part in inside if part != "..")
