"""Mixup-CAM: a CAM classifier trained on mixed images, with two regularisers of its uncertainty.

Paper: Chang et al., "Mixup-CAM: Weakly-supervised Semantic Segmentation via Uncertainty Regularization",
BMVC 2020; chapter 2 of Yu-Ting Chang's thesis, whose numbering is used here. There is no authors' code.

Equation 2.2 mixes pairs of images and their tags; 2.3 lowers the entropy of the classes at each location; 2.4
concentrates the map of each class; 2.5 adds them up. A weight of 0 switches its part off, which gives the
rows of Table 2.1. Network and inference are CAM's.

Open in the paper, with the choice made:
- 2.2: one λ per batch, mixed after augmentation, in every batch; the partners are a permutation of the batch.
- 2.3: "normalise by the maximum": of the image, over classes and locations, and constant for the gradient.
- 2.4: distances in cells of the features; the classes of both images count, for every λ.
- λ_ent is 0.02 in the text and 0.2 under Figure 2.5: 0.02. Crop and epochs: those of SC-CAM, by the same author.

Departures, all of them settings:
- The optimiser is SGD with the recipe of SC-CAM's code, whose paper has the same sentence about Adam with 1e-3
  (`optimiser=adam`, `lr=0.001`). The head is PSA's: SC-CAM's code has no 3×3 convolution of 512 channels either.
- Backbones other than the published ResNet-38 train by CAM's recipe, `tiny` three times as long: in 12 epochs
  it learns too little from mixed images. λ_con is scaled with the area of the features, so that the term is as
  large as on the 28 × 28 cells of the published crop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import torch
import torch.nn.functional as F
from optuna.distributions import FloatDistribution
from torch import Tensor
from torch.distributions import Beta

from seedbed.benchmark.evaluation.records import Record, write_records
from seedbed.benchmark.evaluation.stages import RECORDS_FILE
from seedbed.benchmark.pipeline.hparams import hp
from seedbed.benchmark.pipeline.stage import Context, Kind, Meta, Method, Stage
from seedbed.benchmark.training.checkpoint import load_network
from seedbed.benchmark.training.inference import multi_scale, one_value_per
from seedbed.benchmark.training.loop import Batch
from seedbed.datasets.base import Dataset
from seedbed.methods.cam import (
    CamNetwork,
    InferCam,
    TrainCam,
    classifier_settings,
    inference_settings,
    multi_label_soft_margin,
)

CELLS = 28
"""Rows and columns of the features of the published crop: 224 pixels at stride 8."""


@dataclass(frozen=True, kw_only=True)
class TrainMixupCam(TrainCam):
    """Train CAM's classifier on mixed images of `weak` (Equation 2.5).

    Reports the classification loss, the weighted regularisers, and `entropy` and `concentration`, the unweighted
    regularisers, even if these are switched off.
    """

    version = 4
    measured = ("entropy", "concentration")

    epochs: int = hp(61, low=1, high=10_000, source="SC-CAM code; not in the paper")
    optimiser: Literal["sgd", "adam", "adamw"] = hp("sgd", source="SC-CAM code; paper, Section 2.3.3: Adam")
    lr: float = hp(
        0.01,
        FloatDistribution(1e-5, 1.0, log=True),
        low=0,
        high=100,
        source="SC-CAM code; paper, Section 2.3.3: 1e-3",
    )
    crop: int = hp(224, low=8, high=4096, source="SC-CAM code, in pixels of a 500-pixel image")
    alpha: float = hp(
        0.2,
        FloatDistribution(0.05, 1.0),
        low=0,
        high=100,
        source="Section 2.3.3: λ ~ Beta(alpha, alpha); 0: no mixup",
    )
    entropy_weight: float = hp(
        0.02, FloatDistribution(2e-3, 2.0, log=True), low=0, high=1000, source="Section 2.3.3: λ_ent"
    )
    concentration_weight: float = hp(
        2e-4, FloatDistribution(2e-5, 2e-1, log=True), low=0, high=1000, source="Section 2.3.3: λ_con"
    )

    def losses(self, network: CamNetwork, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of a mixed batch, and the unweighted regularisers."""
        images, tags = mixup(batch["image"], batch["tags"], self.alpha)
        logits = network.locations(images)
        regularisers = {"entropy": class_entropy(logits), "concentration": concentration(logits, tags)}
        weights = {"entropy": self.entropy_weight, "concentration": self.concentration_weight}
        return {
            "classification": multi_label_soft_margin(logits.mean((2, 3)), tags),
            **{f"weighted_{name}": weights[name] * regularisers[name] for name in weights if weights[name] > 0},
            **regularisers,
        }


