"""The models of timm as backbones: features of timm's own `features_only`, weights by timm's names, refusals."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.pipeline.registry import BACKBONES
from seedbed.benchmark.pipeline.stage import Context
from seedbed.datasets.base import Split
from seedbed.methods.backbones import timm as collection
from seedbed.methods.backbones.base import IMAGENET_MEAN, IMAGENET_STD, build_backbone, initialise

timm = pytest.importorskip("timm")
MODELS = {
    "resnet18": (64, 64, 128, 256, 512),
    "mobilenetv3_large_100": (16, 24, 40, 112, 960),
    "tf_efficientnet_lite0": (16, 24, 40, 112, 320),
    "convnext_tiny": (96, 192, 384, 768),
    "regnety_004": (32, 48, 104, 208, 440),
}
"""Channels of each feature, as the models' papers have them."""


def scatter(network: torch.nn.Module) -> torch.nn.Module:
    """Give tensors of one dimension, such as those of norms, values that are not 0 or 1; return the network."""
    for tensor in network.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5)
    return network


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """Return a weights file of ResNet-18 as timm saves it, with the classifier."""
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(scatter(timm.create_model("resnet18")).state_dict(), path)
    return path


def context(path: Path) -> Context:
    return Context(seed=0, split=Split.WEAK, scratch=Path(), weights_files={"sha256:x": path})


