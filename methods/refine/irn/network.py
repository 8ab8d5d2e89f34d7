"""IRN's edge network, and affinities from the edges between two cells.

Paper: Ahn et al., CVPR 2019, section 4, without its displacement branch, which finds instances; widths, norms and
the path between two cells are those of the authors' code (docs/methods.md, IRN).
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seedbed.benchmark.pipeline.registry import BACKBONES
from seedbed.methods.backbones.base import build_backbone
from seedbed.methods.refine.affinity import to_grid
from seedbed.methods.refine.random_walk import Offset, pair_offsets, partners

CELL = 4
"""Pixels per cell of the edges."""
STRIDE = 16
"""Stride of the backbone, if it has it; the sides of its images are multiples of this."""
WIDTH, GROUPS = 32, 4
"""Channels of each reduced tap, and groups of its norm."""


class EdgeNetwork(nn.Module):
    """Every block of a backbone reduced by a 1×1 convolution and a norm; concatenated; one 1×1 convolution.

    A `frozen` backbone stays in eval mode and gets no gradient.
    """

    def __init__(self, backbone: str, pretrained: bool, frozen: bool) -> None:
        super().__init__()
        self.arguments = {"backbone": backbone, "pretrained": pretrained, "frozen": frozen}
        self.frozen = frozen
        strides = BACKBONES.load(backbone).strides
        self.backbone = build_backbone(backbone, STRIDE if STRIDE in strides else strides[0], pretrained)
        self.backbone.requires_grad_(not frozen)
        self.taps = [block for block in self.backbone.blocks() if not block.new]
        self.reduce = nn.ModuleList(
            nn.Sequential(nn.Conv2d(tap.channels, WIDTH, 1, bias=False), nn.GroupNorm(GROUPS, WIDTH))
            for tap in self.taps
        )
        self.combine = nn.Conv2d(WIDTH * len(self.taps), 1, 1)

    def train(self, mode: bool = True) -> EdgeNetwork:
        """Set the mode of all layers; a frozen backbone stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of edges (B, H/4, W/4) of images (B, 3, H, W) in 0..255, sides multiples of 16."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            outputs = self.backbone.outputs(images, last=self.taps[-1].name)
        grid = images.shape[-2] // CELL, images.shape[-1] // CELL
        reduced = []
        for tap, reduce in zip(self.taps, self.reduce, strict=True):
            features = outputs[tap.name]
            # Enlarge after the reduction, as published; average finer features before it, which is cheaper.
            features = reduce(to_grid(features, grid) if features.shape[-2] > grid[0] else features)
            reduced.append(to_grid(features, grid).relu())
        logits: Tensor = self.combine(torch.cat(reduced, 1))[:, 0]
        return logits


@functools.cache
def path(offset: Offset) -> tuple[Offset, ...]:
    """Return the cells between (0, 0) and `offset`, end points included.

    They are those of the bounding box whose squared distance from the line through both is less than 1.
    """
    down, right = offset
    rows, columns = (range(min(0, end), max(0, end) + 1) for end in offset)
    norm = down * down + right * right
    return tuple((y, x) for y in rows for x in columns if (right * y - down * x) ** 2 < norm)


def path_affinities(edges: Tensor, radius: int, margin: int) -> Tensor:
    """Return the affinities (B, P, h − margin, w − 2·margin) of the anchors and their partners, in [0, 1].

    1 − the strongest edge on the path between the two; `edges` is (B, h, w) in [0, 1], and `margin` at least
    radius − 1.
    """
    edges = edges.float()
    strongest = [
        torch.stack([partners(edges, cell, margin) for cell in path(offset)]).amax(0)
        for offset in pair_offsets(radius)
    ]
    return 1 - torch.stack(strongest, 1)


def affinities(edges: Tensor, radius: int) -> Tensor:
    """Return the affinities (P, h, w) of every cell of edges (h, w) and its neighbours; 0 outside the grid."""
    margin = radius - 1
    return path_affinities(F.pad(edges[None], (margin, margin, 0, margin), value=1.0), radius, margin)[0]
