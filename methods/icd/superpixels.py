"""Superpixels of the training images: Felzenszwalb's, merged to at most 64 by pretrained features.

Papers: Felzenszwalb & Huttenlocher, "Efficient Graph-Based Image Segmentation", IJCV 2004; the merging is that of
ICD (Fan et al., CVPR 2020, section 5.2, after Uijlings et al., IJCV 2013) as in the authors' code: it merges the
two superpixels with the greatest cosine of mean features + 1 − (joint size / image size), neighbours or not.

Departures:
- The minimum size is for images of 500 pixels; on data sets of smaller images it shrinks with their area.
- The authors' code pads images to 513 pixels before it computes features, and does not subtract the mean colour.
- Without pretrained weights the features are colours (`features=colour`).

Worker processes import this file, so torch is imported only where it is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.parallel import map_in_order
from seedbed.benchmark.pipeline.hparams import hp
from seedbed.benchmark.pipeline.stage import Context, Kind, Stage
from seedbed.datasets.base import Dataset, SplitView
from seedbed.datasets.io.images import write_mask

Spacing = tuple[float, float]
"""Pixels of an image between neighbouring cells of its features, down and across."""
PADDING = 255
"""The superpixel of the padding that augmentation adds."""


@dataclass(frozen=True, kw_only=True)
class ComputeSuperpixels(Stage):
    """Superpixels 0, 1 … of every image of `weak`, as palette PNGs of the image's own size."""

    version = 4
    produces = Kind.SUPERPIXELS
    seeded = False

    scale: float = hp(75.0, low=0, high=1e6, source="ICD code: k = 75")
    sigma: float = hp(0.8, low=0, high=100, source="ICD code")
    min_size: int = hp(75, low=1, high=100_000, source="ICD code, in pixels of a 500-pixel image")
    most: int = hp(64, low=1, high=PADDING, source="ICD, section 5.2")
    features: Literal["pretrained", "colour"] = hp(
        "pretrained", source="ICD, section 5.2; colour where there are no pretrained weights"
    )
    backbone: str = hp("vgg16", when=("features", "pretrained"), source="--backbone")
    weights: str = hp("imagenet", when=("features", "pretrained"), source="--weights")
    stride: int = hp(8, low=8, high=16, when=("features", "pretrained"), source="docs/methods.md, Backbones")
    long_side: int = hp(
        0,
        low=0,
        high=4096,
        when=("features", "pretrained"),
        source="--size: longer side in pixels; 0 is the image's",
    )

    @property
    def runs_network(self) -> bool:
        """Whether pretrained features are compared; it makes and reads no checkpoint."""
        return self.features == "pretrained"

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write one PNG an image of the context's split."""
        view = data.split(ctx.split)
        min_size = max(1, round(self.min_size * min(1.0, data.long_side / 500) ** 2))
        task = _WriteSuperpixels(self, view, min_size, out)
        for _ in map_in_order(task, self._features(view, ctx), ctx.workers):
            pass

    def _features(self, view: SplitView, ctx: Context) -> Iterator[tuple[str, Spacing, NDArray[np.float32]]]:
        """Yield (id, spacing of the cells, features (D, h, w)) for every image.

        The features are those of the last block that a weights file fills, or normalised colours.
        """
        from torch import nn

        from seedbed.benchmark.training.inference import multi_scale, one_value_per, resized
        from seedbed.methods.backbones.base import (
            IMAGENET_MEAN,
            IMAGENET_STD,
            Normalise,
            build_backbone,
            initialise,
        )

        network, stride = nn.Sequential(Normalise(IMAGENET_MEAN, IMAGENET_STD)), 1
        if self.features == "pretrained":
            if self.weights == "none":
                raise ConfigError("ComputeSuperpixels.features = 'pretrained' needs weights; 'colour' needs none")
            backbone, stride = build_backbone(self.backbone, self.stride, pretrained=True), self.stride
            initialise(backbone, self.backbone, self.weights, ctx)
            layers = (block.layers for block in backbone.blocks() if not block.new)
            network = nn.Sequential(backbone.normalise, *layers)
        for image_id, features in multi_scale(
            network.to(ctx.device).eval(),
            view,
            scales=(1.0,),
            flip=False,
            long_side=self.long_side,
            grid=one_value_per(stride),
            ctx=ctx,
            label="ComputeSuperpixels",
        ):
            own = view.size(image_id)
            height, width = resized(*own, self.long_side)
            spacing = (stride * own[0] / height, stride * own[1] / width)
            yield image_id, spacing, features.cpu().numpy()


