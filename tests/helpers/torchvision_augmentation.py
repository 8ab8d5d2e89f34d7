"""The augmentation as torchvision composes it: every step on the whole image, by Pillow's own filters. Slow.

The product's plans (benchmark/training/augmentation.py) draw the same random numbers in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as TF
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from seedbed.benchmark.training.augmentation import MEAN_COLOUR
from seedbed.benchmark.training.resampling import Resampling
from seedbed.datasets.base import IGNORE_INDEX

PILLOW = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
Jitter = tuple[float, float, float, float]


def resize_image(image: Tensor, size: tuple[int, int], resampling: Resampling = "bicubic") -> Tensor:
    """Return an RGB image (3, H, W) resized to `size` (h, w), of the same dtype.

    Pillow's filters take only uint8. "linear" also takes float32, and rounds only uint8.
    """
    if tuple(image.shape[-2:]) == size:
        return image
    if resampling == "linear":
        floats = F.interpolate(image[None].float(), size, mode="bilinear", align_corners=False)[0]
        return floats if image.is_floating_point() else floats.round().to(image.dtype)
    pixels = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    return torch.from_numpy(np.array(pixels.resize(size[::-1], PILLOW[resampling]))).permute(2, 0, 1)


class RandomResize(v2.Transform):  # type: ignore[misc]  # torchvision has no types
    """Resize image and mask by a factor that a subclass draws."""

    def __init__(self, resampling: Resampling) -> None:
        super().__init__()
        self.resampling = resampling

    def factor(self, long_side: int) -> float:
        """Draw the factor for an image whose longer side is `long_side` pixels."""
        raise NotImplementedError

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the size."""
        height, width = flat_inputs[0].shape[-2:]
        factor = self.factor(max(height, width))
        return {"size": [max(1, round(height * factor)), max(1, round(width * factor))]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Resize: images by `resize_image`, masks by the pixel whose centre is nearest."""
        if not isinstance(inpt, tv_tensors.Mask):
            resized = resize_image(inpt.as_subclass(Tensor), tuple(params["size"]), self.resampling)
            return tv_tensors.Image(resized)
        # v2's own nearest takes the pixel before the centre, which shifts masks against images by up to a pixel.
        plain = inpt.as_subclass(Tensor)[None]
        return tv_tensors.Mask(TF.resize(plain, params["size"], v2.InterpolationMode.NEAREST_EXACT)[0])


class RandomLongSide(RandomResize):
    """Resize image and mask so that the longer side is uniform in [low, high] pixels."""

    def __init__(self, low: float, high: float, resampling: Resampling = "bicubic") -> None:
        super().__init__(resampling)
        self.low, self.high = low, high

    def factor(self, long_side: int) -> float:
        """Draw the longer side."""
        return float(torch.empty(()).uniform_(self.low, self.high)) / long_side


class RandomScale(RandomResize):
    """Resize image and mask by one of some scales; `base` is the longer side in pixels at scale 1, 0 its own."""

    def __init__(self, scales: Sequence[float], base: int, resampling: Resampling = "bicubic") -> None:
        super().__init__(resampling)
        self.scales, self.base = scales, base

    def factor(self, long_side: int) -> float:
        """Draw the scale."""
        scale = self.scales[int(torch.randint(len(self.scales), ()))]
        return scale * self.base / long_side if self.base else scale


class Square(RandomResize):
    """Resize image and mask to `side` × `side` pixels."""

    def __init__(self, side: int, resampling: Resampling) -> None:
        super().__init__(resampling)
        self.side = side

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Return the size."""
        return {"size": [self.side, self.side]}


class RandomCropOrPad(v2.Transform):  # type: ignore[misc]
    """Cut a random square, or place the image at random in one: padding is 0 in images, `unknown` in masks.

    With `corner` the image is placed at the top left.
    """

    def __init__(self, crop: int, corner: bool = False, unknown: int = IGNORE_INDEX) -> None:
        super().__init__()
        self.crop, self.corner, self.unknown = crop, corner, unknown

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the place."""
        place = []
        for length in flat_inputs[0].shape[-2:]:
            inside, room = min(length, self.crop), max(0, self.crop - length)
            start = int(torch.randint(length - inside + 1, ()))
            before = 0 if self.corner else int(torch.randint(room + 1, ()))
            place.append((start, inside, before, room - before))
        return {"rows": place[0], "columns": place[1]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Cut, then pad."""
        (top, height, above, below), (left, width, before, after) = params["rows"], params["columns"]
        cut = TF.crop(inpt, top, left, height, width)
        fill = self.unknown if isinstance(inpt, tv_tensors.Mask) else 0
        return TF.pad(cut, [before, above, after, below], fill=fill)


def classification(long_side: tuple[int, int], crop: int, jitter: Jitter | None) -> v2.Compose:
    """Return PSA's augmentation."""
    return _composed(RandomLongSide(*long_side), RandomCropOrPad(crop), jitter)


def squares(side: int, crop: int) -> v2.Compose:
    """Return ACoL's augmentation."""
    return _composed(Square(side, "bilinear"), RandomCropOrPad(crop), None)


def segmentation(
    scale: tuple[float, float],
    base: int,
    crop: int,
    jitter: Jitter | None = None,
    resampling: Resampling = "linear",
) -> v2.Compose:
    """Return DeepLab's augmentation; jitter takes whole numbers."""
    resize = RandomLongSide(base * scale[0], base * scale[1], resampling)
    return _composed(resize, RandomCropOrPad(crop), jitter, floats=resampling == "linear" and jitter is None)


def scaled_crops(scales: Sequence[float], base: int, crop: int) -> v2.Compose:
    """Return ICD's augmentation."""
    return _composed(RandomScale(scales, base, "linear"), RandomCropOrPad(crop, corner=True), None)


def unscaled(base: int, crop: int, jitter: Jitter | None) -> v2.Compose:
    """Return the augmentation of PSA's affinity network."""
    return _composed(RandomScale((1.0,), base), RandomCropOrPad(crop, unknown=0), jitter, black=True)


def augmented(
    transform: Callable[..., Any], seed: int, image: NDArray[np.uint8], mask: NDArray[Any] | None = None
) -> tuple[Tensor, ...]:
    """Return the crop of an image (H, W, 3), and that of its mask, if there is one."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        inputs = [tv_tensors.Image(torch.from_numpy(image.copy()).permute(2, 0, 1))]
        if mask is not None:
            inputs.append(tv_tensors.Mask(torch.from_numpy(mask.copy())))
        found = transform(*inputs)
    return tuple(x.as_subclass(Tensor) for x in (found if mask is not None else (found,)))


def _composed(
    resize: RandomResize,
    place: RandomCropOrPad,
    jitter: Jitter | None,
    *,
    floats: bool = False,
    black: bool = False,
) -> v2.Compose:
    """Return the steps in their order: `floats` are resized unrounded; padding is `black` or the mean colour."""
    to_float = v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)
    # To RGB in 0..255 less the mean colour, so that padding is 0, and back.
    centred = v2.Normalize([value / 255 for value in MEAN_COLOUR], [1 / 255] * 3)
    back = v2.Normalize([-value for value in MEAN_COLOUR], [1.0] * 3)
    return v2.Compose(
        [
            *([to_float, resize] if floats else [resize]),
            v2.RandomHorizontalFlip(),
            *([] if jitter is None else [v2.ColorJitter(*jitter)]),
            *([] if floats else [to_float]),
            *([place, centred] if black else [centred, place]),
            back,
        ]
    )
