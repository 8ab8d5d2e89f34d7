"""ResNet-101 (He et al., 2016), with torchvision's V1 weights as IRN and DeepLab-v2 use them."""

from __future__ import annotations

from torchvision.models import resnet101

from seedbed.methods.backbones import resnet

BACKBONE = resnet.family(
    "resnet101",
    resnet101,
    "ResNet101_Weights.IMAGENET1K_V1",
    "DeepLabV3_ResNet101_Weights.COCO_WITH_VOC_LABELS_V1",
)
RECIPES = resnet.RECIPES
