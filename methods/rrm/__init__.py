"""RRM: a segmentation branch learns from reliable labels that the classification branch makes in the same step.

Paper: Zhang et al., "Reliability Does Matter: An End-to-End Weakly Supervised Semantic Segmentation Approach",
AAAI 2020. The authors' code is zbf1991/RRM; if it differs from the paper, we follow the code (docs/methods.md,
RRM).

Equations: (1) and (2) in network.py, (3) to (7) in reliable_labels.py, (9) in `cross_entropies`,
(10) to (14) in dense_energy.py. The loss is classification + background + foreground + energy; classification is a
multi-label soft margin, as in the code (the paper calls it softmax).

Recipes (`Rrm.recipe`): "cam" starts from the trained CAM network. "imagenet" trains only the
classification branch in the first half of the epochs, a short CAM training, and both branches in the second.

Departures, all of them settings but the last two:
- Length is given in epochs: 8 epochs of 10,582 images are 21,160 steps of 4 images; the code takes 20,000 (7.6).
- `tiny` and `squeezenet` have no published recipe and use AdamW; that of `squeezenet` is untuned.
- Crop, dilation, σ of position and weight of the energy follow the size of the data set's images (or `--size`).
  The energy is a sum over pairs of pixels: if sides shrink by s, its weight grows by s⁴.
- Classes that an image is not tagged with are suppressed in the masks of training images (not in the paper), but
  never in those of `val` and `test`.
- RGB values for CRF and energy are truncated as in the code, but a whole number stays what it is. In the code it
  may lose 1 by rounding errors. Sides of resized images are rounded, in the code truncated.
- Batch norm that is not frozen takes its statistics only from images at scale 1; the authors' is all frozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from optuna.distributions import FloatDistribution
from torch import Tensor

from seedbed.benchmark.parallel import TaskMap, task_map
from seedbed.benchmark.pipeline.hparams import hp
from seedbed.benchmark.pipeline.stage import Context, Kind, Meta, Method, Stage
from seedbed.benchmark.training.augmentation import Augmentation, segmentation
from seedbed.benchmark.training.checkpoint import load_network, save_network
from seedbed.benchmark.training.examples import Examples
from seedbed.benchmark.training.loop import Batch, EpochSampler, Losses, TrainingStage, fit, parameter_groups
from seedbed.benchmark.training.reproducibility import derive_seed
from seedbed.datasets.base import IGNORE_INDEX, Dataset, Split, SplitView
from seedbed.methods.cam import (
    COLOUR_JITTER,
    CamNetwork,
    InferCam,
    TrainCam,
    classifier_settings,
    inference_settings,
    multi_label_soft_margin,
)
from seedbed.methods.common.recipes import training_recipe
from seedbed.methods.refine.crf import WritePrediction
from seedbed.methods.rrm.dense_energy import dense_energy_loss
from seedbed.methods.rrm.network import RrmNetwork, online_maps
from seedbed.methods.rrm.reliable_labels import Crop, ReliableLabels, Rule
from seedbed.methods.segmentation.stages import PredictMasks

TAGGED = (Split.WEAK, Split.TRAIN, Split.TUNE)
"""The splits whose tags are the supervision; tags of other splits are for evaluation only."""


def crops(images: Tensor, tags: Tensor, maps: Tensor) -> list[Crop]:
    """Return the inputs of the reliable labels: RGB, tags and maps of each image of a batch, as NumPy arrays."""
    pixels, cells = images.permute(0, 2, 3, 1).cpu().numpy(), maps.cpu().numpy()
    present = [np.flatnonzero(row) for row in tags.cpu().numpy()]
    return [(pixels[i], tuple((p + 1).tolist()), cells[i][p]) for i, p in enumerate(present)]


def cross_entropies(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return equation (9) for background and for foreground, each the mean over its pixels of the whole batch.

    `logits` are (B, L, H, W), `labels` int64 (B, H, W) with 255 for none. Without pixels the loss is 0.
    """
    loss = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none")
    background = labels == 0
    groups = {"background": background, "foreground": ~background & (labels != IGNORE_INDEX)}
    return {name: (loss * group).sum() / group.sum().clamp(min=1) for name, group in groups.items()}


class RrmExamples(Examples):
    """Augmented crops; `mask` is 0 in the image and 255 in the padding. One scale is drawn per batch (R9)."""

    def __init__(self, view: SplitView, stage: TrainRrm, seed: int) -> None:
        super().__init__(view, stage.transform(stage.scale_low, stage.scale_high), seed, masks=self.inside)
        self.stage = stage

    def augmentation(self, epoch: int, index: int) -> Augmentation:
        """Return the augmentation of an example, at the scale of its batch."""
        stage = self.stage
        if stage.scale_drawn == "image":
            return self.transform
        step = _steps(len(self), stage.batch, self.seed, epoch)[index]
        generator = np.random.default_rng(derive_seed(self.seed, "scale", epoch, step))
        scale = generator.uniform(stage.scale_low, stage.scale_high)
        return stage.transform(scale, scale)

    def inside(self, image_id: str) -> NDArray[np.uint8]:
        """Return a mask of zeros."""
        return np.zeros(self.view.size(image_id), np.uint8)


