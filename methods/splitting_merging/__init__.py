"""Splitting vs. Merging: two classifiers that must look at different places, and agree on some.

Paper: Zhang, Lin, Liu, Cai & Kot, "Splitting vs. Merging: Mining Object Regions with Discrepancy and
Intersection Loss for Weakly Supervised Semantic Segmentation", ECCV 2020. No public code was found.

The first two blocks of the backbone are shared; the others exist twice. Classifiers A and B use the
expanding stream, C the reference stream. Losses, with S a score map, s its spatial mean and L the multi-label
soft margin (Eq. 3):

    L(s_A) + L(s_B) + L(s_C) + L(mean of min(S_A, S_B)) + β · discrepancy(S_A, S_B)

The discrepancy (Eq. 1–2) trains only the classifiers A and B. Maps: ReLU, min–max by class (Section 3.3), and
the elementwise maximum U of the three (methods/splitting_merging/maps.py, which also measures Tables 1–3).

Open in the paper, with the choice made (docs/methods.md, Splitting vs. Merging):
- Optimiser: SGD with momentum 0.9, weight decay 5e-4, batch 16, rate · (1 − step/steps)^0.9.
- "Random cropping … resized to 224": images to 256 × 256 pixels, then a random crop of 224 (ACoL).
- Classifiers: convolutions with bias, weights N(0, 0.01); A and B are drawn separately, because equal ones
  have no discrepancy gradient.
- ‖·‖ in Eq. 1 is the absolute value; all classes count as printed (`discrepancy_classes`).
- Test scale: one, the image's own size, no flip (`scales`, `flip`).
- Background (1 − M)^2: as the equivalent threshold (`fixed_threshold`), or as a channel (`background_exponent`).

Departures:
- The published backbone is VGG-16 with 2×2 pools; here it has DeepLab's padded 3×3 ones. fc6 and fc7 are left out.
- ResNets have no published recipe and use that of VGG-16; `tiny` and `squeezenet` use the optimiser of their CAM
  recipe. Both see images as large as in CAM: on images of 224 pixels a crop of 448 of 500 gives SqueezeNet about
  the 14 × 14 cells of the published crop.
- M_fore is the maximum over classes; `SplittingMerging.saliency` adds the data set's saliency maps.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from optuna.distributions import FloatDistribution
from torch import Tensor, nn

from seedbed.benchmark.pipeline.hparams import hp
from seedbed.benchmark.pipeline.stage import Context, Kind, Meta, Method, Stage
from seedbed.benchmark.training.augmentation import squares
from seedbed.benchmark.training.checkpoint import save_network
from seedbed.benchmark.training.examples import Examples
from seedbed.benchmark.training.loop import Batch, TrainingStage, fit, parameter_groups
from seedbed.benchmark.training.reproducibility import derive_seed
from seedbed.datasets.base import Dataset, Split
from seedbed.methods.backbones.base import Backbone, build_backbone, hold_norm, initialise
from seedbed.methods.cam import multi_label_soft_margin
from seedbed.methods.common.recipes import check_stride, stride_of, training_recipe
from seedbed.methods.splitting_merging.maps import InferSplittingMerging, InferWithSaliency, MeasureStreams

SHARED = 2
"""Blocks that the two streams share (Section 4.1)."""


class SplittingMergingNetwork(nn.Module):
    """Shared blocks, two streams, and the classifiers A, B and C."""

    def __init__(self, backbone: str, classes: int, stride: int, pretrained: bool) -> None:
        super().__init__()
        self.arguments = {
            "backbone": backbone,
            "classes": classes,
            "stride": stride,
            "pretrained": pretrained,
        }
        self.pretrained = pretrained
        source = build_backbone(backbone, stride, pretrained)
        self.normalise = source.normalise
        self.shared, self.reference = divided(source)
        self.expanding = copy.deepcopy(self.reference)
        channels = [block.channels for block in source.blocks() if not block.new][-1]
        self.a, self.b, self.c = (_classifier(channels, classes) for _ in range(3))

    def start_from(self, backbone: Backbone, deviation: float) -> None:
        """Copy the weights of a backbone into both streams; draw those of the classifiers."""
        shared, stream = divided(backbone)
        self.shared.load_state_dict(shared.state_dict())
        self.reference.load_state_dict(stream.state_dict())
        self.expanding.load_state_dict(stream.state_dict())
        for classifier in (self.a, self.b, self.c):
            for layer in (classifier[0], classifier[2]):
                nn.init.normal_(cast(nn.Conv2d, layer).weight, std=deviation)
                nn.init.zeros_(cast(Tensor, layer.bias))

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features (B, D, h, w) of the expanding and the reference stream."""
        shared = self.shared(self.normalise(images))
        return self.expanding(shared), self.reference(shared)

    def score_maps(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return S_A, S_B and S_C (B, C, h, w) of images (B, 3, H, W), RGB in 0..255."""
        expanded, reference = self.features(images)
        return self.a(expanded), self.b(expanded), self.c(reference)

    def forward(self, images: Tensor) -> Tensor:
        """Return class logits (B, C), the mean of s_A, s_B and s_C."""
        return torch.stack(self.score_maps(images)).mean((0, 3, 4))

    def maps(self, images: Tensor) -> Tensor:
        """Return the concatenated maps of A, B and C (B, 3C, h, w), unnormalised, at least 0."""
        return torch.cat(self.score_maps(images), 1).relu()

    def train(self, mode: bool = True) -> SplittingMergingNetwork:
        """Set the mode of all layers; batch norm of pretrained layers stays in eval mode."""
        super().train(mode)
        if self.pretrained:
            hold_norm(self)
        return self


def divided(backbone: Backbone) -> tuple[nn.Sequential, nn.Sequential]:
    """Return the layers that the streams share and those of a stream, without layers that no weights fill."""
    layers = [block.layers for block in backbone.blocks() if not block.new]
    return nn.Sequential(*layers[:SHARED]), nn.Sequential(*layers[SHARED:])


def _classifier(channels: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU(), nn.Conv2d(channels, classes, 1))


def pooled_loss(maps: Tensor, tags: Tensor) -> Tensor:
    """Return the classification loss of the spatial means of score maps (B, C, h, w)."""
    return multi_label_soft_margin(maps.float().mean((2, 3)), tags)


def discrepancy(first: Tensor, second: Tensor, counted: Tensor) -> Tensor:
    """Return −mean |z_A − z_B|, z the softmax over the positions of a score map (B, C, h, w) (Eq. 1–2).

    The mean is over positions and over the classes for which `counted` (B, C) is 1, then over images. It lies in
    [−2/(h·w), 0].
    """
    z_first, z_second = (maps.float().flatten(2).softmax(2) for maps in (first, second))
    by_class = (z_first - z_second).abs().mean(2)
    return -((by_class * counted).sum(1) / counted.sum(1).clamp(min=1)).mean()


@dataclass(frozen=True, kw_only=True)
class TrainSplittingMerging(TrainingStage):
    """Train both streams and the three classifiers on the tags of `weak`."""

    version = 3
    produces = Kind.CHECKPOINT

    epochs: int = hp(20, low=1, high=10_000, source="Section 4.1")
    batch: int = hp(16, low=1, high=4096, source="not in the paper; docs/methods.md")
    lr: float = hp(0.01, FloatDistribution(1e-5, 1.0, log=True), low=0, high=100, source="Section 4.1")
    momentum: float = hp(
        0.9, low=0, high=0.9999, source="docs/methods.md, Splitting vs. Merging: not in the paper"
    )
    head_multiplier: float = hp(10.0, low=0, high=1000, source="Section 4.1: 0.1 for the classifiers")
    backbone: str = hp("vgg16", source="--backbone")
    weights: str = hp("imagenet", source="--weights")
    stride: int = hp(16, low=8, high=16, source="Section 4.1: VGG-16 without its last pool")
    deviation: float = hp(0.01, low=0, high=1, source="not in the paper: weights of the classifiers N(0, 0.01)")
    beta: float = hp(
        20.0, FloatDistribution(0.0, 50.0), low=0, high=10_000, source="Section 4.2; its tables: 0 to 50"
    )
    intersection: bool = hp(True, source="Eq. 3; Table 2 has rows without the intersection loss")
    discrepancy_classes: Literal["all", "present"] = hp("all", source="Eq. 1, as printed")
    side: int = hp(256, low=8, high=4096, source="ACoL: images are resized to so many pixels, both sides")
    crop: int = hp(224, low=8, high=4096, source="Section 4.1")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_stride("TrainSplittingMerging.stride", self.backbone, self.stride)

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write the trained SplittingMergingNetwork."""
        torch.manual_seed(derive_seed(ctx.seed, type(self).__name__, "initialisation"))
        pretrained = self.weights != "none"
        backbone = build_backbone(self.backbone, self.stride, pretrained)
        initialise(backbone, self.backbone, self.weights, ctx)
        network = SplittingMergingNetwork(self.backbone, len(data.classes), self.stride, pretrained)
        network.start_from(backbone, self.deviation)

        def losses(batch: Batch, _: float) -> dict[str, Tensor]:
            return self.losses(network, batch)

        groups = parameter_groups(network, [network.a, network.b, network.c], self)
        examples = Examples(data.split(Split.WEAK), squares(self.side, self.crop), seed=ctx.seed)
        fit(network, losses, examples, groups, self, out, ctx)
        save_network(out, network)

    def losses(self, network: SplittingMergingNetwork, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of Eq. 3; the discrepancy includes its weight β."""
        expanded, reference = network.features(batch["image"])
        tags = batch["tags"]
        map_a, map_b, map_c = network.a(expanded), network.b(expanded), network.c(reference)
        losses = {
            "classification_a": pooled_loss(map_a, tags),
            "classification_b": pooled_loss(map_b, tags),
            "classification_c": pooled_loss(map_c, tags),
        }
        if self.intersection:
            losses["intersection"] = pooled_loss(torch.minimum(map_a, map_b), tags)
        # Eq. 3 minimises the discrepancy only over the classifiers, so these maps detach the stream.
        fixed = expanded.detach()
        counted = tags if self.discrepancy_classes == "present" else torch.ones_like(tags)
        losses["discrepancy"] = self.beta * discrepancy(network.a(fixed), network.b(fixed), counted)
        return losses


def training_settings(meta: Meta) -> dict[str, Any]:
    """Return the settings of the training for a backbone and a data set's image size."""
    recipe = training_recipe(TrainSplittingMerging, meta)
    settings = {"stride": stride_of(meta.backbone, 16), "side": 256, "crop": 224, **recipe}
    settings.update({name: meta.scaled(settings[name]) for name in ("side", "crop")})
    return {"backbone": meta.backbone, "weights": meta.weights, **settings}


@dataclass(frozen=True)
class SplittingMerging(Method):
    """Localisation maps from the union of the three classifiers' maps."""

    name: str = "splitting_merging"
    paper: str = "Zhang et al., Splitting vs. Merging, ECCV 2020"
    one_step: bool = False
    fixed_threshold: float = 0.381966
    """The solution m of (1 − m)^2 = m: above it the best class exceeds the paper's background, α = 2."""
    saliency: bool = hp(False, source="Section 3.3: the data set's saliency maps take part in the background")

    def localise(self, meta: Meta) -> list[Stage]:
        """Train the network, then infer its maps."""
        infer = InferWithSaliency if self.saliency else InferSplittingMerging
        return [TrainSplittingMerging(**training_settings(meta)), infer(long_side=meta.size)]

    def measurements(self, meta: Meta) -> list[Stage]:
        """Measure the maps of each classifier, and their unions."""
        return [MeasureStreams(long_side=meta.size)]


METHOD = SplittingMerging()
