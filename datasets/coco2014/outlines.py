"""Draws masks from the outlines of COCO's annotations (`segmentation`): polygons and run-length codes (RLE).

Rules: an object is drawn over all larger ones (by the area of its mask in pixels; of two equal ones the higher
annotation id is on top); pixels of a crowd that no single object covers become 255, or stay background with
`crowd="background"`. Polygons of fewer than three points are not drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from seedbed.benchmark.errors import DataError
from seedbed.datasets.base import IGNORE_INDEX

Crowd = Literal["ignore", "background"]
FARTHEST = 100_000
"""The largest coordinate in pixels: pycocotools' memory grows with the length of an outline."""
NO_OUTLINE = "have no outline"
SHORT = "have a polygon of fewer than three points, which is left out"
TINY = "cover at most one pixel of their image"


@dataclass(frozen=True)
class Instance:
    """One annotation of an image."""

    annotation: int | str
    label: int
    crowd: bool
    segmentation: Any
    """A list of polygons, one polygon, an RLE {"size": [H, W], "counts": list or str}, or None.

    A polygon is a list of coordinates x, y, x, y, …, or of points [x, y] or {"x": x, "y": y}.
    """


@dataclass(frozen=True)
class Drawing:
    """The mask of one image."""

    mask: NDArray[np.uint8]
    """(H, W): 0, labels, and 255."""
    left_out: Sequence[tuple[int | str, str]]
    """Annotations that are not in the mask as they should be, each with the reason."""
    visible: tuple[int, ...]
    """Ascending labels that keep a pixel if all annotations are drawn in their order, later ones on top."""


def draw_mask(height: int, width: int, instances: Sequence[Instance], crowd: Crowd, source: Path) -> Drawing:
    """Draw an image's instances by the rules above. Raises DataError, naming `source` and the annotation."""
    shapes: list[tuple[Instance, NDArray[np.bool_]]] = []
    left_out: list[tuple[int | str, str]] = []
    for instance in instances:
        try:
            shape, short = _draw(instance.segmentation, height, width)
        except Exception as error:  # pycocotools raises plain Exceptions
            raise DataError(f"{source}: annotation {instance.annotation} cannot be drawn ({error})") from None
        shapes.append((instance, shape))
        if not instance.segmentation:
            left_out.append((instance.annotation, NO_OUTLINE))
        elif shape.sum() <= 1:
            left_out.append((instance.annotation, TINY))
        elif short:
            left_out.append((instance.annotation, SHORT))
    mask = np.zeros((height, width), np.uint8)
    for instance, shape in sorted((s for s in shapes if not s[0].crowd), key=_larger_first):
        mask[shape] = instance.label
    if crowd == "ignore":
        for instance, shape in shapes:
            if instance.crowd:
                mask[shape & (mask == 0)] = IGNORE_INDEX
    in_order = np.zeros((height, width), np.uint8)
    for instance, shape in shapes:
        in_order[shape] = instance.label
    return Drawing(mask, left_out, tuple(label for label in np.unique(in_order).tolist() if label))


def _larger_first(drawn: tuple[Instance, NDArray[np.bool_]]) -> tuple[int, bool, int | str]:
    number = drawn[0].annotation
    # Numbers cannot be compared with texts.
    return -int(drawn[1].sum()), isinstance(number, str), number


def _draw(coded: Any, height: int, width: int) -> tuple[NDArray[np.bool_], int]:
    """Return bool (H, W) and the number of polygons that are too short to be drawn. Raises ValueError."""
    from pycocotools import mask as coco

    shape = np.zeros((height, width), bool)
    if isinstance(coded, Mapping):
        return _fill_runs(coded, height, width), 0
    if coded is None:
        return shape, 0
    if not isinstance(coded, list):
        raise ValueError(f"its segmentation is {coded!r:.40}, expected polygons or an RLE")
    if coded and all(isinstance(part, Mapping) and "counts" in part for part in coded):
        for part in coded:
            shape |= _fill_runs(part, height, width)
        return shape, 0
    polygons = list(_polygons(coded))
    # pycocotools would take four numbers for a box.
    long = [polygon for polygon in polygons if len(polygon) >= 6]
    if long:
        shape |= np.asarray(coco.decode(coco.merge(coco.frPyObjects(long, height, width))), bool)
    return shape, len(polygons) - len(long)


def _polygons(coded: list[Any]) -> Iterator[list[float]]:
    """Yield the polygons x, y, x, y, … of a segmentation."""
    if not coded:
        return
    one = all(_is_point(part) for part in coded) and len(coded) >= 3
    for polygon in [coded] if one or not isinstance(coded[0], list) else coded:
        points = [(p["x"], p["y"]) if isinstance(p, Mapping) and {"x", "y"} <= p.keys() else p for p in polygon]
        try:
            numbers = np.array(points)
        except ValueError:
            raise ValueError("its outline mixes numbers and points") from None
        if numbers.dtype.kind not in "iuf":
            raise ValueError("its outline holds something that is not a number")
        if numbers.ndim == 2 and numbers.shape[1] == 2:
            numbers = numbers.ravel()
        if numbers.ndim != 1:
            raise ValueError(f"its outline is an array of shape {numbers.shape}")
        if len(numbers) % 2:
            raise ValueError(f"its outline has {len(numbers)} coordinates, an odd number")
        if not (np.isfinite(numbers) & (np.abs(numbers) <= FARTHEST)).all():
            raise ValueError(f"its outline has coordinates that are not finite or beyond {FARTHEST} pixels")
        yield numbers.tolist()


def _is_point(part: Any) -> bool:
    return isinstance(part, Mapping) or (
        isinstance(part, list) and len(part) == 2 and not any(isinstance(value, list | Mapping) for value in part)
    )


def _fill_runs(coded: Mapping[str, Any], height: int, width: int) -> NDArray[np.bool_]:
    """Return bool (H, W) of an RLE: runs of 0 and 1 in turn, down the columns, beginning with 0."""
    size, counts = coded.get("size"), coded.get("counts")
    if not isinstance(size, list) or size != [height, width]:
        raise ValueError(f"its RLE is of size {size}, the image {[height, width]}")
    runs = np.array(_decompressed(counts) if isinstance(counts, str) else counts)
    if runs.ndim != 1 or runs.dtype.kind not in "iuf" or (runs != np.floor(runs)).any():
        raise ValueError("the counts of its RLE are not whole numbers")
    if ((runs < 0) | (runs > height * width)).any() or runs.sum() != height * width:
        raise ValueError("its RLE does not fill the image")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs.astype(np.int64)).reshape(width, height).T


def _decompressed(text: str) -> list[int]:
    """Return the runs of a compressed RLE. pycocotools draws broken ones without an error.

    A character holds five bits and whether more follow; from the third run on, the difference from the run before
    the last is coded.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise ValueError(f"its RLE has the character {character!r}")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("its RLE is cut off")
    return runs
