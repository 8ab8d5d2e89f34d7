"""VGG-16 in its DeepLab form at stride 8 (docs/methods.md), with torchvision's tensor names for conv1–conv5.

Pools are 3×3 with padding 1; pool4 keeps its size and conv5 is dilated by 2 (stride 16: pool4 halves, conv5 is
not dilated). fc6 (3×3, 1024) and fc7 (1×1, 1024) follow with ReLU and dropout 0.5 of single values, as in the
code of LargeFOV and ICD. PSA's code drops whole channels instead (`drop_channels`).

Departure: DeepLab's reduced fc6/fc7 weights (`vgg16_20M`) are not in torchvision's file, so fc6 and fc7 start
at random and learn at the head's rate.
"""

from __future__ import annotations

from torch import nn

from seedbed.methods.backbones.base import Backbone, BackboneFamily, Block, Tap
from seedbed.methods.common.recipes import Recipe


class Vgg16(Backbone):
    """(B, 3, H, W) → (B, 1024, ⌈H/stride⌉, ⌈W/stride⌉)."""

    def __init__(self, stride: int) -> None:
        import torchvision  # It imports torch's compiler, and every worker imports this module.

        super().__init__()
        self.stride = stride
        layers = list(torchvision.models.vgg16(weights=None).features)
        pools = [i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
        for i in pools[:3]:
            layers[i] = nn.MaxPool2d(3, stride=2, padding=1)
        layers[pools[3]] = nn.MaxPool2d(3, stride=2 if stride == 16 else 1, padding=1)
        for layer in layers[pools[3] :]:
            if stride == 8 and isinstance(layer, nn.Conv2d):
                layer.dilation = layer.padding = (2, 2)
        self.features = nn.Sequential(*layers[: pools[4]])
        self.fc6, self.fc7 = nn.Conv2d(512, 1024, 3, padding=1), nn.Conv2d(1024, 1024, 1)
        self.dropout: nn.Module = nn.Dropout(0.5)
        self.last_dropout: nn.Module = nn.Dropout(0.5)
        self.early = tuple(layers[: pools[1]])

    def dilate_fc6(self, dilation: int) -> None:
        """Dilate fc6, as LargeFOV (12) and PSA's affinity network (4) do; the output size stays."""
        self.fc6.dilation = self.fc6.padding = (dilation, dilation)

    def blocks(self) -> list[Block]:
        """Return conv1 to conv5, each with the pool before it, and fc6 and fc7."""
        starts = [0, *(i for i, layer in enumerate(self.features) if isinstance(layer, nn.MaxPool2d))]
        ends = [*starts[1:], len(self.features)]
        return [
            *(
                Block(f"conv{i + 1}", self.features[start:end], width)
                for i, (start, end, width) in enumerate(zip(starts, ends, (64, 128, 256, 512, 512), strict=True))
            ),
            Block("fc6", nn.Sequential(self.fc6, nn.ReLU(), self.dropout), 1024, new=True),
            Block("fc7", nn.Sequential(self.fc7, nn.ReLU(), self.last_dropout), 1024, new=True),
        ]

    def drop_channels(self) -> None:
        """Drop channels after fc6 and nothing after fc7 (PSA's code): the head drops the channels of fc7."""
        self.dropout, self.last_dropout = nn.Dropout2d(0.5), nn.Identity()

    def affinity_taps(self) -> list[Tap]:
        """Return conv4, conv5 and fc7, with fc6 dilated by 4 and channel dropout (PSA's code)."""
        self.dilate_fc6(4)
        self.drop_channels()
        return [Tap("conv4", 512), Tap("conv5", 512), Tap("fc7", 1024)]


RECIPES = {
    "TrainCam": Recipe("PSA code", epochs=15, lr=0.1, biases="psa", stride=8),
    "InferCam": Recipe("PSA code", square_root=True),
    "TrainRrm": Recipe("no published recipe: as ResNet-38"),
    "TrainIcd": Recipe("ICD code"),
    "TrainSplittingMerging": Recipe("Splitting vs. Merging"),
    "TrainPsa": Recipe("PSA code", lr=0.1),
    "TrainIrn": Recipe("no published recipe: as ResNet-50"),
    "TrainSegmentation": Recipe("DeepLab-LargeFOV", head="large_fov", lr=1e-3, pyramid=(1.0,)),
}

BACKBONE = BackboneFamily(
    name="vgg16",
    paper="Very Deep Convolutional Networks, ICLR 2015; DeepLab, arXiv 1412.7062",
    build=Vgg16,
    strides=(8, 16),
    classifier=("classifier.",),
    imagenet="VGG16_Weights.IMAGENET1K_V1",
    fc6=True,
)
