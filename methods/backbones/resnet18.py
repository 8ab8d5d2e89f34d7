"""ResNet-18 (He et al., 2016), with torchvision's weights: small and fast, for a few hundred to a thousand images."""

from __future__ import annotations

from torchvision.models import resnet18

from seedbed.methods.backbones import resnet

BACKBONE = resnet.family(
    "resnet18", resnet18, "ResNet18_Weights.IMAGENET1K_V1", coco=None, widths=(64, 128, 256, 512)
)
RECIPES = resnet.RECIPES
