"""Shared by PSA and IRN: learning affinities from labels, and the scores of classes that they start from.

Papers: PSA (Ahn & Kwak, CVPR 2018), equations (7) to (11), and IRN (Ahn et al., CVPR 2019), equation (4), whose
semantic part has the same loss.

A method's maps are used as PSA and IRN use a CAM, in [0, 1]: negative scores (ICD) count as 0. If a method has its
own background channel, this replaces PSA's (1 − max)^16 in the walk; for other exponents α it is raised to α/16.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.evaluation.maps import ScoreMaps
from seedbed.datasets.base import IGNORE_INDEX
from seedbed.methods.refine.random_walk import Offset, partners

OWN_BACKGROUND = 16.0
"""The exponent α of (1 − max)^α that a method's own background channel replaces."""


@dataclass(frozen=True)
class ClassScores:
    """The scores of one image's classes at its full size."""

    labels: NDArray[np.int16]
    """(K,) labels of the classes, ascending, without background."""
    scores: NDArray[np.float32]
    """(K, H, W) in [0, 1]."""
    own_background: NDArray[np.float32] | None
    """(H, W), if the method has one."""

    @classmethod
    def of(cls, maps: ScoreMaps) -> ClassScores:
        """Return the scores of localisation maps."""
        full = maps.at_full_size().clip(0, 1)
        own = full[0] if len(maps.labels) and maps.labels[0] == 0 else None
        start = 0 if own is None else 1
        return cls(maps.labels[start:], full[start:], own)

    def background(self, exponent: float) -> NDArray[np.float32]:
        """Return (1 − max over classes)^exponent, (H, W); 1 if there are no classes."""
        if self.own_background is not None:
            return self.own_background ** np.float32(exponent / OWN_BACKGROUND)
        best: NDArray[np.float32] = (1 - self.scores.max(0, initial=0)) ** np.float32(exponent)
        return best

    def with_background(self, exponent: float) -> NDArray[np.float32]:
        """Return (1 + K, H, W): the background of an exponent, then the classes."""
        return np.concatenate([self.background(exponent)[None], self.scores])


def stored_scores(maps: ScoreMaps) -> NDArray[np.float32]:
    """Return the stored scores of the classes, float32 (K, h, w) in [0, 1], without background."""
    classes: NDArray[np.float32] = maps.scores[maps.labels != 0].astype(np.float32).clip(0, 1)
    return classes


def affinity_losses(
    affinities: Tensor, labels: Tensor, offsets: tuple[Offset, ...], margin: int
) -> dict[str, Tensor]:
    """Return the three parts of the loss of PSA and IRN, weighted: ¼ background, ¼ foreground, ½ negative pairs.

    `affinities` is (B, P, h − margin, w − 2·margin) in [0, 1] of the anchors and their partners; `labels` is
    (B, h, w) of labels and 255. A pair with 255 does not count. Pairs of one label are positive, −log(a + 1e-5),
    others negative, −log(1 + 1e-5 − a); each part is a mean over its pairs in the batch (their number + 1e-5).
    """
    anchor = partners(labels, (0, 0), margin)[:, None]
    partner = torch.stack([partners(labels, offset, margin) for offset in offsets], 1)
    valid = (anchor != IGNORE_INDEX) & (partner != IGNORE_INDEX)
    same = valid & (anchor == partner)
    affinities = affinities.float()
    attracted, repelled = -torch.log(affinities + 1e-5), -torch.log(1 + 1e-5 - affinities)

    def mean(values: Tensor, where: Tensor) -> Tensor:
        return (values * where).sum() / (where.sum() + 1e-5)

    return {
        "background": mean(attracted, same & (anchor == 0)) / 4,
        "foreground": mean(attracted, same & (anchor != 0)) / 4,
        "negative": mean(repelled, valid & ~same) / 2,
    }


def fitting_radius(published: int, crop: int, cell: int) -> int:
    """Return the published radius, or the greatest one for which half the rows and columns of a crop are anchors.

    `cell` is the number of pixels per cell of the crop's grid. The radius is at least 2.
    """
    return max(2, min(published, crop // cell // 4 + 1))


def check_grid(stage: str, crop: int, cell: int, radius: int, multiple: int) -> None:
    """Raise ConfigError if a crop has no anchors for a radius, or is not a multiple of `multiple` pixels."""
    if crop % multiple:
        raise ConfigError(f"{stage}.crop = {crop}: give a multiple of {multiple} pixels")
    least = cell * (2 * radius - 1)
    if crop < least:
        raise ConfigError(
            f"{stage}.crop = {crop}: too small for the radius {radius}; give at least {least} pixels or lower "
            f"{stage}.radius"
        )


def to_grid(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Return features (B, D, h, w) on the grid `size`: means if they are finer, else bilinear."""
    height, width = features.shape[-2:]
    if (height, width) == size:
        return features
    if height >= size[0] and width >= size[1]:
        return F.avg_pool2d(features, (height // size[0], width // size[1]))
    return F.interpolate(features, size, mode="bilinear", align_corners=False)


def on_image(
    maps: Tensor, spacing: tuple[float, float], size: tuple[int, int], cell: int = 4
) -> NDArray[np.float32]:
    """Return maps (K, h, w) on a grid of ⌈H/cell⌉ × ⌈W/cell⌉ cells that spans an image of `size` (H, W) exactly.

    The cells of `maps` are `spacing` pixels of the image high and wide from its top left corner, and may reach
    beyond its bottom and right. Bilinear between their centres.
    """
    found: NDArray[np.float32] = maps.cpu().numpy()
    for axis, step, length in zip((1, 2), spacing, size, strict=True):
        cells = -(-length // cell)
        centres = (np.arange(cells) + 0.5) * (length / cells)
        position = (centres / step - 0.5).clip(0, found.shape[axis] - 1)
        first = position.astype(np.intp)
        second = np.minimum(first + 1, found.shape[axis] - 1)
        weight = (position - first).astype(np.float32).reshape((-1, 1) if axis == 1 else -1)
        found = found.take(first, axis) * (1 - weight) + found.take(second, axis) * weight
    return found
