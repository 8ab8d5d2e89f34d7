"""ResNet-38 (Wu et al., 2016), wide and pre-activated, at stride 8, as PSA, SC-CAM and RRM use it.

Paper: Wu, Shen, van den Hengel, "Wider or Deeper: Revisiting the ResNet Model for Visual Recognition",
arXiv 1611.10080, model A1. Strides, dilations, dropout and tensor names are those of PSA's code, so PSA's
converted weights fit. With pretrained weights batch norm keeps its statistics, scale and shift.

torchvision has no weights of it. `seedbed weights convert` makes them from the file that Wu et al. published
for MXNet (`from_mxnet`). This was not tried on the file itself: the names come from PSA's converter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from seedbed.benchmark.errors import ConfigError
from seedbed.methods.backbones.base import Backbone, BackboneFamily, Block, Tap
from seedbed.methods.common.recipes import Recipe

WIDTHS = (64, 128, 256, 512, 1024, 2048, 4096)
"""Channels after conv1a and after the blocks b2 … b7."""


class Residual(nn.Module):
    """Two 3×3 convolutions, each after batch norm and ReLU; (B, before, H, W) → (B, after, ⌈H/s⌉, ⌈W/s⌉).

    If the shape changes, the shortcut is a 1×1 convolution of the activated input, else the input itself.
    The first convolution has the stride s and the dilation `first`, the second the dilation `second`.
    """

    def __init__(self, before: int, between: int, after: int, stride: int, first: int, second: int) -> None:
        super().__init__()
        self.bn_branch2a = nn.BatchNorm2d(before)
        self.conv_branch2a = _convolution(before, between, 3, stride, first)
        self.bn_branch2b1 = nn.BatchNorm2d(between)
        self.conv_branch2b1 = _convolution(between, after, 3, dilation=second)
        self.conv_branch1 = _shortcut(before, after, stride)

    def forward(self, features: Tensor) -> Tensor:
        activated = self.bn_branch2a(features).relu()
        branch = self.conv_branch2a(activated)
        branch = self.conv_branch2b1(self.bn_branch2b1(branch).relu())
        shortcut: Tensor = features if self.conv_branch1 is None else self.conv_branch1(activated)
        return shortcut + branch


class Bottleneck(nn.Module):
    """1×1, dilated 3×3 and 1×1 convolution; (B, before, H, W) → (B, after, H, W).

    Each convolution follows batch norm and ReLU, the second and the third also a dropout of channels.
    """

    def __init__(self, before: int, after: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.bn_branch2a = nn.BatchNorm2d(before)
        self.conv_branch2a = _convolution(before, after // 4, 1)
        self.bn_branch2b1 = nn.BatchNorm2d(after // 4)
        self.conv_branch2b1 = _convolution(after // 4, after // 2, 3, dilation=dilation)
        self.bn_branch2b2 = nn.BatchNorm2d(after // 2)
        self.conv_branch2b2 = _convolution(after // 2, after, 1)
        self.conv_branch1 = _convolution(before, after, 1)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, features: Tensor) -> Tensor:
        activated = self.bn_branch2a(features).relu()
        branch = self.conv_branch2a(activated)
        branch = self.conv_branch2b1(self.dropout(self.bn_branch2b1(branch).relu()))
        branch = self.conv_branch2b2(self.dropout(self.bn_branch2b2(branch).relu()))
        shortcut: Tensor = self.conv_branch1(activated)
        return shortcut + branch


class ResNet38(Backbone):
    """(B, 3, H, W) → (B, 4096, ⌈H/8⌉, ⌈W/8⌉).

    PSA's and SC-CAM's codes freeze conv1a and b2 (`early`), RRM's only batch norm.
    """

    frozen_affine = True
    normalised_taps = False

    def __init__(self, stride: int, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        self.stride, self.widths = stride, widths
        stem, two, three, four, five, six, seven = widths
        self.conv1a = _convolution(3, stem, 3)
        self.early = (self.conv1a, *self._add_blocks(2, 3, stem, two, two, stride=2))
        self._add_blocks(3, 3, two, three, three, stride=2)
        self._add_blocks(4, 6, three, four, four, stride=2)
        self._add_blocks(5, 3, four, five // 2, five, dilation=2)
        self.b6 = Bottleneck(five, six, dilation=4, dropout=0.3)
        self.b7 = Bottleneck(six, seven, dilation=4, dropout=0.5)
        self.bn7 = nn.BatchNorm2d(seven)

    def _add_blocks(
        self, number: int, count: int, before: int, between: int, after: int, stride: int = 1, dilation: int = 1
    ) -> list[nn.Module]:
        """Add the blocks bN, bN_1, … and return them. The very first convolution is not dilated."""
        blocks = [Residual(before, between, after, stride, 1, dilation)]
        blocks += [Residual(after, between, after, 1, dilation, dilation) for _ in range(count - 1)]
        for i, block in enumerate(blocks):
            self.add_module(f"b{number}_{i}" if i else f"b{number}", block)
        return list(blocks)

    def blocks(self) -> list[Block]:
        """Return conv1a and b2 to b7, the last with the batch norm and ReLU after it."""
        parts = []
        for number, width in zip(range(2, 8), self.widths[1:], strict=True):
            layers = [layer for name, layer in self.named_children() if name.partition("_")[0] == f"b{number}"]
            parts.append(Block(f"b{number}", nn.Sequential(*layers), width))
        parts[-1] = Block("b7", nn.Sequential(self.b7, self.bn7, nn.ReLU()), self.widths[-1])
        return [Block("conv1a", self.conv1a, self.widths[0]), *parts]

    def affinity_taps(self) -> list[Tap]:
        """Return the activated inputs of b5 and b6, and the features (PSA's code)."""
        five, six = (nn.Sequential(self.get_submodule(f"{name}.bn_branch2a"), nn.ReLU()) for name in ("b5", "b6"))
        return [Tap("b4", self.widths[3], five), Tap("b5", self.widths[4], six), Tap("b7", self.widths[-1])]


def _convolution(before: int, after: int, size: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, size, stride, padding=size // 2 * dilation, dilation=dilation, bias=False)


def _shortcut(before: int, after: int, stride: int) -> nn.Conv2d | None:
    return None if before == after and stride == 1 else _convolution(before, after, 1, stride)


MXNET_NAME = re.compile(r"(?:arg|aux):(\w+?)_(weight|gamma|beta|moving_mean|moving_var)")
MXNET_BLOCK = re.compile(r"(res|bn)(\d)(?:a|b(\d+))_(branch\w+)")
TENSORS = {
    "weight": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_var": "running_var",
}
"""MXNet's names of the tensors of convolutions and of batch norm, and torch's."""


def torch_name(name: str) -> str:
    """Return the `ResNet38` name of a tensor of the MXNet file; names of other forms are returned unchanged.

    arg:conv1a_weight               conv1a.weight
    arg:res2a_branch1_weight        b2.conv_branch1.weight
    arg:res4b3_branch2b1_weight     b4_3.conv_branch2b1.weight
    arg:bn6a_branch2b2_gamma, beta  b6.bn_branch2b2.weight, bias
    aux:bn7_moving_mean, _var       bn7.running_mean, running_var
    """
    found = MXNET_NAME.fullmatch(name)
    if found is None:
        return name
    layer, tensor = found.groups()
    if block := MXNET_BLOCK.fullmatch(layer):
        kind, number, repeat, branch = block.groups()
        place = f"b{number}_{repeat}" if repeat else f"b{number}"
        layer = f"{place}.{'conv' if kind == 'res' else 'bn'}_{branch}"
    return f"{layer}.{TENSORS[tensor]}"


def from_mxnet(arrays: Mapping[str, NDArray[np.generic]], source: str) -> dict[str, Tensor]:
    """Return the state dict of a `ResNet38` from the tensors of the MXNet file `source`, without the classifier.

    Raises ConfigError, naming the tensors, if some are missing or do not belong to it.
    """
    state = {
        torch_name(name): torch.from_numpy(array)
        for name, array in arrays.items()
        if not name.startswith("arg:linear1000_")
    }
    with torch.device("meta"):
        wanted = {name for name in ResNet38(stride=8).state_dict() if not name.endswith("num_batches_tracked")}
    parts = (("missing", sorted(wanted - state.keys())), ("unknown", sorted(state.keys() - wanted)))
    if faults := [f"{what}: {', '.join(names[:5])}" for what, names in parts if names]:
        raise ConfigError(f"{source}: not the ImageNet weights of ResNet-38 ({'; '.join(faults)})")
    return state


RECIPES = {
    "TrainCam": Recipe("PSA code", epochs=15, lr=0.01, biases="psa", stride=8),
    # 61 epochs of crops of 224 show as many pixels as 15 of 448.
    "TrainMixupCam": Recipe("SC-CAM code, by the same author", epochs=61, crop=224),
    "TrainSubcategories": Recipe("SC-CAM code", epochs=61, crop=224),
    "TrainSeam": Recipe("SEAM's code", epochs=8, batch=8, long_side_low=448, long_side_high=768),
    "InferAdvCam": Recipe("as the author remembers (AdvCAM's repository, issue 7)", steps=8, mask_weight=2.0),
    "TrainRrm": Recipe("RRM code"),
    "TrainIcd": Recipe("no published recipe: as VGG-16"),
    "TrainSplittingMerging": Recipe("no published recipe: as VGG-16"),
    "TrainPsa": Recipe("SEAM's code; at PSA's 0.1 it does not learn", lr=0.01),
    "TrainIrn": Recipe("no published recipe: as ResNet-50"),
    "TrainSegmentation": Recipe("no published recipe: as ResNet-101"),
}

BACKBONE = BackboneFamily(name="resnet38", paper="Wider or Deeper, arXiv 1611.10080", build=ResNet38, strides=(8,))
