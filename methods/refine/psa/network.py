"""PSA's affinity network: two cells belong together if their features are close.

Paper: Ahn & Kwak, CVPR 2018, section 3.2; widths, norms and initialisation are those of the authors' code.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seedbed.methods.backbones.base import build_backbone
from seedbed.methods.refine.affinity import to_grid
from seedbed.methods.refine.random_walk import pair_offsets, partners

CELL = 8
"""Pixels per cell of the features."""
WIDTHS = (64, 128, 256)
"""Channels of the three reduced taps."""
GROUPS = (8, 16, 32)
"""Groups of their norms."""


class AffinityNetwork(nn.Module):
    """Three taps of a backbone, each reduced by a 1×1 convolution; concatenated; one more 1×1 convolution."""

    def __init__(self, backbone: str, pretrained: bool, radius: int) -> None:
        super().__init__()
        self.arguments = {"backbone": backbone, "pretrained": pretrained, "radius": radius}
        self.radius = radius
        self.backbone = build_backbone(backbone, CELL, pretrained)
        self.taps = self.backbone.affinity_taps()
        self.reduce = nn.ModuleList(
            nn.Conv2d(tap.channels, width, 1, bias=False) for tap, width in zip(self.taps, WIDTHS, strict=True)
        )
        self.norms = nn.ModuleList(
            nn.GroupNorm(groups, width) if self.backbone.normalised_taps else nn.Identity()
            for groups, width in zip(GROUPS, WIDTHS, strict=True)
        )
        self.combine = nn.Conv2d(sum(WIDTHS), sum(WIDTHS), 1, bias=False)
        for layer in self.reduce:
            nn.init.kaiming_normal_(cast(nn.Conv2d, layer).weight)
        nn.init.xavier_uniform_(self.combine.weight, gain=4)

    def new_layers(self) -> list[nn.Module]:
        """Return the layers that learn at the head's rate; in PSA's code the norms are not among them."""
        return [*self.backbone.new_layers(), self.reduce, self.combine]

    def forward(self, images: Tensor) -> Tensor:
        """Return features (B, 448, ⌈H/8⌉, ⌈W/8⌉) of images (B, 3, H, W), RGB in 0..255."""
        outputs = self.backbone.outputs(images, last=self.taps[-1].block)
        size = outputs[self.taps[-1].block].shape[-2:]
        reduced = []
        for tap, reduce, norm in zip(self.taps, self.reduce, self.norms, strict=True):
            features = reduce(tap.activation(outputs[tap.block]))
            reduced.append(F.elu(norm(to_grid(features, (size[0], size[1])))))
        return F.elu(self.combine(torch.cat(reduced, 1)))

    def anchored(self, features: Tensor) -> Tensor:
        """Return the affinities (B, P, h − margin, w − 2·margin) of the anchors and their partners, in [0, 1].

        a = exp(−mean over channels of |f_i − f_j|); the margin is radius − 1.
        """
        features, margin = features.float(), self.radius - 1
        anchors = partners(features, (0, 0), margin)
        return torch.stack(
            [
                torch.exp(-(anchors - partners(features, offset, margin)).abs().mean(1))
                for offset in pair_offsets(self.radius)
            ],
            1,
        )

    def affinities(self, images: Tensor) -> Tensor:
        """Return the affinities (B, P, h, w) of every cell and its neighbours; 0 outside the grid."""
        margin = self.radius - 1
        # Infinitely far away from everything: exp(−∞) is 0.
        return self.anchored(F.pad(self(images).float(), (margin, margin, 0, margin), value=torch.inf))
