"""ICD: an intra-class discriminator separates foreground and background within each image-level class.

Paper: Fan et al., "Learning Integral Objects with Intra-Class Discriminator for Weakly-Supervised Semantic
Segmentation", CVPR 2020; the authors' code is for MXNet. docs/methods.md, ICD, has the details.

f = BN(ReLU(conv5)), batch norm without scale and shift. Ŝ_c = w_c·f, w_c a unit vector (Eq. 2, 3). L_bu = −mean
(w_c·f)² on images of one class (Eq. 1) turns w_c so that it separates foreground and background; it trains only
w_c. S_c = ±Ŝ_c, with the sign for which the CAM is higher on the positive side, by running means (Eq. 4, 5). S′: S
over superpixels. L_td: sigmoid cross entropy of the top-down logits S″, computed from f, fc6(f) and fc7(fc6(f)),
against [S′ > 0] (section 4.3). Loss: L_cam + L_bu + L_td (Eq. 13). Seeds: S″ at threshold 0 (methods/icd/maps.py).

Paper and code differ; the choices are settings of `TrainIcd`:
- L_bu: at the code's learning rate its gradient is that of 5 × L_bu (`bottom_up_weight`; paper: 10).
- The code lets a superpixel vote and gives it to one class; the paper averages (`refinement`).
- L_td ignores scores near 0 (`ignored_band`; paper: 0).
- fc6 and fc7 of the top-down branch start as copies of pretrained ones (`copy_fc`; in the paper they are new).
- The shift of the batch norm is 0, as in the paper; the code learns it. The running means are over the images of
  the class (code), not over all images (Eq. 4).

Departures:
- torchvision's VGG-16 has no fc6 and fc7 of this form: they are new in both branches unless a weights file has
  them.
- Inputs are normalised by ImageNet's mean and standard deviation; the code subtracts 127.
- Backbones without fc6 and fc7: the classifier is on the last block, and the top-down branch has new layers.
- `tiny` and `squeezenet` have no published recipe and use CAM's, with its crop size. The narrow new layers
  of `tiny` start from N(0, 0.1): with 0.01 its maps end below CAM's (docs/results/chimera.md).
- Images are not padded to 513 pixels for inference: ⌈H/8⌉ × ⌈W/8⌉ cells span the image, not 65 × 65 the canvas.
- Maps are stored in cells of 4 pixels (`InferIcd.cell`; 1 is the code's full size).
- On smaller images (or with `--size`) the crop is 8n + 1 pixels, like 321.
- Superpixels are resized with their image by the pixel at the centre; OpenCV's nearest, as in the code, takes one
  up to half a pixel further up and left.
- With saliency maps (`Icd.saliency`) no seed pixel is undefined (methods/icd/maps.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from optuna.distributions import FloatDistribution
from torch import Tensor, nn

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.pipeline.hparams import hp
from seedbed.benchmark.pipeline.registry import BACKBONES
from seedbed.benchmark.pipeline.stage import Context, Kind, Meta, Method, Stage
from seedbed.benchmark.training.augmentation import scaled_crops
from seedbed.benchmark.training.checkpoint import save_network
from seedbed.benchmark.training.examples import Examples
from seedbed.benchmark.training.loop import Batch, TrainingStage, fit, parameter_groups
from seedbed.benchmark.training.reproducibility import derive_seed
from seedbed.datasets.base import Dataset, Split
from seedbed.methods.backbones.base import build_backbone, initialise
from seedbed.methods.common.recipes import check_stride, stride_of, training_recipe
from seedbed.methods.icd.losses import (
    BottomUpForm,
    Refinement,
    bottom_up_loss,
    cam_loss,
    membership,
    refine,
    top_down_loss,
    warm_up,
)
from seedbed.methods.icd.maps import InferIcd, InferIcdWithSaliency, MeasureIcd
from seedbed.methods.icd.superpixels import ComputeSuperpixels
from seedbed.methods.segmentation.stages import PseudoMasks

Source = Literal["conv4", "conv5", "fc6", "concat"]
Structure = Literal["a", "b", "c", "d"]


class Branches(NamedTuple):
    """Outputs of an ICD network, each (B, C, h, w)."""

    cam: Tensor
    """Class logits before pooling."""
    bottom_up: Tensor
    """Ŝ, before its sign is chosen."""
    top_down: Tensor
    """Logits S″."""


class IcdNetwork(nn.Module):
    """CAM branch, and ICD branch on batch-normalised features of the same backbone.

    `source` says which features: of the last pretrained block (`conv5`), the one before (`conv4`), the first new
    one (`fc6`, of the CAM branch), or all of them (Table 5). `structure` is that of the top-down branch (Table
    6): its logits are computed from f (a), fc7 (b), f with fc6 and fc7 (c), or f with those of the CAM branch (d).
    Raises ConfigError for `fc6` and `d` on a backbone without fc6 and fc7.
    """

    cam_means: Tensor
    """(2, C): running means of the CAM over positive and over negative Ŝ."""

    def __init__(
        self,
        backbone: str,
        classes: int,
        stride: int,
        pretrained: bool,
        pools: bool,
        source: Source,
        structure: Structure,
        width: int,
        deviation: float = 0.01,
    ) -> None:
        super().__init__()
        self.arguments = {
            "backbone": backbone,
            "classes": classes,
            "stride": stride,
            "pretrained": pretrained,
            "pools": pools,
            "source": source,
            "structure": structure,
            "width": width,
        }
        self.backbone = build_backbone(backbone, stride, pretrained)
        blocks = self.backbone.blocks()
        old, new = [b for b in blocks if not b.new], [b for b in blocks if b.new]
        if not new and (source == "fc6" or structure == "d"):
            raise ConfigError(f"backbone {backbone!r} has no fc6 and fc7, which source fc6 and structure d need")
        sources = {"conv4": old[-2:-1], "conv5": old[-1:], "fc6": new[:1], "concat": [*old[-2:], *new[:1]]}[source]
        channels = sum(block.channels for block in sources)
        shared = [block for block in new if structure == "d"]
        self.structure, self.last = structure, old[-1].name
        self.sources, self.shared = [b.name for b in sources], [b.name for b in shared]
        pooling = (nn.MaxPool2d(3, 1, padding=1), nn.AvgPool2d(3, 1, padding=1)) if pools else ()
        self.pool = nn.Sequential(*pooling)
        self.classifier = nn.Conv2d(self.backbone.channels, classes, 1)
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.direction = nn.Parameter(torch.empty(classes, channels))
        # Not inside ReLU's sequence: fc6 and fc7 are outputs, and copies of the backbone's are loaded into them.
        layers = [nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, width, 1)]
        self.fc = nn.ModuleList(layers if structure in ("b", "c") else ())
        outputs = {"a": channels, "b": width, "c": channels + 2 * width}.get(structure, channels)
        self.head = nn.Conv2d(outputs + sum(b.channels for b in shared), classes, 1, bias=False)
        self.register_buffer("cam_means", torch.zeros(2, classes))
        for layer in (self.classifier, *self.fc, self.head, *self.backbone.new_layers()):
            for module in layer.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.normal_(module.weight, std=deviation)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
        nn.init.normal_(self.direction, std=deviation)

    def forward(self, images: Tensor) -> Tensor:
        """Return class logits (B, C) of the CAM branch for images (B, 3, H, W), RGB in 0..255."""
        return self.branches(images).cam.mean((2, 3))

    def branches(self, images: Tensor) -> Branches:
        """Return the outputs of both branches for images (B, 3, H, W), RGB in 0..255."""
        outputs, features = {}, self.backbone.normalise(images)
        for block in self.backbone.blocks():
            features = outputs[block.name] = block.layers(features)
            if block.name == self.last:
                features = self.pool(features)
        size = outputs[self.last].shape[-2:]
        normed: Tensor = self.norm(torch.cat([_resized(outputs[name].relu(), size) for name in self.sources], 1))
        # L_bu must not reach the features.
        bottom_up = F.conv2d(normed.detach(), F.normalize(self.direction)[:, :, None, None])
        hidden = [normed]
        for layer in self.fc:
            hidden.append(layer(hidden[-1]).relu())
        used = hidden[-1:] if self.structure == "b" else hidden
        top_down = self.head(torch.cat([*used, *(outputs[name] for name in self.shared)], 1))
        return Branches(self.classifier(features), bottom_up, top_down)

    @torch.no_grad()
    def watch(self, branches: Branches, tags: Tensor, momentum: float) -> None:
        """Update the running means of the CAM's positive part over the two sides of each class present (Eq. 4).

        The mean of a batch is over its images that have the class, tags (B, C); an empty side counts as 0.
        """
        cam, images = branches.cam.float().relu(), tags.sum(0)
        for means, side in zip(self.cam_means, (branches.bottom_up > 0, branches.bottom_up < 0), strict=True):
            by_image = (cam * side).sum((2, 3)) / side.sum((2, 3)).clamp(min=1)
            batch = (by_image * tags).sum(0) / images.clamp(min=1)
            means.copy_(torch.where(images > 0, momentum * means + (1 - momentum) * batch, means))

    def signed(self, bottom_up: Tensor) -> Tensor:
        """Return S (Eq. 5), without gradient: Ŝ with the sign that is positive on the side of the higher CAM."""
        positive, negative = self.cam_means
        return bottom_up.detach() * torch.where(positive >= negative, 1.0, -1.0)[:, None, None]


def _resized(features: Tensor, size: torch.Size) -> Tensor:
    if features.shape[-2:] == size:
        return features
    return F.interpolate(features, size, mode="bilinear", align_corners=False)


@dataclass(frozen=True, kw_only=True)
class TrainIcd(TrainingStage):
    """Train CAM and ICD together on the tags and superpixels of `weak`."""

    version = 3
    consumes = (Kind.SUPERPIXELS,)
    produces = Kind.CHECKPOINT

    epochs: int = hp(20, low=1, high=10_000, source="ICD, section 5.2")
    batch: int = hp(32, low=1, high=4096, source="ICD, section 5.2; batch norm learns badly from 4 (authors)")
    lr: float = hp(1e-3, FloatDistribution(1e-5, 1e-1, log=True), low=0, high=100, source="ICD, section 5.2")
    momentum: float = hp(0.9, low=0, high=0.9999, source="ICD, section 5.2")
    decay_every: Literal["step", "epoch"] = hp("epoch", source="ICD, section 5.2")
    biases: Literal["as_weights", "no_decay", "psa"] = hp("no_decay", source="ICD code")

    backbone: str = hp("vgg16", source="--backbone")
    weights: str = hp("imagenet", source="--weights")
    stride: int = hp(8, low=8, high=16, source="ICD, section 5.2")
    scales: tuple[float, ...] = hp(
        (0.5, 0.75, 1.0, 1.25, 1.5), low=0.1, high=4, source="ICD code", report_as="multi_scale"
    )
    long_side: int = hp(0, low=0, high=4096, source="--size: longer side in pixels at scale 1; 0 is the image's")
    crop: int = hp(321, low=8, high=4096, source="ICD, section 5.2, in pixels of a 500-pixel image")

    pools: bool = hp(True, source="ICD code: 3×3 maximum and average pool before fc6 of the CAM branch")
    source: Source = hp("conv5", source="ICD, Table 5")
    structure: Structure = hp("c", source="ICD, Table 6")
    width: int = hp(1024, low=1, high=8192, source="ICD, section 5.2: channels of fc6 and fc7")
    deviation: float = hp(0.01, low=0, high=1, source="ICD code: new layers start from N(0, 0.01)")
    copy_fc: bool = hp(True, source="ICD code: fc6 and fc7 start as the CAM branch's, where those are pretrained")
    bottom_up: BottomUpForm = hp("squared", source="ICD, Table 4")
    bottom_up_weight: float = hp(5.0, FloatDistribution(0.5, 50, log=True), low=0, high=1000, source="ICD code")
    sign_momentum: float = hp(0.9, low=0, high=1, source="ICD, section 4.2")
    refinement: Refinement = hp("vote", source="ICD code; mean: section 4.3; none: Table 3")
    ignored_band: float = hp(0.2, FloatDistribution(0.0, 0.5), low=0, high=1, source="ICD code; 0: section 4.3")
    warm_up_epochs: float = hp(2.0, low=0, high=1000, source="ICD, section 5.2")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_stride("TrainIcd.stride", self.backbone, self.stride)

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write the trained IcdNetwork. Raises ConfigError if the backbone lacks a layer."""
        torch.manual_seed(derive_seed(ctx.seed, "TrainIcd", "initialisation"))
        network = IcdNetwork(
            self.backbone,
            len(data.classes),
            self.stride,
            pretrained=self.weights != "none",
            pools=self.pools,
            source=self.source,
            structure=self.structure,
            width=self.width,
            deviation=self.deviation,
        )
        new = self.initialise(network, ctx)
        view = data.split(Split.WEAK)
        examples = Examples(
            view,
            scaled_crops(self.scales, self.long_side, self.crop),
            seed=ctx.seed,
            masks=PseudoMasks(inputs[Kind.SUPERPIXELS]),
        )
        losses = partial(self.losses, network)
        fit(network, losses, examples, parameter_groups(network, new, self), self, out, ctx)
        save_network(out, network)

    def initialise(self, network: IcdNetwork, ctx: Context) -> list[nn.Module]:
        """Fill the network from the weights and return its new layers: heads, and fc6 and fc7 if not filled."""
        fully_connected = network.backbone.new_layers()
        before = [p.clone() for layers in fully_connected for p in layers.parameters()]
        initialise(network.backbone, self.backbone, self.weights, ctx)
        after = [p for layers in fully_connected for p in layers.parameters()]
        filled = any(not torch.equal(*pair) for pair in zip(before, after, strict=True))
        heads: list[nn.Module] = [network.classifier, network.head]
        if not filled:
            return [*heads, *fully_connected, *network.fc]
        if not self.copy_fc:
            return [*heads, *network.fc]
        for own, layers in zip(network.fc, fully_connected, strict=False):
            own.load_state_dict(next(m for m in layers.modules() if isinstance(m, nn.Conv2d)).state_dict())
        return heads

    def losses(self, network: IcdNetwork, batch: Batch, time: float) -> dict[str, Tensor]:
        """Return L_cam, L_bu and L_td of a batch, weighted, `time` epochs after the start."""
        tags = batch["tags"]
        branches = network.branches(batch["image"])
        network.watch(branches, tags, self.sign_momentum)
        members = membership(batch["mask"], (branches.cam.shape[2], branches.cam.shape[3]))
        refined = refine(network.signed(branches.bottom_up), tags, members, self.refinement)
        top_down = top_down_loss(branches.top_down, refined, tags, self.ignored_band)
        return {
            "cam": cam_loss(branches.cam.mean((2, 3)), tags),
            "bottom_up": self.bottom_up_weight * bottom_up_loss(branches.bottom_up, tags, self.bottom_up),
            "top_down": warm_up(time, self.warm_up_epochs) * top_down,
        }


