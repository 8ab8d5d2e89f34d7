"""The segmentation network that is trained on pseudo-masks: DeepLab, the same for all methods.

Papers: Chen et al., "DeepLab" (v2), TPAMI 2018; numbers of `kazuto1011/deeplab-pytorch` (docs/methods.md). The
backbone `resnet101` at stride 8 with the defaults below is DeepLab-v2 ResNet-101. `vgg16` is
DeepLab-LargeFOV (Chen et al., ICLR 2015) with the batch and schedule of the TPAMI paper.

Departures, all of them settings but the last three:
- Initialised from ImageNet, not from COCO segmentation weights, which are extra pixel-level supervision
  (`--segmentation-weights coco`).
- Length is given in epochs: 19 epochs of 10,582 images in batches of 10 are the published 20,000 iterations.
- Tested by the mean softmax over five scales and flips. `PredictMasks.pyramid=1,0.75,0.5`, `scales=1` and
  `flip=false` give the published maximum over three scales.
- `tiny` and `squeezenet` have no published recipe and use AdamW. The recipe of `tiny` was found by trial; that of
  `squeezenet` is a first guess, and gave a poor network on 800 images of VOC.
- Crop and image sizes, and the dilations of ASPP and fc6, shrink with the data set's images (or `--size`).
- The learning rate falls at every step, not at every tenth.
- The scale of a training image is any of 0.5–1.5, not one of five.
- LargeFOV's fc6 and fc7 start at random (methods/backbones/vgg16.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from optuna.distributions import FloatDistribution
from torch import Tensor, nn

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.parallel import map_in_order
from seedbed.benchmark.pipeline.hparams import hp
from seedbed.benchmark.pipeline.registry import BACKBONES
from seedbed.benchmark.pipeline.stage import Context, Kind, Meta, Stage
from seedbed.benchmark.training.augmentation import Augmentation, segmentation
from seedbed.benchmark.training.checkpoint import load_network, save_network
from seedbed.benchmark.training.examples import Examples
from seedbed.benchmark.training.inference import multi_scale
from seedbed.benchmark.training.loop import Batch, Losses, TrainingStage, fit, parameter_groups
from seedbed.benchmark.training.reproducibility import derive_seed
from seedbed.datasets.base import IGNORE_INDEX, Dataset, Split, SplitView
from seedbed.datasets.io.images import decode_mask
from seedbed.methods.backbones.base import freeze_affine, initialise, initialise_from_coco
from seedbed.methods.common.recipes import check_stride, stride_of, training_recipe
from seedbed.methods.refine.crf import WritePrediction
from seedbed.methods.segmentation.deeplab import DeepLab, Dilations, LargeFov


def pyramid_logits(network: nn.Module, images: Tensor, pyramid: tuple[float, ...]) -> list[Tensor]:
    """Return the logits at each scale of `pyramid` and, if there are several, their pixelwise maximum."""
    logits = []
    for scale in pyramid:
        scaled = images
        if scale != 1:
            # Not `scale_factor`: it maps pixels by the scale itself and omits the last ones.
            size = [int(length * scale) for length in images.shape[-2:]]
            scaled = F.interpolate(images, size, mode="bilinear", align_corners=False)
        logits.append(network(scaled))
    if len(logits) > 1:
        grid = logits[0].shape[-2:]
        resized = [F.interpolate(x, grid, mode="bilinear", align_corners=False) for x in logits]
        logits.append(torch.stack(resized).amax(0))
    return logits


def mask_cross_entropy(logits: Tensor, masks: Tensor, class_balanced: bool) -> Tensor:
    """Return cross entropy of logits (B, L, h, w) against masks int64 (B, H, W), reduced to the logits' grid.

    A cell gets the label of the pixel at its centre, as with PIL's nearest in deeplab-pytorch. The loss is the
    mean over labelled cells (0 if there are none); 255 does not count. `class_balanced` takes the mean for each
    label that occurs, then over those labels.
    """
    # Not "nearest": it takes the top left pixel of a cell and shifts labels by half a cell.
    target = F.interpolate(masks[:, None].float(), logits.shape[-2:], mode="nearest-exact")[:, 0].long()
    loss = F.cross_entropy(logits.float(), target, ignore_index=IGNORE_INDEX, reduction="none")
    labelled = target != IGNORE_INDEX
    if not class_balanced:
        return loss.sum() / labelled.sum().clamp(min=1)
    which = F.one_hot(target.where(labelled, 0), logits.shape[1]).flatten(0, 2)
    which = which * labelled.flatten()[:, None]
    pixels = which.sum(0)
    means = (loss.flatten()[:, None] * which).sum(0) / pixels.clamp(min=1)
    return means.sum() / (pixels > 0).sum().clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class TrainSegmentation(TrainingStage):
    """Train DeepLab on the pseudo-masks of `weak`.

    Raises ConfigError for `large_fov` on a backbone without fc6.
    """

    version = 5
    consumes: ClassVar[tuple[Kind, ...]] = (Kind.MASKS,)
    produces = Kind.CHECKPOINT

    epochs: int = hp(19, low=1, high=10_000, source="deeplab-pytorch: 20,000 iterations")
    batch: int = hp(10, low=1, high=4096, source="deeplab-pytorch: 5 × 2 accumulations")
    lr: float = hp(2.5e-4, FloatDistribution(1e-5, 1e-2, log=True), low=0, high=100, source="deeplab-pytorch")
    momentum: float = hp(0.9, low=0, high=0.9999, source="deeplab-pytorch")
    biases: Literal["as_weights", "psa"] = hp("psa", source="deeplab-pytorch: the head's bias at 20 ×, no decay")
    backbone: str = hp("resnet101", source="--segmentation-backbone", report_as="segmentation_backbone")
    weights: str = hp("imagenet", source="--segmentation-weights", report_as="segmentation_initialisation")
    stride: int = hp(8, low=8, high=16, source="deeplab-pytorch")
    head: Literal["aspp", "large_fov"] = hp("aspp", source="DeepLab-v2; large_fov: ICLR 2015, on VGG-16")
    rates: tuple[int, ...] = hp(
        (6, 12, 18, 24), low=1, high=64, when=("head", "aspp"), source="DeepLab-v2: ASPP-L"
    )
    fc6_dilation: int = hp(12, low=1, high=64, when=("head", "large_fov"), source="DeepLab-LargeFOV")
    dilations: Dilations = hp(
        "deeplab",
        when=("head", "aspp"),
        source="deeplab-pytorch: 2, 4 in the first blocks of a ResNet's layer3, layer4 at stride 8, first pool in "
        "ceil mode; torchvision: 1, 2, for which its COCO weights were trained",
    )
    pyramid: tuple[float, ...] = hp((1.0, 0.75, 0.5), low=0.1, high=2, source="DeepLab-v2: inputs with max fusion")
    class_balanced: bool = hp(False, source="AdvCAM uses it (docs/methods.md, Segmentation network)")
    long_side: int = hp(500, low=8, high=4096, source="longer image side in pixels at scale 1")
    scale_low: float = hp(0.5, low=0.1, high=4, source="deeplab-pytorch")
    scale_high: float = hp(1.5, low=0.1, high=4, source="deeplab-pytorch")
    crop: int = hp(321, low=8, high=4096, source="deeplab-pytorch")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_stride(f"{type(self).__name__}.stride", self.backbone, self.stride)
        if self.head == "large_fov" and not BACKBONES.load(self.backbone).fc6:
            valid = ", ".join(name for name in BACKBONES.names() if BACKBONES.load(name).fc6)
            raise ConfigError(
                f"{type(self).__name__}.head = 'large_fov': backbone {self.backbone!r} has no fc6. Valid with "
                f"large_fov: {valid}; with every backbone: 'aspp'"
            )

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write the trained network."""
        torch.manual_seed(derive_seed(ctx.seed, type(self).__name__, "initialisation"))
        network = self.network(len(data.classes))
        if self.weights == "coco":
            initialise_from_coco(network.backbone, self.backbone)
        else:
            initialise(network.backbone, self.backbone, self.weights, ctx)
        groups = parameter_groups(network.backbone, network.new_layers(), self)
        fit(network, self.losses(network), self.examples(data, inputs, ctx), groups, self, out, ctx)
        save_network(out, network)

    def network(self, classes: int) -> DeepLab | LargeFov:
        """Return the network for a number of foreground classes, with its backbone's weights not loaded."""
        pretrained = self.weights != "none"
        network: DeepLab | LargeFov
        if self.head == "large_fov":
            network = LargeFov(self.backbone, classes, self.stride, self.fc6_dilation, pretrained)
        else:
            network = DeepLab(self.backbone, classes, self.stride, self.rates, pretrained, self.dilations)
        if pretrained:
            # deeplab-pytorch does not train batch norm.
            freeze_affine(network.backbone)
        return network

    def losses(self, network: nn.Module) -> Losses:
        """Return the sum of the cross entropies of all scales and of their maximum."""

        def cross_entropies(batch: Batch, _: float) -> dict[str, Tensor]:
            logits = pyramid_logits(network, batch["image"], self.pyramid)
            losses = [mask_cross_entropy(x, batch["mask"], self.class_balanced) for x in logits]
            return {"cross_entropy": torch.stack(losses).sum()}

        return cross_entropies

    def examples(self, data: Dataset, inputs: Mapping[Kind, Path], ctx: Context) -> Examples:
        """Return the augmented images of `weak` with their pseudo-masks."""
        masks = PseudoMasks(inputs[Kind.MASKS])
        return Examples(data.split(Split.WEAK), self.transform(), seed=ctx.seed, masks=masks)

    def transform(self) -> Augmentation:
        """Return the augmentation of image and mask."""
        return segmentation(scale=(self.scale_low, self.scale_high), base=self.long_side, crop=self.crop)


