"""ESOL: the offsets of deformable convolutions first grow a trained classifier's maps, then shrink them.

Paper: Li et al., "Expansion and Shrinkage of Localization for Weakly-Supervised Semantic Segmentation", NeurIPS
2022. Its repository has no code.

Three trainings, each from the network of the one before:
- classifier: CAM with two more convolutions before the pooling (Section 4.1);
- Expansion: the first of them becomes deformable (Equation 4) and its output is clipped (Equation 7); its
  offsets maximise the classification loss (Equation 5);
- Shrinkage: the second becomes deformable; its offsets minimise classification loss and area (Equation 6).
Offsets start at zero, where a deformable convolution is the plain one, so Shrinkage starts as Expansion ends.
`Esol.until` ends the chain earlier. Rows of Table 6 and axes of Figure 6 are settings (docs/methods.md, ESOL).

Open in the paper, with the choice made:
- The convolutions ("3×3 or 1×1": `kernel`) keep the number of channels, have no bias, are followed by ReLU each,
  and start as the identity with a little noise (`noise`). They learn at the head's rate, and so do offsets.
- Equation 7: the maximum of each image and channel over the locations, a constant for the gradient.
- Equation 6: P is a probability, as in CLIMS, which it cites, or the map of Equation 2 (`area`).
- α is 0.001 in Section 4.1 and 0.01 in 4.3.1 (`alpha`): 0.001.
- What Shrinkage trains (`trained`): only the offsets. But Table 6 has two numbers without its offsets, with and
  without the area loss, so something else must have been trained there.
- Optimiser, weight decay and augmentation: as in IRN, whose classifier it uses.
- How pseudo-masks and saliency maps are combined (Table 4; `Esol.saliency`): methods/common/saliency_masks.py.

Departures, all of them settings: backbones other than the published ResNet-50 train the classifier by CAM's
recipe; methods/backbones/tiny.py has the further recipes of `tiny`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from optuna.distributions import FloatDistribution
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from seedbed.benchmark.pipeline.hparams import hp
from seedbed.benchmark.pipeline.stage import Context, Kind, Meta, Method, Stage
from seedbed.benchmark.training.checkpoint import load_network, save_network
from seedbed.benchmark.training.loop import Batch, ParameterGroup, fit
from seedbed.datasets.base import Dataset
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
from seedbed.methods.common.saliency_masks import SaliencyMasks

Phase = Literal["classifier", "expansion", "shrinkage"]
PHASES: tuple[Phase, ...] = ("classifier", "expansion", "shrinkage")


class SamplingConvolution(nn.Module):
    """A convolution that can be deformable: (B, F, h, w) → (B, F, h, w), without bias (Equations 3 and 4).

    The offsets of its samples are a convolution of the same features with a kernel of the same size. Its weights
    start as the identity, the offsets at zero.
    """

    def __init__(self, channels: int, kernel: int, deformable: bool) -> None:
        super().__init__()
        self.deformable = deformable
        self.padding = kernel // 2
        self.convolution = nn.Conv2d(channels, channels, kernel, padding=self.padding, bias=False)
        self.offsets = nn.Conv2d(channels, 2 * kernel**2, kernel, padding=self.padding)
        nn.init.dirac_(self.convolution.weight)
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(cast(Tensor, self.offsets.bias))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output, and the offsets in cells, float32 (B, 2 · kernel², h, w).

        The row and the column of the kernel's first sample come first. A plain convolution returns a single 0.
        """
        if not self.deformable:
            return self.convolution(features), features.new_zeros(())
        # Always float32: bfloat16 would round a position of 30.1 cells to 30.
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            offsets = self.offsets(features)
            sampled = deform_conv2d(features, offsets, self.convolution.weight, padding=self.padding)
        return sampled, offsets


class EsolNetwork(CamNetwork):
    """CAM's network with two sampling convolutions between backbone and pooling, in one of three phases.

    Backbone → expansion → ReLU → clipping at `clip` → shrinkage → ReLU → dropout → classifier. The phase
    decides which convolutions are deformable; a state dict fits every phase. After the classifier's phase the
    network stays in eval mode in training.
    """

    def __init__(
        self,
        backbone: str,
        classes: int,
        stride: int,
        dropout: float,
        pretrained: bool,
        kernel: int,
        phase: Phase = "classifier",
        clip: float = 1.0,
    ) -> None:
        super().__init__(backbone, classes, stride, dropout, pretrained)
        self.arguments |= {"kernel": kernel, "phase": phase, "clip": clip}
        self.phase, self.clip = phase, clip
        channels = self.backbone.channels
        self.expansion = SamplingConvolution(channels, kernel, deformable=phase != "classifier")
        self.shrinkage = SamplingConvolution(channels, kernel, deformable=phase == "shrinkage")

    def locations(self, images: Tensor) -> Tensor:
        """Return the class logits at each location (B, C, h, w)."""
        return self.sampled(images)[0]

    def maps(self, images: Tensor) -> Tensor:
        """Return localisation maps (B, C, h, w), unnormalised, at least 0."""
        return self.locations(images).relu()

    def sampled(self, images: Tensor) -> tuple[Tensor, dict[Phase, Tensor]]:
        """Return the class logits at each location, and the offsets of both convolutions by their phase."""
        features, expanding = self.expansion(self.backbone(images))
        features, shrinking = self.shrinkage(clipped(features.relu(), self.clip))
        logits: Tensor = self.classifier(self.dropout(features.relu()))
        return logits, {"expansion": expanding, "shrinkage": shrinking}

    def train(self, mode: bool = True) -> EsolNetwork:
        """Set the mode of all layers, in the classifier's phase."""
        super().train(mode and self.phase == "classifier")
        return self

    def entering(self, phase: Phase, clip: float) -> EsolNetwork:
        """Return a frozen copy in another phase, in eval mode."""
        arguments: dict[str, Any] = {**self.arguments, "phase": phase, "clip": clip}
        copy = EsolNetwork(**arguments)
        copy.load_state_dict(self.state_dict())
        return copy.requires_grad_(False).eval()


