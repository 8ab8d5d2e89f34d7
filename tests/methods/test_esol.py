"""ESOL: its equations against slow transcriptions, what learns in each phase, and what each phase starts from."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from seedbed.benchmark.pipeline.stage import Context, Kind, Meta
from seedbed.benchmark.training.checkpoint import load_network, load_tensors
from seedbed.datasets.base import Split
from seedbed.methods.cam import METHOD as CAM
from seedbed.methods.cam import InferCam, TrainCam
from seedbed.methods.esol import (
    METHOD,
    EsolNetwork,
    Expand,
    OffsetTraining,
    SamplingConvolution,
    Shrink,
    TrainEsolClassifier,
    area_loss,
    clipped,
)

VOC = {"classes": 20, "long_side": 500}
OFFSETS = {phase: {f"{phase}.offsets.weight", f"{phase}.offsets.bias"} for phase in ("expansion", "shrinkage")}
HEAD = {"shrinkage.convolution.weight", "classifier.weight"}


def network(phase: str = "classifier", kernel: int = 3, clip: float = 1.0, seed: int = 0) -> EsolNetwork:
    """Return a small network in eval mode, whose convolutions are not the identity and whose logits are not 0."""
    torch.manual_seed(seed)
    net = EsolNetwork(
        "tiny", 3, 8, dropout=0.5, pretrained=False, kernel=kernel, phase=cast(Any, phase), clip=clip
    )
    for layer in (net.expansion, net.shrinkage):
        layer.convolution.weight.data += 0.02 * torch.randn_like(layer.convolution.weight)
    net.classifier.weight.data *= 100
    return net.eval()


def batch() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {"image": 255 * torch.rand(2, 3, 48, 48), "tags": torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])}


def chain(backbone: str, **settings: Any) -> list[Any]:
    method = dataclasses.replace(METHOD, **settings)
    return method.localise(Meta(**VOC, backbone=backbone, weights="imagenet"))


def test_the_published_recipe():
    """Section 4.1, with IRN's classifier."""
    classifier, expand, shrink, infer = chain("resnet50")
    cam, _ = CAM.localise(Meta(**VOC, backbone="resnet50", weights="imagenet"))
    shared = {name: value for name, value in classifier.settings().items() if name in cam.settings()}
    assert shared == cam.settings()
    assert (classifier.kernel, classifier.head_multiplier) == (3, 10.0)
    for stage, lr in ((expand, 0.01), (shrink, 0.1)):
        assert (stage.epochs, stage.batch, stage.lr, stage.optimiser) == (10, 16, lr, "sgd")
        assert (stage.weight_decay, stage.momentum, stage.head_multiplier, stage.power) == (1e-4, 0.0, 10.0, 0.9)
        assert (stage.long_side_low, stage.long_side_high, stage.crop, stage.jitter) == (320, 640, 512, False)
        assert stage.deform
    assert (expand.alpha, expand.clip) == (0.001, 0.15)
    assert (shrink.classification_weight, shrink.area_weight, shrink.area) == (1.0, 1.0, "sigmoid")
    assert shrink.trained == "offsets"
    assert infer.scales == (1.0, 0.5, 1.5, 2.0)


@pytest.mark.parametrize(
    ("until", "kinds"),
    [
        ("classifier", [TrainEsolClassifier, InferCam]),
        ("expansion", [TrainEsolClassifier, Expand, InferCam]),
        ("shrinkage", [TrainEsolClassifier, Expand, Shrink, InferCam]),
    ],
)
def test_the_chain_ends_where_it_is_told_to(until, kinds):
    assert [type(stage) for stage in chain("resnet50", until=until)] == kinds


# The equations


