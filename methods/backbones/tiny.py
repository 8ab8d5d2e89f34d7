"""A small convolutional network for generated data on a CPU. It has no paper and no pretrained weights."""

from __future__ import annotations

from torch import nn

from seedbed.methods.backbones.base import Backbone, BackboneFamily, Block

WIDTHS = (16, 32, 64, 128)


class Tiny(Backbone):
    """Four pairs of 3×3 convolutions with batch norm; (B, 3, H, W) → (B, 128, ⌈H/stride⌉, ⌈W/stride⌉)."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride
        layers: list[nn.Module] = []
        before, reached = 3, 1
        for width in WIDTHS:
            step = 2 if reached < stride else 1
            reached *= step
            layers += [_block(before, width, step), _block(width, width, 1)]
            before = width
        self.layers = nn.Sequential(*layers)

    def blocks(self) -> list[Block]:
        """Return the four pairs."""
        return [Block(f"pair{i + 1}", self.layers[2 * i : 2 * i + 2], width) for i, width in enumerate(WIDTHS)]


def _block(before: int, after: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()
    )


BACKBONE = BackboneFamily(name="tiny", paper="none", build=Tiny, strides=(8, 16))