@lru_cache(maxsize=2)
def _steps(length: int, batch: int, seed: int, epoch: int) -> dict[int, int]:
    """Return the batch number of each example of an epoch."""
    sampler = EpochSampler(length, batch, seed)
    sampler.epoch = epoch
    return {index: step for step, places in enumerate(sampler) for _, index in places}


@dataclass(frozen=True, kw_only=True)
class TrainRrm(TrainingStage):
    """Train both branches on the tags of `weak`, from a trained CAM network. Nothing is frozen."""

    version = 4
    consumes: ClassVar[tuple[Kind, ...]] = (Kind.CHECKPOINT,)
    produces = Kind.CHECKPOINT
    measured: ClassVar[tuple[str, ...]] = ("labelled",)

    epochs: int = hp(8, low=1, high=10_000, source="RRM code: 20,000 steps, 7.6 epochs")
    batch: int = hp(4, low=1, high=4096, source="RRM code")
    lr: float = hp(7e-4, FloatDistribution(1e-5, 1e-1, log=True), low=0, high=100, source="RRM code; paper: 1e-3")
    weight_decay: float = hp(
        1e-5, FloatDistribution(1e-6, 1e-2, log=True), low=0, high=1, source="RRM code; paper: 5e-4"
    )
    biases: Literal["as_weights", "no_decay", "psa"] = hp(
        "psa", source="RRM code: 2 × lr, no weight decay; no_decay with recipe imagenet, whose rates are all equal"
    )
    long_side: int = hp(500, low=8, high=4096, source="longer image side in pixels at scale 1")
    scale_low: float = hp(0.7, low=0.1, high=4, source="RRM, Implementation Details")
    scale_high: float = hp(1.3, low=0.1, high=4, source="RRM, Implementation Details")
    scale_drawn: Literal["batch", "image"] = hp("batch", source="RRM code; paper: image")
    crop: int = hp(321, low=8, high=4096, source="RRM, Implementation Details")
    jitter: bool = hp(False, source="RRM code: only from ImageNet, 0.3, 0.3, 0.3, 0.1")
    width: int = hp(512, low=1, high=8192, source="RRM code: channels between the head's convolutions")
    dilation: int = hp(12, low=1, high=64, source="RRM, Implementation Details")
    cam_scales: tuple[float, ...] = hp(
        (0.5, 1.5, 2.0), low=0.1, high=4, source="RRM, Implementation Details, beside 1"
    )
    rule: Rule = hp("code", source="docs/methods.md, RRM: R3 to R5; cam: RRM, Table 2")
    low_exponent: float = hp(4.0, low=1, high=1000, source="RRM, Implementation Details: γ")
    high_exponent: float = hp(32.0, low=1, high=1000, when=("rule", "code"), source="RRM code")
    share: float = hp(0.4, FloatDistribution(0.1, 1.0), low=0.01, high=1, source="RRM, Table 1")
    foreground_floor: float = hp(0.1, low=0, high=1, when=("rule", "code"), source="RRM code")
    background_floor: float = hp(0.8, low=0, high=1, when=("rule", "code"), source="RRM code")
    crf_floor: float = hp(0.8, low=0, high=1, when=("rule", "code"), source="RRM code")
    energy_weight: float = hp(
        1e-7, FloatDistribution(1e-9, 1e-5, log=True), low=0, high=1, source="RRM code; 0: CE loss of Table 2"
    )
    sigma_rgb: float = hp(15.0, low=0.1, high=1000, source="RRM code; paper: 100 (R2)")
    sigma_xy: float = hp(100.0, low=0.1, high=1000, source="RRM code; paper: 15 (R2)")
    energy_scale: float = hp(0.5, low=0.1, high=1, source="RRM code: the energy is that of a smaller image")
    energy_kernel: Literal["lattice", "exact"] = hp("lattice", source="RRM code (R7)")
    energy_gradient: Literal["as_coded", "exact"] = hp("as_coded", source="RRM code (R8)")

    def transform(self, low: float, high: float) -> Augmentation:
        """Return the augmentation at scales in [low, high]."""
        return segmentation((low, high), self.long_side, self.crop, COLOUR_JITTER if self.jitter else None)

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write the trained RrmNetwork."""
        torch.manual_seed(derive_seed(ctx.seed, "TrainRrm", "initialisation"))
        cam = cast(CamNetwork, load_network(inputs[Kind.CHECKPOINT]))
        network = RrmNetwork(self.width, self.dilation, **cam.arguments)
        network.cam.load_state_dict(cam.state_dict())
        groups = parameter_groups(network.cam.backbone, [network.cam.classifier, network.head], self)
        examples = RrmExamples(data.split(Split.WEAK), self, ctx.seed)
        with task_map(ctx.workers) as mapped:
            fit(network, self.losses(network, mapped), examples, groups, self, out, ctx)
        save_network(out, network)

    def losses(self, network: RrmNetwork, mapped: TaskMap) -> Losses:
        """Return the losses of both branches; `mapped` runs the CRFs."""
        label = ReliableLabels(
            self.rule,
            self.low_exponent,
            self.high_exponent,
            self.share,
            self.foreground_floor,
            self.background_floor,
            self.crf_floor,
        )

        def losses(batch: Batch, _: float) -> dict[str, Tensor]:
            # RRM code: colours between two whole numbers are truncated.
            images, tags, rgb = batch["image"], batch["tags"], batch["image"].byte()
            features = network.cam.backbone(images)
            maps = online_maps(network, images, features, self.cam_scales)
            pending = mapped(label, crops(rgb, tags, maps))
            # Nothing waited for the CRFs so far: they run beside the rest of the passes.
            class_logits = network.cam.classifier(network.cam.dropout(features)).mean((2, 3))
            logits = network.head(features).float()
            logits = F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)
            labels = torch.from_numpy(np.stack(list(pending))).to(images.device).long()
            found = {
                "classification": multi_label_soft_margin(class_logits, tags),
                **cross_entropies(logits, labels),
                "labelled": (labels != IGNORE_INDEX).float().mean(),
            }
            if self.energy_weight:
                energy = dense_energy_loss(
                    logits.softmax(1),
                    rgb,
                    labels,
                    (batch["mask"] != IGNORE_INDEX).float(),
                    sigma_rgb=self.sigma_rgb,
                    sigma_xy=self.sigma_xy,
                    scale=self.energy_scale,
                    kernel=self.energy_kernel,
                    gradient=self.energy_gradient,
                )
                found["energy"] = self.energy_weight * energy
            return found

        return losses


@dataclass(frozen=True, kw_only=True)
class PredictRrm(PredictMasks):
    """Predict masks with the segmentation branch: one scale, no flip, a CRF."""

    version = 3

    scales: tuple[float, ...] = hp((1.0,), low=0.1, high=4, source="RRM code", report_as="multi_scale")
    flip: bool = hp(False, source="RRM code")
    crf: Literal["none", "deeplab", "rrm_test"] = hp("rrm_test", source="RRM code")
    suppress_absent: bool = hp(
        True, source="docs/methods.md, RRM: classes that are not tagged, in the masks of training images"
    )

    def writer(self, view: SplitView, out: Path) -> WritePrediction:
        """Return the writer of masks; it may use the tags of training images only."""
        return WritePrediction(view, self.crf, out, tagged_only=self.suppress_absent and view.split in TAGGED)


def training_settings(meta: Meta, recipe: Literal["cam", "imagenet"]) -> dict[str, Any]:
    """Return the settings of the joint training for a backbone and a data set's image size."""
    smaller = meta.scaled(321) / 321
    settings: dict[str, Any] = {
        "long_side": meta.size or meta.long_side,
        "crop": meta.scaled(321),
        "dilation": max(1, round(12 * smaller)),
        "sigma_xy": 100 * smaller,
        "energy_weight": 1e-7 / smaller**4,
    }
    if recipe == "imagenet":
        settings |= {
            "crop": meta.scaled(448),
            "scale_low": 1.0,
            "scale_high": 1.0,
            "jitter": True,
            "epochs": 12,
            "batch": 8,
            "head_multiplier": 1.0,
            "biases": "no_decay",
            "weight_decay": 5e-4,
        }
    return settings | training_recipe(TrainRrm, meta, batch=16)


