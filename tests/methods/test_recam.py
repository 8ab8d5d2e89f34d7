"""ReCAM: its losses against literal loops, what each loss reaches, and how two classifiers become one."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.evaluation.maps import MapReader
from seedbed.benchmark.pipeline.hparams import override
from seedbed.benchmark.pipeline.stage import Context, Kind, Meta
from seedbed.benchmark.training.checkpoint import load_network, load_tensors, save_network
from seedbed.benchmark.training.loop import fit, parameter_groups
from seedbed.datasets.base import Split
from seedbed.methods.backbones.base import build_backbone
from seedbed.methods.cam import METHOD as CAM
from seedbed.methods.cam import CamNetwork, InferCam, TrainCam
from seedbed.methods.recam import (
    METHOD,
    Combination,
    InferReCam,
    ReCamNetwork,
    TrainReCam,
    combined_weights,
    masked_features,
    softmax_cross_entropy,
)

VOC: dict[str, Any] = {"classes": 20, "long_side": 500, "weights": "imagenet"}
FIRST, SECOND = {"classifier.weight"}, {"second.weight"}
TAGS = torch.tensor([[1.0, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 1]])


def chain(backbone: str) -> tuple[TrainCam, TrainReCam, InferReCam]:
    """Return the stages for photographs of VOC's size."""
    return cast(Any, METHOD.localise(Meta(**VOC, backbone=backbone)))


