"""The network of RRM: two branches on one backbone, and the maps of one branch while both are trained.

Paper: Zhang et al., "Reliability Does Matter", AAAI 2020, equations (1) and (2); the rest follows the authors'
code (docs/methods.md, RRM).
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seedbed.methods.backbones.base import hold_norm
from seedbed.methods.cam import CamNetwork


class RrmNetwork(nn.Module):
    """A CAM network, and on its backbone a segmentation head of two dilated 3×3 convolutions."""

    def __init__(self, width: int, dilation: int, **cam: Any) -> None:
        """`cam` are the arguments of the CamNetwork."""
        super().__init__()
        self.arguments = {"width": width, "dilation": dilation, **cam}
        self.cam = CamNetwork(**cam)
        self.head = nn.Sequential(
            nn.Conv2d(self.cam.backbone.channels, width, 3, padding=dilation, dilation=dilation),
            nn.ReLU(),
            nn.Conv2d(width, cam["classes"] + 1, 3, padding=dilation, dilation=dilation),
        )
        for layer in (self.head[0], self.head[2]):
            nn.init.xavier_uniform_(cast(nn.Conv2d, layer).weight)

    def forward(self, images: Tensor) -> Tensor:
        """Return segmentation logits (B, C + 1, h, w) of images (B, 3, H, W), RGB in 0..255; 0 is background."""
        logits: Tensor = self.head(self.cam.backbone(images))
        return logits

    def maps(self, images: Tensor) -> Tensor:
        """Return the classification branch's localisation maps (B, C, h, w), unnormalised, at least 0."""
        return self.cam.maps(images)


@torch.no_grad()
def online_maps(network: RrmNetwork, images: Tensor, features: Tensor, scales: tuple[float, ...]) -> Tensor:
    """Return the mean (equation 2) of the maps at scale 1 and at `scales`: float32 (B, C, h, w), at least 0.

    `features` are those of the images at scale 1, from the training pass. The network stays in train mode, so its
    dropout is active, as in the authors' code.
    """
    own = network.cam.classifier(features).relu().float()
    hold_norm(network)
    total = own
    for scale in scales:
        size = [int(length * scale) for length in images.shape[-2:]]
        maps = network.maps(F.interpolate(images, size, mode="bilinear", align_corners=False)).float()
        total = total + F.interpolate(maps, own.shape[-2:], mode="bilinear", align_corners=False)
    network.train()
    return total / (1 + len(scales))
