"""SqueezeNet 1.0 (Iandola et al., 2016) at stride 8 or 16, with torchvision's tensor names.

Departures: the first convolution and the pools are padded, so that features have the size ⌈size/stride⌉ and the
same positions as in a ResNet; at stride 8 the last pool keeps its size and the last module's 3×3 convolution is
dilated.
"""

from __future__ import annotations

import torchvision
from torch import nn

from seedbed.methods.backbones.base import Backbone, BackboneFamily, Block
from seedbed.methods.common.recipes import Recipe


class SqueezeNet(Backbone):
    """(B, 3, H, W) → (B, 512, ⌈H/stride⌉, ⌈W/stride⌉)."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.features: nn.Sequential = torchvision.models.squeezenet1_0(weights=None).features
        self.features[0].padding = (3, 3)
        pools = [i for i, layer in enumerate(self.features) if isinstance(layer, nn.MaxPool2d)]
        for i in pools:
            self.features[i] = nn.MaxPool2d(3, stride=2, padding=1)
        if stride == 8:
            self.features[pools[-1]] = nn.MaxPool2d(3, stride=1, padding=1)
            for fire in self.features[pools[-1] + 1 :]:
                fire.expand3x3.dilation = fire.expand3x3.padding = (2, 2)

    def blocks(self) -> list[Block]:
        """Return the first convolution, and the modules between the pools, each with the pool before it."""
        layers = self.features
        return [
            Block("conv1", layers[:2], 96),
            Block("fire2-4", layers[2:6], 256),
            Block("fire5-8", layers[6:11], 512),
            Block("fire9", layers[11:], 512),
        ]


FIRST_GUESS = "untuned: no published recipe"
RECIPES = {
    "TrainCam": Recipe(
        "tried with 8 and 10 epochs on 800 images of VOC; 12 epochs not tried",
        optimiser="adamw",
        lr=1e-4,
        head_multiplier=20.0,
        weight_decay=1e-4,
        epochs=12,
        stride=16,
        classifier_init="torch",
        jitter=False,
        long_side_low=400,
        long_side_high=640,
        crop=448,
    ),
    "TrainRrm": Recipe(FIRST_GUESS, optimiser="adamw", lr=1e-4, weight_decay=1e-4, biases="as_weights", batch=16),
    "TrainIcd": Recipe(
        "as CAM",
        optimiser="adamw",
        lr=1e-4,
        head_multiplier=20.0,
        weight_decay=1e-4,
        epochs=12,
        stride=16,
        crop=448,
        batch=16,
    ),
    "TrainSplittingMerging": Recipe(
        "as CAM",
        optimiser="adamw",
        lr=1e-4,
        head_multiplier=20.0,
        weight_decay=1e-4,
        epochs=12,
        side=512,
        crop=448,
    ),
    "TrainPsa": Recipe(
        FIRST_GUESS, optimiser="adamw", weight_decay=1e-4, biases="as_weights", jitter=False, lr=1e-4
    ),
    "TrainIrn": Recipe(FIRST_GUESS, optimiser="adamw", lr=1e-3, batch=16),
    "TrainSegmentation": Recipe(
        f"{FIRST_GUESS}; gave a poor network on 800 images of VOC",
        optimiser="adamw",
        lr=2e-4,
        weight_decay=1e-4,
        biases="as_weights",
        epochs=12,
        pyramid=(1.0,),
    ),
}

BACKBONE = BackboneFamily(
    name="squeezenet",
    paper="SqueezeNet, arXiv 1602.07360",
    build=SqueezeNet,
    strides=(8, 16),
    classifier=("classifier.",),
    imagenet="SqueezeNet1_0_Weights.IMAGENET1K_V1",
)