def network(dropout: float = 0.0, seed: int = 0) -> ReCamNetwork:
    """Return a tiny network of three classes in training mode, with logits that are not near 0."""
    torch.manual_seed(seed)
    cam = CamNetwork("tiny", 3, stride=8, dropout=dropout, pretrained=False)
    cam.classifier.weight.data *= 20
    return ReCamNetwork.after(cam).train()


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Return four images with none to three tags."""
    generator = torch.Generator().manual_seed(1)
    return {"image": 255 * torch.rand(4, 3, 40, 48, generator=generator), "tags": TAGS}


def reached(net: ReCamNetwork, loss: Tensor) -> set[str]:
    """Return the names of the parameters that a loss has a gradient for."""
    net.zero_grad(set_to_none=True)
    loss.backward(retain_graph=True)
    return {name for name, p in net.named_parameters() if p.grad is not None and p.grad.any()}


# Settings


def test_the_published_recipe():
    """docs/methods.md, ReCAM."""
    cam, train, infer = chain("resnet50")
    assert [cam] == CAM.localise(Meta(**VOC, backbone="resnet50"))[:1]
    assert train == TrainReCam()
    assert (train.epochs, train.batch, train.optimiser, train.momentum) == (4, 16, "sgd", 0.0)
    assert (train.lr, train.lr * train.head_multiplier, train.weight_decay) == (5e-5, 5e-4, 1e-4)
    assert (train.long_side_low, train.long_side_high, train.crop, train.jitter) == (320, 640, 512, False)
    assert (train.reactivation_weight, train.through_mask, train.frozen) == (1.0, True, "stem")
    assert (infer.combination, infer.scales, METHOD.fixed_threshold) == ("product", (1.0, 0.5, 1.5, 2.0), 0.21)


def test_other_backbones_see_images_as_their_cam_does():
    for backbone in ("vgg16", "resnet38", "squeezenet", "efficientnet_lite0"):
        cam, train, _ = chain(backbone)
        for name in ("long_side_low", "long_side_high", "crop", "jitter", "batch"):
            assert getattr(train, name) == getattr(cam, name), (backbone, name)
    assert chain("vgg16")[2].square_root


def test_a_backbone_whose_cam_trains_by_adamw_goes_on_with_it():
    assert [chain(name)[1].optimiser for name in ("vgg16", "resnet38")] == ["sgd", "sgd"]
    cam, train, _ = chain("squeezenet")
    for name in ("optimiser", "lr", "head_multiplier", "weight_decay", "biases"):
        assert getattr(train, name) == getattr(cam, name), name


def test_an_unknown_combination_is_refused_with_the_valid_ones():
    with pytest.raises(ConfigError, match=r"InferReCam\.combination.*product.*sum.*first.*second"):
        override([InferReCam()], {"InferReCam.combination": "both"})


# The losses


def literal_masked(features: Tensor, locations: Tensor) -> Tensor:
    """Transcribe f_c, the mean over locations of M_c ⊗ f, one location after another."""
    images, channels, height, width = features.shape
    result = features.new_zeros(images, locations.shape[1], channels)
    for b in range(images):
        for c in range(locations.shape[1]):
            positive = [[max(float(v), 0.0) for v in row] for row in locations[b, c]]
            largest = max(max(row) for row in positive)
            for h in range(height):
                for w in range(width):
                    mask = positive[h][w] / (largest + 1e-5)
                    for k in range(channels):
                        result[b, c, k] += mask * features[b, k, h, w] / (height * width)
    return result


def literal_cross_entropy(logits: Tensor, tags: Tensor) -> float:
    """Transcribe L_sce: one softmax for each class of each image."""
    total = 0.0
    for b in range(len(logits)):
        present = [c for c in range(tags.shape[1]) if tags[b, c] > 0]
        for c in present:
            exponentials = [math.exp(float(v)) for v in logits[b, c]]
            total -= math.log(exponentials[c] / sum(exponentials)) / len(present)
    return total / len(logits)


def test_masked_features_are_those_of_the_equation():
    torch.manual_seed(0)
    features, locations = torch.rand(2, 5, 3, 4), torch.randn(2, 3, 3, 4)
    locations[1, 2] = -1.0  # a class without any evidence masks all
    ours = masked_features(features, locations)
    torch.testing.assert_close(
        ours.double(), literal_masked(features.double(), locations.double()), rtol=1e-5, atol=1e-7
    )
    assert not ours[1, 2].any()


def test_masked_features_by_hand():
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, 5.0]]]])
    locations = torch.tensor([[[[4.0, 2.0]], [[-1.0, 8.0]]]])
    found = masked_features(features, locations)
    torch.testing.assert_close(found, torch.tensor([[[1.0, 2.75], [1.0, 2.5]]]), rtol=1e-5, atol=0)


def test_the_softmax_cross_entropy_is_that_of_the_equation():
    torch.manual_seed(2)
    logits = 3 * torch.randn(4, 3, 3, dtype=torch.float64)
    expected = literal_cross_entropy(logits, TAGS)
    assert float(softmax_cross_entropy(logits, TAGS)) == pytest.approx(expected, rel=1e-6)
    absent = logits.clone()
    absent[TAGS == 0] = 100.0
    assert float(softmax_cross_entropy(absent, TAGS)) == pytest.approx(expected, rel=1e-6)


def test_the_softmax_cross_entropy_by_hand():
    """One image with one of two classes, undecided; and an image without a class, which counts as 0."""
    logits, tags = torch.zeros(2, 2, 2), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert float(softmax_cross_entropy(logits, tags)) == pytest.approx(math.log(2) / 2)
    assert float(softmax_cross_entropy(logits[:1], tags[:1])) == pytest.approx(math.log(2))
    assert float(softmax_cross_entropy(logits[1:], tags[1:])) == 0


def test_the_losses_of_a_batch_are_those_of_the_equations(batch):
    net = network()
    found = TrainReCam(reactivation_weight=0.3).losses(net, batch)
    with torch.no_grad():
        features = net.backbone(batch["image"]).double()
    first, second = net.classifier.weight.detach()[:, :, 0, 0].double(), net.second.weight.detach().double()
    locations = torch.einsum("cf,bfhw->bchw", first, features)
    pooled = locations.mean((2, 3)).sigmoid()
    entropies = -(TAGS * pooled.log() + (1 - TAGS) * (1 - pooled).log())
    assert float(found["classification"].detach()) == pytest.approx(float(entropies.mean()), rel=1e-4)
    logits = literal_masked(features, locations) @ second.T
    assert float(found["reactivation"].detach()) == pytest.approx(
        0.3 * literal_cross_entropy(logits, TAGS), rel=1e-4
    )
    right = [int(logits[b, c].argmax()) == c for b, c in TAGS.nonzero().tolist()]
    assert float(found["accuracy"]) == pytest.approx(sum(right) / len(right))


def test_a_batch_without_any_class_has_no_reactivation(batch):
    losses = TrainReCam().losses(network(), {**batch, "tags": torch.zeros(4, 3)})
    assert float(losses["reactivation"].detach()) == float(losses["accuracy"]) == 0


# What each loss reaches


@pytest.mark.parametrize(
    ("loss", "through_mask", "classifiers"),
    [
        ("classification", True, FIRST),
        ("reactivation", True, FIRST | SECOND),
        ("reactivation", False, SECOND),
    ],
)
def test_each_loss_reaches_the_backbone_and_these_classifiers(batch, loss, through_mask, classifiers):
    """docs/methods.md, ReCAM: the table of gradients."""
    net = network()
    value = TrainReCam(through_mask=through_mask).losses(net, batch)[loss]
    assert reached(net, value) == {n for n, _ in net.named_parameters() if n.startswith("backbone")} | classifiers


def test_the_gradient_through_the_mask_is_that_of_the_equation():
    """Finite differences, through the maximum too; a constant mask leaves the gradient of the features alone."""
    torch.manual_seed(3)
    features = torch.rand(1, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    locations = torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(masked_features, (features, locations))
    masked_features(features, locations, through_mask=False).sum().backward()
    assert locations.grad is None
    assert features.grad is not None


@pytest.mark.parametrize(
    ("frozen", "learning"),
    [
        ("stem", {"layer1", "layer2", "layer3", "layer4"}),
        ("early", {"layer3", "layer4"}),
        ("none", {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}),
    ],
)
def test_what_is_frozen_does_not_learn(frozen, learning):
    backbone = build_backbone("resnet18", 16, False)
    for module in TrainReCam(frozen=frozen).frozen_layers(backbone):
        module.requires_grad_(False)
    assert {name.split(".")[0] for name, p in backbone.named_parameters() if p.requires_grad} == learning


def test_without_its_weight_the_loss_is_cams_bit_for_bit(batch):
    ours, cams = network(dropout=0.5), network(dropout=0.5)
    torch.manual_seed(7)
    losses = TrainReCam(reactivation_weight=0.0).losses(ours, batch)
    loss = losses["classification"] + losses["reactivation"]
    loss.backward()
    torch.manual_seed(7)
    expected = TrainCam().losses(cams, batch)["classification"]
    expected.backward()
    assert torch.equal(loss, expected)
    gradients = {name: p.grad for name, p in ours.named_parameters()}
    assert not gradients.pop("second.weight").any()
    assert all(torch.equal(gradients[n], p.grad) for n, p in cams.named_parameters() if n in gradients)


@pytest.mark.parametrize("through_mask", [True, False])
def test_the_training_teaches_the_second_classifier_to_tell_the_masked_classes_apart(batch, through_mask):
    stage, net = TrainReCam(through_mask=through_mask), network()
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    values = []
    for _ in range(12):
        losses = stage.losses(net, batch)
        values.append(float(losses["reactivation"].detach()))
        optimiser.zero_grad()
        (losses["classification"] + losses["reactivation"]).backward()
        optimiser.step()
    assert values[-1] < 0.8 * values[0]


# The stages


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the checkpoint of a CAM network of six classes."""
    folder = tmp_path_factory.mktemp("cam")
    torch.manual_seed(0)
    cam = CamNetwork("tiny", 6, stride=8, dropout=0.0, pretrained=False)
    torch.nn.init.normal_(cam.classifier.weight, std=100)  # the features of an untrained network are small
    save_network(folder, cam)
    return folder


