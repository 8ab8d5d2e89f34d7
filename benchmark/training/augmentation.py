"""Augmentation of image and mask together, seeded for each example only by (seed, epoch, index).

Images are resized as in the code of each method's authors (`Resampling`), masks by the pixel at the centre.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as TF
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from seedbed.benchmark.training.reproducibility import derive_seed
from seedbed.datasets.base import IGNORE_INDEX, SplitView

Resampling = Literal["bicubic", "bilinear", "linear"]
"""Pillow's bicubic (PSA, IRN, SC-CAM) or bilinear (ACoL) on uint8, which average over all pixels when they shrink,
or OpenCV's linear (deeplab-pytorch, RRM, ICD), which always mixes the four pixels around a centre."""
PILLOW = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's mean and standard deviation of RGB in [0, 1]."""


def normalise(image: Tensor) -> Tensor:
    """Return an RGB image uint8 (3, H, W) as float32, less ImageNet's mean, by its standard deviation."""
    scaled: Tensor = TF.normalize(TF.to_dtype(image, torch.float32, scale=True), list(MEAN), list(STD))
    return scaled


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


def classification(
    long_side: tuple[int, int], crop: int, jitter: tuple[float, float, float, float] | None
) -> v2.Compose:
    """Return PSA's augmentation (docs/methods.md): longer side U[low, high], flip, colour jitter, crop or pad.

    It maps an image uint8 (3, H, W) to float32 (3, crop, crop), normalised; what is padded is 0, the mean colour.
    `jitter` is brightness, contrast, saturation and hue.
    """
    return _augmentation(RandomLongSide(*long_side), RandomCropOrPad(crop), jitter)


def squares(side: int, crop: int) -> v2.Compose:
    """Return ACoL's augmentation (docs/methods.md, Splitting vs. Merging): side × side pixels, flip, random crop.

    It maps an image uint8 (3, H, W) to float32 (3, crop, crop), normalised. The aspect ratio is not kept.
    """
    return _augmentation(Square(side, "bilinear"), RandomCropOrPad(crop), None)


def segmentation(
    scale: tuple[float, float],
    base: int,
    crop: int,
    jitter: tuple[float, float, float, float] | None = None,
    resampling: Resampling = "linear",
) -> v2.Compose:
    """Return DeepLab's augmentation (docs/methods.md): longer side `base` · U[low, high], flip, crop or pad.

    It maps an image uint8 (3, H, W) and a mask uint8 (H, W) to float32 (3, crop, crop), normalised, and
    uint8 (crop, crop); what is padded is 0 in the image and 255 in the mask. "linear" resizes floats, as
    deeplab-pytorch and RRM do, and so rounds nothing.
    """
    resize = RandomLongSide(base * scale[0], base * scale[1], resampling)
    return _augmentation(resize, RandomCropOrPad(crop), jitter, floats=resampling == "linear")


def scaled_crops(scales: Sequence[float], base: int, crop: int) -> v2.Compose:
    """Return ICD's augmentation (docs/methods.md): one of some scales, flip, crop, or pad at the bottom and right.

    It maps what `segmentation` maps, in the same way. `base` is the longer side in pixels at scale 1, 0 the
    image's own. Images are resized as uint8 by OpenCV's linear.
    """
    return _augmentation(RandomScale(scales, base, "linear"), RandomCropOrPad(crop, corner=True), None)


def unscaled(base: int, crop: int, jitter: tuple[float, float, float, float] | None) -> v2.Compose:
    """Return the augmentation of PSA's affinity network (docs/methods.md): flip, colour jitter, crop or pad.

    It maps an image uint8 (3, H, W) and probabilities float32 (L, H, W), given as a mask, to float32
    (3, crop, crop), normalised, and (L, crop, crop). Padding is black in the image and 0 in the probabilities.
    `base` is the longer side of the image in pixels, 0 its own.
    """
    return _augmentation(RandomScale((1.0,), base), RandomCropOrPad(crop, unknown=0), jitter, black=True)


def _augmentation(
    resize: RandomResize,
    place: RandomCropOrPad,
    jitter: tuple[float, float, float, float] | None,
    *,
    floats: bool = False,
    black: bool = False,
) -> v2.Compose:
    """Return the steps in their order: `floats` are resized unrounded; padding is `black` or the mean colour."""
    to_float = v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)
    normalised = v2.Normalize(list(MEAN), list(STD))
    return v2.Compose(
        [
            *([to_float, resize] if floats else [resize]),
            v2.RandomHorizontalFlip(),
            *([] if jitter is None else [v2.ColorJitter(*jitter)]),
            *([] if floats else [to_float]),
            *([place, normalised] if black else [normalised, place]),
        ]
    )


class Examples(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Augmented training examples, indexed by (epoch, index).

    An example is a dictionary of `image` float32 (3, crop, crop), normalised; `tags` float32 (C,) of 0 and 1;
    `index` int64 (); and, if `masks` is given, `mask` int64 (crop, crop) of labels and 255. It depends only on the
    seed, epoch and index, so the number of loading processes and their order make no difference.

    `masks` may give more than a mask: an array whose last two axes are the image's. `labels` makes int64 labels
    of what the augmentation leaves of it.
    """

    def __init__(
        self,
        view: SplitView,
        transform: Callable[..., Any],
        seed: int,
        masks: Callable[[str], NDArray[Any]] | None = None,
        labels: Callable[[Tensor], Tensor] = Tensor.long,
    ) -> None:
        self.view, self.transform, self.seed, self.masks, self.labels = view, transform, seed, masks, labels

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Tensor]:
        epoch, index = place
        image_id = self.view.ids[index]
        image = tv_tensors.Image(torch.from_numpy(self.view.image(image_id).copy()).permute(2, 0, 1))
        tags = torch.zeros(len(self.view.classes))
        tags[[tag - 1 for tag in self.view.tags(image_id)]] = 1
        example = {"tags": tags, "index": torch.tensor(index)}
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would seed the GPU too: dropout there must not know of the loader.
            torch.default_generator.manual_seed(derive_seed(self.seed, "augmentation", epoch, index))
            if self.masks is None:
                augmented = self.transform(image)
            else:
                mask = tv_tensors.Mask(torch.from_numpy(self.masks(image_id).copy()))
                augmented, augmented_mask = self.transform(image, mask)
                example["mask"] = self.labels(augmented_mask.as_subclass(Tensor))
        example["image"] = augmented.as_subclass(Tensor)
        return example
