"""ReCAM: a second classifier, trained by softmax cross entropy on what each class's CAM covers, makes better maps.

Paper: Chen et al., "Class Re-Activation Maps for Weakly-Supervised Semantic Segmentation", CVPR 2022; the authors'
code (PyTorch). The equations are those of the code, which agrees with the paper's abstract and Figure 3. The other
pages of the paper were not compared, so no equation or table has its number here.

Two trainings. The first is CAM, with classifier w. The second goes on from its network, with a new classifier v.
Of an image with features f and K classes:

    M_c = ReLU(w_c · f) / (maximum + 1e-5)              the CAM of class c, from the weights of this step
    f_c = mean over locations of M_c ⊗ f                the features of class c alone
    L_sce = −(1/K) Σ_c log softmax(v · f_c)_c           over the K classes; mean over the batch
    L = L_bce + λ L_sce                                 L_bce is CAM's loss
    ReCAM_c = ReLU((w_c ⊗ v_c) · f)                     inferred as CAM's maps (`InferReCam.combination`)

Choices where paper and code differ, or the code has two ways (docs/methods.md, ReCAM):
- The maps are those of w ⊗ v for VOC and of w for COCO in the code, of v in the abstract: `combination`.
- The gradient of L_sce also reaches w and the features through M (code; `through_mask`).
- All of the backbone learns in Figure 3, all but the first convolution and its norm in the code: `frozen`.
- An image without a class counts as 0 in the mean of L_sce, as in the code.

Departures, all of them settings:
- The first training is this project's CAM, as IRN's code has it; in the authors' code layer1 and layer2 learn too.
- `combination=sum` is not in the code. It adds weights of length 1, so that both classifiers count alike.
- VGG-16 and ResNet-38 have no published recipe and use that of ResNet-50. Backbones whose CAM trains by AdamW go
  on with it at CAM's rates. The recipe of `tiny` has a constant mask and the maps of v.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution
from torch import Tensor, nn

from seedbed.benchmark.pipeline.hparams import hp
from seedbed.benchmark.pipeline.stage import Context, Kind, Meta, Method, Stage
from seedbed.benchmark.training.checkpoint import load_network, save_network
from seedbed.benchmark.training.loop import Batch, fit, parameter_groups
from seedbed.benchmark.training.reproducibility import derive_seed
from seedbed.datasets.base import Dataset
from seedbed.methods.backbones.base import Backbone
from seedbed.methods.cam import (
    SIZES,
    CamNetwork,
    InferCam,
    TagTraining,
    TrainCam,
    classifier_settings,
    inference_settings,
    multi_label_soft_margin,
)
from seedbed.methods.common.recipes import recipe_of

Combination = Literal["product", "sum", "first", "second"]


class ReCamNetwork(CamNetwork):
    """CAM's network with a second classifier, for features that a CAM has masked."""

    def __init__(self, backbone: str, classes: int, stride: int, dropout: float, pretrained: bool) -> None:
        super().__init__(backbone, classes, stride, dropout, pretrained)
        self.second = nn.Linear(self.backbone.channels, classes, bias=False)

    @classmethod
    def after(cls, cam: CamNetwork) -> ReCamNetwork:
        """Return CAM's network with a second classifier at torch's random start."""
        arguments: dict[str, Any] = cam.arguments
        network = cls(**arguments)
        network.load_state_dict({**network.state_dict(), **cam.state_dict()})
        return network

    def both(self, images: Tensor, through_mask: bool) -> tuple[Tensor, Tensor]:
        """Return the first classifier's logits (B, C), and the second's of the masked features (B, C, C).

        `second[b, c]` are the logits of image b's features masked by its CAM of class c.
        """
        features = self.dropout(self.backbone(images))
        locations = self.classifier(features)
        masked = masked_features(features, locations, through_mask)
        return locations.mean((2, 3)), self.second(masked)

    def combined(self, combination: Combination) -> CamNetwork:
        """Return a CAM network with the weights of both classifiers in one (`combined_weights`)."""
        arguments: dict[str, Any] = self.arguments
        network = CamNetwork(**arguments)
        state = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("second.")}
        first = state["classifier.weight"][:, :, 0, 0]
        state["classifier.weight"] = combined_weights(first, self.second.weight, combination)[:, :, None, None]
        network.load_state_dict(state)
        return network


def masked_features(features: Tensor, locations: Tensor, through_mask: bool = True) -> Tensor:
    """Return the mean over locations of features times each class's CAM, (B, C, F).

    `features` is (B, F, h, w). `locations` are the logits there (B, C, h, w); ReLU of them, divided by the maximum
    of image and class + 1e-5, is the mask. Without `through_mask` the mask is a constant for the gradient.
    """
    masks = locations.relu()
    masks = masks / (masks.amax((2, 3), keepdim=True) + 1e-5)
    if not through_mask:
        masks = masks.detach()
    return torch.einsum("bchw,bfhw->bcf", masks, features) / masks[0, 0].numel()


def softmax_cross_entropy(logits: Tensor, tags: Tensor) -> Tensor:
    """Return −log softmax(logits[b, c])_c, mean over the classes c of an image, then over images.

    `logits` is (B, C, C), `tags` (B, C) of 0 and 1. An image without a class counts as 0. In nats.
    """
    log_p = logits.float().log_softmax(2).diagonal(dim1=1, dim2=2)
    return -((log_p * tags).sum(1) / tags.sum(1).clamp(min=1)).mean()