def clipped(features: Tensor, share: float) -> Tensor:
    """Return min(x, share · max x) of features (B, F, h, w), with the maximum over locations (Equation 7).

    The maximum is a constant for the gradient, which is 0 where features are clipped. A share of 1 clips nothing.
    """
    return features.clamp(max=share * features.detach().amax((2, 3), keepdim=True))


def area_loss(logits: Tensor, area: Literal["sigmoid", "cam"]) -> Tensor:
    """Return the mean of the maps P over locations, all classes and images, in [0, 1] (Equation 6).

    `logits` is (B, C, h, w). P is σ(logit), or ReLU(logit) divided by its maximum over locations + 1e-5
    (Equation 2); the gradient goes through that maximum too.
    """
    if area == "sigmoid":
        return logits.float().sigmoid().mean()
    maps = logits.float().relu()
    return (maps / (maps.amax((2, 3), keepdim=True) + 1e-5)).mean()


@dataclass(frozen=True, kw_only=True)
class TrainEsolClassifier(TrainCam):
    """Train CAM's classifier with two more convolutions (Section 4.1)."""

    version = 3

    kernel: Literal[3, 1] = hp(3, source="Section 4.1: 3×3 or 1×1")
    noise: float = hp(0.1, low=0, high=10, source="not in the paper: beside the identity, of weight · √inputs")

    def network(self, classes: int, inputs: Mapping[Kind, Path]) -> EsolNetwork:
        """Return a randomly initialised network."""
        pretrained = self.weights != "none"
        network = EsolNetwork(self.backbone, classes, self.stride, self.dropout, pretrained, self.kernel)
        for layer in (network.expansion, network.shrinkage):
            layer.offsets.requires_grad_(False)
            weight = layer.convolution.weight.data
            weight += self.noise * torch.randn_like(weight) / weight[0].numel() ** 0.5
        return network


