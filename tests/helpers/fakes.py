"""A data set in memory-sized files, for tests that need a `Dataset` but no particular one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from seedbed.datasets.base import Dataset, Problem, Split
from seedbed.datasets.io.images import write_mask


class FolderDataset(Dataset):
    """Images and masks given as arrays, written to a folder; tags are the labels in the masks."""

    tag_source = mask_source = "arrays of a test"

    def __init__(
        self,
        root: Path,
        images: Mapping[str, np.ndarray],
        masks: Mapping[str, np.ndarray],
        classes: Sequence[str] = ("cat", "dog"),
        splits: Mapping[Split, Sequence[str]] | None = None,
        tags: Mapping[str, tuple[int, ...]] | None = None,
        suffix: str = ".png",
    ) -> None:
        self.root, self.name, self.classes = root, "folder", tuple(classes)
        self._suffix = suffix
        self._splits = splits or {s: list(masks) for s in (Split.WEAK, Split.TUNE, Split.TRAIN, Split.VAL)}
        self._tags = tags or {
            i: tuple(sorted({int(v) for v in np.unique(m)} - {0, 255})) for i, m in masks.items()
        }
        for folder in ("images", "masks"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for image_id, image in images.items():
            Image.fromarray(image).save(self.image_path(image_id), quality=95)
        for image_id, mask in masks.items():
            write_mask(self.mask_path(image_id), mask)

    def ids(self, split: Split) -> tuple[str, ...]:
        return tuple(self._splits.get(split, ()))

    def image_path(self, image_id: str) -> Path:
        return self.root / "images" / f"{image_id}{self._suffix}"

    def mask_path(self, image_id: str) -> Path:
        return self.root / "masks" / f"{image_id}.png"

    def tags(self, image_id: str) -> tuple[int, ...]:
        return self._tags[image_id]

    def saliency_path(self, image_id: str) -> Path | None:
        return None

    def label_files(self) -> tuple[Path, ...]:
        return ()

    def layout_problems(self) -> Iterator[Problem]:
        yield from ()


def random_scene(seed: int, height: int, width: int, labels: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return an image uint8 (H, W, 3) of noise with one rectangle a label, and its mask."""
    generator = np.random.default_rng(seed)
    image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask = np.zeros((height, width), np.uint8)
    for label in labels:
        top, left = generator.integers(0, height // 2), generator.integers(0, width // 2)
        mask[top : top + height // 3, left : left + width // 3] = label
        image[mask == label] = (60 * label, 250 - 50 * label, 30)
    return image, mask