def short(**settings: Any) -> TrainReCam:
    """Return one epoch on images of 64 pixels."""
    _, train, _ = METHOD.localise(Meta(classes=6, long_side=64, backbone="tiny"))
    assert isinstance(train, TrainReCam)
    return replace(train, epochs=1, batch=8, **settings)


def test_the_second_training_goes_on_from_cams_network(chimera, trained, tmp_path):
    context = Context(seed=0, split=Split.WEAK, scratch=tmp_path)
    stage = short()
    stage.run(chimera, {Kind.CHECKPOINT: trained}, tmp_path, context)
    before, after = (load_tensors(folder / "model.pt") for folder in (trained, tmp_path))
    assert set(after) == set(before) | SECOND
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert "classifier.weight" in changed
    stem = ("backbone.layers.0.0", "backbone.layers.1.0")  # the convolutions of the first pair
    assert all((f"{name}.weight" in changed) is (not name.startswith(stem)) for name in convolutions())
    assert isinstance(load_network(tmp_path), ReCamNetwork)
    report = json.loads((tmp_path / "training.json").read_text())
    assert set(report["history"][0]) == {"classification", "reactivation", "accuracy"}
    (epoch,) = report["history"]
    assert stage.totals([epoch]) == [pytest.approx(epoch["classification"] + epoch["reactivation"])]
    slow, fast = report["groups"]
    assert (fast["lr"] / slow["lr"], fast["parameters"]) == (pytest.approx(stage.head_multiplier), 6 * 128)


