"""SEAM: its equations against literal loops in float64; what each loss reaches; the parts that can be off."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any, cast

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from seedbed.benchmark.evaluation.maps import MapReader
from seedbed.benchmark.pipeline.stage import Context, Kind, Meta
from seedbed.benchmark.training.checkpoint import save_network
from seedbed.datasets.base import Split
from seedbed.methods import seam
from seedbed.methods.cam import METHOD as CAM
from seedbed.methods.seam import (
    METHOD,
    Branch,
    InferSeam,
    MeasureEquivariance,
    SeamNetwork,
    TrainSeam,
    best_classes,
    correlate,
    cross_loss,
    peak_normalised,
    range_normalised,
    rescaled,
    resized,
)

VOC: dict[str, Any] = {"classes": 20, "long_side": 500, "weights": "imagenet"}
TAGS = torch.tensor([[1.0, 0, 1], [0, 1, 0]])


def training(backbone: str, **meta: Any) -> TrainSeam:
    train, _ = METHOD.localise(Meta(**VOC | meta, backbone=backbone))
    assert isinstance(train, TrainSeam)
    return train


def network(pcm: bool = True) -> SeamNetwork:
    """Return a tiny network of three classes in training mode, always the same, whose maps are not all 0."""
    torch.manual_seed(0)
    built = SeamNetwork("tiny", 3, stride=8, dropout=0.0, pretrained=False, pcm=pcm).train()
    torch.nn.init.normal_(built.classifier.weight)
    return built


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Return two images with one or two tags."""
    images = 255 * torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(1))
    return {"image": images, "tags": TAGS}


class Given(torch.nn.Module):
    """A network that makes the same branches of whatever it sees: leaves in float64."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)

        def leaf(channels: int, size: tuple[int, int], positive: bool) -> Tensor:
            drawn = torch.rand if positive else torch.randn
            values = drawn(2, channels, *size, generator=generator, dtype=torch.float64)
            return values.requires_grad_()

        self.sizes = ((8, 6), (4, 3))
        self.branches = {size: Branch(leaf(3, size, False), leaf(4, size, True)) for size in self.sizes}

    def branch(self, images: Tensor) -> Branch:
        return self.branches[images.shape[-2], images.shape[-1]]

    def leaves(self) -> dict[str, Tensor]:
        (first, first_refined), (second, second_refined) = (self.branches[size] for size in self.sizes)
        assert first_refined is not None
        assert second_refined is not None
        return {
            "logits": first,
            "refined": first_refined,
            "logits of the copy": second,
            "refined of the copy": second_refined,
        }


GIVEN = TrainSeam(rescale=0.5)


def of_given(given: Given) -> dict[str, Tensor]:
    """Return the losses of an image of 8 × 6 pixels and its copy of 4 × 3."""
    batch = {"image": torch.zeros(2, 3, 8, 6), "tags": TAGS}
    return GIVEN.losses(cast(SeamNetwork, given), batch)


def literal_normalised(plane: Tensor) -> Tensor:
    """Return max_norm of the authors' code for one map."""
    positive = [max_of(value, 0.0) for value in plane.flatten()]
    low, high = torch.stack(positive).min(), torch.stack(positive).max()
    values = [max_of(value - low - 1e-5, 0.0) / (high - low + 1e-5) for value in positive]
    return torch.stack(values).view(plane.shape)


def max_of(value: Tensor, other: float) -> Tensor:
    return value if float(value.detach()) > other else torch.full_like(value, other)


