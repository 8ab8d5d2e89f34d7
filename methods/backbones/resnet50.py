"""ResNet-50 (He et al., 2016), with torchvision's V1 weights as IRN and DeepLab-v2 use them."""

from __future__ import annotations

from torchvision.models import resnet50

from seedbed.methods.backbones import resnet

BACKBONE = resnet.family(
    "resnet50",
    resnet50,
    "ResNet50_Weights.IMAGENET1K_V1",
    "DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1",
)
RECIPES = resnet.RECIPES
