"""Reference rows: what a sweep measures beside its methods, by the same protocol. They are never ranked.

| reference | what it is |
|---|---|
| `fully_supervised` | the segmentation network trained on the true masks of `weak`: the upper bound |
| `background` | masks of background alone |
| `whole_image` | masks that fill each image with its tag |
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from seedbed.benchmark.pipeline.stage import Context, Kind, Stage
from seedbed.datasets.base import Dataset, Split, SplitView
from seedbed.datasets.io.images import write_mask

Supervision = Literal["weak", "full", "background", "whole_image"]
REFERENCES: Mapping[str, Supervision] = {
    "fully_supervised": "full",
    "background": "background",
    "whole_image": "whole_image",
}
"""The name of each reference, and the supervision of its trials."""


@dataclass(frozen=True, kw_only=True)
class ConstantMasks(Stage):
    """Masks with one label per image, made without a network."""

    consumes = ()
    produces = Kind.MASKS
    seeded = False

    @abstractmethod
    def labels(self, data: Dataset, view: SplitView) -> dict[str, int]:
        """Return the label of each image of `view`: 0 background, 1..C classes."""

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write one palette PNG per image of the context's split, at the image's own size."""
        view = data.split(ctx.split)
        task = partial(_fill, view, self.labels(data, view), out)
        ctx.for_each_image(task, view.ids, f"{type(self).__name__} on {ctx.split}")


@dataclass(frozen=True, kw_only=True)
class BackgroundMasks(ConstantMasks):
    """Masks of background alone."""

    version = 1

    def labels(self, data: Dataset, view: SplitView) -> dict[str, int]:
        """Return 0 for each image."""
        return dict.fromkeys(view.ids, 0)


@dataclass(frozen=True, kw_only=True)
class WholeImageMasks(ConstantMasks):
    """Masks that fill each image with its tag; of several, with the one that most images of `weak` have.

    If as many images have two of the tags, the lower label counts. An image without a tag is background.
    """

    version = 1

    def labels(self, data: Dataset, view: SplitView) -> dict[str, int]:
        """Return the most frequent tag of each image, 1..C, or 0."""
        weak = data.split(Split.WEAK)
        images = Counter(tag for image_id in weak.ids for tag in weak.tags(image_id))
        return {
            image_id: max(view.tags(image_id), key=lambda tag: (images[tag], -tag), default=0)
            for image_id in view.ids
        }


def _fill(view: SplitView, labels: Mapping[str, int], out: Path, image_id: str) -> None:
    write_mask(out / f"{image_id}.png", np.full(view.size(image_id), labels[image_id], np.uint8))
