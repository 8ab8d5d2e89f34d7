"""How fast training images are loaded: `python -m tests.performance.loader`

Four loaders take turns on the photographs of SEEDBED_REAL_VOC, with the same draws where they can:

- authors: Pillow, NumPy and torchvision as in the code of PSA and IRN;
- steps: torchvision's steps on whole tensors, the slow reference of the tests;
- new: `Examples`, without images kept in memory;
- kept: `Examples`, all of whose images are in memory.

The time of an example is its least CPU time of three rounds; file system and disk caches are warm.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from seedbed.benchmark.training import augmentation, examples
from seedbed.benchmark.training.examples import Examples
from seedbed.benchmark.training.reproducibility import derive_seed
from seedbed.datasets.base import Split, SplitView
from seedbed.datasets.voc2012 import DATASET
from seedbed.methods.backbones.base import IMAGENET_MEAN, IMAGENET_STD
from tests.helpers import torchvision_augmentation
from tests.helpers.measurement import Row, least_seconds, photographs, print_table

IMAGES, EPOCHS, KEPT_BYTES = 24, 2, 2**30
JITTER = (0.3, 0.3, 0.3, 0.1)
RECIPES: dict[str, tuple[str, tuple[Any, ...]]] = {
    "PSA: 256–512, crop 448, jitter": ("classification", ((256, 512), 448, JITTER)),
    "IRN: 320–640, crop 512": ("classification", ((320, 640), 512, None)),
    "PSA's affinities: crop 448, jitter": ("unscaled", (0, 448, JITTER)),
    "IRN's edges: 250–750, crop 512": ("segmentation", ((0.5, 1.5), 500, 512, None, "bicubic")),
    "DeepLab: 250–750, crop 321": ("segmentation", ((0.5, 1.5), 500, 321)),
    "ICD: 0.5–1.5, crop 321": ("scaled_crops", ((0.5, 0.75, 1.0, 1.25, 1.5), 0, 321)),
    "ACoL: 256 × 256, crop 224": ("squares", (256, 224)),
}
"""Name and arguments of each recipe."""
GOALS = {"PSA: 256–512, crop 448, jitter": 2.5, "IRN: 320–640, crop 512": 1.8}
REFERENCES = {"steps": "torchvision's steps, the code before", "authors": "Pillow and torchvision, as PSA and IRN"}


def authors(
    path: Path, seed: tuple[int, int], low: int, high: int, crop: int, jitter: tuple[float, ...] | None
) -> torch.Tensor:
    """Return the example of PSA's and IRN's code: resize, flip, jitter, normalise, crop or pad."""
    rng = np.random.default_rng(seed)
    picture = Image.open(path).convert("RGB")
    factor = rng.uniform(low, high) / max(picture.size)
    size = round(picture.width * factor), round(picture.height * factor)
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if jitter is not None:
        picture = transforms.ColorJitter(*jitter)(picture)
    pixels = np.asarray(picture)
    normalised = np.empty_like(pixels, np.float32)
    for channel in range(3):
        normalised[..., channel] = (pixels[..., channel] / 255.0 - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]
    container = np.zeros((crop, crop, 3), np.float32)
    height, width = (min(side, crop) for side in pixels.shape[:2])
    top, left = (
        rng.integers(side - shown + 1) for side, shown in zip(pixels.shape, (height, width), strict=False)
    )
    down, right = rng.integers(crop - height + 1), rng.integers(crop - width + 1)
    container[down : down + height, right : right + width] = normalised[top : top + height, left : left + width]
    return torch.from_numpy(np.ascontiguousarray(container.transpose(2, 0, 1)))


def loaders(view: SplitView, name: str, arguments: tuple[Any, ...]) -> dict[str, Callable[[int, int], Any]]:
    """Return the loaders of a recipe, which map (epoch, index) to an example."""
    transform = getattr(augmentation, name)(*arguments)
    steps = getattr(torchvision_augmentation, name)(*arguments)
    examples.KEPT_BYTES = 0
    new = Examples(view, transform, 0)
    examples.KEPT_BYTES = KEPT_BYTES
    kept = Examples(view, transform, 0)
    for image_id in view.ids:
        kept.images.read(image_id, 1)

    def stepwise(epoch: int, index: int) -> Any:
        image = view.image(view.ids[index])
        return torchvision_augmentation.augmented(steps, derive_seed(0, "augmentation", epoch, index), image)

    found: dict[str, Callable[[int, int], Any]] = {}
    if name == "classification":
        (low, high), crop, jitter = arguments
        paths = [view.dataset.image_path(image_id) for image_id in view.ids]
        found["authors"] = lambda epoch, index: authors(paths[index], (epoch, index), low, high, crop, jitter)
    return found | {"steps": stepwise, "new": lambda *place: new[place], "kept": lambda *place: kept[place]}


def milliseconds(view: SplitView, name: str, arguments: tuple[Any, ...]) -> dict[str, float]:
    """Return the milliseconds an example of each loader of a recipe."""
    turns = loaders(view, name, arguments)
    places = list(itertools.product(range(EPOCHS), range(len(view))))
    total = dict.fromkeys(turns, 0.0)
    for place in places:
        for loader, least in least_seconds({n: partial(load, *place) for n, load in turns.items()}).items():
            total[loader] += 1000 * least / len(places)
    return total


def rows() -> Iterator[Row]:
    """Measure the loaders of each recipe."""
    data = DATASET.open(photographs())
    view = data.split(Split.WEAK)
    view = SplitView(data, Split.WEAK, view.ids[:: max(1, len(view) // IMAGES)][:IMAGES])
    for title, (name, arguments) in RECIPES.items():
        spent = milliseconds(view, name, arguments)
        pairs = [("new", "steps"), ("new", "authors"), ("kept", "steps")]
        for loader, reference in pairs:
            if reference in spent:
                what = f"Training example, {title}{', images kept' if loader == 'kept' else ''}"
                goal = GOALS.get(title) if (loader, reference) == ("new", "steps") else None
                yield Row(what, "ms", spent[loader], REFERENCES[reference], spent[reference], goal)


if __name__ == "__main__":
    print_table({"loader": rows})