@pytest.mark.parametrize("stride", [16, 8])
@pytest.mark.parametrize("name", MODELS)
def test_the_blocks_give_timms_own_features(name, stride):
    backbone = scatter(build_backbone(f"timm:{name}", stride, pretrained=False)).eval()
    reference = timm.create_model(name, features_only=True, output_stride=stride).eval()
    # A FeatureListNet has the same tensors in the same order, under other names.
    state = backbone.network.state_dict()
    reference.load_state_dict(dict(zip(reference.state_dict(), state.values(), strict=True)))
    images = 255 * torch.rand(1, 3, 64, 48, dtype=torch.float64)
    half = name == "tf_efficientnet_lite0"
    mean = torch.tensor((0.5, 0.5, 0.5) if half else IMAGENET_MEAN)[:, None, None]
    std = torch.tensor((0.5, 0.5, 0.5) if half else IMAGENET_STD)[:, None, None]
    with torch.inference_mode():
        found, wanted = backbone.double().outputs(images), reference.double()((images / 255 - mean) / std)
    assert [feature.shape[1] for feature in wanted] == list(MODELS[name])
    torch.testing.assert_close(list(found.values()), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride", [16, 8])
@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_features_cover_images_whose_sides_are_no_multiples_of_the_stride(name, stride):
    backbone = build_backbone(f"timm:{name}", stride, pretrained=False).eval()
    images = 255 * torch.rand(1, 3, 65, 50)
    with torch.inference_mode():
        features = backbone(images)
        assert features.shape[2:] == (-(-65 // stride), -(-50 // stride))
        # Padding has the value of the mean colour: 0 after normalisation.
        mean = backbone.normalise.mean * 255
        padded = mean.expand(3, 80, 64).clone()[None]
        padded[:, :, :65, :50] = images
        rows, columns = features.shape[2:]
        torch.testing.assert_close(backbone(padded)[:, :, :rows, :columns][:, :, 0, 0], features[:, :, 0, 0])


def test_only_the_last_two_blocks_are_not_early():
    backbone = build_backbone("timm:resnet18", 16, pretrained=True)
    early = {id(p) for layers in backbone.early for p in layers.parameters()}
    learning = {name.split(".")[1] for name, p in backbone.named_parameters() if id(p) not in early}
    assert learning == {"layer3", "layer4"}
    assert [block.name for block in backbone.blocks()] == ["act1", "layer1", "layer2", "layer3", "layer4"]
    inside = {id(p) for block in backbone.blocks() for p in block.layers.parameters()}
    assert inside == {id(p) for p in backbone.parameters()}


def test_a_weights_file_of_timm_fills_the_backbone_without_its_classifier(checkpoint):
    family = BACKBONES.load("timm:resnet18")
    assert (family.name, family.strides, family.classifier) == ("timm:resnet18", (16, 8), ("fc.bias", "fc.weight"))
    family.check_weights("sha256:x", {"sha256:x": checkpoint})
    backbone = build_backbone("timm:resnet18", 8, pretrained=True)
    initialise(backbone, "timm:resnet18", "sha256:x", context(checkpoint))
    saved = torch.load(checkpoint)
    filled = backbone.network.state_dict()
    assert filled.keys() == {name for name in saved if not name.startswith("fc.")}
    assert all(torch.equal(tensor, saved[name]) for name, tensor in filled.items())


def test_the_file_of_another_model_is_refused_with_the_names_in_the_file(checkpoint):
    with pytest.raises(
        ConfigError, match=r"resnet18\.pth: does not fit .*'timm:mobilenetv3_large_100' \(missing: blocks\.0\."
    ):
        BACKBONES.load("timm:mobilenetv3_large_100").check_weights("sha256:x", {"sha256:x": checkpoint})


def test_safetensors_are_read(checkpoint, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "model.safetensors"
    safetensors.save_file(torch.load(checkpoint), path)
    backbone = build_backbone("timm:resnet18", 16, pretrained=True)
    initialise(backbone, "timm:resnet18", "sha256:x", context(path))
    assert torch.equal(backbone.network.conv1.weight, torch.load(checkpoint)["conv1.weight"])
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ConfigError, match=r"model\.safetensors: not a state dict .* cut, damaged"):
        BACKBONES.load("timm:resnet18").check_weights("sha256:x", {"sha256:x": path})


def test_safetensors_without_their_package_are_refused_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(100))
    with pytest.raises(ConfigError, match=r"model\.safetensors: .*pip install safetensors$"):
        BACKBONES.load("timm:resnet18").check_weights("sha256:x", {"sha256:x": path})


def test_imagenet_asks_timm_for_the_weights_of_the_name(monkeypatch):
    asked, create = [], timm.create_model

    def created(name, pretrained=False, **options):
        if pretrained:
            asked.append(name)
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", created)
    name = "timm:resnet18.a1_in1k"
    backbone = build_backbone(name, 16, pretrained=True)
    before = torch.random.get_rng_state()
    initialise(backbone, name, "imagenet", context(Path()))
    assert asked == ["resnet18.a1_in1k"]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_without_a_network_the_ways_out_are_named(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no route to host\nmore")

    family = BACKBONES.load("timm:resnet18")
    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(
        ConfigError,
        match=r"timm/resnet18 .*\(no route to host\); give .* --weights FILE, or use --weights none",
    ):
        family.imagenet.read()


def test_a_model_without_published_weights_has_none():
    with pytest.raises(ConfigError, match=r"'timm:nfnet_f0' has no ImageNet weights\. Valid: none, or a"):
        BACKBONES.load("timm:nfnet_f0").published("imagenet")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "vit_tiny_patch16_224",
            "cannot be a backbone: .* such as timm:resnet18, .*output_stride",
        ),
        ("swin_tiny_patch4_window7_224", "cannot be a backbone: .* such as timm:resnet18.*output_stride"),
        ("hrnet_w18", "cannot be a backbone: .* such as timm:resnet18"),
        (
            "xception41",
            r"cannot be a backbone: .*layers do not follow one another \(timm uses FeatureHook",
        ),
        ("resnet81", r"has no model 'resnet81'\. Did you mean timm:resnet"),
        ("resnet18.mine", r"has no model 'resnet18\.mine'\. Did you mean timm:resnet18 or "),
        ("", r"has no model ''\. All: timm\.list_models\(\)"),
        ("hf-hub:someone/something", r"has no model 'hf-hub:someone/something'"),
    ],
)
def test_other_models_are_refused_in_one_line(name, message):
    with pytest.raises(ConfigError, match=message) as caught:
        BACKBONES.load(f"timm:{name}")
    assert "\n" not in str(caught.value)


def test_the_models_that_a_refusal_names_are_those_tested_here():
    assert tuple(MODELS) == collection.WORKING


def test_without_timm_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"timm is not installed: pip install 'seedbed\[timm\]'"):
        BACKBONES.load("timm:not_loaded_before")


def test_a_backbone_on_the_meta_device_draws_no_random_numbers():
    collection.member.cache_clear()
    before = torch.random.get_rng_state()
    BACKBONES.load("timm:resnet18")
    assert torch.equal(torch.random.get_rng_state(), before)