@dataclass(frozen=True)
class _WriteSuperpixels:
    """Computes and writes the superpixels of one image; sent to worker processes."""

    stage: ComputeSuperpixels
    view: SplitView
    min_size: int
    out: Path

    def __call__(self, item: tuple[str, Spacing, NDArray[np.float32]]) -> None:
        from skimage.segmentation import felzenszwalb

        image_id, spacing, features = item
        image = self.view.image(image_id)
        segments = felzenszwalb(image, self.stage.scale, self.stage.sigma, self.min_size)
        means = segment_means(features, segments, spacing)
        merged = merge(means, np.bincount(segments.ravel()), self.stage.most)
        write_mask(self.out / f"{image_id}.png", merged[segments].astype(np.uint8))


def segment_means(
    features: NDArray[np.float32], segments: NDArray[np.intp], spacing: Spacing
) -> NDArray[np.float64]:
    """Return the mean (S, D) over each segment of features (D, h, w) upsampled to the segments (H, W).

    Cell i lies on pixel i·spacing, the centre of the network's convolutions, as in the authors' code: MXNet's
    BilinearResize2D aligns corners, and puts 65 cells on every eighth of 513 pixels. Upsampling is linear, so the
    features need not be upsampled: a segment's mean is a weighted sum over cells.
    """
    rows, columns = (_upsampling(*axis) for axis in zip(features.shape[1:], segments.shape, spacing, strict=True))
    flat = segments.ravel()
    members = sparse.csr_array((np.ones(flat.size), (flat, np.arange(flat.size))))
    weights = members @ sparse.kron(rows, columns, format="csr")
    means: NDArray[np.float64] = weights @ features.reshape(len(features), -1).T.astype(np.float64)
    return means / np.bincount(flat)[:, None]


def _upsampling(cells: int, pixels: int, spacing: float) -> sparse.csr_array:
    """Return the matrix (pixels, cells) of linear interpolation along one axis; the last cell holds to the end."""
    position = (np.arange(pixels) / spacing).clip(0, cells - 1)
    return sparse.csr_array(np.maximum(0, 1 - np.abs(position[:, None] - np.arange(cells))))


def merge(features: NDArray[np.float64], sizes: NDArray[np.integer], most: int) -> NDArray[np.intp]:
    """Return the superpixel 0, 1 … of each of S segments (S,), at most `most` superpixels.

    `features` (S, D) are means over the segments, `sizes` (S,) their pixels. Merges the most similar pair again
    and again; the new feature is the mean weighted by size. Of equal pairs the first is merged.
    """
    features, share = features.copy(), sizes / sizes.sum()
    units = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    similarity = units @ units.T + 1 - (share[:, None] + share)
    np.fill_diagonal(similarity, -np.inf)
    superpixel = np.arange(len(sizes))
    gone = np.zeros(len(sizes), bool)
    for _ in range(len(sizes) - most):
        kept, lost = sorted(np.unravel_index(similarity.argmax(), similarity.shape))
        joint = share[kept] + share[lost]
        features[kept] = (share[kept] * features[kept] + share[lost] * features[lost]) / joint
        units[kept] = features[kept] / max(float(np.linalg.norm(features[kept])), 1e-12)
        share[kept] = joint
        superpixel[superpixel == lost] = kept
        gone[lost] = True
        similarity[lost] = similarity[:, lost] = -np.inf
        similarity[kept] = units @ units[kept] + 1 - (share + joint)
        similarity[kept, gone] = similarity[kept, kept] = -np.inf
        similarity[:, kept] = similarity[kept]
    return np.unique(superpixel, return_inverse=True)[1]