def sampled_slowly(features: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    """Transcribe Equation 4: F'(p0) = Σ_n w(pn) · x(p0 + pn + Δpn), x bilinear and 0 outside the map."""
    batch, channels, height, width = features.shape
    size = weight.shape[-1]
    out = torch.zeros(batch, len(weight), height, width, dtype=features.dtype)

    def value(image: int, channel: int, row: float, column: float) -> float:
        top, left = math.floor(row), math.floor(column)
        total = 0.0
        for r, share_r in ((top, top + 1 - row), (top + 1, row - top)):
            for c, share_c in ((left, left + 1 - column), (left + 1, column - left)):
                if 0 <= r < height and 0 <= c < width:
                    total += share_r * share_c * float(features[image, channel, r, c])
        return total

    for b in range(batch):
        for row in range(height):
            for column in range(width):
                for n in range(size * size):
                    place = (
                        row + n // size - size // 2 + float(offsets[b, 2 * n, row, column]),
                        column + n % size - size // 2 + float(offsets[b, 2 * n + 1, row, column]),
                    )
                    for channel in range(channels):
                        sample = value(b, channel, *place)
                        out[b, :, row, column] += weight[:, channel, n // size, n % size] * sample
    return out


@pytest.mark.parametrize("kernel", [1, 3])
def test_sampling_is_equation_4(kernel):
    torch.manual_seed(0)
    layer = SamplingConvolution(2, kernel, deformable=True)
    layer.convolution.weight.data.normal_()
    layer.offsets.weight.data.normal_(std=0.3)
    layer.offsets.bias.data.normal_()
    features = torch.randn(2, 2, 4, 5)
    result, offsets = (tensor.detach() for tensor in layer(features))
    assert offsets.shape == (2, 2 * kernel**2, 4, 5)
    slow = sampled_slowly(features.double(), offsets.double(), layer.convolution.weight.detach().double())
    torch.testing.assert_close(result.double(), slow, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel", [1, 3])
def test_zero_offsets_are_the_plain_convolution(kernel):
    torch.manual_seed(0)
    deformable, plain = (SamplingConvolution(8, kernel, deformable=flag) for flag in (True, False))
    torch.testing.assert_close(plain.convolution.weight, deformable.convolution.weight, rtol=0, atol=0)
    features = torch.randn(2, 8, 6, 7)
    torch.testing.assert_close(deformable(features)[0], features, rtol=0, atol=0)  # both start as the identity
    plain.convolution.weight.data.normal_()
    deformable.load_state_dict(plain.state_dict())
    result, offsets = deformable(features)
    torch.testing.assert_close(result, plain(features)[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result, F.conv2d(features, plain.convolution.weight, padding=kernel // 2))
    assert not offsets.any()
    assert float(plain(features)[1]) == 0


def test_mixed_precision_leaves_the_sampling_in_float32():
    torch.manual_seed(0)
    layer = SamplingConvolution(4, 3, deformable=True)
    layer.offsets.weight.data.normal_(std=0.1)
    features = torch.randn(1, 4, 6, 6)
    whole = layer(features)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer(features)
        half = layer(features.bfloat16())
    for result, offsets in (mixed, half):
        assert result.dtype == offsets.dtype == torch.float32
    for expected, result in zip(whole, mixed, strict=True):
        torch.testing.assert_close(result, expected, rtol=0, atol=0)


def test_clipping_is_equation_7_for_each_image_and_channel():
    torch.manual_seed(0)
    features = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    slow = features.clone()
    for b in range(2):
        for channel in range(3):
            most = max(float(x) for x in features[b, channel].flatten())
            for row in range(4):
                for column in range(5):
                    if features[b, channel, row, column] >= 0.15 * most:
                        slow[b, channel, row, column] = 0.15 * most
    torch.testing.assert_close(clipped(features, 0.15), slow)
    torch.testing.assert_close(clipped(features, 1.0), features, rtol=0, atol=0)


def test_the_gradient_passes_where_nothing_is_clipped_and_not_through_the_maximum():
    features = torch.tensor([1.0, 4.0, 0.0, 3.0]).reshape(1, 1, 2, 2).requires_grad_()
    assert torch.autograd.grad(clipped(features, 0.5).sum(), features)[0].flatten().tolist() == [1, 0, 1, 0]
    assert torch.autograd.grad(clipped(features, 1.0).sum(), features)[0].flatten().tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("area", ["sigmoid", "cam"])
def test_the_area_is_equation_6(area):
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5)
    logits[1, 2] -= 9  # a class without a positive place has an area of 0 by Equation 2
    total = 0.0
    for image in logits.double():
        for plane in image:
            values = [float(x) for x in plane.flatten()]
            if area == "sigmoid":
                maps = [1 / (1 + math.exp(-x)) for x in values]
            else:
                maps = [max(x, 0) / (max(max(values), 0) + 1e-5) for x in values]
            total += sum(maps) / len(maps)
    assert float(area_loss(logits, cast(Any, area))) == pytest.approx(total / 6, rel=1e-5)


def test_losses_are_equations_5_and_6_of_the_measured_ones():
    data = batch()
    expand, shrink = Expand(alpha=0.02, clip=0.3), Shrink(classification_weight=0.5, area_weight=3.0)
    expansion = expand.enter(network())
    expansion.expansion.offsets.bias.data[:] = torch.tensor([0.5, -1.0] * 9)
    losses = {name: float(value.detach()) for name, value in expand.losses(expansion, data).items()}
    logits = expansion(data["image"])
    entropy = F.binary_cross_entropy_with_logits(logits, data["tags"])  # Equation 1
    assert losses["classification"] == pytest.approx(float(entropy.detach()))
    assert losses["expansion"] == pytest.approx(-0.02 * losses["classification"])
    assert losses["offset"] == pytest.approx(0.75)
    assert expand.totals([losses]) == [losses["expansion"]]
    losses = {name: float(value.detach()) for name, value in shrink.losses(shrink.enter(expansion), data).items()}
    assert losses["shrinkage"] == pytest.approx(0.5 * losses["classification"] + 3 * losses["area"])
    assert losses["area"] == pytest.approx(
        float(area_loss(expansion.locations(data["image"]).detach(), "sigmoid"))
    )
    assert losses["offset"] == 0  # of the second convolution, not of the first
    assert shrink.totals([losses]) == [losses["shrinkage"]]


# The phases


def test_each_phase_starts_as_the_one_before_ended():
    images = batch()["image"]
    classifier = network()
    torch.testing.assert_close(Expand(clip=1.0).enter(classifier)(images), classifier(images))
    expansion = Expand(clip=0.15).enter(classifier)
    assert not torch.allclose(expansion(images), classifier(images), rtol=0.05)
    expansion.expansion.offsets.weight.data.normal_(std=0.1)
    shrinkage = Shrink().enter(expansion)
    assert shrinkage.clip == 0.15
    torch.testing.assert_close(shrinkage(images), expansion(images))
    torch.testing.assert_close(shrinkage.maps(images), expansion.maps(images))


def test_logits_are_the_mean_of_what_maps_show():
    net, images = network("shrinkage", clip=0.15), batch()["image"]
    net.shrinkage.offsets.weight.data.normal_(std=0.1)
    torch.testing.assert_close(net(images), net.locations(images).mean((2, 3)))
    torch.testing.assert_close(net.maps(images), net.locations(images).relu())
    assert net.maps(images).shape == (2, 3, 6, 6)
    assert net.maps(images).max() > 0


@pytest.mark.parametrize(
    ("stage", "phase", "expected"),
    [
        (Expand(), "classifier", OFFSETS["expansion"]),
        (Expand(deform=False), "classifier", set()),
        (Shrink(), "expansion", OFFSETS["shrinkage"]),
        (Shrink(area="cam"), "expansion", OFFSETS["shrinkage"]),
        (Shrink(trained="head"), "expansion", OFFSETS["shrinkage"] | HEAD),
        (Shrink(trained="head", deform=False), "expansion", HEAD),
    ],
)
def test_each_loss_reaches_the_named_tensors_alone(stage, phase, expected):
    """docs/methods.md, ESOL, "What learns"."""
    net = stage.enter(network(phase, clip=0.5))
    net.train()
    for name, loss in stage.losses(net, batch()).items():
        net.zero_grad()
        if loss.requires_grad:
            loss.backward(retain_graph=True)
        reached = {n for n, p in net.named_parameters() if p.grad is not None and p.grad.any()}
        area = name == "area" and stage.trained == "head"
        if name != "offset" and not area:
            assert reached == expected, name
        assert reached <= expected, name


def test_the_classifier_learns_all_but_offsets():
    net = TrainEsolClassifier(backbone="tiny", weights="none").network(3, {}).train()
    net(batch()["image"]).square().sum().backward()
    reached = {name for name, p in net.named_parameters() if p.grad is not None and p.grad.any()}
    everything = {name for name, _ in net.named_parameters()}
    assert everything - reached == OFFSETS["expansion"] | OFFSETS["shrinkage"]


def test_the_noise_of_the_convolutions_is_small_beside_the_identity():
    torch.manual_seed(0)
    net = TrainEsolClassifier(backbone="tiny", weights="none", noise=0.1).network(3, {})
    weight = net.expansion.convolution.weight.detach()
    noise = weight - torch.nn.init.dirac_(torch.empty_like(weight))
    assert float(noise.std()) == pytest.approx(0.1 / math.sqrt(weight[0].numel()), rel=0.02)
    assert not torch.equal(weight, net.shrinkage.convolution.weight)


def test_a_phase_of_offsets_has_no_dropout_and_moves_no_statistics():
    images = batch()["image"]
    net = network("expansion")
    before = {name: value.clone() for name, value in net.named_buffers()}
    assert not any(module.training for module in net.train().modules())
    torch.testing.assert_close(net(images), net(images), rtol=0, atol=0)
    assert all(torch.equal(before[name], value) for name, value in net.named_buffers())
    assert network("classifier").train().dropout.training


@pytest.mark.parametrize(("stage", "rises"), [(Expand(), True), (Shrink(area_weight=0.0), False)])
def test_a_step_of_expansion_raises_the_classification_loss_and_one_of_shrinkage_lowers_it(stage, rises):
    net = stage.enter(network("expansion"))
    for layer in stage.learning(net):  # between cells, because at whole ones the bilinear sample has a kink
        layer.bias.data.uniform_(0.3, 0.7)
    before = stage.losses(net, batch())
    sum(value for name, value in before.items() if name not in stage.measured).backward()
    for layer in stage.learning(net):
        for parameter in layer.parameters():
            parameter.data -= 1e-3 * parameter.grad / parameter.grad.norm()
    after = stage.losses(net, batch())
    assert (float(after["classification"].detach()) > float(before["classification"].detach())) == rises
    assert float(after["offset"].detach()) != float(before["offset"].detach())


# The stages


@pytest.fixture(scope="module")
def classifier(chimera, tmp_path_factory) -> Path:
    """Return the folder of a classifier trained for an epoch."""
    return run(TrainEsolClassifier(backbone="tiny", weights="none", **SMALL), chimera, tmp_path_factory, None)


SMALL: dict[str, Any] = {"epochs": 1, "batch": 8, "long_side_low": 48, "long_side_high": 64, "crop": 48}


def run(stage: TrainCam | OffsetTraining, data: Any, folders: Any, source: Path | None) -> Path:
    out: Path = folders.mktemp("out")
    context = Context(seed=0, split=Split.WEAK, scratch=folders.mktemp("scratch"))
    stage.run(data, {} if source is None else {Kind.CHECKPOINT: source}, out, context)
    return out


def changed(before: Path, after: Path) -> set[str]:
    old, new = (load_tensors(folder / "model.pt") for folder in (before, after))
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}


def test_the_named_tensors_alone_change_in_each_stage(chimera, classifier, tmp_path_factory):
    expanded = run(Expand(lr=1.0, **SMALL), chimera, tmp_path_factory, classifier)
    assert changed(classifier, expanded) == OFFSETS["expansion"]
    shrunk = run(Shrink(**SMALL), chimera, tmp_path_factory, expanded)
    assert changed(expanded, shrunk) == OFFSETS["shrinkage"]
    history = json.loads((shrunk / "training.json").read_text())["history"]
    assert set(history[0]) == {"shrinkage", "classification", "offset", "area"}
    assert history[0]["offset"] > 0
    net = cast(EsolNetwork, load_network(shrunk))
    assert (net.phase, net.clip) == ("shrinkage", 0.15)


def test_without_offsets_shrinkage_learns_the_head_or_nothing(chimera, classifier, tmp_path_factory):
    expanded = run(Expand(deform=False, **SMALL), chimera, tmp_path_factory, classifier)
    assert changed(classifier, expanded) == set()
    assert cast(EsolNetwork, load_network(expanded)).clip == 0.15
    head = run(Shrink(deform=False, trained="head", **SMALL), chimera, tmp_path_factory, expanded)
    assert changed(expanded, head) == HEAD