def mixup(images: Tensor, tags: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Return λI₁ + (1 − λ)I₂ and the tags mixed in the same way (Equation 2.2), λ ~ Beta(alpha, alpha).

    `images` is (B, 3, H, W), `tags` (B, C). The partners I₂ are the batch in another order. Order and λ come from
    torch's CPU generator on every device, one λ per batch. With `alpha` 0 nothing is drawn and nothing mixed.
    """
    if alpha == 0:
        return images, tags
    share = float(Beta(alpha, alpha).sample())
    partners = torch.randperm(len(images)).to(images.device, non_blocking=True)
    return mixed(images, partners, share), mixed(tags, partners, share)


def mixed(values: Tensor, partners: Tensor, share: float) -> Tensor:
    """Return `share` of each value (B, …) and the rest of its partner, an index (B,)."""
    return share * values + (1 - share) * values[partners]


def class_entropy(logits: Tensor) -> Tensor:
    """Return the entropy of the classes, mean over locations and images, of logits (B, C, h, w) (Equation 2.3).

    The distribution at a location is the softmax over classes of p / max p, where p = σ(logit) and the maximum is
    over classes and locations of the image, a constant for the gradient. In nats. The inputs of softmax lie in
    [0, 1], so the range is narrow: [2.8725, 2.9957] for 20 classes.
    """
    log_p = F.logsigmoid(logits.float())
    relative = (log_p - log_p.detach().amax((1, 2, 3), keepdim=True)).exp()
    log_q = relative.log_softmax(1)
    return -(log_q.exp() * log_q).sum(1).mean()


def concentration(logits: Tensor, tags: Tensor) -> Tensor:
    """Return how far the maps spread, summed over tagged classes, mean over images (Equation 2.4).

    `logits` is (B, C, h, w), `tags` (B, C); a class counts if its tag is above 0. Its map ReLU(logit), divided
    by the sum + 1e-5, is a distribution of locations. Its variance is in squared cells: (h² + w² − 2) / 12 for a
    uniform map, 0 for a single location.
    """
    maps = logits.float().relu()
    maps = maps / (maps.sum((2, 3), keepdim=True) + 1e-5)
    rows = torch.arange(maps.shape[2], device=maps.device)[:, None]
    columns = torch.arange(maps.shape[3], device=maps.device)
    row = (rows * maps).sum((2, 3), keepdim=True)
    column = (columns * maps).sum((2, 3), keepdim=True)
    variances = (((rows - row) ** 2 + (columns - column) ** 2) * maps).sum((2, 3))
    return (variances * (tags > 0)).sum(1).mean()


@dataclass(frozen=True, kw_only=True)
class MeasureUncertainty(Stage):
    """Measure what the regularisers act on, for unmixed images at one scale."""

    version = 3
    consumes = (Kind.CHECKPOINT,)
    produces = Kind.RECORDS
    seeded = False

    long_side: int = hp(0, low=0, high=4096, source="longer image side in pixels; 0 is the image's own")

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write two means over images, as shares of the value of a uniform distribution.

        `class_entropy` is Equation 2.3 divided by log C. `spread` is Equation 2.4 divided by the value of a
        uniform map, mean over the classes of the image.
        """
        network = cast(CamNetwork, load_network(inputs[Kind.CHECKPOINT], ctx.device))
        view = data.split(ctx.split)
        stride = network.backbone.stride
        entropies, spreads = [], []
        for image_id, logits in multi_scale(
            network.locations,
            view,
            scales=(1.0,),
            flip=False,
            long_side=self.long_side,
            grid=one_value_per(stride),
            ctx=ctx,
            label="MeasureUncertainty",
        ):
            classes, height, width = logits.shape
            entropies.append(float(class_entropy(logits[None])) / math.log(classes))
            labels = view.tags(image_id)
            if labels and height * width > 1:
                tags = torch.zeros(1, classes, device=logits.device)
                tags[0, [label - 1 for label in labels]] = 1
                uniform = (height**2 + width**2 - 2) / 12
                spreads.append(float(concentration(logits[None], tags)) / (len(labels) * uniform))
        found = (("class_entropy", entropies), ("spread", spreads))
        write_records(
            out / RECORDS_FILE,
            [
                Record("seed", str(ctx.split), metric, "none", None, math.fsum(values) / len(values), len(values))
                for metric, values in found
            ],
        )


@dataclass(frozen=True)
class MixupCam(Method):
    """Mixup, with regularisers for low class entropy and concentrated maps."""

    name: str = "mixup_cam"
    paper: str = "Chang et al., BMVC 2020"
    one_step: bool = False
    fixed_threshold: float = 0.15

    def localise(self, meta: Meta) -> list[Stage]:
        """Train the classifier on mixed images, then infer its maps as CAM does."""
        train = TrainMixupCam(**classifier_settings(meta, TrainMixupCam))
        scaled = train.concentration_weight * (CELLS * train.stride / train.crop) ** 2
        return [replace(train, concentration_weight=scaled), InferCam(**inference_settings(meta))]

    def measurements(self, meta: Meta) -> list[Stage]:
        """Measure what the regularisers act on."""
        return [MeasureUncertainty(long_side=meta.size)]


METHOD = MixupCam()
