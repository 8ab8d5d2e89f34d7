"""Training examples: images read and augmented, each seeded only by (seed, epoch, index)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seedbed.benchmark.training.augmentation import Augmentation
from seedbed.benchmark.training.reproducibility import derive_seed
from seedbed.datasets.base import SplitView
from seedbed.datasets.io.images import jpeg_reduction

KEPT_BYTES = 512 * 2**20
"""Memory that each loading process may fill with decoded images, if it holds those of the whole split."""


class Examples(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Augmented training examples, indexed by (epoch, index).

    An example is a dictionary of `image` float32 (3, crop, crop), RGB in 0..255; `tags` float32 (C,) of 0 and 1;
    `index` int64 (); and, if `masks` is given, `mask` int64 (crop, crop) of labels and 255. It depends only on the
    seed, epoch and index, so the number of loading processes and their order make no difference.

    `masks` may give more than a mask: an array whose last two axes are the image's. `labels` makes int64 labels
    of what the augmentation leaves of it.
    """

    def __init__(
        self,
        view: SplitView,
        transform: Augmentation,
        seed: int,
        masks: Callable[[str], NDArray[Any]] | None = None,
        labels: Callable[[Tensor], Tensor] = Tensor.long,
    ) -> None:
        self.view, self.transform, self.seed, self.masks, self.labels = view, transform, seed, masks, labels
        self.images = DecodedImages(view)

    def __len__(self) -> int:
        return len(self.view)

    def augmentation(self, epoch: int, index: int) -> Augmentation:
        """Return the augmentation of an example."""
        return self.transform

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Tensor]:
        epoch, index = place
        image_id, transform = self.view.ids[index], self.augmentation(epoch, index)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "augmentation", epoch, index))
        size = self.images.size(image_id)
        plan = transform.plan(size, generator)
        # OpenCV's linear skips pixels when it shrinks, and a reduced image has no such pixels.
        reduction = 1 if transform.resampling == "linear" else jpeg_reduction(size, plan.size)
        image = self.images.read(image_id, reduction)
        tags = torch.zeros(len(self.view.classes))
        tags[[tag - 1 for tag in self.view.tags(image_id)]] = 1
        example = {"tags": tags, "index": torch.tensor(index), "image": transform.image(image, plan)}
        if self.masks is not None:
            covered = size if image.shape[:2] == size else (reduction * image.shape[0], reduction * image.shape[1])
            example["mask"] = self.labels(transform.mask(self.masks(image_id), plan, covered))
        return example


class DecodedImages:
    """Decodes the images of a split, and keeps those of full size if all of them fit into `KEPT_BYTES`.

    Whether they do is judged by the median of the longer sides. Images are the same bytes with and without.
    """

    def __init__(self, view: SplitView) -> None:
        self.view = view
        self.sizes: dict[str, tuple[int, int]] = {}
        self.kept: dict[str, NDArray[np.uint8]] = {}
        self.room = KEPT_BYTES if 3 * view.dataset.long_side**2 * len(view) <= KEPT_BYTES else 0

    def size(self, image_id: str) -> tuple[int, int]:
        """Return (height, width) in pixels."""
        if image_id not in self.sizes:
            self.sizes[image_id] = self.view.size(image_id)
        return self.sizes[image_id]

    def read(self, image_id: str, reduction: int) -> NDArray[np.uint8]:
        """Return the image, uint8 (H, W, 3); a JPEG at 1/`reduction` of its size."""
        image = self.kept.get(image_id) if reduction == 1 else None
        if image is None:
            image = self.view.image(image_id, reduction)
            if reduction == 1 and image.nbytes <= self.room:
                self.kept[image_id] = image
                self.room -= image.nbytes
        return image
