"""Convolutional networks of the library timm, for example `timm:mobilenetv3_large_100`, at stride 16 or 8.

`timm:NAME` is timm's `create_model(NAME, features_only=True, output_stride=…)` (Wightman, "PyTorch Image Models",
2019), with the mean and deviation of its weights. Its layers are cut into blocks that end where timm has features;
those after the last feature are left out. Tensors have the names of timm's weights files. All blocks but the last
two are the early layers. NAME may have the tag of the weights: `timm:convnext_tiny.fb_in1k`.

Departure: images are padded at the bottom and right to a multiple of the stride, so that features have the size
⌈size/stride⌉ in networks that round down.
"""

from __future__ import annotations

import difflib
import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.training.weights_files import first_line
from seedbed.methods.backbones.base import Backbone, BackboneCollection, BackboneFamily, Block

STRIDES = (16, 8)
PREFIX = "network."
WORKING = ("resnet18", "mobilenetv3_large_100", "tf_efficientnet_lite0", "convnext_tiny", "regnety_004")
"""Examples for the refusal of a model; tests compare their features with timm's."""


@dataclass(frozen=True)
class Plan:
    """How a model of timm becomes a backbone of one stride."""

    features_only: bool
    """Whether it is built so: timm has the model in two classes, of which only this one accepts a stride."""
    blocks: tuple[tuple[str, ...], ...]
    """Names of the layers of each block."""
    channels: tuple[int, ...]
    """Number of output channels of each block."""


class Pad(nn.Module):
    """Features (B, C, H, W) to a height and a width that are multiples of `multiple`, by zeros."""

    def __init__(self, multiple: int) -> None:
        super().__init__()
        self.multiple = multiple

    def forward(self, x: Tensor) -> Tensor:
        """Return the features with zeros at the bottom and right."""
        rows, columns = (-side % self.multiple for side in x.shape[-2:])
        return F.pad(x, (0, columns, 0, rows)) if rows or columns else x


class TimmBackbone(Backbone):
    """(B, 3, H, W) → (B, D, ⌈H/stride⌉, ⌈W/stride⌉), D the channels of the model's last feature."""

    def __init__(self, name: str, plan: Plan, stride: int) -> None:
        configuration = _timm().get_pretrained_cfg(name)
        super().__init__(configuration.mean, configuration.std)
        self.stride, self.plan = stride, plan
        self.network = _model(name, plan.features_only, stride)
        self.pad = Pad(stride)
        _keep(self.network, {layer for block in plan.blocks for layer in block})
        self.early = tuple(map(self.network.get_submodule, itertools.chain(*plan.blocks[:-2])))

    def blocks(self) -> list[Block]:
        """Return the layers up to each feature."""
        found = []
        for number, (names, channels) in enumerate(zip(self.plan.blocks, self.plan.channels, strict=True)):
            layers = [self.network.get_submodule(name) for name in names]
            first = [self.pad] if number == 0 else []
            found.append(Block(names[-1], nn.Sequential(*first, *layers), channels))
        return found


@dataclass(frozen=True)
class HubWeights:
    """The weights of a model on timm's hub, downloaded on first use."""

    name: str

    def __str__(self) -> str:
        return f"timm/{self.name}"

    def read(self) -> Mapping[str, Tensor]:
        """Return the tensors by name. Raises ConfigError, with the ways out, if they cannot be downloaded."""
        try:
            # The layers are initialised before they are filled, which must not change a training's random numbers.
            with torch.random.fork_rng(devices=[]):
                return _timm().create_model(self.name, pretrained=True).state_dict()
        except Exception as error:
            raise ConfigError(
                f"the weights {self} cannot be read from timm's hub ({first_line(error)}); give them as "
                "--weights FILE, or use --weights none"
            ) from None


