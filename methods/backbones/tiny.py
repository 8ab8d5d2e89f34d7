"""A small convolutional network for generated data on a CPU. It has no paper and no pretrained weights."""

from __future__ import annotations

from torch import nn

from seedbed.methods.backbones.base import Backbone, BackboneFamily, Block
from seedbed.methods.common.recipes import Recipe

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


TRIED = "found by trial on Chimera (docs/results/chimera.md)"
RECIPES = {
    "TrainCam": Recipe(
        TRIED,
        optimiser="adamw",
        lr=2e-3,
        head_multiplier=1.0,
        weight_decay=1e-4,
        epochs=12,
        dropout=0.0,
        classifier_init="torch",
        jitter=False,
        long_side_low=400,
        long_side_high=600,
        crop=448,
    ),
    "TrainMixupCam": Recipe(TRIED, epochs=36),
    "TrainReCam": Recipe(TRIED, lr=2e-4, head_multiplier=10.0, through_mask=False),
    "InferReCam": Recipe(TRIED, combination="second"),
    "TrainSeam": Recipe("found by trial on Chimera, one random seed", rescale=0.5, equivariance_weight=0.1),
    "MeasureEquivariance": Recipe("as TrainSeam", rescale=0.5),
    "InferAdvCam": Recipe(TRIED, scales=(1.0, 2.0), steps=4, step_size=0.16, mask_weight=1.0),
    "TrainEsolClassifier": Recipe(TRIED, epochs=24, noise=0.01),
    "Expand": Recipe(TRIED, epochs=5, alpha=0.4, clip=0.4),
    "Shrink": Recipe(TRIED, epochs=5, lr=0.01, classification_weight=0.3, area="cam"),
    "TrainRrm": Recipe(
        TRIED,
        optimiser="adamw",
        lr=1e-3,
        weight_decay=1e-4,
        head_multiplier=1.0,
        biases="as_weights",
        batch=16,
        epochs=12,
        width=128,
    ),
    "TrainIcd": Recipe(
        TRIED,
        optimiser="adamw",
        lr=2e-3,
        head_multiplier=1.0,
        weight_decay=1e-4,
        epochs=40,
        crop=448,
        batch=16,
        width=128,
        deviation=0.1,
        scales=(0.75, 1.0, 1.25),
    ),
    "TrainSplittingMerging": Recipe(
        TRIED,
        optimiser="adamw",
        lr=2e-3,
        head_multiplier=1.0,
        weight_decay=1e-4,
        epochs=16,
        stride=8,
        deviation=0.1,
        side=512,
        crop=448,
    ),
    "PsaLabels": Recipe(TRIED, low_exponent=2.0, high_exponent=8.0),
    "TrainPsa": Recipe(
        TRIED,
        optimiser="adamw",
        weight_decay=1e-4,
        biases="as_weights",
        jitter=False,
        lr=2e-3,
        head_multiplier=1.0,
        epochs=12,
    ),
    "WalkPsa": Recipe(TRIED, background_exponent=2.0),
    "IrnLabels": Recipe(TRIED, foreground_threshold=0.6, background_threshold=0.4),
    "TrainIrn": Recipe(TRIED, optimiser="adamw", lr=2e-3, batch=8, epochs=24),
    "WalkIrn": Recipe(TRIED, steps=16),
    "TrainSegmentation": Recipe(
        TRIED,
        optimiser="adamw",
        lr=2e-3,
        weight_decay=1e-4,
        head_multiplier=1.0,
        biases="as_weights",
        epochs=30,
        batch=16,
        pyramid=(1.0,),
        rates=(1, 2, 4, 6),
        scale_low=0.8,
        scale_high=1.2,
    ),
}

BACKBONE = BackboneFamily(name="tiny", paper="none", build=Tiny, strides=(8, 16))
