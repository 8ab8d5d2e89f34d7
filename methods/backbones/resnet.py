"""ResNet-50 and -101 (He et al., 2016) at stride 8 or 16, with torchvision's tensor names and weights."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from seedbed.methods.backbones.base import Backbone, BackboneFamily, Block
from seedbed.methods.common.recipes import Recipe


class ResNet(Backbone):
    """(B, 3, H, W) → (B, 2048, ⌈H/stride⌉, ⌈W/stride⌉).

    Stride 16 as IRN: strides (2, 2, 2, 1), no dilation. At stride 8 layer3 and layer4 keep their size and are
    dilated by 2 and 4, except for their first blocks with dilations 1 and 2, as in torchvision's DeepLabV3.
    `as_deeplab` dilates those by 2 and 4 too. The stem, layer1 and layer2 are the early layers (IRN trains
    layer3 and later).
    """

    def __init__(self, builder: Callable[..., nn.Module], stride: int) -> None:
        super().__init__()
        self.stride = stride
        network = builder(weights=None, replace_stride_with_dilation=[False, stride == 8, stride == 8])
        for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            self.add_module(name, network.get_submodule(name))
        if stride == 16:
            block = self.get_submodule("layer4.0")
            block.get_submodule("conv2").stride = (1, 1)  # type: ignore[assignment]
            block.get_submodule("downsample.0").stride = (1, 1)  # type: ignore[assignment]
        self.early = tuple(self.get_submodule(name) for name in ("conv1", "bn1", "layer1", "layer2"))

    def as_deeplab(self) -> None:
        """At stride 8, dilate all blocks of layer3 and layer4 by 2 and 4, and let the first pool round up.

        An even side then has one cell more, ⌊side/8⌋ + 1. The stride of layer2 stays in its 3×3 convolution, for
        which torchvision's weights were trained; deeplab-pytorch, like Caffe's ResNet, has it in the 1×1.
        """
        if self.stride != 8:
            return
        for name, dilation in (("layer3", (2, 2)), ("layer4", (4, 4))):
            first = self.get_submodule(f"{name}.0.conv2")
            first.dilation = first.padding = dilation  # type: ignore[assignment]
        self.get_submodule("maxpool").ceil_mode = True  # type: ignore[assignment]

    def blocks(self) -> list[Block]:
        """Return the stem and the four layers."""
        stem = nn.Sequential(*(self.get_submodule(name) for name in ("conv1", "bn1", "relu", "maxpool")))
        widths = {"layer1": 256, "layer2": 512, "layer3": 1024, "layer4": 2048}
        return [
            Block("stem", stem, 64),
            *(Block(name, self.get_submodule(name), width) for name, width in widths.items()),
        ]


def family(name: str, builder: Callable[..., nn.Module], imagenet: str, coco: str) -> BackboneFamily:
    """Return the `BACKBONE` of a depth."""
    return BackboneFamily(
        name=name,
        paper="Deep Residual Learning, CVPR 2016",
        build=lambda stride: ResNet(builder, stride),
        strides=(16, 8),
        classifier=("fc.",),
        imagenet=imagenet,
        coco=coco,
    )


RECIPES = {
    "TrainCam": Recipe(
        "IRN code for ResNet-50; ResNet-101 has the same",
        epochs=5,
        lr=0.1,
        weight_decay=1e-4,
        stride=16,
        dropout=0.0,
        classifier_init="torch",
        jitter=False,
        long_side_low=320,
        long_side_high=640,
        crop=512,
    ),
    "TrainRrm": Recipe("no published recipe: as ResNet-38"),
    "TrainIcd": Recipe("no published recipe: as VGG-16, at the stride of CAM", stride=16),
    "TrainSplittingMerging": Recipe("no published recipe: as VGG-16"),
    "TrainPsa": Recipe("no published recipe: as ResNet-38", lr=0.01),
    "TrainIrn": Recipe("IRN code for ResNet-50; ResNet-101 has the same"),
    "TrainSegmentation": Recipe("deeplab-pytorch for ResNet-101; ResNet-50 has the same"),
}