@dataclass(frozen=True, kw_only=True)
class TrainSupervised(TrainSegmentation):
    """Train the same network on the true masks of `weak`: the fully supervised upper bound."""

    version = 5
    consumes = ()

    def examples(self, data: Dataset, inputs: Mapping[Kind, Path], ctx: Context) -> Examples:
        """Return the augmented images of `weak` with their true masks."""
        view = data.split(Split.WEAK, supervision="full")
        return Examples(view, self.transform(), seed=ctx.seed, masks=view.mask)


@dataclass(frozen=True)
class PseudoMasks:
    """The masks of a MASKS folder by image id."""

    folder: Path

    def __call__(self, image_id: str) -> NDArray[np.uint8]:
        return decode_mask(self.folder / f"{image_id}.png")


@dataclass(frozen=True, kw_only=True)
class PredictMasks(Stage):
    """Predict masks with a trained segmentation network: mean softmax over scales and flips, then a CRF.

    Logits are resized to the image before the softmax, as in RRM and deeplab-pytorch.
    """

    version = 3
    consumes = (Kind.CHECKPOINT,)
    produces = Kind.MASKS
    seeded = False

    long_side: int = hp(0, low=0, high=4096, source="longer image side in pixels at scale 1; 0 is the image's own")
    scales: tuple[float, ...] = hp(
        (0.5, 0.75, 1.0, 1.25, 1.5), low=0.1, high=4, source="DeepLab-v2 multi-scale test", report_as="multi_scale"
    )
    flip: bool = hp(True, source="DeepLab-v2")
    pyramid: tuple[float, ...] = hp(
        (1.0,), low=0.1, high=4, source="deeplab-pytorch: 1,0.75,0.5, their maximum, with scales=1 and flip=false"
    )
    crf: Literal["none", "deeplab", "rrm_test"] = hp(
        "none", source="docs/methods.md, Dense CRF: deeplab for DeepLab-v2"
    )

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write one palette PNG per image of the context's split, at the image's own size."""
        predict_masks(self, inputs[Kind.CHECKPOINT], data.split(ctx.split), out, ctx)

    def writer(self, view: SplitView, out: Path) -> WritePrediction:
        """Return the writer of masks of `view` from probabilities."""
        return WritePrediction(view, self.crf, out)


def predict_masks(stage: PredictMasks, checkpoint: Path, view: SplitView, out: Path, ctx: Context) -> None:
    """Write the masks that the network in `checkpoint` predicts for the images of `view`."""
    network = load_network(checkpoint, ctx.device)

    predictions = multi_scale(
        lambda images: pyramid_logits(network, images, stage.pyramid)[-1],
        view,
        activation=lambda logits: logits.softmax(1),
        scales=stage.scales,
        flip=stage.flip,
        long_side=stage.long_side,
        grid=lambda image_id, *_: view.size(image_id),
        ctx=ctx,
        label=f"PredictMasks on {view.split}",
    )
    task = stage.writer(view, out)
    processes = ctx.workers if stage.crf != "none" else 0
    for _ in map_in_order(task, ((i, p.cpu().numpy()) for i, p in predictions), processes):
        pass


def segmentation_stages(meta: Meta, supervision: Literal["weak", "full"] = "weak") -> list[Stage]:
    """Return training and prediction for a data set's image size; `meta` names the network's own backbone."""
    smaller = meta.scaled(321) / 321
    settings: dict[str, Any] = {
        "backbone": meta.backbone,
        "weights": meta.weights,
        "long_side": meta.size or meta.long_side,
        "crop": meta.scaled(321),
        "rates": tuple(max(1, round(rate * smaller)) for rate in (6, 12, 18, 24)),
        "fc6_dilation": max(1, round(12 * smaller)),
        "dilations": "torchvision" if meta.weights == "coco" else "deeplab",
        "stride": stride_of(meta.backbone, 8),
    }
    train = TrainSupervised if supervision == "full" else TrainSegmentation
    recipe = training_recipe(train, meta)
    if "crop" in recipe:
        recipe = {**recipe, "crop": meta.scaled(recipe["crop"])}
    return [train(**settings | recipe), PredictMasks(long_side=meta.size)]