def combined_weights(first: Tensor, second: Tensor, combination: Combination) -> Tensor:
    """Return one weight per class and channel, (C, F), from those of both classifiers.

    `product` and `sum` are elementwise; for the sum the weights of each class first get length 1. The lengths
    do not matter for the product, since maps are divided by their maximum.
    """
    if combination == "product":
        return first * second
    if combination == "sum":
        return nn.functional.normalize(first, dim=1) + nn.functional.normalize(second, dim=1)
    return first if combination == "first" else second


@dataclass(frozen=True, kw_only=True)
class TrainReCam(TagTraining):
    """Go on with CAM's network, and train a second classifier on the features that each class's CAM masks.

    Reports the classification loss, the weighted softmax cross entropy (`reactivation`), and `accuracy`, the share
    of masked features whose class the second classifier gives the highest logit.
    """

    version = 1
    consumes = (Kind.CHECKPOINT,)
    measured = ("accuracy",)

    epochs: int = hp(4, low=1, high=10_000, source="authors' code")
    lr: float = hp(
        5e-5,
        FloatDistribution(1e-6, 1e-1, log=True),
        low=0,
        high=100,
        source="authors' code: 0.1 · 5e-4, for the backbone and the first classifier",
    )
    head_multiplier: float = hp(10.0, low=0, high=1000, source="authors' code: 5e-4 for the second classifier")
    weight_decay: float = hp(1e-4, FloatDistribution(1e-6, 1e-2, log=True), low=0, high=1, source="authors' code")
    long_side_low: int = hp(320, low=8, high=4096, source="authors' code, in pixels of a 500-pixel image")
    long_side_high: int = hp(640, low=8, high=4096, source="authors' code, in pixels of a 500-pixel image")
    crop: int = hp(512, low=8, high=4096, source="authors' code, in pixels of a 500-pixel image")
    jitter: bool = hp(False, source="authors' code: none")
    reactivation_weight: float = hp(
        1.0,
        FloatDistribution(0.05, 2.0, log=True),
        low=0,
        high=1000,
        source="authors' code: λ; 0.1 for COCO; 0: CAM's training goes on",
    )
    through_mask: bool = hp(True, source="authors' code; false: the mask is a constant for the gradient")
    frozen: Literal["stem", "early", "none"] = hp(
        "stem", source="authors' code: conv1 and its norm; none: Figure 3; early: what CAM freezes"
    )

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write the network with both classifiers."""
        torch.manual_seed(derive_seed(ctx.seed, "TrainReCam", "initialisation"))
        network = ReCamNetwork.after(cast(CamNetwork, load_network(inputs[Kind.CHECKPOINT])))
        for module in self.frozen_layers(network.backbone):
            module.requires_grad_(False)

        def losses(batch: Batch, _: float) -> dict[str, Tensor]:
            return self.losses(network, batch)

        groups = parameter_groups(network, [network.second], self)
        fit(network, losses, self.examples(data, inputs, ctx), groups, self, out, ctx)
        save_network(out, network)

    def frozen_layers(self, backbone: Backbone) -> tuple[nn.Module, ...]:
        """Return the layers that do not learn."""
        if self.frozen == "stem":
            return (backbone.blocks()[0].layers,)
        return backbone.early if self.frozen == "early" else ()

    def losses(self, network: ReCamNetwork, batch: Batch) -> dict[str, Tensor]:
        """Return L_bce, λ L_sce, and the second classifier's accuracy."""
        tags = batch["tags"]
        first, second = network.both(batch["image"], self.through_mask)
        right = second.argmax(2) == torch.arange(second.shape[1], device=second.device)
        return {
            "classification": multi_label_soft_margin(first, tags),
            "reactivation": self.reactivation_weight * softmax_cross_entropy(second, tags),
            "accuracy": (right * tags).sum() / tags.sum().clamp(min=1),
        }


@dataclass(frozen=True, kw_only=True)
class InferReCam(InferCam):
    """CAM's inference, with the weights of both classifiers in one."""

    version = 1

    combination: Combination = hp(
        "product",
        CategoricalDistribution(("product", "sum", "first", "second")),
        source="authors' code for VOC; first: for COCO; second: abstract; sum: not in the code",
    )

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write the maps of the context's split."""
        network = cast(ReCamNetwork, load_network(inputs[Kind.CHECKPOINT]))
        save_network(ctx.scratch, network.combined(self.combination))
        super().run(data, {Kind.CHECKPOINT: ctx.scratch}, out, ctx)


def reactivation_settings(cam: TrainCam) -> dict[str, Any]:
    """Return the settings of the second training after `cam`, before the recipes for TrainReCam."""
    settings = {name: getattr(cam, name) for name in (*SIZES, "jitter", "batch")}
    if cam.optimiser == "sgd":
        return settings
    rates = ("optimiser", "lr", "head_multiplier", "weight_decay", "biases")
    return settings | {name: getattr(cam, name) for name in rates}


@dataclass(frozen=True)
class ReCam(Method):
    """CAM, reactivated by a second classifier that tells the classes apart."""

    name: str = "recam"
    paper: str = "Chen et al., CVPR 2022"
    one_step: bool = False
    fixed_threshold: float = 0.21

    def localise(self, meta: Meta) -> list[Stage]:
        """Train CAM's classifier, go on with a second one, and infer the maps of both."""
        cam = TrainCam(**classifier_settings(meta))
        second = TrainReCam(**reactivation_settings(cam) | recipe_of(TrainReCam, meta.backbone))
        inference = inference_settings(meta) | recipe_of(InferReCam, meta.backbone)
        return [cam, second, InferReCam(**inference)]


METHOD = ReCam()