def convolutions() -> list[str]:
    """Return the names of the convolutions of `tiny` in a network."""
    net = network()
    return [n for n, m in net.named_modules() if isinstance(m, torch.nn.Conv2d) and n.startswith("backbone")]


def test_without_its_weight_the_second_training_is_a_longer_one_of_cam(chimera, trained, tmp_path):
    stage = short(reactivation_weight=0.0, frozen="none")
    for name in ("ours", "cams"):
        (tmp_path / name).mkdir()
    context = Context(seed=0, split=Split.WEAK, scratch=tmp_path / "ours")
    stage.run(chimera, {Kind.CHECKPOINT: trained}, tmp_path / "ours", context)
    cam = cast(CamNetwork, load_network(trained))
    context = replace(context, scratch=tmp_path / "cams")
    fit(
        cam,
        lambda batch, _: TrainCam().losses(cam, batch),
        stage.examples(chimera, {}, context),
        parameter_groups(cam, [], stage),
        stage,
        tmp_path / "cams",
        context,
    )
    ours = load_tensors(tmp_path / "ours" / "model.pt")
    assert all(torch.equal(ours[name], value) for name, value in cam.state_dict().items())
    assert not torch.equal(ours["classifier.weight"], load_tensors(trained / "model.pt")["classifier.weight"])


# The maps


def test_weights_are_combined_by_hand():
    first, second = torch.tensor([[3.0, 4.0], [-2.0, 0.0]]), torch.tensor([[0.0, 2.0], [-1.0, 0.0]])
    assert combined_weights(first, second, "product").tolist() == [[0, 8], [2, 0]]
    torch.testing.assert_close(combined_weights(first, second, "sum"), torch.tensor([[0.6, 1.8], [-2.0, 0.0]]))
    assert combined_weights(first, second, "first") is first
    assert combined_weights(first, second, "second") is second


@pytest.mark.parametrize("combination", ["product", "sum", "first", "second"])
def test_the_combined_network_makes_the_maps_of_the_equation(batch, combination):
    net = network().eval()
    combined = net.combined(combination).eval()
    assert type(combined) is CamNetwork
    with torch.no_grad():
        features, maps = net.backbone(batch["image"]), combined.maps(batch["image"])
        literal = torch.zeros_like(maps)
        for c, (w, v) in enumerate(zip(net.classifier.weight[:, :, 0, 0], net.second.weight, strict=True)):
            weight = {
                "product": w * v,
                "sum": w / (w @ w).sqrt() + v / (v @ v).sqrt(),
                "first": w,
                "second": v,
            }[combination]
            literal[:, c] = sum(weight[k] * features[:, k] for k in range(features.shape[1])).clamp(min=0)
    torch.testing.assert_close(maps, literal, rtol=1e-4, atol=1e-6)
    assert maps.any()


def test_maps_of_the_first_classifier_are_cams_and_the_others_differ(chimera, tmp_path):
    torch.manual_seed(0)
    net = ReCamNetwork.after(CamNetwork("tiny", 6, stride=8, dropout=0.0, pretrained=False)).eval()
    for layer in (net.classifier, net.second):
        torch.nn.init.normal_(layer.weight, std=100)  # the features of an untrained network are small
    save_network(tmp_path, net)

    def maps(stage: InferCam, name: str) -> dict[str, bytes]:
        out, scratch = tmp_path / name, tmp_path / f"{name}_scratch"
        out.mkdir()
        scratch.mkdir()
        stage.run(chimera, {Kind.CHECKPOINT: tmp_path}, out, Context(seed=0, split=Split.TUNE, scratch=scratch))
        reader = MapReader(out)
        return {i: reader.read(i).scores.tobytes() for i in reader.ids}

    cams = maps(InferCam(scales=(1.0,)), "cam")
    names: tuple[Combination, ...] = ("first", "second", "product", "sum")
    found = {name: maps(InferReCam(scales=(1.0,), combination=name), name) for name in names}
    assert found["first"] == cams
    assert len({tuple(found[name].values()) for name in names}) == 4
