"""Signs that results or true masks number their classes, or scale their scores, differently from the data set.

A class in a result counts if it covers at least a hundredth of the image. It fits if the true mask of the image
shows it. A class in a true mask fits if the image is tagged with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from seedbed.benchmark.errors import DataError
from seedbed.datasets.base import IGNORE_INDEX, TAGS_FROM_MASKS, SplitView

LEAST_SHARE = 0.01
MARGIN = 0.25
"""Another numbering is suggested if it fits this share of the classes more."""
LEAST_PEAK = 0.25
"""Maps in the range 0..1 whose highest score is below this are probably not normalised."""
TOLERANCE = 1.01
"""Enlarged maps may exceed 1 slightly."""
FROM_ZERO = "counted from 0 without background"
SHIFTED = "shifted by one (with background in front, or .npy keys that are counted from 1)"
WHOLE = "the labels of the whole data set, of which some classes are chosen"
CATEGORY_IDS = "the JSON's category ids"


@dataclass
class Plausibility:
    """Counts of classes that fit, over the images of a split."""

    shown: int = 0
    fits: dict[str, int] = field(default_factory=dict)
    """Of the classes in the results, by numbering; the data set's own is ""."""
    true: int = 0
    """Classes in the true masks."""
    truths: int = 0
    tagged: int = 0
    """Classes in the true masks that are tags of their images, if the data set has tags of its own."""
    highest: float = -math.inf
    """The highest score of all maps."""

    def update(self, view: SplitView, image_id: str, truth: NDArray[np.uint8], result: NDArray[np.uint8]) -> None:
        """Count an image: its true mask (H, W), and the labels of its result, an array of any shape."""
        true, found = _labels(truth), _labels(result)
        self.shown += len(found)
        self.true += len(true)
        for name, labels in numberings(view):
            fitting = sum(labels.get(value) in true for value in found)
            self.fits[name] = self.fits.get(name, 0) + fitting
        if view.dataset.tag_source != TAGS_FROM_MASKS:
            try:
                tags = view.tags(image_id)
            except DataError:
                return  # scoring needs no tags
            self.truths += len(true)
            self.tagged += len(true & {*tags})

    def merge(self, other: Plausibility) -> None:
        """Add another part of the split."""
        self.shown += other.shown
        self.true += other.true
        for name, count in other.fits.items():
            self.fits[name] = self.fits.get(name, 0) + count
        self.truths += other.truths
        self.tagged += other.tagged
        self.highest = max(self.highest, other.highest)

    def warnings(self) -> Iterator[str]:
        """Yield a sentence for each thing that is probably a mistake."""
        own = self.fits.get("", 0)
        best = max(self.fits, key=lambda name: self.fits[name], default="")
        text = (
            f"{self.shown - own} of {self.shown} classes in the results are not in the true masks of their images"
        )
        if self.fits.get(best, 0) > own + MARGIN * self.shown:
            yield f"{text}; if they are {best}, only {self.shown - self.fits[best]}"
        elif own < self.shown / 2:
            yield f"{text}: a poor result, or another numbering (0 is background, classes are 1..C in their order)"
        if self.highest > TOLERANCE:
            yield (
                f"scores reach {self.highest:g}, above 1; thresholds are for maps in the range 0..1, so divide "
                "the maps by their maximum"
            )
        elif -math.inf < self.highest < LEAST_PEAK:
            yield (
                f"scores reach only {self.highest:g}; thresholds are for maps in the range 0..1, so scale the "
                "maps to that range"
            )
        if self.true and not self.shown:
            yield f"no result shows a class; the true masks of their images show {self.true}"
        if self.tagged < self.truths / 2:
            yield (
                f"{self.truths - self.tagged} of {self.truths} classes in the true masks are not tags of their "
                "images: these masks may be in another numbering (seedbed data check)"
            )


def numberings(view: SplitView) -> Iterator[tuple[str, dict[int, int]]]:
    """Yield numberings of the classes, each with its name and the labels by number; first the data set's own."""
    labels = range(1, len(view.classes) + 1)
    yield "", {label: label for label in labels}
    stored = view.dataset.mask_labels
    if stored.kept is not None:
        new = dict(zip(stored.kept, labels, strict=True))
        yield WHOLE, {label: new.get(label, IGNORE_INDEX) for label in range(1, stored.count + 1)}
    yield FROM_ZERO, {label - 1: label for label in labels if label > 1}
    yield SHIFTED, {label + 1: label for label in labels}
    if view.dataset.category_ids:
        yield CATEGORY_IDS, dict(zip(view.dataset.category_ids, labels, strict=True))


def explain(view: SplitView, unknown: Sequence[int]) -> str:
    """Return what labels outside 1..C may be, for the end of an error's line; "" if there is no guess."""
    for name, labels in list(numberings(view))[1:]:
        if all(value in labels for value in unknown):
            return f"; they may be {name}"
    return ""


def _labels(values: NDArray[np.uint8]) -> set[int]:
    counts = np.bincount(values.ravel(), minlength=IGNORE_INDEX + 1)
    counts[[0, IGNORE_INDEX]] = 0
    return {int(label) for label in np.flatnonzero(counts >= max(1, LEAST_SHARE * values.size))}