def literal_resized(plane: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a map bilinearly between corners that coincide."""
    rows = []
    for i in range(size[0]):
        row = []
        for j in range(size[1]):
            y = i * (plane.shape[0] - 1) / (size[0] - 1)
            x = j * (plane.shape[1] - 1) / (size[1] - 1)
            top, left = min(int(y), plane.shape[0] - 2), min(int(x), plane.shape[1] - 2)
            down, right = y - top, x - left
            row.append(
                (1 - down) * ((1 - right) * plane[top, left] + right * plane[top, left + 1])
                + down * ((1 - right) * plane[top + 1, left] + right * plane[top + 1, left + 1])
            )
        rows.append(torch.stack(row))
    return torch.stack(rows)


def literal_compared(maps: Tensor, tags: list[float], size: tuple[int, int]) -> list[Tensor]:
    """Return the maps (K, h, w) of one image as the losses compare them."""
    normalised = [literal_normalised(plane) for plane in maps]
    smaller = normalised if maps.shape[1:] == size else [literal_resized(plane, size) for plane in normalised]
    return [plane * tag for plane, tag in zip(smaller, tags, strict=True)]


def literal_target(cam: list[Tensor], i: int, j: int) -> list[float]:
    """Return background and classes at a location, of which only the best class stays, as constants."""
    values = [float(plane[i, j].detach()) for plane in cam]
    return [1 - max(values), *(value if value == max(values) else 0.0 for value in values)]


def literal_losses(given: Given, size: tuple[int, int] = (4, 3), share: float = 0.2) -> dict[str, Tensor]:
    """Section 3.4 and the code's minimum pooling, one value after another."""
    leaves = list(given.leaves().values())
    logits, refined = (leaves[0], leaves[2]), (leaves[1], leaves[3])
    images = range(2)
    classification, equivariance, cross, lowest = ([] for _ in range(4))
    for b in images:
        tags = TAGS[b].tolist()
        for z in logits:
            for c, tag in enumerate(tags):
                score = z[b, c].sum() / z[b, c].numel()
                entropy = -(tag * torch.sigmoid(score).log() + (1 - tag) * torch.sigmoid(-score).log())
                classification.append(entropy / (2 * 2 * 3))
        cams = [literal_compared(z[b], tags, size) for z in logits]
        for c in range(3):
            for i in range(size[0]):
                for j in range(size[1]):
                    difference = (cams[0][c][i, j] - cams[1][c][i, j]).abs()
                    equivariance.append(difference / (2 * 3 * size[0] * size[1]))
        for y, other in ((refined[0], cams[1]), (refined[1], cams[0])):
            shown = literal_compared(y[b], [1.0, *tags], size)
            differences = [
                (shown[c][i, j] - literal_target(other, i, j)[c]).abs()
                for c in range(4)
                for i in range(size[0])
                for j in range(size[1])
            ]
            hard = sorted(differences, key=lambda value: -float(value.detach()))
            hard = hard[: int(share * len(differences))]
            cross.append(sum(hard) / (len(hard) * 2))
        for y in refined:
            present = [y[b, 1 + c] for c, tag in enumerate(tags) if tag]
            highest = torch.stack([torch.stack(values).max() for values in zip(*map(flat, present), strict=True)])
            values = sorted(highest, key=lambda value: float(value.detach()))
            values = values[: len(values) // 4]
            lowest.append(sum(values) / (len(values) * 2 * 2))
    named = {
        "classification": classification,
        "equivariance": equivariance,
        "cross": cross,
        "min_pooling": lowest,
    }
    return {name: torch.stack([cast(Tensor, value) for value in values]).sum() for name, values in named.items()}


def flat(plane: Tensor) -> list[Tensor]:
    return list(plane.flatten())


LOSSES = ("classification", "equivariance", "cross", "min_pooling")


def test_the_recipe_of_the_published_backbone():
    """docs/methods.md, SEAM."""
    train, infer = METHOD.localise(Meta(**VOC, backbone="resnet38"))
    assert train == TrainSeam(backbone="resnet38", biases="psa")
    assert (train.batch, train.epochs, train.lr, train.head_multiplier) == (8, 8, 0.01, 10.0)
    assert (train.weight_decay, train.momentum, train.optimiser, train.power) == (5e-4, 0.0, "sgd", 0.9)
    assert (train.long_side_low, train.long_side_high, train.crop, train.jitter) == (448, 768, 448, True)
    assert (train.rescale, train.hard_share, train.dropout, train.stride) == (0.3, 0.2, 0.5, 8)
    assert (train.equivariance_weight, train.cross_weight, train.min_pooling_weight) == (1, 1, 1)
    assert infer == InferSeam(scales=(0.5, 1.0, 1.5, 2.0), flip=True)
    small = training("resnet38", long_side=250)
    assert (small.long_side_low, small.long_side_high, small.crop, small.epochs) == (224, 384, 224, 8)


@pytest.mark.parametrize("backbone", ["vgg16", "resnet50", "squeezenet", "tiny"])
def test_other_backbones_train_as_cam_does(backbone):
    train, (cam, _) = training(backbone), CAM.localise(Meta(**VOC, backbone=backbone))
    assert {name: train.settings()[name] for name in cam.settings()} == cam.settings()


def test_the_layers_are_those_of_the_code():
    with torch.device("meta"):
        built = SeamNetwork("resnet38", 20, stride=8, dropout=0.5, pretrained=True, pcm=True)
    assert [tap.block for tap in built.taps] == ["b4", "b5"]
    shapes = [tuple(layer.weight.shape[:2]) for layer in cast(Any, [*built.reduce, built.embed, built.classifier])]
    assert shapes == [(64, 512), (128, 1024), (192, 195), (20, 4096)]
    assert all(layer.bias is None for layer in cast(Any, [*built.reduce, built.embed, built.classifier]))


def test_fc6_is_dilated_as_in_a_classifier():
    with torch.device("meta"):
        built: Any = SeamNetwork("vgg16", 20, stride=8, dropout=0.5, pretrained=True, pcm=True)
    assert (built.backbone.fc6.dilation, built.backbone.fc6.padding) == ((1, 1), (1, 1))


def test_the_copy_has_as_many_pixels_as_in_the_code():
    assert rescaled(torch.zeros(1, 3, 448, 321), 0.3).shape == (1, 3, 134, 96)
    assert rescaled(torch.zeros(1, 3, 2, 2), 0.3).shape == (1, 3, 1, 1)


def test_corners_coincide():
    assert resized(torch.tensor([[[[0.0, 1.0]]]]), (1, 3)).tolist() == [[[[0.0, 0.5, 1.0]]]]
    torch.manual_seed(4)
    maps = torch.randn(1, 1, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(resized(maps, (3, 4))[0, 0], literal_resized(maps[0, 0], (3, 4)))


def test_only_the_best_class_of_a_location_stays_beside_the_background():
    maps = torch.tensor([[[[0.2, 0.7, 0.0, 0.5]], [[0.6, 0.1, 0.0, 0.5]]]])
    found = best_classes(maps)[0, :, 0]
    torch.testing.assert_close(
        found, torch.tensor([[0.4, 0.3, 1.0, 0.5], [0.0, 0.7, 0.0, 0.5], [0.6, 0.0, 0.0, 0.5]])
    )


def test_normalised_maps_by_hand():
    maps = torch.tensor([[[[-1.0, 2.0, 4.0]]]])
    torch.testing.assert_close(peak_normalised(maps)[0, 0, 0], torch.tensor([0, 0.5, 1.0]), rtol=0, atol=1e-5)
    torch.testing.assert_close(range_normalised(maps)[0, 0, 0], torch.tensor([0, 0.5, 1.0]), rtol=0, atol=1e-5)
    # PCM's maps keep their lowest value, those of the losses do not.
    raised = maps.abs() + 1
    torch.testing.assert_close(peak_normalised(raised)[0, 0, 0], torch.tensor([0.4, 0.6, 1]), rtol=0, atol=1e-5)
    torch.testing.assert_close(range_normalised(raised)[0, 0, 0], torch.tensor([0, 1 / 3, 1]), rtol=0, atol=1e-5)
    assert not range_normalised(torch.full((1, 1, 2, 2), 3.0)).any()
    assert not peak_normalised(torch.full((1, 1, 2, 2), -3.0)).any()


def literal_correlate(maps: Tensor, features: Tensor) -> Tensor:
    """Section 3.3, one pair of locations after another: no softmax, no residual."""
    images, classes, height, width = maps.shape
    places = [(i, j) for i in range(height) for j in range(width)]
    found = torch.empty_like(maps)
    for b in range(images):
        norms = {p: features[b, :, p[0], p[1]].square().sum().sqrt() + 1e-5 for p in places}
        for p in places:
            weights = []
            for q in places:
                product = (features[b, :, p[0], p[1]] * features[b, :, q[0], q[1]]).sum()
                weights.append(max(float(product / (norms[p] * norms[q])), 0.0))
            for c in range(classes):
                total = sum(w * float(maps[b, c, q[0], q[1]]) for w, q in zip(weights, places, strict=True))
                found[b, c, p[0], p[1]] = total / (sum(weights) + 1e-5)
    return found


@pytest.mark.parametrize("at_once", [2**27, 30, 1])
def test_the_module_is_that_of_the_equation(monkeypatch, at_once):
    """However many affinities are computed at once."""
    monkeypatch.setattr(seam, "AFFINITIES", at_once)
    generator = torch.Generator().manual_seed(5)
    maps = torch.rand(2, 3, 3, 4, generator=generator, dtype=torch.float64)
    features = torch.randn(2, 5, 3, 4, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(correlate(maps, features), literal_correlate(maps, features))


def test_pixels_that_do_not_correlate_keep_their_value_and_alike_ones_share_theirs():
    maps = torch.tensor([[[[1.0, 0.0, 0.4]]]])
    features = torch.tensor([[[[1.0, 2.0, 0.0]], [[0.0, 0.0, -3.0]]]])
    torch.testing.assert_close(correlate(maps, features), torch.tensor([[[[0.5, 0.5, 0.4]]]]), rtol=0, atol=1e-4)


def test_the_module_computes_in_float32_under_autocast():
    torch.manual_seed(6)
    maps, features = torch.rand(1, 2, 4, 4), torch.randn(1, 8, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = correlate(maps, features)
    assert torch.equal(found, correlate(maps, features))


def test_a_networks_refined_maps_are_the_equations_of_its_layers(batch):
    """Image at the grid of the CAM, then the two taps; all classes, not only the tagged ones."""
    net = network().eval()
    images = batch["image"]
    with torch.no_grad():
        blocks = net.backbone.outputs(images)
        logits = net.classifier(blocks["pair4"])
        taps = [conv(blocks[name]).relu() for conv, name in zip(net.reduce, ("pair2", "pair3"), strict=True)]
        pixels = [[literal_resized(plane, (8, 6)) for plane in image] for image in net.backbone.normalise(images)]
        image = torch.stack([torch.stack(planes) for planes in pixels])
        taps = [tap if tap.shape[-2:] == (8, 6) else resized(tap, (8, 6)) for tap in taps]
        theta = net.embed(torch.cat([image, *taps], 1)).double()
        cam = peak_normalised(logits).double()
        wanted = literal_correlate(best_classes(cam), theta)
        branch = net.branch(images)
    assert branch.refined is not None
    torch.testing.assert_close(branch.refined, resized(wanted, (64, 48)).float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(branch.logits, resized(logits, (64, 48)))
    torch.testing.assert_close(net(images), branch.logits.mean((2, 3)))
    torch.testing.assert_close(net.maps(images), branch.refined[:, 1:])


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_and_its_gradient_are_those_of_the_equation(name):
    ours, theirs = Given(), Given()
    found, wanted = of_given(ours)[name], literal_losses(theirs)[name]
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=0)
    found.backward()
    wanted.backward()
    for leaf, other in zip(ours.leaves().values(), theirs.leaves().values(), strict=True):
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in (leaf, other)]
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-9)


LOGITS = {"logits", "logits of the copy"}
REFINED = {"refined", "refined of the copy"}


@pytest.mark.parametrize(
    ("name", "of_branches", "of_network"),
    [
        ("classification", LOGITS, {"backbone", "classifier"}),
        ("equivariance", LOGITS, {"backbone", "classifier"}),
        ("cross", REFINED, {"reduce", "embed"}),
        ("min_pooling", REFINED, {"reduce", "embed"}),
    ],
)
def test_what_each_loss_reaches(batch, name, of_branches, of_network):
    """The table of docs/methods.md: both branches, but either backbone and classifier, or PCM."""
    given, net = Given(), network()
    of_given(given)[name].backward()
    assert {n for n, leaf in given.leaves().items() if leaf.grad is not None and leaf.grad.any()} == of_branches
    TrainSeam().losses(net, batch)[name].backward()
    reached = {n for n, p in net.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {n for n, _ in net.named_parameters() if n.split(".")[0] in of_network}


@pytest.mark.parametrize(
    ("settings", "minimised"),
    [
        ({"pcm": False, "equivariance_weight": 0.0}, {"classification"}),
        ({"pcm": False}, {"classification", "equivariance"}),
        ({"min_pooling_weight": 0.0}, {"classification", "equivariance", "cross"}),
        ({"cross_weight": 0.0}, {"classification", "equivariance", "min_pooling"}),
        ({}, set(LOSSES)),
    ],
)
def test_every_part_can_be_off(batch, settings, minimised):
    stage = TrainSeam(**settings)
    net = network(stage.pcm)
    assert {*stage.losses(net, batch)} == minimised
    parts = {name for name, _ in net.named_children()}
    assert parts == {"backbone", "dropout", "classifier"} | ({"reduce", "embed"} if stage.pcm else set())


def test_weights_weigh(batch):
    weights = {"equivariance": 2.0, "cross": 3.0, "min_pooling": 5.0}
    plain = TrainSeam().losses(network(), batch)
    weighted = TrainSeam(**{f"{name}_weight": weight for name, weight in weights.items()})
    for name, value in weighted.losses(network(), batch).items():
        torch.testing.assert_close(value, weights.get(name, 1.0) * plain[name])


def test_without_hard_example_mining_all_differences_count():
    torch.manual_seed(7)
    refined, other = torch.rand(2, 4, 3, 3), torch.rand(2, 3, 3, 3)
    differences = (best_classes(other) - refined).abs()
    torch.testing.assert_close(cross_loss(refined, other, 1.0), differences.mean())
    assert cross_loss(refined, other, 1e-3) == pytest.approx(float(differences.amax((1, 2, 3)).mean()))


def test_without_the_module_the_maps_are_cams(batch):
    net = network(pcm=False).eval()
    with torch.no_grad():
        wanted = resized(net.locations(batch["image"]), (64, 48)).relu()
        torch.testing.assert_close(net.maps(batch["image"]), wanted)


def test_the_equivariance_loss_brings_the_maps_of_image_and_copy_together(batch):
    net = network(pcm=False)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.003)
    values = []
    for _ in range(8):
        loss = TrainSeam(pcm=False).losses(net, batch)["equivariance"]
        values.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert values[-1] < 0.8 * values[0]


def test_a_training_reports_the_losses(chimera, tmp_path):
    train, _ = METHOD.localise(Meta(classes=6, long_side=64, backbone="tiny"))
    stage = replace(train, epochs=1, batch=8)
    stage.run(chimera, {}, tmp_path, Context(seed=0, split=Split.WEAK, scratch=tmp_path))
    (epoch,) = json.loads((tmp_path / "training.json").read_text())["history"]
    assert {*epoch} == {*LOSSES}


@pytest.fixture
def saved(tmp_path):
    """Return the folder of a network of six classes, and the network."""
    torch.manual_seed(3)
    net = SeamNetwork("tiny", 6, stride=8, dropout=0.5, pretrained=False, pcm=True).eval()
    torch.nn.init.normal_(net.classifier.weight, std=1000)  # the features of an untrained network are small
    folder = tmp_path / "network"
    folder.mkdir()
    save_network(folder, net)
    return folder, net


def test_maps_are_refined_and_from_their_minimum_to_their_maximum(chimera, saved, tmp_path):
    folder, net = saved
    context = Context(seed=0, split=Split.TUNE, scratch=tmp_path)
    out = tmp_path / "maps"
    out.mkdir()
    InferSeam(scales=(1.0,), flip=False, cell=1).run(chimera, {Kind.CHECKPOINT: folder}, out, context)
    reader, view = MapReader(out), chimera.split(Split.TUNE)
    for image_id in view.ids[:3]:
        image = torch.from_numpy(view.image(image_id).copy()).permute(2, 0, 1).float()
        with torch.no_grad():
            maps = net.maps(image[None])[0]
        found = reader.read(image_id)
        assert tuple(found.labels) == view.tags(image_id)
        for label, scores in zip(found.labels, found.scores, strict=True):
            wanted = literal_normalised(maps[label - 1].double())
            torch.testing.assert_close(torch.from_numpy(scores.astype(float)), wanted, rtol=0, atol=2e-3)


def test_the_equivariance_of_the_maps_is_measured(chimera, saved, tmp_path):
    folder, net = saved
    context = Context(seed=0, split=Split.TUNE, scratch=tmp_path)
    MeasureEquivariance().run(chimera, {Kind.CHECKPOINT: folder}, tmp_path, context)
    (row,) = pq.read_table(tmp_path / "records.parquet").to_pylist()
    view = chimera.split(Split.TUNE)
    errors = []
    for image_id in view.ids:
        image = torch.from_numpy(view.image(image_id).copy()).permute(2, 0, 1).float()[None]
        cells = tuple(-(-side // 4) for side in image.shape[-2:])
        with torch.no_grad():
            small = torch.nn.functional.interpolate(
                image, [int(0.3 * side) for side in image.shape[-2:]], mode="bilinear", align_corners=True
            )
            both = [resized(net.maps(each), cast(Any, image.shape[-2:])) for each in (image, small)]
        shown = [
            torch.nn.functional.interpolate(maps, cells, mode="bilinear", align_corners=False)[0] for maps in both
        ]
        difference = [
            float((literal_normalised(shown[0][t - 1]) - literal_normalised(shown[1][t - 1])).abs().mean())
            for t in view.tags(image_id)
        ]
        errors.append(sum(difference) / len(difference))
    assert (row["level"], row["metric"], row["split"]) == ("seed", "equivariance_error", "tune")
    assert row["value"] == pytest.approx(math.fsum(errors) / len(errors), rel=1e-4)
    assert 0 < row["value"] < 1
