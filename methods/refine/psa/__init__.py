"""PSA (AffinityNet): an affinity network learns from confident labels, and its random walk spreads the maps.

Paper: Ahn & Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision for Weakly Supervised
Semantic Segmentation", CVPR 2018, and the authors' code (docs/methods.md, PSA).

Labels: a dense CRF on the maps with a strong background, (1 − max)^4, finds foreground; one with a weak
background, (1 − max)^32, finds background; all else is 255. The probabilities of both are cropped with the image,
averaged over 8 × 8 pixels, and only then compared. Network: methods/refine/psa/network.py. Walk: v·T^256 of the
maps and the background (1 − max)^16, T from affinities to the power 8; the best channel wins.

Published for VGG-16 (rate 0.1) and ResNet-38 (0.01, as in SEAM's code: at 0.1 it does not learn), from ImageNet
weights, not from the classifier.

Departures:
- The second exponent is 24 in the submission, 32 in the code (`PsaLabels.high_exponent`).
- Other backbones read their last three blocks, normalised as VGG-16's. ResNets use ResNet-38's recipe; `tiny` and
  `squeezenet` use AdamW. The recipe and exponents of `tiny` were found by trial on Chimera with the maps of CAM,
  whose best threshold there is 0.57, not 0.15. The recipe of `squeezenet` is a first guess.
- torchvision's VGG-16 lacks DeepLab's fc6 and fc7: they start at random and learn at the head's rate, 1.0.
- Without pretrained weights nothing is frozen (`TrainPsa.freeze_early`).
- In the walk all pairs inside the image count; the code omits those whose first cell lies within four cells
  of its left, right or lower border.
- Crop and radius shrink with the data set's images (or `--size`). With `--size`, networks see the smaller image
  and the walk uses its cells; the CRF sees the image's own size, and its probabilities are reduced by nearest
  neighbour before they are averaged.
- The result is stored in cells of 4 pixels in float16 (`WalkPsa.cell`; 1: the code's full size), and enlarged when
  read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from optuna.distributions import FloatDistribution, IntDistribution
from torch import Tensor, nn

from seedbed.benchmark.evaluation.maps import MapReader, MapWriter, ScoreMaps, opened
from seedbed.benchmark.pipeline.hparams import hp
from seedbed.benchmark.pipeline.stage import Context, Kind, Meta, Stage
from seedbed.benchmark.pipeline.store import reading
from seedbed.benchmark.training.augmentation import unscaled
from seedbed.benchmark.training.checkpoint import load_network, save_network
from seedbed.benchmark.training.examples import Examples
from seedbed.benchmark.training.inference import padded_images
from seedbed.benchmark.training.loop import Batch, ParameterGroup, TrainingStage, fit, parameter_groups
from seedbed.benchmark.training.precision import autocast
from seedbed.benchmark.training.reproducibility import derive_seed
from seedbed.datasets.base import IGNORE_INDEX, Dataset, Split, SplitView
from seedbed.methods.backbones.base import initialise
from seedbed.methods.cam import COLOUR_JITTER
from seedbed.methods.common.recipes import check_stride, recipe_of, training_recipe
from seedbed.methods.refine.affinity import ClassScores, affinity_losses, check_grid, fitting_radius, on_image
from seedbed.methods.refine.crf import PRESETS, dense_crfs, score_unary
from seedbed.methods.refine.none import ArgmaxMasks
from seedbed.methods.refine.psa.network import CELL, AffinityNetwork
from seedbed.methods.refine.random_walk import pair_offsets, transition_matrix, walk


@dataclass(frozen=True, kw_only=True)
class PsaLabels(Stage):
    """Probabilities of background and the present classes after each CRF; one `ID.npz` per image.

    `low` and `high` are float16 (1 + K, H, W), background first; the classes in ascending order of their labels.
    """

    version = 1
    consumes = (Kind.SCORES,)
    produces = Kind.CONFIDENT_LABELS
    seeded = False

    low_exponent: float = hp(
        4.0, FloatDistribution(1, 16, log=True), low=0.1, high=100, on_request=True, source="PSA code"
    )
    high_exponent: float = hp(
        32.0,
        FloatDistribution(8, 64, log=True),
        low=0.1,
        high=100,
        on_request=True,
        source="PSA code; 24 in its README for the submission",
    )
    iterations: int = hp(10, low=1, high=100, source="PSA code")

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write the probabilities of every image of `weak`."""
        view = data.split(ctx.split)
        ctx.for_each_image(partial(self.label, view, inputs[Kind.SCORES], out), view.ids, "PsaLabels")

    def label(self, view: SplitView, maps: Path, out: Path, image_id: str) -> None:
        """Make and write the probabilities of one image."""
        scores = ClassScores.of(opened(maps).read(image_id))
        exponents = (self.low_exponent, self.high_exponent)
        unaries = [score_unary(scores.with_background(exponent)) for exponent in exponents]
        marginals = dense_crfs(view.image(image_id), unaries, PRESETS["psa"], self.iterations)
        low, high = (stack.astype(np.float16) for stack in marginals)
        np.savez_compressed(out / f"{image_id}.npz", low=low, high=high)


