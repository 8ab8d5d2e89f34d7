"""A data set of three classes in the layout of `folder`, in miniature, for tests to break."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from seedbed.datasets.io.images import write_mask
from tests.helpers.voc_folder import SHAPE, mask_of

CLASSES = ("apple", "pear", "plum")
SPLITS = {"w1": "weak", "t1": "train", "t2": "train", "v1": "val", "x1": "test"}
LABELS = {"t1": (1, 3), "t2": (2,), "v1": (2, 3), "w1": (3,)}
"""The labels of each image but that of `test`: its tags, and the content of its mask."""


def make_own(root: Path) -> Path:
    """Write two images of `train`, one more of `weak`, one of `val` and one of `test`; return `root`."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    write_splits(root, SPLITS.items())
    write_tags(root, {i: " ".join(CLASSES[label - 1] for label in labels) for i, labels in LABELS.items()})
    for number, image_id in enumerate(SPLITS):
        image = np.random.default_rng(number).integers(0, 256, (*SHAPE, 3), dtype=np.uint8)
        Image.fromarray(image).save(root / "images" / f"{image_id}.jpg")
        if image_id in LABELS:
            write_mask(root / "masks" / f"{image_id}.png", mask_of(LABELS[image_id]))
    return root


def write_splits(root: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Write splits.csv."""
    (root / "splits.csv").write_text("image_id,split\n" + "".join(f"{i},{split}\n" for i, split in rows))


def write_tags(root: Path, rows: dict[str, str]) -> None:
    """Write tags.csv."""
    (root / "tags.csv").write_text("image_id,classes\n" + "".join(f"{i},{names}\n" for i, names in rows.items()))
