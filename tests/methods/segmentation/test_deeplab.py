"""The segmentation networks: literal transcriptions, published sizes, recipes and learning rates."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.pipeline.hparams import override
from seedbed.benchmark.pipeline.stage import Meta
from seedbed.benchmark.training.checkpoint import load_network, save_network
from seedbed.benchmark.training.loop import parameter_groups
from seedbed.methods.backbones.base import build_backbone
from seedbed.methods.backbones.vgg16 import Vgg16
from seedbed.methods.segmentation.deeplab import DeepLab, LargeFov
from seedbed.methods.segmentation.stages import (
    TrainSegmentation,
    TrainSupervised,
    pyramid_logits,
    segmentation_stages,
)


def training(backbone: str) -> TrainSegmentation:
    """Return the training of the recipe for VOC."""
    train = segmentation_stages(Meta(20, 500, backbone, "imagenet"))[0]
    assert isinstance(train, TrainSegmentation)
    return train


def test_aspp_is_the_sum_of_its_branches():
    torch.manual_seed(0)
    network = DeepLab("tiny", classes=3, stride=8, rates=(1, 2), pretrained=False).eval()
    images = 255 * torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        features = network.backbone(images)
        expected = sum(branch(features) for branch in network.aspp)
        assert torch.allclose(network(images), expected)
    assert network(images).shape == (1, 4, 4, 4)


def test_deeplab_v2_resnet101_is_the_default_for_voc_sized_images():
    """docs/methods.md, Segmentation network."""
    train = training("resnet101")
    assert (train.head, train.stride, train.rates, train.crop) == ("aspp", 8, (6, 12, 18, 24), 321)
    assert (train.lr, train.momentum, train.weight_decay, train.power) == (2.5e-4, 0.9, 5e-4, 0.9)
    assert (train.batch, train.head_multiplier, train.biases, train.pyramid) == (10, 10.0, "psa", (1.0, 0.75, 0.5))
    assert round(20_000 * train.batch / 10_582) == train.epochs


def test_deeplab_v2_resnet101_has_the_published_sizes_at_its_crop():
    """Stride 8, ceil mode: 321, 240 and 160 pixels give 41, 31 and 21 cells; the maximum has those of scale 1."""
    train = training("resnet101")
    with torch.device("meta"):
        network = train.network(20)
        logits = pyramid_logits(network, torch.zeros(2, 3, 321, 321), train.pyramid)
    assert [tuple(x.shape) for x in logits] == [(2, 21, side, side) for side in (41, 31, 21, 41)]
    assert [branch.dilation for branch in network.aspp] == [(rate, rate) for rate in (6, 12, 18, 24)]


@pytest.mark.parametrize(
    ("weights", "layer3", "layer4", "ceil_mode"),
    [("imagenet", [2] * 6, [4] * 3, True), ("coco", [1, *[2] * 5], [2, 4, 4], False)],
)
def test_the_dilations_of_resnet_at_stride_8(weights, layer3, layer4, ceil_mode):
    """deeplab-pytorch: 2 and 4 in every block. torchvision, for its COCO weights: 1 and 2 in the first."""
    train = segmentation_stages(Meta(20, 500, "resnet50", weights))[0]
    assert isinstance(train, TrainSegmentation)
    with torch.device("meta"):
        backbone = train.network(20).backbone
    for name, expected in (("layer3", layer3), ("layer4", layer4)):
        middle = [block.get_submodule("conv2") for block in backbone.get_submodule(name).children()]
        assert [(c.dilation, c.padding, c.stride) for c in middle] == [((d, d), (d, d), (1, 1)) for d in expected]
    assert backbone.get_submodule("maxpool").ceil_mode is ceil_mode


def test_a_network_that_was_saved_before_dilations_were_named_has_torchvisions():
    network = DeepLab("resnet50", classes=2, stride=8, rates=(1,), pretrained=False)
    assert network.arguments["dilations"] == "torchvision"
    assert network.backbone.get_submodule("layer4.0.conv2").dilation == (2, 2)


def test_deeplab_v2_resnet101_learns_from_four_losses():
    torch.manual_seed(0)
    network = training("resnet101").network(20).eval()
    batch = {"image": 255 * torch.rand(1, 3, 65, 65), "mask": torch.ones(1, 65, 65, dtype=torch.long)}
    with torch.inference_mode():
        whole = float(training("resnet101").losses(network)(batch, 0.0)["cross_entropy"])
        logits = pyramid_logits(network, batch["image"], (1.0, 0.75, 0.5))
        target = [torch.ones(1, *x.shape[-2:], dtype=torch.long) for x in logits]
        alone = [float(F.cross_entropy(x, y)) for x, y in zip(logits, target, strict=True)]
    assert len(alone) == 4
    assert whole == pytest.approx(sum(alone), rel=1e-5)


def test_the_learning_rates_of_deeplab_v2_resnet101():
    """Convolutions, the head at ten times their rate, its biases at twenty without decay; no batch norm learns."""
    train = training("resnet101")
    with torch.device("meta"):
        network = train.network(20)
    groups = parameter_groups(network.backbone, network.new_layers(), train)
    assert [(train.lr * g.multiplier, g.decay) for g in groups] == [
        (2.5e-4, True),
        (pytest.approx(2.5e-3), True),
        (pytest.approx(5e-3), False),
    ]
    convolutions = [m for m in network.backbone.modules() if isinstance(m, nn.Conv2d)]
    assert {id(p) for p in groups[0].parameters} == {id(m.weight) for m in convolutions}
    assert [sum(p.numel() for p in g.parameters) for g in groups[1:]] == [4 * 9 * 2048 * 21, 4 * 21]


# LargeFOV


def test_the_recipe_of_large_fov():
    """docs/methods.md, Segmentation network."""
    train = training("vgg16")
    assert (train.head, train.fc6_dilation, train.stride, train.crop) == ("large_fov", 12, 8, 321)
    assert (train.optimiser, train.lr, train.momentum, train.weight_decay) == ("sgd", 1e-3, 0.9, 5e-4)
    assert (train.power, train.batch, train.epochs, train.head_multiplier) == (0.9, 10, 19, 10.0)
    assert (train.pyramid, train.biases) == ((1.0,), "psa")
    smaller = segmentation_stages(Meta(20, 250, "vgg16", "imagenet"))[0]
    assert isinstance(smaller, TrainSegmentation)
    assert (smaller.crop, smaller.fc6_dilation) == (160, 6)


def transcribed(network: LargeFov, x: Tensor) -> Tensor:
    """The network of the paper, layer by layer, with the weights of `network`."""
    backbone = network.backbone
    weights = iter([m for m in backbone.features if isinstance(m, nn.Conv2d)])

    def conv(x: Tensor, times: int, dilation: int = 1) -> Tensor:
        for _ in range(times):
            layer = next(weights)
            x = F.conv2d(x, layer.weight, layer.bias, padding=dilation, dilation=dilation).relu()
        return x

    x = F.max_pool2d(conv(backbone.normalise(x), 2), 3, stride=2, padding=1)
    x = F.max_pool2d(conv(x, 2), 3, stride=2, padding=1)
    x = F.max_pool2d(conv(x, 3), 3, stride=2, padding=1)
    x = F.max_pool2d(conv(x, 3), 3, stride=1, padding=1)
    x = F.max_pool2d(conv(x, 3, dilation=2), 3, stride=1, padding=1)
    x = F.avg_pool2d(x, 3, stride=1, padding=1)
    x = F.conv2d(x, backbone.fc6.weight, backbone.fc6.bias, padding=12, dilation=12).relu()
    x = F.conv2d(x, backbone.fc7.weight, backbone.fc7.bias).relu()
    return F.conv2d(x, network.classifier.weight, network.classifier.bias)


def test_large_fov_is_the_network_of_the_paper_and_is_read_back(tmp_path):
    torch.manual_seed(0)
    network = LargeFov("vgg16", classes=3, stride=8, fc6_dilation=12, pretrained=True).eval()
    images = 255 * torch.rand(1, 3, 104, 120)
    save_network(tmp_path, network)
    with torch.inference_mode():
        logits = network(images)
        assert logits.shape == (1, 4, 13, 15)
        torch.testing.assert_close(logits, transcribed(network, images))
        torch.testing.assert_close(load_network(tmp_path)(images), logits)
    dropped = [m for block in network.backbone.blocks()[-2:] for m in block.layers if isinstance(m, nn.Dropout)]
    assert [m.p for m in dropped] == [0.5, 0.5]


@pytest.mark.parametrize("dilation", [1, 4, 12])
def test_fc6_keeps_its_size_however_it_is_dilated(dilation):
    with torch.device("meta"):
        backbone = build_backbone("vgg16", 8, pretrained=False)
        assert isinstance(backbone, Vgg16)
        backbone.dilate_fc6(dilation)
        assert backbone(torch.zeros(1, 3, 321, 321)).shape == (1, 1024, 41, 41)
    assert backbone.fc6.dilation == (dilation, dilation)


def test_fc6_and_fc7_learn_at_the_rate_of_the_head():
    train = training("vgg16")
    with torch.device("meta"):
        network = train.network(20)
    groups = parameter_groups(network.backbone, network.new_layers(), train)
    assert [(g.multiplier, g.decay) for g in groups] == [(1, True), (2, False), (10, True), (20, False)]
    new = 9 * 512 * 1024 + 1024 * 1024 + 1024 * 21
    assert [sum(p.numel() for p in g.parameters) for g in groups[2:]] == [new, 1024 + 1024 + 21]


@pytest.mark.parametrize("stage", [TrainSegmentation, TrainSupervised])
def test_large_fov_needs_fc6(stage):
    message = (
        rf"{stage.__name__}.head = 'large_fov': backbone 'resnet101' has no fc6. Valid with large_fov: vgg16;"
    )
    with pytest.raises(ConfigError, match=message):
        stage(head="large_fov")
    with pytest.raises(ConfigError, match="has no fc6"):
        override([stage(backbone="tiny")], {f"{stage.__name__}.head": "large_fov"})


def test_vgg16_takes_aspp_too():
    (train,) = override([training("vgg16")], {"TrainSegmentation.head": "aspp"})
    assert isinstance(train, TrainSegmentation)
    with torch.device("meta"):
        network = train.network(20)
    assert isinstance(network, DeepLab)
    assert [branch.dilation[0] for branch in network.aspp] == [6, 12, 18, 24]
