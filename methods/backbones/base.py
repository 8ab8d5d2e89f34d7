"""What every backbone offers, and how its weights are initialised."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.pipeline.registry import BACKBONES
from seedbed.benchmark.pipeline.stage import Context
from seedbed.benchmark.training.weights_files import WeightsSource, published_weights, read_weights

logger = logging.getLogger(__name__)

Colour = tuple[float, float, float]
IMAGENET_MEAN: Colour = (0.485, 0.456, 0.406)
IMAGENET_STD: Colour = (0.229, 0.224, 0.225)
"""Of RGB in [0, 1], as torchvision and the codes of PSA and IRN have them."""


@dataclass(frozen=True)
class Block:
    """A part of a backbone; its layers belong to the backbone."""

    name: str
    layers: nn.Module
    channels: int
    """Number of output channels."""
    new: bool = False
    """No published weights contain its layers; they learn at the head's rate."""


@dataclass(frozen=True)
class Tap:
    """A feature map that PSA's affinity network reads."""

    block: str
    channels: int
    activation: nn.Module = field(default_factory=nn.Identity)
    """Applied to the block's output; its layers belong to the backbone."""


class Normalise(nn.Module):
    """Images float32 (B, 3, H, W), RGB in 0..255, to what the weights were trained on: (x / 255 − mean) / std."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Colour, std: Colour) -> None:
        super().__init__()
        # Not persistent: a constant of the backbone, and no tensor of a weights file.
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the normalised images."""
        return (images * (1 / 255)).sub_(self.mean).div_(self.std)


class Backbone(nn.Module):
    """Features of an image at one stride.

    `forward` maps images float32 (B, 3, H, W), RGB in 0..255, to (B, `channels`, ⌈H/stride⌉, ⌈W/stride⌉). A
    network that applies the blocks itself applies `normalise` before the first.
    """

    stride: int
    early: tuple[nn.Module, ...] = ()
    """The layers that the published recipes keep frozen when they start from ImageNet weights."""
    frozen_norm: bool = False
    """Keep batch norm in eval mode in training, as published for pretrained weights."""
    frozen_affine: bool = False
    """With `frozen_norm`, do not train scale and shift of batch norm either."""
    normalised_taps: bool = True
    """PSA's affinity network normalises its reduced taps, as published for VGG-16."""

    def __init__(self, mean: Colour = IMAGENET_MEAN, std: Colour = IMAGENET_STD) -> None:
        """Create a backbone whose weights were trained on images with this `mean` and `std` of RGB in [0, 1]."""
        super().__init__()
        self.normalise = Normalise(mean, std)

    @abstractmethod
    def blocks(self) -> list[Block]:
        """Return the parts, at least three; applied one after another they compute the features."""

    @property
    def channels(self) -> int:
        """Number of channels of the features."""
        return self.blocks()[-1].channels

    def affinity_taps(self) -> list[Tap]:
        """Return the three feature maps that PSA's affinity network reads, finest first.

        Called only when that network is built, so it may change dilations.
        """
        return [Tap(block.name, block.channels) for block in self.blocks()[-3:]]

    def drop_channels(self) -> None:
        """Drop whole channels between the new layers, but none of the features: CAM's head drops those."""

    def as_deeplab(self) -> None:
        """Take the dilations and pools of DeepLab-v2's code (kazuto1011/deeplab-pytorch)."""

    def new_layers(self) -> list[nn.Module]:
        """Return the layers that no published weights contain."""
        return [block.layers for block in self.blocks() if block.new]

    def forward(self, images: Tensor) -> Tensor:
        """Return the features."""
        features = self.normalise(images)
        for block in self.blocks():
            features = block.layers(features)
        return features

    def outputs(self, images: Tensor, last: str = "") -> dict[str, Tensor]:
        """Return the output of each block by name, up to the block `last`, or all."""
        outputs, features = {}, self.normalise(images)
        for block in self.blocks():
            features = outputs[block.name] = block.layers(features)
            if block.name == last:
                break
        return outputs

    def train(self, mode: bool = True) -> Backbone:
        """Set the mode of all layers; batch norm stays in eval mode if `frozen_norm`."""
        super().train(mode)
        if self.frozen_norm:
            hold_norm(self)
        return self


def hold_norm(network: nn.Module) -> None:
    """Put batch norm in eval mode, so that its statistics stay those of the weights file."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


@dataclass(frozen=True)
class BackboneFamily:
    """A backbone by name: the object `BACKBONE` of a file in this folder."""

    name: str
    paper: str
    build: Callable[[int], Backbone]
    """Builds a randomly initialised backbone for a stride."""
    strides: tuple[int, ...]
    """The strides that `build` accepts; the first is the default."""
    classifier: tuple[str, ...] = ()
    """Prefixes of the ImageNet classifier's tensors in a weights file; these tensors are ignored."""
    imagenet: str | WeightsSource | None = None
    """The name of torchvision's weights (downloaded on first use), or others; None if there are none."""
    coco: str | None = None
    """Name of torchvision's DeepLabV3 weights for this backbone, trained on COCO's masks; None if none exist."""
    fc6: bool = False
    """Whether it ends in fc6 and fc7, and has `dilate_fc6`."""
    prefix: str = ""
    """What the names of the backbone's tensors have before the names in a weights file."""

    def published(self, weights: Literal["imagenet", "coco"]) -> str | WeightsSource:
        """Return where published weights are. Raises ConfigError if the backbone has none."""
        names = {"imagenet": self.imagenet, "coco": self.coco}
        if (name := names[weights]) is None:
            title = {"imagenet": "ImageNet", "coco": "COCO"}[weights]
            valid = ", ".join(["none", *(known for known in names if names[known])])
            raise ConfigError(
                f"backbone {self.name!r} has no {title} weights. Valid: {valid}, or a state-dict file"
            )
        return name

    def check_weights(self, weights: str, files: Mapping[str, Path]) -> None:
        """Raise what `initialise` or, for `coco`, `initialise_from_coco` would raise, in little time."""
        if weights != "none":
            coco = weights == "coco"
            found = _coco_weights(self.name) if coco else _weights(self.name, weights, files, lambda _: None)
            with torch.device("meta"):
                backbone = self.build(self.strides[0])
            fitting(backbone, self.name, *found)