@dataclass(frozen=True)
class Rrm(Method):
    """Reliable Region Mining, one-step; the two-step form adds the ordinary segmentation network."""

    name: str = "rrm"
    paper: str = "Zhang et al., AAAI 2020"
    one_step: bool = True
    fixed_threshold: float = 0.15
    recipe: Literal["cam", "imagenet"] = hp("cam", source="RRM code: train_from_cls_weight or train_from_init")

    def localise(self, meta: Meta) -> list[Stage]:
        """Train the classifier, then both branches; infer maps with one, predict masks with the other."""
        return [
            TrainCam(**self.first_half(meta)),
            TrainRrm(**training_settings(meta, self.recipe)),
            InferCam(**inference_settings(meta)),
            PredictRrm(long_side=meta.size),
        ]

    def first_half(self, meta: Meta) -> dict[str, Any]:
        """Return the settings of the classifier's training."""
        settings = classifier_settings(meta)
        # RRM's rates below are for SGD.
        if self.recipe == "cam" or settings.get("optimiser") == "adamw":
            return settings
        long_side = meta.size or meta.long_side
        own = {"long_side_low": long_side, "long_side_high": long_side, "jitter": True, "freeze_early": False}
        return settings | own | {"epochs": 12, "batch": 8, "lr": 0.01, "crop": meta.scaled(448)}


METHOD = Rrm()
