"""CAM baseline: class activation maps of a multi-label classifier, in the form of PSA and IRN.

Papers: Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016; the classifier,
training and inference are those of PSA (Ahn & Kwak, CVPR 2018) and IRN (Ahn et al., CVPR 2019).

Loss: multi-label soft margin, the mean over classes of binary cross entropy on logits, mean over the batch.
Map: ReLU(w_c · f), mean over scales and flips, absent classes zero, divided by its maximum + 1e-5.

Published recipes (docs/methods.md, CAM): VGG-16, ResNet-38, ResNet-50 (also used for ResNet-101).

Departures, all of them settings:
- Backbones without a published recipe use AdamW: `tiny` and `squeezenet` with their own recipes, others as in
  methods/common/recipes.py.
- Crop and image sizes are those of the paper, scaled down if the data set's images (or `--size`) are smaller.
- Without pretrained weights nothing is frozen (`TrainCam.freeze_early`).
- Maps are kept at stride 4 in float16 and upsampled when they are read; IRN also keeps full-size maps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from optuna.distributions import FloatDistribution
from torch import Tensor, nn

from seedbed.benchmark.evaluation.maps import MapWriter, ScoreMaps
from seedbed.benchmark.pipeline.hparams import hp
from seedbed.benchmark.pipeline.stage import Context, Kind, Meta, Method, Stage
from seedbed.benchmark.training.augmentation import classification
from seedbed.benchmark.training.checkpoint import load_network, save_network
from seedbed.benchmark.training.examples import Examples
from seedbed.benchmark.training.inference import multi_scale, one_value_per
from seedbed.benchmark.training.loop import Batch, TrainingStage, fit, parameter_groups
from seedbed.benchmark.training.reproducibility import derive_seed
from seedbed.datasets.base import Dataset, Split
from seedbed.methods.backbones.base import build_backbone, initialise
from seedbed.methods.common.recipes import check_stride, recipe_of, stride_of, training_recipe

COLOUR_JITTER = (0.3, 0.3, 0.3, 0.1)
"""Brightness, contrast, saturation and hue, as PSA."""


class CamNetwork(nn.Module):
    """Backbone, dropout of channels, 1×1 convolution without bias, global average pooling.

    Global average pooling and the convolution commute, so the order in which the papers' codes apply them
    (docs/methods.md, CAM) makes no difference.
    """

    def __init__(self, backbone: str, classes: int, stride: int, dropout: float, pretrained: bool) -> None:
        super().__init__()
        self.arguments = {
            "backbone": backbone,
            "classes": classes,
            "stride": stride,
            "dropout": dropout,
            "pretrained": pretrained,
        }
        self.backbone = build_backbone(backbone, stride, pretrained)
        self.backbone.drop_channels()
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(self.backbone.channels, classes, 1, bias=False)

    def classifiers(self) -> list[nn.Conv2d]:
        """Return the layers that compute the class logits."""
        return [self.classifier]

    def forward(self, images: Tensor) -> Tensor:
        """Return class logits (B, C) of images (B, 3, H, W), RGB in 0..255."""
        return self.locations(images).mean((2, 3))

    def locations(self, images: Tensor) -> Tensor:
        """Return the class logits at each location (B, C, h, w); their mean is the image's logits."""
        logits: Tensor = self.classifier(self.dropout(self.backbone(images)))
        return logits

    def maps(self, images: Tensor) -> Tensor:
        """Return localisation maps (B, C, h, w), unnormalised, at least 0."""
        logits: Tensor = self.classifier(self.backbone(images))
        return logits.relu()


@dataclass(frozen=True, kw_only=True)
class TagTraining(TrainingStage):
    """Train on augmented images of `weak` and their tags."""

    produces = Kind.CHECKPOINT

    long_side_low: int = hp(256, low=8, high=4096, source="PSA code, in pixels of a 500-pixel image")
    long_side_high: int = hp(512, low=8, high=4096, source="PSA code, in pixels of a 500-pixel image")
    crop: int = hp(448, low=8, high=4096, source="PSA code, in pixels of a 500-pixel image")
    jitter: bool = hp(True, source="PSA code: colour jitter 0.3, 0.3, 0.3, 0.1; IRN has none")

    def examples(self, data: Dataset, inputs: Mapping[Kind, Path], ctx: Context) -> Examples:
        """Return the augmented training images with their tags."""
        transform = classification(
            long_side=(self.long_side_low, self.long_side_high),
            crop=self.crop,
            jitter=COLOUR_JITTER if self.jitter else None,
        )
        return Examples(data.split(Split.WEAK), transform, seed=ctx.seed)


