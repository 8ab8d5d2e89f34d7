"""The segmentation networks: DeepLab with ASPP on any backbone, and DeepLab-LargeFOV on VGG-16.

Papers: Chen et al., "DeepLab" (v2), TPAMI 2018 (ASPP); Chen et al., "Semantic Image Segmentation with Deep
Convolutional Nets and Fully Connected CRFs", ICLR 2015 (LargeFOV). The paper of LargeFOV does not name the 3×3
average after pool5; the authors' network file has it, and so does this one.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn

from seedbed.methods.backbones.base import build_backbone
from seedbed.methods.backbones.vgg16 import Vgg16

Dilations = Literal["deeplab", "torchvision"]


class DeepLab(nn.Module):
    """Backbone and atrous spatial pyramid pooling: the sum of dilated 3×3 convolutions (DeepLab-v2).

    `dilations` are those of a ResNet's first blocks at stride 8 (methods/backbones/resnet.py). Networks saved
    without this argument have torchvision's.
    """

    def __init__(
        self,
        backbone: str,
        classes: int,
        stride: int,
        rates: tuple[int, ...],
        pretrained: bool,
        dilations: Dilations = "torchvision",
    ) -> None:
        super().__init__()
        self.arguments = {
            "backbone": backbone,
            "classes": classes,
            "stride": stride,
            "rates": list(rates),
            "pretrained": pretrained,
            "dilations": dilations,
        }
        self.backbone = build_backbone(backbone, stride, pretrained)
        if dilations == "deeplab":
            self.backbone.as_deeplab()
        self.aspp = nn.ModuleList(
            nn.Conv2d(self.backbone.channels, classes + 1, 3, padding=rate, dilation=rate) for rate in rates
        )
        for branch in self.aspp:
            _draw(cast(nn.Conv2d, branch))

    def new_layers(self) -> list[nn.Module]:
        """Return the layers that no published weights contain."""
        return [*self.backbone.new_layers(), self.aspp]

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C + 1, h, w) of images (B, 3, H, W), RGB in 0..255; channel 0 is background."""
        features = self.backbone(images)
        return torch.stack([branch(features) for branch in self.aspp]).sum(0)


class LargeFov(nn.Module):
    """VGG-16 with pool5, a dilated fc6 and fc7, and one 1×1 convolution (DeepLab-LargeFOV)."""

    def __init__(self, backbone: str, classes: int, stride: int, fc6_dilation: int, pretrained: bool) -> None:
        super().__init__()
        self.arguments = {
            "backbone": backbone,
            "classes": classes,
            "stride": stride,
            "fc6_dilation": fc6_dilation,
            "pretrained": pretrained,
        }
        self.backbone = cast(Vgg16, build_backbone(backbone, stride, pretrained))
        self.backbone.dilate_fc6(fc6_dilation)
        self.pool5 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), nn.AvgPool2d(3, stride=1, padding=1))
        self.classifier = nn.Conv2d(self.backbone.channels, classes + 1, 1)
        _draw(self.classifier)

    def new_layers(self) -> list[nn.Module]:
        """Return the layers that no published weights contain, among them fc6 and fc7."""
        return [*self.backbone.new_layers(), self.classifier]

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, C + 1, h, w) of images (B, 3, H, W), RGB in 0..255; channel 0 is background."""
        features = self.backbone.normalise(images)
        for block in self.backbone.blocks():
            features = block.layers(self.pool5(features) if block.name == "fc6" else features)
        logits: Tensor = self.classifier(features)
        return logits


def _draw(layer: nn.Conv2d) -> None:
    """Initialise as DeepLab's last layers: weights N(0, 0.01), biases 0."""
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(cast(Tensor, layer.bias))
