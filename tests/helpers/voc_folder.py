"""A VOC folder in miniature, for tests to break."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from seedbed.datasets.io.images import write_mask
from seedbed.datasets.voc2012 import CLASSES, LISTS

TRAIN, EXTRA, VAL, TEST = ("2007_000001", "2007_000003"), ("2008_000002",), ("2007_000002",), ("2009_000001",)
SHAPE = (12, 16)
LABELS = {"2007_000001": (1, 15), "2007_000003": (2,), "2008_000002": (3, 20), "2007_000002": (12,)}


def make_voc(root: Path, xml: bool = True) -> Path:
    """Write two images of `train`, one more of `train_aug`, one of `val` and one of `test`; return `root`."""
    for folder in ("JPEGImages", "SegmentationClass", "SegmentationClassAug", LISTS):
        (root / folder).mkdir(parents=True)
    write_list(root, "train", TRAIN)
    write_list(root, "train_aug", sorted((*TRAIN, *EXTRA)))
    write_list(root, "val", VAL)
    write_list(root, "test", TEST)
    for number, image_id in enumerate((*TRAIN, *EXTRA, *VAL, *TEST)):
        image = np.random.default_rng(number).integers(0, 256, (*SHAPE, 3), dtype=np.uint8)
        Image.fromarray(image).save(root / "JPEGImages" / f"{image_id}.jpg")
    for image_id, labels in LABELS.items():
        folder = "SegmentationClassAug" if image_id in EXTRA else "SegmentationClass"
        write_mask(root / folder / f"{image_id}.png", mask_of(labels))
    if xml:
        (root / "Annotations").mkdir()
        for image_id, labels in LABELS.items():
            write_xml(root, image_id, *(CLASSES[label - 1] for label in labels))
    return root


def mask_of(labels: tuple[int, ...]) -> np.ndarray:
    """Return a mask with one column pair a label and a 255 in the corner."""
    mask = np.zeros(SHAPE, np.uint8)
    for place, label in enumerate(labels):
        mask[:, 2 * place : 2 * place + 2] = label
    mask[-1, -1] = 255
    return mask


def write_list(root: Path, name: str, ids: tuple[str, ...] | list[str]) -> None:
    """Write ImageSets/Segmentation/NAME.txt."""
    (root / LISTS / f"{name}.txt").write_text("".join(f"{i}\n" for i in ids))


def write_xml(root: Path, image_id: str, *names: str, difficult: int = 0) -> None:
    """Write an annotation; every object has a part, whose name is no class."""
    objects = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><part><name>head</name></part></object>"
        for name in names
    )
    (root / "Annotations" / f"{image_id}.xml").write_text(f"<annotation>{objects}</annotation>")
