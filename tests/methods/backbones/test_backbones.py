"""Every backbone, by discovery: size and channels of its features, weights files, what learns."""

from __future__ import annotations

import errno
import http.client
import urllib.error
from pathlib import Path

import pytest
import torch
from torch import nn

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.pipeline.registry import BACKBONES
from seedbed.benchmark.pipeline.stage import Context
from seedbed.benchmark.training.augmentation import MEAN_COLOUR
from seedbed.benchmark.training.loop import parameter_groups
from seedbed.datasets.base import Split
from seedbed.methods.backbones.base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Normalise,
    build_backbone,
    initialise,
    initialise_from_coco,
)
from seedbed.methods.cam import CamNetwork, TrainCam

pytestmark = pytest.mark.usefixtures("quick_weights")

NAMES = BACKBONES.names()


def context(files: dict[str, Path] | None = None) -> Context:
    return Context(seed=0, split=Split.WEAK, scratch=Path(), weights_files=files or {})


@pytest.mark.parametrize("name", NAMES)
def test_features_have_the_declared_channels_and_stride(name):
    for stride in BACKBONES.load(name).strides:
        backbone = build_backbone(name, stride, pretrained=False).eval()
        with torch.inference_mode():
            features = backbone(255 * torch.rand(2, 3, 65, 96))
        assert features.shape == (2, backbone.channels, -(-65 // stride), -(-96 // stride))
        assert features.isfinite().all()
        assert backbone.stride == stride


@pytest.mark.parametrize("name", NAMES)
def test_an_impossible_stride_is_refused(name):
    with pytest.raises(ConfigError, match=f"backbone '{name}' has no stride 7. Valid: "):
        build_backbone(name, 7, pretrained=False)


def test_images_are_normalised_by_hand():
    images = torch.tensor([[[[0.0, 255]], [[51, 102]], [[128, 255]]]])
    expected = [[[-0.485 / 0.229, 0.515 / 0.229]], [[(0.2 - 0.456) / 0.224, (0.4 - 0.456) / 0.224]]]
    expected.append([[(128 / 255 - 0.406) / 0.225, (1 - 0.406) / 0.225]])
    found = Normalise(IMAGENET_MEAN, IMAGENET_STD)(images)
    torch.testing.assert_close(found, torch.tensor([expected]))
    assert images[0, 0, 0, 1] == 255


def test_the_mean_colour_of_padding_is_exactly_zero():
    padding = torch.tensor(MEAN_COLOUR)[None, :, None, None]
    assert not Normalise(IMAGENET_MEAN, IMAGENET_STD)(padding).any()


@pytest.mark.parametrize("name", NAMES)
def test_features_lie_where_the_image_has_them(name):
    """A bright spot moves the features around its own place most, not elsewhere."""
    torch.manual_seed(0)
    backbone = build_backbone(name, BACKBONES.load(name).strides[0], pretrained=False).eval()
    grey = torch.full((1, 3, 160, 160), 120.0)
    images = grey.clone()
    images[:, :, 96:112, 40:56] = 255.0
    with torch.inference_mode():
        change = (backbone(images) - backbone(grey)).abs().sum(1)[0]
    row, column = divmod(int(change.argmax()), change.shape[1])
    centre = ((row + 0.5) * backbone.stride, (column + 0.5) * backbone.stride)
    assert abs(centre[0] - 104) <= 24
    assert abs(centre[1] - 48) <= 24


@pytest.mark.parametrize("name", NAMES)
def test_a_weights_file_fills_the_backbone_and_the_classifier_in_it_is_left_out(name, tmp_path):
    family = BACKBONES.load(name)
    donor = build_backbone(name, family.strides[0], pretrained=False)
    state = donor.state_dict()
    for prefix in family.classifier:
        state[f"{prefix}weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "weights.pth")
    backbone = build_backbone(name, family.strides[-1], pretrained=True)
    initialise(backbone, name, "sha256:x", context({"sha256:x": tmp_path / "weights.pth"}))
    assert all(torch.equal(a, b) for a, b in zip(backbone.parameters(), donor.parameters(), strict=True))


def test_a_weights_file_of_another_network_is_refused_with_the_tensors_named(tmp_path):
    torch.save({"features.0.weight": torch.zeros(1), "other.bias": torch.zeros(1)}, tmp_path / "w.pth")
    backbone = build_backbone("squeezenet", 16, pretrained=True)
    with pytest.raises(ConfigError, match=r"w.pth: does not fit .*'squeezenet' \(missing: .*unknown: other.bias"):
        initialise(backbone, "squeezenet", "sha256:x", context({"sha256:x": tmp_path / "w.pth"}))


def test_a_weights_file_with_code_in_it_is_not_run(tmp_path):
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (Path.touch, (marker,))

    torch.save({"features.0.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ConfigError, match=r"evil.pth: not a state dict that can be read safely"):
        initialise(
            build_backbone("squeezenet", 16, pretrained=True),
            "squeezenet",
            "sha256:x",
            context({"sha256:x": tmp_path / "evil.pth"}),
        )
    assert not marker.exists()


def test_imagenet_is_refused_where_there_are_no_such_weights():
    with pytest.raises(ConfigError, match="'tiny' has no ImageNet weights"):
        initialise(build_backbone("tiny", 8, pretrained=True), "tiny", "imagenet", context())


def test_imagenet_asks_torchvision_for_the_named_weights(monkeypatch):
    import torchvision

    asked = []
    donor = torchvision.models.squeezenet1_0(weights=None)

    class Weights:
        def get_state_dict(self, **_):
            return donor.state_dict()

    monkeypatch.setattr(torchvision.models, "get_weight", lambda name: asked.append(name) or Weights())
    backbone = build_backbone("squeezenet", 16, pretrained=True)
    initialise(backbone, "squeezenet", "imagenet", context())
    assert asked == ["SqueezeNet1_0_Weights.IMAGENET1K_V1"]
    assert torch.equal(backbone.features[0].weight, donor.features[0].weight)


@pytest.mark.parametrize("name", [n for n in NAMES if isinstance(BACKBONES.load(n).imagenet, str)])
def test_the_named_imagenet_weights_exist_in_torchvision(name):
    import torchvision

    assert torchvision.models.get_weight(BACKBONES.load(name).imagenet).url.endswith(".pth")


def test_coco_fills_the_backbone_of_torchvisions_deeplab_and_leaves_its_classifiers_out(monkeypatch):
    import torchvision

    build = torchvision.models.segmentation.deeplabv3_resnet50
    state = build(weights=None, weights_backbone=None, aux_loss=True).state_dict()
    asked: list[object] = []

    class Weights:
        def get_state_dict(self, **options):
            asked.append(options)
            return state

    monkeypatch.setattr(torchvision.models, "get_weight", lambda name: asked.append(name) or Weights())
    backbone = build_backbone("resnet50", 8, pretrained=True)
    initialise_from_coco(backbone, "resnet50")
    name = "DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1"
    assert asked == [name, {"progress": True, "check_hash": True}]
    filled = backbone.state_dict()
    assert len(filled) == sum(key.startswith("backbone.") for key in state) < len(state)
    assert all(torch.equal(tensor, state[f"backbone.{key}"]) for key, tensor in filled.items())


@pytest.mark.parametrize("name", [n for n in NAMES if BACKBONES.load(n).coco])
def test_the_named_coco_weights_exist_in_torchvision(name):
    import torchvision

    weights = torchvision.models.get_weight(BACKBONES.load(name).coco)
    assert "coco" in weights.url
    assert weights.meta["categories"][0] == "__background__"


def test_coco_is_refused_where_there_are_no_such_weights_and_for_methods():
    with pytest.raises(ConfigError, match=r"'vgg16' has no COCO weights\. Valid: none, imagenet, or a state-dict"):
        initialise_from_coco(build_backbone("vgg16", 8, pretrained=True), "vgg16")
    with pytest.raises(ConfigError, match="the weights 'coco' is not known"):
        initialise(build_backbone("resnet50", 8, pretrained=True), "resnet50", "coco", context())


def test_batch_norm_of_pretrained_weights_stays_as_it_was():
    backbone = build_backbone("resnet50", 16, pretrained=True).train()
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert not any(m.training for m in norms)
    assert any(m.training for m in build_backbone("resnet50", 16, pretrained=False).train().modules())


def test_the_published_early_layers_are_named():
    vgg = build_backbone("vgg16", 8, pretrained=True)
    assert sum(p.numel() for m in vgg.early for p in m.parameters()) == 3 * 64 * 9 + 64 + 64 * 64 * 9 + 64 + (
        64 * 128 * 9 + 128 + 128 * 128 * 9 + 128
    )
    resnet = build_backbone("resnet50", 16, pretrained=True)
    early = {id(p) for m in resnet.early for p in m.parameters()}
    names = [n for n, p in resnet.named_parameters() if id(p) not in early]
    assert names
    assert all(n.startswith(("layer3", "layer4")) for n in names)
    with torch.device("meta"):
        wide = build_backbone("resnet38", 8, pretrained=True)
    early = {id(p) for m in wide.early for p in m.parameters()}
    frozen = {n.partition(".")[0] for n, p in wide.named_parameters() if id(p) in early}
    assert frozen == {"conv1a", "b2", "b2_1", "b2_2"}


@pytest.mark.parametrize("name", NAMES)
def test_frozen_early_layers_run_without_autograd(name):
    with torch.device("meta"):
        backbone = build_backbone(name, BACKBONES.load(name).strides[0], pretrained=True).train()
        tracked = []
        for layers in backbone.early:
            layers.requires_grad_(False)
            layers.register_forward_hook(lambda _, images, features: tracked.append(features.requires_grad))
        features = backbone(torch.zeros(1, 3, 64, 64))
    assert tracked == [False] * len(backbone.early)
    assert features.requires_grad


@pytest.mark.real_data
def test_the_real_squeezenet_weights_fit(real_weights):
    backbone = build_backbone("squeezenet", 8, pretrained=True)
    initialise(backbone, "squeezenet", "sha256:x", context({"sha256:x": real_weights}))
    assert backbone.features[0].weight.abs().mean() > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_the_features_are_what_the_blocks_make_one_after_another(name):
    backbone = build_backbone(name, BACKBONES.load(name).strides[0], pretrained=False).eval()
    images = 255 * torch.rand(1, 3, 64, 48)
    with torch.inference_mode():
        outputs = backbone.outputs(images)
        torch.testing.assert_close(list(outputs.values())[-1], backbone(images))
    blocks = backbone.blocks()
    assert list(outputs) == [block.name for block in blocks]
    assert [output.shape[1] for output in outputs.values()] == [block.channels for block in blocks]
    assert len(blocks) >= 3
    inside = {id(p) for block in blocks for p in block.layers.parameters()}
    assert inside == {id(p) for p in backbone.parameters()}


def test_layers_that_no_weights_fill_learn_at_the_heads_rate():
    network = CamNetwork("vgg16", 3, stride=8, dropout=0.0, pretrained=True)
    stage = TrainCam(lr=0.1, head_multiplier=10.0)
    new = [*network.backbone.new_layers(), network.classifier]
    slow, fast = parameter_groups(network.backbone, new, stage)
    assert (slow.multiplier, fast.multiplier) == (1.0, 10.0)
    count = {name: sum(p.numel() for p in module.parameters()) for name, module in network.named_children()}
    head = sum(p.numel() for layers in (network.backbone.fc6, network.backbone.fc7) for p in layers.parameters())
    assert sum(p.numel() for p in fast.parameters) == head + count["classifier"]
    assert sum(p.numel() for p in slow.parameters) == count["backbone"] - head


def _state() -> dict[str, torch.Tensor]:
    return build_backbone("squeezenet", 16, pretrained=False).state_dict()


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda s: {f"module.{k}": v for k, v in s.items()}, "the prefix 'module.' is left out"),
        (lambda s: {"epoch": 3, "state_dict": s, "optimizer": {}}, "read from its key 'state_dict'"),
        (lambda s: {"model": {f"module.{k}": v for k, v in s.items()}, "args": None}, "key 'model'; the prefix"),
        (lambda s: {f"_orig_mod.module.{k}": v for k, v in s.items()}, "'_orig_mod.' is left out"),
        (lambda s: {k: v.half() for k, v in s.items()}, None),
    ],
)
def test_the_forms_in_which_people_have_weights_are_read_with_a_line_that_says_so(tmp_path, caplog, wrap, said):
    state = _state()
    torch.save(wrap(state), tmp_path / "w.pth")
    backbone = build_backbone("squeezenet", 16, pretrained=True)
    initialise(backbone, "squeezenet", "sha256:x", context({"sha256:x": tmp_path / "w.pth"}))
    torch.testing.assert_close(backbone.features[0].weight, state["features.0.weight"], rtol=1e-3, atol=1e-4)
    noted = caplog.text
    assert (said in noted and str(tmp_path / "w.pth") in noted) if said else noted == ""


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b""), "an empty file"),
        (lambda path: path.write_text("<html>404</html>"), "a web page, not weights"),
        (lambda path: path.write_text("weights"), "not a state dict that can be read safely: cut, damaged"),
        (lambda path: path.write_bytes(bytes(5000)), "not a state dict that can be read safely: cut, damaged"),
        (lambda path: torch.save(torch.nn.Linear(1, 1), path), "it holds Python objects, perhaps a whole model"),
        (lambda path: torch.save([torch.zeros(1)], path), "not a state dict, which maps names to tensors"),
        (lambda path: torch.save({"epoch": 3, "optimizer": {}}, path), "it holds the keys epoch, optimizer"),
        (lambda path: torch.save(dict(list(_state().items())[:10]), path), "does not fit .*missing: .* more"),
        (
            lambda path: torch.save({k: v * float("nan") for k, v in _state().items()}, path),
            "with NaN or infinity",
        ),
        (lambda path: torch.save({k: v[:1] for k, v in _state().items()}, path), "of another shape: "),
    ],
)
def test_other_files_are_refused_in_one_line_before_anything_runs(tmp_path, write, message):
    path = tmp_path / "w.pth"
    write(path)
    with pytest.raises(ConfigError, match=message) as caught:
        BACKBONES.load("squeezenet").check_weights("sha256:x", {"sha256:x": path})
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_cut_file_of_weights_is_refused(tmp_path):
    path = tmp_path / "w.pth"
    torch.save(_state(), path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ConfigError, match=r"w.pth: not a state dict that can be read safely: cut, damaged"):
        BACKBONES.load("squeezenet").check_weights("sha256:x", {"sha256:x": path})


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_checked_without_building_the_backbone(name, tmp_path):
    family = BACKBONES.load(name)
    torch.save(build_backbone(name, family.strides[0], pretrained=False).state_dict(), tmp_path / "w.pth")
    BACKBONES.load(name).check_weights("sha256:x", {"sha256:x": tmp_path / "w.pth"})
    BACKBONES.load(name).check_weights("none", {})


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (urllib.error.URLError("[Errno -3] Temporary failure in name resolution"), "give them as --weights FILE"),
        (
            TimeoutError("timed out"),
            r"cannot be downloaded from https://\S+ \(timed out\).* or use --weights none",
        ),
        (http.client.RemoteDisconnected("Remote end closed connection"), "cannot be downloaded"),
        (RuntimeError('invalid hash value (expected "b66bff10")'), "cannot be downloaded .*invalid hash"),
        (OSError(errno.EROFS, "Read-only file system"), "cannot write the downloaded weights .*TORCH_HOME"),
        (PermissionError(errno.EACCES, "Permission denied"), "cannot write the downloaded weights .*TORCH_HOME"),
    ],
)
def test_without_a_network_or_a_cache_the_ways_out_are_named(monkeypatch, tmp_path, error, message):
    def fail(*_, **__):
        raise error

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(ConfigError, match=message):
        BACKBONES.load("squeezenet").check_weights("imagenet", {})


def test_a_damaged_file_in_torchs_cache_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub/checkpoints/squeezenet1_0-b66bff10.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"half of it")
    with pytest.raises(ConfigError, match=rf"{cached}: damaged \(.*\); remove it, and it is downloaded again"):
        BACKBONES.load("squeezenet").check_weights("imagenet", {})