@dataclass(frozen=True, kw_only=True)
class TrainCam(TagTraining):
    """Train the classifier on the tags of `weak`."""

    version = 3

    backbone: str = hp("vgg16", source="--backbone")
    weights: str = hp("imagenet", source="--weights")
    stride: int = hp(8, low=8, high=16, source="docs/methods.md, Backbones")
    dropout: float = hp(0.5, FloatDistribution(0.0, 0.7), low=0, high=0.95, source="PSA code")
    classifier_init: Literal["xavier", "torch"] = hp(
        "xavier", source="PSA, RRM and SC-CAM code: uniform Xavier; IRN code: torch's default"
    )
    freeze_early: bool = hp(True, source="docs/methods.md, Backbones")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_stride(f"{type(self).__name__}.stride", self.backbone, self.stride)

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write the trained network."""
        torch.manual_seed(derive_seed(ctx.seed, "TrainCam", "initialisation"))
        network = self.network(len(data.classes), inputs)
        if self.classifier_init == "xavier":
            for classifier in network.classifiers():
                nn.init.xavier_uniform_(classifier.weight)
        initialise(network.backbone, self.backbone, self.weights, ctx)
        if self.freeze_early:
            for module in network.backbone.early:
                module.requires_grad_(False)
        heads = [layers for name, layers in network.named_children() if name != "backbone"]
        groups = parameter_groups(network.backbone, [*network.backbone.new_layers(), *heads], self)

        def losses(batch: Batch, _: float) -> dict[str, Tensor]:
            return self.losses(network, batch)

        fit(network, losses, self.examples(data, inputs, ctx), groups, self, out, ctx)
        save_network(out, network)

    def network(self, classes: int, inputs: Mapping[Kind, Path]) -> CamNetwork:
        """Return a randomly initialised network; everything but its `backbone` learns at the head's rate."""
        return CamNetwork(self.backbone, classes, self.stride, self.dropout, self.weights != "none")

    def losses(self, network: CamNetwork, batch: Batch) -> dict[str, Tensor]:
        """Return the losses, and the values that are only measured, by name."""
        return {"classification": multi_label_soft_margin(network(batch["image"]), batch["tags"])}


@dataclass(frozen=True, kw_only=True)
class InferCam(Stage):
    """Localisation maps of any network that has `maps` (docs/methods.md, CAM), for the tags of each image."""

    version = 3
    consumes = (Kind.CHECKPOINT,)
    produces = Kind.SCORES
    seeded = False

    long_side: int = hp(0, low=0, high=4096, source="longer image side in pixels at scale 1; 0 is the image's own")
    scales: tuple[float, ...] = hp(
        (1.0, 0.5, 1.5, 2.0), low=0.1, high=4, source="PSA and IRN code", report_as="multi_scale"
    )
    flip: bool = hp(True, source="PSA and IRN code")
    square_root: bool = hp(False, source="PSA code, VGG-16 only: the square root of the map at each scale")
    cell: int = hp(4, low=1, high=64, source="pixels of the image to a cell of the stored maps; PSA code: 1")

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write the maps of the context's split."""
        network = cast(Any, load_network(inputs[Kind.CHECKPOINT], ctx.device))
        view = data.split(ctx.split)

        def forward(images: Tensor) -> Tensor:
            maps: Tensor = network.maps(images)
            return maps.sqrt() if self.square_root else maps

        with MapWriter(out) as writer:
            for image_id, maps in multi_scale(
                forward,
                view,
                scales=self.scales,
                flip=self.flip,
                long_side=self.long_side,
                grid=one_value_per(self.cell),
                ctx=ctx,
                label="InferCam",
            ):
                writer.write(image_id, normalised_maps(maps, view.tags(image_id), view.size(image_id)))


def normalised_maps(maps: Tensor, tags: tuple[int, ...], size: tuple[int, int]) -> ScoreMaps:
    """Return the maps of the tagged classes, each divided by its maximum + 1e-5 (docs/methods.md, CAM).

    `maps` is (C, h, w), at least 0; `tags` are labels 1..C; `size` is the image's (height, width).
    """
    present = maps[[tag - 1 for tag in tags]].cpu()
    scores = present / (present.amax((1, 2), keepdim=True) + 1e-5)
    return ScoreMaps(np.array(tags, np.int16), scores.numpy(), size)


def multi_label_soft_margin(logits: Tensor, tags: Tensor) -> Tensor:
    """Return binary cross entropy on logits (B, C) and tags in [0, 1], mean over classes and batch."""
    return F.multilabel_soft_margin_loss(logits.float(), tags)


SIZES = ("long_side_low", "long_side_high", "crop")


def classifier_settings(meta: Meta, stage: type[TrainCam] = TrainCam) -> dict[str, Any]:
    """Return the settings of a CAM classifier's training for a backbone and a data set's image size."""
    recipe = training_recipe(stage, meta, stride=stride_of(meta.backbone, 16), classifier_init="torch")
    settings = {"long_side_low": 256, "long_side_high": 512, "crop": 448, **recipe}
    settings.update({name: meta.scaled(settings[name]) for name in SIZES})
    if meta.weights == "none":
        settings["freeze_early"] = False
    return {"backbone": meta.backbone, "weights": meta.weights, **settings}


def inference_settings(meta: Meta) -> dict[str, Any]:
    """Return the settings of multi-scale inference for a backbone and the user's `--size`."""
    return {"long_side": meta.size, **recipe_of(InferCam, meta.backbone)}


@dataclass(frozen=True)
class Cam(Method):
    """The baseline that every paper starts from."""

    name: str = "cam"
    paper: str = "Zhou et al., CVPR 2016; Ahn & Kwak (PSA), CVPR 2018; Ahn et al. (IRN), CVPR 2019"
    one_step: bool = False
    fixed_threshold: float = 0.15

    def localise(self, meta: Meta) -> list[Stage]:
        """Train the classifier, then infer its maps."""
        return [TrainCam(**classifier_settings(meta)), InferCam(**inference_settings(meta))]


METHOD = Cam()