@dataclass(frozen=True)
class _Stacks:
    """Reads the probabilities of an image as float32 (2·(1 + K), H, W), those of `low` first."""

    folder: Path

    def __call__(self, image_id: str) -> NDArray[np.float32]:
        with reading(self.folder / f"{image_id}.npz") as path, np.load(path) as stacks:
            return np.concatenate([stacks["low"], stacks["high"]]).astype(np.float32)


def confident_labels(stacks: Tensor) -> Tensor:
    """Return labels int64 (H/8, W/8): 0, the positions 1..K of classes, and 255, of stacks (2·(1 + K), H, W).

    Each stack is averaged over cells of 8 × 8 pixels. If the high stack is background, the label is 0;
    else a class of the low stack counts; the rest, and cells of only 0 (padding), are 255.
    """
    low, high = F.avg_pool2d(stacks, CELL).chunk(2)
    labels = low.argmax(0)
    labels[labels == 0] = IGNORE_INDEX
    labels[high.argmax(0) == 0] = 0
    labels[(low.sum(0) == 0) & (high.sum(0) == 0)] = IGNORE_INDEX
    return labels


@dataclass(frozen=True, kw_only=True)
class TrainPsa(TrainingStage):
    """Train the affinity network on the confident labels of `weak`."""

    version = 3
    consumes = (Kind.CONFIDENT_LABELS,)
    produces = Kind.CHECKPOINT

    epochs: int = hp(8, low=1, high=10_000, source="PSA code")
    batch: int = hp(8, low=1, high=4096, source="PSA code")
    biases: Literal["as_weights", "psa"] = hp("psa", source="PSA code: 2 × lr, no weight decay")
    backbone: str = hp("vgg16", source="--backbone")
    weights: str = hp("imagenet", source="--weights; PSA's author: ImageNet's, not the classifier's")
    freeze_early: bool = hp(True, source="PSA code: conv1a and b2 of ResNet-38, conv1 and conv2 of VGG-16")
    radius: int = hp(5, low=2, high=20, source="PSA, section 4.2: γ; cells")
    long_side: int = hp(0, low=0, high=4096, source="longer image side in pixels; 0 is the image's own")
    crop: int = hp(448, low=8, high=4096, source="PSA code")
    jitter: bool = hp(True, source="PSA code: colour jitter 0.3, 0.3, 0.3, 0.1")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_stride("PSA's stride", self.backbone, CELL)
        check_grid("TrainPsa", self.crop, CELL, self.radius, multiple=CELL)

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write the trained AffinityNetwork."""
        torch.manual_seed(derive_seed(ctx.seed, "TrainPsa", "initialisation"))
        network = AffinityNetwork(self.backbone, self.weights != "none", self.radius)
        initialise(network.backbone, self.backbone, self.weights, ctx)
        groups = self.groups(network)

        def losses(batch: Batch, _: float) -> dict[str, Tensor]:
            return self.losses(network, batch)

        transform = unscaled(self.long_side, self.crop, COLOUR_JITTER if self.jitter else None)
        stacks = _Stacks(inputs[Kind.CONFIDENT_LABELS])
        view = data.split(Split.WEAK)
        examples = Examples(view, transform, seed=ctx.seed, masks=stacks, labels=confident_labels)
        fit(network, losses, examples, groups, self, out, ctx)
        save_network(out, network)

    def groups(self, network: AffinityNetwork) -> list[ParameterGroup]:
        """Freeze the early layers if `freeze_early`, and return the layers that learn."""
        if self.freeze_early:
            for module in network.backbone.early:
                module.requires_grad_(False)
        return parameter_groups(nn.ModuleList([network.backbone, network.norms]), network.new_layers(), self)

    def losses(self, network: AffinityNetwork, batch: Batch) -> dict[str, Tensor]:
        """Return the three parts of the affinity loss of a batch of `image` and `mask`, by name."""
        affinities = network.anchored(network(batch["image"]))
        return affinity_losses(affinities, batch["mask"], pair_offsets(self.radius), self.radius - 1)


@dataclass(frozen=True, kw_only=True)
class WalkPsa(Stage):
    """Maps after the random walk, with a background channel: the best channel wins, without a threshold."""

    version = 3
    consumes = (Kind.SCORES, Kind.CHECKPOINT)
    produces = Kind.SCORES
    seeded = False

    long_side: int = hp(0, low=0, high=4096, source="longer image side in pixels; 0 is the image's own")
    background_exponent: float = hp(
        16.0, FloatDistribution(0.5, 32, log=True), low=0.1, high=100, source="PSA code: α; 6 in SEAM's"
    )
    power: float = hp(8.0, FloatDistribution(2, 16), low=1, high=100, source="PSA, section 4.2: β")
    steps: int = hp(256, IntDistribution(8, 512, log=True), low=1, high=10_000, source="PSA, section 4.2: 2^8")
    cell: int = hp(4, low=1, high=64, source="pixels of the image to a cell of the stored maps; PSA code: 1")

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write the maps of the context's split."""
        network = cast(AffinityNetwork, load_network(inputs[Kind.CHECKPOINT], ctx.device))
        maps, view = MapReader(inputs[Kind.SCORES]), data.split(ctx.split)
        images = padded_images(view, self.long_side, 0, CELL, ctx, "WalkPsa")
        with torch.inference_mode(), MapWriter(out) as writer:
            for image_id, image, size in images:
                with autocast(ctx):
                    affinities = network.affinities(image)[0]
                writer.write(image_id, self.walked(affinities, network.radius, maps.read(image_id), size))

    @torch.inference_mode()
    def walked(self, affinities: Tensor, radius: int, maps: ScoreMaps, size: tuple[int, int]) -> ScoreMaps:
        """Return the maps after the walk.

        `affinities` (P, h, w) are those of an image that is padded beyond its first `size` pixels.
        """
        scores = ClassScores.of(maps)
        start = torch.from_numpy(scores.with_background(self.background_exponent)).to(affinities.device)
        if size != maps.size:
            start = F.interpolate(start[None], size, mode="bilinear", antialias=True, align_corners=False)[0]
        height, width = (CELL * cells for cells in affinities.shape[1:])
        start = F.pad(start, (0, width - size[1], 0, height - size[0]))
        matrix = transition_matrix(affinities, pair_offsets(radius), self.power)
        ended = walk(F.avg_pool2d(start, CELL), matrix, self.steps)
        spacing = (CELL * maps.size[0] / size[0], CELL * maps.size[1] / size[1])
        labels = np.concatenate([np.zeros(1, np.int16), scores.labels])
        return ScoreMaps(labels, on_image(ended, spacing, maps.size, self.cell), maps.size)


@dataclass(frozen=True)
class Psa:
    """PSA's labels, training and walk; then the best channel."""

    name: str = "psa"
    paper: str = "Ahn & Kwak, CVPR 2018"

    def refine(self, meta: Meta, fixed_threshold: float) -> list[Stage]:
        """Label, train, walk; no threshold is left to choose."""
        crop = meta.scaled(448)
        settings: dict[str, Any] = {
            "backbone": meta.backbone,
            "weights": meta.weights,
            "freeze_early": meta.weights != "none",
            "long_side": meta.size,
            "crop": crop,
            "radius": fitting_radius(5, crop, CELL),
            **training_recipe(TrainPsa, meta),
        }
        return [
            PsaLabels(**recipe_of(PsaLabels, meta.backbone)),
            TrainPsa(**settings),
            WalkPsa(long_side=meta.size, **recipe_of(WalkPsa, meta.backbone)),
            ArgmaxMasks(),
        ]


REFINER = Psa()