def training_settings(meta: Meta) -> dict[str, Any]:
    """Return the settings of TrainIcd for a backbone and a data set's image size."""
    settings = {"crop": 321, "stride": stride_of(meta.backbone, 8)} | training_recipe(TrainIcd, meta, batch=16)
    # Like 321 = 40·8 + 1: cell i of the crop's grid lies on its pixel i·stride (icd_losses.membership).
    stride = settings["stride"]
    settings["crop"] = meta.scaled(settings["crop"] // stride * stride, multiple=stride) + 1
    settings["pools"] = BACKBONES.load(meta.backbone).fc6
    return {"backbone": meta.backbone, "weights": meta.weights, "long_side": meta.size, **settings}


@dataclass(frozen=True)
class Icd(Method):
    """CAM and an intra-class discriminator, trained together."""

    name: str = "icd"
    paper: str = "Fan et al., CVPR 2020"
    one_step: bool = False
    fixed_threshold: float = 0.0
    saliency: bool = hp(False, source="ICD, section 5.6 and code: the data set's saliency maps tell background")

    def localise(self, meta: Meta) -> list[Stage]:
        """Compute superpixels, train, infer."""
        training = training_settings(meta)
        shown = {name: training[name] for name in ("backbone", "weights", "stride", "long_side")}
        features = {"features": "colour"} if meta.weights == "none" else shown
        infer = InferIcdWithSaliency if self.saliency else InferIcd
        return [ComputeSuperpixels(**features), TrainIcd(**training), infer(long_side=meta.size)]

    def measurements(self, meta: Meta) -> list[Stage]:
        """Measure what the paper's Tables 1 to 3 compare."""
        return [MeasureIcd(long_side=meta.size)]


METHOD = Icd()