@dataclass(frozen=True)
class BackboneCollection:
    """Backbones `COLLECTION:NAME` of a library: the object `BACKBONE_COLLECTION` of a file in this folder."""

    name: str
    member: Callable[[str], BackboneFamily]
    """Returns the backbone of a NAME. Raises ConfigError if there is none."""


def build_backbone(name: str, stride: int, pretrained: bool) -> Backbone:
    """Build a randomly initialised backbone. `pretrained` freezes its batch norm as published.

    Raises ConfigError for an unknown name or a stride that the backbone does not have.
    """
    family: BackboneFamily = BACKBONES.load(name)
    if stride not in family.strides:
        raise ConfigError(
            f"backbone {name!r} has no stride {stride}. Valid: {', '.join(map(str, family.strides))}"
        )
    backbone = family.build(stride)
    backbone.frozen_norm = pretrained
    if pretrained and backbone.frozen_affine:
        freeze_affine(backbone)
    return backbone


def freeze_affine(network: nn.Module) -> None:
    """Do not train scale and shift of batch norm."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)


def initialise(backbone: Backbone, name: str, weights: str, ctx: Context) -> None:
    """Fill a backbone from `weights`: `none`, `imagenet` (the published ones), or `sha256:…` of a state-dict file.

    Raises ConfigError, naming the tensors, if the weights do not exist for this backbone or do not fit it.
    """
    if weights != "none":
        state, source = _weights(name, weights, ctx.weights_files or {}, logger.info)
        backbone.load_state_dict(fitting(backbone, name, state, source), strict=False)


def initialise_from_coco(backbone: Backbone, name: str) -> None:
    """Fill a backbone from torchvision's DeepLabV3, trained on COCO's masks of VOC's classes.

    That is pixel-level supervision, so only a segmentation network may use it. The classifiers are left out.
    Raises ConfigError if there are no such weights for this backbone.
    """
    state, source = _coco_weights(name)
    backbone.load_state_dict(fitting(backbone, name, state, source), strict=False)


def fitting(backbone: Backbone, name: str, state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return the tensors of a weights file that fill a backbone: all except the classifier's.

    Raises ConfigError, naming the tensors, if some are missing, unknown, of another shape, or not finite.
    """
    family: BackboneFamily = BACKBONES.load(name)
    wanted = {name: tensor for name, tensor in state.items() if not name.startswith(family.classifier)}
    new = {id(p) for layers in backbone.new_layers() for p in layers.parameters()}
    named = {name.removeprefix(family.prefix): p for name, p in backbone.named_parameters()}
    filled_later = {name for name, p in named.items() if id(p) in new}
    own = {name.removeprefix(family.prefix): tensor for name, tensor in backbone.state_dict().items()}
    missing = sorted(n for n in own if n not in wanted and n not in filled_later)
    missing = [n for n in missing if not n.endswith("num_batches_tracked")]
    unknown = sorted(n for n in wanted if n not in own)
    reshaped = sorted(n for n in wanted if n in own and wanted[n].shape != own[n].shape)
    broken = sorted(n for n, tensor in wanted.items() if not tensor.isfinite().all())
    if missing or unknown or reshaped or broken:
        parts = (
            ("missing", missing),
            ("unknown", unknown),
            ("of another shape", reshaped),
            ("with NaN or infinity", broken),
        )
        listed = "; ".join(f"{what}: {_few(names)}" for what, names in parts if names)
        raise ConfigError(f"{source}: does not fit the backbone {family.name!r} ({listed})")
    return {f"{family.prefix}{name}": tensor for name, tensor in wanted.items()}


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _weights(
    name: str, weights: str, files: Mapping[str, Path], say: Callable[[str], object]
) -> tuple[Mapping[str, Tensor], str]:
    """Return the tensors of weights by name, and the name of their source."""
    family: BackboneFamily = BACKBONES.load(name)
    if weights == "imagenet":
        source = family.published("imagenet")
        return published_weights(source), str(source)
    if (path := files.get(weights)) is None:
        raise ConfigError(
            f"the file of the weights {weights!r} is not known; give it with --weights or --segmentation-weights"
        )
    return read_weights(path, say), str(path)


def _coco_weights(name: str) -> tuple[Mapping[str, Tensor], str]:
    source, prefix = BACKBONES.load(name).published("coco"), "backbone."
    state = published_weights(source)
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}, str(source)
