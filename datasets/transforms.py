"""Augmentation of image and mask together, seeded for each example by (seed, epoch, index) alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torchvision.transforms.v2.functional as TF
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from benchmark.seeding import derive_seed
from datasets.base import IGNORE_INDEX, SplitView

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's mean and standard deviation of RGB in [0, 1]."""
GREY = [round(255 * value) for value in MEAN]
"""What an image is padded with: 0 after normalisation, to the nearest of 256 values."""


def normalise(image: Tensor) -> Tensor:
    """Return an RGB image uint8 (3, H, W) as float32, less ImageNet's mean, by its standard deviation."""
    scaled: Tensor = TF.normalize(TF.to_dtype(image, torch.float32, scale=True), list(MEAN), list(STD))
    return scaled


class RandomScale(v2.Transform):
    """Resize image and mask so that the longer side is uniform in [low, high] pixels."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the size."""
        height, width = flat_inputs[0].shape[-2:]
        factor = float(torch.empty(1).uniform_(self.low, self.high)) / max(height, width)
        return {"size": [max(1, round(height * factor)), max(1, round(width * factor))]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize: images bilinearly with antialias, masks by nearest."""
        return self._call_kernel(TF.resize, inpt, size=params["size"], antialias=True)


class RandomCropOrPad(v2.Transform):
    """Cut a random square, or place the image at random in one: padding is mean grey, 255 in masks."""

    def __init__(self, crop: int) -> None:
        super().__init__()
        self.crop = crop

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the place."""
        place = []
        for length in flat_inputs[0].shape[-2:]:
            inside, room = min(length, self.crop), max(0, self.crop - length)
            start = int(torch.randint(length - inside + 1, ()))
            before = int(torch.randint(room + 1, ()))
            place.append((start, inside, before, room - before))
        return {"rows": place[0], "columns": place[1]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Cut, then pad."""
        (top, height, above, below), (left, width, before, after) = params["rows"], params["columns"]
        cut = self._call_kernel(TF.crop, inpt, top=top, left=left, height=height, width=width)
        fill: Any = IGNORE_INDEX if isinstance(inpt, tv_tensors.Mask) else GREY
        return self._call_kernel(TF.pad, cut, padding=[before, above, after, below], fill=fill)


class Normalise(v2.Transform):
    """Apply `normalise` to the image and leave the mask."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Return the image as float32."""
        return inpt if isinstance(inpt, tv_tensors.Mask) else normalise(inpt.as_subclass(torch.Tensor))


def classification(
    long_side: tuple[int, int], crop: int, jitter: tuple[float, float, float, float] | None
) -> v2.Compose:
    """Return PSA's augmentation: longer side U[low, high], flip, colour jitter, random crop or pad (METHODS 1.3)."""
    colour = [] if jitter is None else [v2.ColorJitter(*jitter)]
    flip = v2.RandomHorizontalFlip()
    return v2.Compose([RandomScale(*long_side), flip, *colour, RandomCropOrPad(crop), Normalise()])


def segmentation(scale: tuple[float, float], base: int, crop: int) -> v2.Compose:
    """Return DeepLab's augmentation: longer side `base`·U[low, high], flip, random crop or pad (METHODS 10)."""
    sides = RandomScale(base * scale[0], base * scale[1])
    return v2.Compose([sides, v2.RandomHorizontalFlip(), RandomCropOrPad(crop), Normalise()])


class Examples(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Augmented training examples, indexed by (epoch, index).

    An example is a dictionary of `image` float32 (3, crop, crop), normalised; `tags` float32 (C,) of 0 and 1;
    `index` int64 (); and, where `masks` is given, `mask` int64 (crop, crop) of labels and 255.
    """

    def __init__(
        self,
        view: SplitView,
        transform: Callable[..., Any],
        seed: int,
        masks: Callable[[str], NDArray[np.uint8]] | None = None,
    ) -> None:
        self.view, self.transform, self.seed, self.masks = view, transform, seed, masks

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Tensor]:
        epoch, index = place
        image_id = self.view.ids[index]
        image = tv_tensors.Image(torch.from_numpy(self.view.image(image_id).copy()).permute(2, 0, 1))
        tags = torch.zeros(len(self.view.classes))
        tags[[tag - 1 for tag in self.view.tags(image_id)]] = 1
        example = {"tags": tags, "index": torch.tensor(index)}
        # Torch's own generator is used by the transforms, and given back as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, "augmentation", epoch, index))
            if self.masks is None:
                example["image"] = self.transform(image)
            else:
                mask = tv_tensors.Mask(torch.from_numpy(self.masks(image_id).copy()))
                example["image"], augmented = self.transform(image, mask)
                example["mask"] = augmented.as_subclass(torch.Tensor).long()
        return example