@functools.cache
def member(name: str) -> BackboneFamily:
    """Return the backbone `timm:NAME`.

    Raises ConfigError if timm is not installed or has no such model, or if the model is not a chain of layers that
    keeps a stride of 16 or 8.
    """
    timm = _timm()
    known = {*timm.list_models(), *timm.list_models(pretrained=True, include_tags=True)}
    if name not in known:
        close = difflib.get_close_matches(name, sorted(known), n=3)
        hint = f" Did you mean {' or '.join(f'timm:{other}' for other in close)}?" if close else ""
        raise ConfigError(f"timm {timm.__version__} has no model {name!r}.{hint} All: timm.list_models()")
    plans, problem = {}, ""
    for stride in STRIDES:
        try:
            with torch.device("meta"):
                plans[stride] = _plan(name, stride)
        except Exception as error:
            problem = problem or first_line(error)
    if not plans:
        examples = ", ".join(f"timm:{example}" for example in WORKING)
        raise ConfigError(
            f"timm's model {name!r} cannot be a backbone: it must be a convolutional network that accepts timm's "
            f"output_stride and features_only, such as {examples} ({problem})"
        )
    stride, plan = next(iter(plans.items()))
    with torch.device("meta"):
        kept = TimmBackbone(name, plan, stride).network.state_dict()
        dropped = timm.create_model(name).state_dict().keys() - kept.keys()
    return BackboneFamily(
        name=f"timm:{name}",
        paper="Wightman, PyTorch Image Models, 2019",
        build=lambda stride: TimmBackbone(name, plans[stride], stride),
        strides=tuple(plans),
        classifier=tuple(sorted(dropped)),
        imagenet=HubWeights(name) if timm.get_pretrained_cfg(name).has_weights else None,
        prefix=PREFIX,
    )


BACKBONE_COLLECTION = BackboneCollection(name="timm", member=member)


def _timm() -> ModuleType:
    try:
        import timm
    except ImportError:
        raise ConfigError("timm is not installed: pip install 'seedbed[timm]'") from None
    return timm


def _model(name: str, features_only: bool, stride: int) -> nn.Module:
    return _timm().create_model(name, output_stride=stride, **({"features_only": True} if features_only else {}))


def _plan(name: str, stride: int) -> Plan:
    """Return the plan of a model, on the meta device. Raises an error of any kind if there is none."""
    from timm.models import FeatureListNet
    from timm.models.efficientnet import EfficientNetFeatures
    from timm.models.mobilenetv3 import MobileNetV3Features

    features = _model(name, True, stride)
    # A FeatureListNet applies the layers of the model one after another, but has other names for them.
    features_only = not isinstance(features, FeatureListNet)
    if features_only and not isinstance(features, EfficientNetFeatures | MobileNetV3Features):
        raise ValueError(f"its layers do not follow one another (timm uses {type(features).__name__})")
    info: Any = features.feature_info
    ends = info.module_name()
    blocks: list[list[str]] = [[]]
    for layer in _layers(features if features_only else _model(name, False, stride), ends):
        blocks[-1].append(layer)
        if layer == ends[len(blocks) - 1]:
            if len(blocks) == len(ends):
                break
            blocks.append([])
    plan = Plan(features_only, tuple(map(tuple, blocks)), tuple(info.channels()))
    if len(ends) < 3 or len(blocks) < len(ends):
        raise ValueError(f"it has too few features in the order of its layers: {', '.join(ends)}")
    outputs = TimmBackbone(name, plan, stride).eval().outputs(torch.zeros(1, 3, 65, 96))
    shapes, size = [tuple(output.shape) for output in outputs.values()], (-(-65 // stride), -(-96 // stride))
    if [shape[:2] for shape in shapes] != [(1, channels) for channels in plan.channels] or shapes[-1][2:] != size:
        raise ValueError(f"its features have the shapes {shapes} for an image of 65 × 96")
    return plan


def _layers(network: nn.Module, ends: list[str], before: str = "") -> Iterator[str]:
    """Yield the names of the layers in order, with those inside a Sequential that has features inside."""
    for name, child in network.named_children():
        path = before + name
        if path not in ends and any(end.startswith(f"{path}.") for end in ends):
            if not isinstance(child, nn.Sequential):
                raise ValueError(f"it has features inside its layer {path}")
            yield from _layers(child, ends, f"{path}.")
        else:
            yield path


def _keep(network: nn.Module, layers: set[str], before: str = "") -> None:
    """Remove all other layers."""
    for name, child in list(network.named_children()):
        path = before + name
        if any(layer.startswith(f"{path}.") for layer in layers):
            _keep(child, layers, f"{path}.")
        elif path not in layers:
            delattr(network, name)
