"""ResNet-18, -50 and -101 (He et al., 2016) at stride 8 or 16, with torchvision's tensor names and weights."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from seedbed.methods.backbones.base import Backbone, BackboneFamily, Block
from seedbed.methods.common.recipes import Recipe

LAYERS = ("layer1", "layer2", "layer3", "layer4")


class ResNet(Backbone):
    """(B, 3, H, W) → (B, D, ⌈H/stride⌉, ⌈W/stride⌉), D the last of `widths`.

    Stride 16 as IRN: strides (2, 2, 2, 1), no dilation. At stride 8 layer3 and layer4 keep their size and are
    dilated by 2 and 4, except for their first blocks with dilations 1 and 2, as in torchvision's DeepLabV3.
    `as_deeplab` dilates those by 2 and 4 too. The stem, layer1 and layer2 are the early layers (IRN trains
    layer3 and later).
    """

    def __init__(self, builder: Callable[..., nn.Module], widths: tuple[int, int, int, int], stride: int) -> None:
        super().__init__()
        self.stride, self.widths = stride, widths
        network = builder(weights=None)
        for name in ("conv1", "bn1", "relu", "maxpool", *LAYERS):
            self.add_module(name, network.get_submodule(name))
        for name in ("layer3", "layer4") if stride == 8 else ("layer4",):
            for layer in _convolutions(self.get_submodule(f"{name}.0")):
                layer.stride = (1, 1)
        if stride == 8:
            self._dilate("layer3", 1, 2)
            self._dilate("layer4", 2, 4)
        self.early = tuple(self.get_submodule(name) for name in ("conv1", "bn1", "layer1", "layer2"))

    def as_deeplab(self) -> None:
        """At stride 8, dilate all blocks of layer3 and layer4 by 2 and 4, and let the first pool round up.

        An even side then has one cell more, ⌊side/8⌋ + 1. The stride of layer2 stays in its 3×3 convolution, for
        which torchvision's weights were trained; deeplab-pytorch, like Caffe's ResNet, has it in the 1×1.
        """
        if self.stride != 8:
            return
        self._dilate("layer3", 2, 2)
        self._dilate("layer4", 4, 4)
        self.get_submodule("maxpool").ceil_mode = True  # type: ignore[assignment]

    def blocks(self) -> list[Block]:
        """Return the stem and the four layers."""
        stem = nn.Sequential(*(self.get_submodule(name) for name in ("conv1", "bn1", "relu", "maxpool")))
        layers = zip(LAYERS, self.widths, strict=True)
        return [Block("stem", stem, 64), *(Block(name, self.get_submodule(name), width) for name, width in layers)]

    def _dilate(self, name: str, first: int, others: int) -> None:
        """Dilate the 3×3 convolutions of a layer's first block and of its other blocks."""
        for index, block in enumerate(self.get_submodule(name).children()):
            for layer in _convolutions(block):
                if layer.kernel_size == (3, 3):
                    layer.dilation = layer.padding = (others, others) if index else (first, first)


def _convolutions(block: nn.Module) -> list[nn.Conv2d]:
    return [module for module in block.modules() if isinstance(module, nn.Conv2d)]


def family(
    name: str,
    builder: Callable[..., nn.Module],
    imagenet: str,
    coco: str | None,
    widths: tuple[int, int, int, int] = (256, 512, 1024, 2048),
) -> BackboneFamily:
    """Return the `BACKBONE` of a depth."""
    return BackboneFamily(
        name=name,
        paper="Deep Residual Learning, CVPR 2016",
        build=lambda stride: ResNet(builder, widths, stride),
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