@dataclass(frozen=True, kw_only=True)
class OffsetTraining(TagTraining):
    """Train the offsets of one phase's convolution, from the network of the phase before.

    Reports `classification`, the unweighted loss, and `offset`, the mean absolute offset in cells. Near 0 the
    training did nothing; beyond the size of the map the samples are zeros, which maximise the classification
    loss trivially.
    """

    consumes = (Kind.CHECKPOINT,)
    measured: ClassVar[tuple[str, ...]] = ("classification", "offset")
    phase: ClassVar[Phase]

    epochs: int = hp(10, low=1, high=10_000, source="Section 4.1: 6,610 iterations; with batch 16")
    weight_decay: float = hp(
        1e-4, FloatDistribution(1e-6, 1e-2, log=True), low=0, high=1, source="IRN code; not in the paper"
    )
    head_multiplier: float = hp(10.0, low=0, high=1000, source="IRN code: new layers; not in the paper")
    deform: bool = hp(True, source="Table 6: DT_e of Expand, DT_s of Shrink; false: offsets stay zero")

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write the network of this phase."""
        network = self.enter(cast(EsolNetwork, load_network(inputs[Kind.CHECKPOINT])))
        learning = self.learning(network)
        groups = [ParameterGroup(list(layer.parameters()), self.head_multiplier) for layer in learning]

        def losses(batch: Batch, _: float) -> dict[str, Tensor]:
            return self.losses(network, batch)

        if groups:
            fit(network, losses, self.examples(data, inputs, ctx), groups, self, out, ctx)
        save_network(out, network)

    def enter(self, network: EsolNetwork) -> EsolNetwork:
        """Return the previous phase's network in this phase; only what learns has `requires_grad`."""
        network = network.entering(self.phase, self.clipping(network))
        for layer in self.learning(network):
            layer.requires_grad_(True)
        return network

    def losses(self, network: EsolNetwork, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of this phase, and the values that are only measured, by name."""
        logits, offsets = network.sampled(batch["image"])
        classification = multi_label_soft_margin(logits.mean((2, 3)), batch["tags"])
        return {
            **self.objective(logits, classification),
            "classification": classification,
            "offset": offsets[self.phase].abs().mean(),
        }

    @abstractmethod
    def clipping(self, network: EsolNetwork) -> float:
        """Return the share at which this phase clips; `network` is that of the previous phase."""

    @abstractmethod
    def learning(self, network: EsolNetwork) -> list[nn.Module]:
        """Return the layers that learn; none if this phase leaves the weights as they are."""

    @abstractmethod
    def objective(self, logits: Tensor, classification: Tensor) -> dict[str, Tensor]:
        """Return the loss of this phase by name, from logits (B, C, h, w) and their classification loss."""


@dataclass(frozen=True, kw_only=True)
class Expand(OffsetTraining):
    """Clip, and train the first convolution's offsets to maximise the classification loss (Equations 4, 5, 7)."""

    version = 3
    phase = "expansion"

    lr: float = hp(
        0.01, FloatDistribution(1e-5, 1.0, log=True), low=0, high=100, source="Section 4.1; 0.001 for COCO"
    )
    alpha: float = hp(
        0.001,
        FloatDistribution(1e-3, 1.0, log=True),
        low=0,
        high=1000,
        source="Equation 5: α; Section 4.1; 0.01 in Section 4.3.1; Figure 6 (a)",
    )
    clip: float = hp(
        0.15,
        FloatDistribution(0.05, 1.0),
        low=0,
        high=1,
        source="Equation 7: β; Section 4.1; Figure 6 (b); 1: no clipping (Table 6: FL)",
    )

    def clipping(self, network: EsolNetwork) -> float:
        """Return β."""
        return self.clip

    def learning(self, network: EsolNetwork) -> list[nn.Module]:
        """Return the offsets of the first convolution."""
        return [network.expansion.offsets] if self.deform else []

    def objective(self, logits: Tensor, classification: Tensor) -> dict[str, Tensor]:
        """Return −α · classification loss (Equation 5)."""
        return {"expansion": -self.alpha * classification}


@dataclass(frozen=True, kw_only=True)
class Shrink(OffsetTraining):
    """Train the second convolution's offsets to minimise classification loss and area (Equation 6)."""

    version = 3
    measured = (*OffsetTraining.measured, "area")
    phase = "shrinkage"

    lr: float = hp(
        0.1, FloatDistribution(1e-5, 1.0, log=True), low=0, high=100, source="Section 4.1; 0.02 for COCO"
    )
    classification_weight: float = hp(
        1.0, FloatDistribution(0.1, 5.0), low=0, high=1000, source="Equation 6: γ; Section 4.1; Figure 6 (c, d)"
    )
    area_weight: float = hp(
        1.0,
        FloatDistribution(0.01, 1.5),
        low=0,
        high=1000,
        source="Equation 6: μ; Section 4.1; Figure 6 (c, d); 0: no area loss (Table 6)",
    )
    area: Literal["sigmoid", "cam"] = hp("sigmoid", source="Equation 6: P of CLIMS; cam: of Equation 2")
    trained: Literal["offsets", "head"] = hp(
        "offsets", source="Section 3.3 does not say; head: the convolution's weights and the classifier too"
    )

    def clipping(self, network: EsolNetwork) -> float:
        """Return the share of Expansion."""
        return network.clip

    def learning(self, network: EsolNetwork) -> list[nn.Module]:
        """Return the offsets of the second convolution, and the layers that `trained` adds."""
        head = [network.shrinkage.convolution, network.classifier] if self.trained == "head" else []
        return [*([network.shrinkage.offsets] if self.deform else []), *head]

    def objective(self, logits: Tensor, classification: Tensor) -> dict[str, Tensor]:
        """Return γ · classification loss + μ · area (Equation 6), and the area."""
        area = area_loss(logits, self.area)
        return {"shrinkage": self.classification_weight * classification + self.area_weight * area, "area": area}


@dataclass(frozen=True)
class Esol(Method):
    """Expansion and Shrinkage with Offset Learning."""

    name: str = "esol"
    paper: str = "Li et al., NeurIPS 2022"
    one_step: bool = False
    fixed_threshold: float = 0.15

    until: Literal["classifier", "expansion", "shrinkage"] = hp(
        "shrinkage", source="Table 6, Figure 3: the phase whose network makes the maps"
    )
    saliency: bool = hp(False, source="Table 4: the pseudo-masks are combined with the data set's saliency maps")

    def localise(self, meta: Meta) -> list[Stage]:
        """Train the classifier, then the offsets of each convolution, and infer the last network's maps."""
        settings = classifier_settings(meta, TrainEsolClassifier)
        images = {name: settings[name] for name in (*SIZES, "jitter") if name in settings}
        trainings: list[Stage] = [
            TrainEsolClassifier(**settings),
            Expand(**images | recipe_of(Expand, meta.backbone)),
            Shrink(**images | recipe_of(Shrink, meta.backbone)),
        ]
        return [*trainings[: PHASES.index(self.until) + 1], InferCam(**inference_settings(meta))]

    def on_masks(self, meta: Meta) -> list[Stage]:
        """Combine the refiner's masks with saliency maps if `saliency`."""
        return [SaliencyMasks()] if self.saliency else []


METHOD = Esol()
