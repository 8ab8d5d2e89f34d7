"""ResNet-18 (He et al., 2016), with torchvision's weights: for a few hundred images."""

from __future__ import annotations

from torchvision.models import resnet18

from seedbed.methods.backbones import resnet
from seedbed.methods.common.recipes import Recipe

FIRST_GUESS = "as CAM's; nothing else was tried"

BACKBONE = resnet.family(
    "resnet18", resnet18, "ResNet18_Weights.IMAGENET1K_V1", coco=None, widths=(64, 128, 256, 512)
)
RECIPES = {
    "TrainCam": Recipe(
        "six classes of VOC in 800 images at 224 pixels: 46 % mIoU of the seeds on `tune`; nothing else was tried",
        optimiser="adamw",
        lr=1e-4,
        head_multiplier=20.0,
        weight_decay=1e-4,
        biases="as_weights",
        epochs=8,
        stride=16,
        dropout=0.0,
        classifier_init="torch",
        jitter=False,
        long_side_low=360,
        long_side_high=720,
        crop=500,
    ),
    "TrainRrm": Recipe(FIRST_GUESS, optimiser="adamw", lr=1e-4, weight_decay=1e-4, biases="as_weights", batch=16),
    "TrainIcd": Recipe(
        FIRST_GUESS,
        optimiser="adamw",
        lr=1e-4,
        head_multiplier=20.0,
        weight_decay=1e-4,
        biases="as_weights",
        epochs=8,
        stride=16,
        crop=500,
        batch=16,
    ),
    "TrainSplittingMerging": Recipe(
        FIRST_GUESS,
        optimiser="adamw",
        lr=1e-4,
        head_multiplier=20.0,
        weight_decay=1e-4,
        biases="as_weights",
        epochs=8,
        side=571,
        crop=500,
    ),
    "TrainPsa": Recipe(
        FIRST_GUESS, optimiser="adamw", weight_decay=1e-4, biases="as_weights", jitter=False, lr=1e-4
    ),
    "TrainIrn": Recipe(FIRST_GUESS, optimiser="adamw", lr=1e-3, batch=16),
    "TrainSegmentation": Recipe(
        FIRST_GUESS,
        optimiser="adamw",
        lr=1e-4,
        head_multiplier=10.0,
        weight_decay=1e-4,
        biases="as_weights",
        epochs=16,
        batch=16,
        stride=16,
        crop=500,
        pyramid=(1.0,),
        class_balanced=True,
        scale_low=0.7,
        scale_high=1.4,
    ),
}
