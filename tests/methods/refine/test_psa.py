"""PSA: labels by hand, affinities against loops, where gradients go, the walk of one image, the whole chain."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from seedbed.benchmark.evaluation.maps import MapReader, MapWriter, ScoreMaps
from seedbed.benchmark.pipeline.pipeline import Pipeline
from seedbed.benchmark.pipeline.stage import Kind, Machine, Meta
from seedbed.benchmark.pipeline.store import Store
from seedbed.benchmark.training.augmentation import unscaled
from seedbed.datasets.base import Split
from seedbed.methods.backbones import resnet38
from seedbed.methods.refine import psa
from seedbed.methods.refine.psa import PsaLabels, TrainPsa, WalkPsa, confident_labels
from seedbed.methods.refine.psa.network import AffinityNetwork
from seedbed.methods.refine.random_walk import pair_offsets, transition_matrix, walk
from tests.helpers.fakes import FolderDataset, random_scene
from tests.methods.backbones.test_resnet38 import NARROW

LABELS = {0: (1.0, 0.0, 0.0), 1: (0.0, 1.0, 0.0), 2: (0.0, 0.0, 1.0)}


def stacks(low: list[int], high: list[int]) -> torch.Tensor:
    """Return stacks (6, 8, 8·n) with one cell of 8 × 8 pixels a label; −1 is padding."""
    cells = [[LABELS.get(label, (0.0, 0.0, 0.0)) for label in row] for row in (low, high)]
    probabilities = torch.tensor(cells).transpose(1, 2).flatten(0, 1)
    return probabilities[:, None].repeat_interleave(8, 1).repeat_interleave(8, 2)


def test_confident_labels_by_hand():
    """A class that both say; background that the high stack says, whatever the low one; doubt; padding."""
    low = [1, 2, 0, 0, 1, -1]
    high = [1, 2, 0, 1, 0, -1]
    assert confident_labels(stacks(low, high))[0].tolist() == [1, 2, 0, 255, 0, 255]


def test_a_cell_is_decided_by_its_mean():
    """Not by most of its pixels: 40 of 64 say class 1 by 0.51, and 24 background by 0.99. Padding adds nothing."""
    cell = torch.zeros(4, 8, 8)
    cell[0, :5], cell[1, :5] = 0.49, 0.51
    cell[0, 5:], cell[1, 5:] = 0.99, 0.01
    cell[2], cell[3] = 0.4, 0.6
    assert confident_labels(cell).tolist() == [[255]]
    cell[:, 5:] = 0
    assert confident_labels(cell).tolist() == [[1]]


@pytest.mark.parametrize("size", [(20, 30), (16, 16), (40, 12)])
def test_probabilities_are_cropped_padded_and_flipped_with_their_image(size):
    """A stack that repeats the image's channels stays equal to it; what is padded is black, and 0 in the stack."""
    slope = 2 * np.arange(size[0])[:, None] + 5 * np.arange(size[1]) + 1
    image = np.stack([slope, slope + 5, slope + 10], -1).astype(np.uint8)
    transform, flips = unscaled(0, 24, None), set()
    for seed in range(12):
        plan = transform.plan(size, torch.Generator().manual_seed(seed))
        shown = transform.image(image, plan)
        stack = transform.mask(image.transpose(2, 0, 1).astype(np.float32), plan, size)
        padded = (stack == 0).all(0)
        assert shown.shape == stack.shape == (3, 24, 24)
        assert torch.equal(shown, stack)
        assert int((~padded).sum()) == min(size[0], 24) * min(size[1], 24)
        row = stack[0][(~padded).any(1)][0]
        flips.add(bool((row[row > 0].diff() < 0).all()))
    assert len(flips) == 2


def test_the_stage_writes_both_crfs_of_both_exponents(tmp_path, monkeypatch):
    """With a CRF that only normalises: background is (1 − max)^4 and (1 − max)^32 by the scores."""

    def no_crf(image, unaries, kernels, iterations):
        assert vars(kernels) == vars(psa.PRESETS["psa"])
        scores = [np.exp(-unary) for unary in unaries]
        return [stack / stack.sum(0) for stack in scores]

    monkeypatch.setattr(psa, "dense_crfs", no_crf)
    image, mask = random_scene(0, 16, 24, (2,))
    data = FolderDataset(tmp_path / "data", {"a": image}, {"a": mask})
    (tmp_path / "scores").mkdir()
    with MapWriter(tmp_path / "scores") as writer:
        writer.write("a", ScoreMaps(np.array([2], np.int16), np.full((1, 4, 6), 0.1, np.float32), (16, 24)))
    PsaLabels().label(data.split(Split.WEAK), tmp_path / "scores", tmp_path, "a")
    with np.load(tmp_path / "a.npz") as found:
        for name, exponent in (("low", 4), ("high", 32)):
            background = 0.9**exponent
            assert found[name].dtype == np.float16
            assert found[name].shape == (2, 16, 24)
            np.testing.assert_allclose(found[name][0], background / (background + 0.1), rtol=2e-3)


def test_affinities_are_those_of_a_loop():
    network = AffinityNetwork("tiny", False, radius=3)
    features = torch.randn(2, 7, 6, 8)
    found = network.anchored(features)
    assert found.shape == (2, len(pair_offsets(3)), 4, 4)
    for p, (down, right) in enumerate(pair_offsets(3)):
        for y in range(4):
            for x in range(2, 6):
                distance = (features[:, :, y, x] - features[:, :, y + down, x + right]).abs().mean(1)
                torch.testing.assert_close(found[:, p, y, x - 2], torch.exp(-distance))


def test_in_the_walk_every_cell_is_an_anchor_and_nothing_lies_outside():
    torch.manual_seed(0)
    network = AffinityNetwork("tiny", False, radius=3).eval()
    images = 255 * torch.rand(1, 3, 48, 64)
    found = network.affinities(images)[0]
    assert found.shape == (len(pair_offsets(3)), 6, 8)
    torch.testing.assert_close(found[:, :4, 2:6], network.anchored(network(images))[0])
    for p, (down, right) in enumerate(pair_offsets(3)):
        outside = torch.ones(6, 8, dtype=torch.bool)
        outside[: 6 - down, max(0, -right) : 8 - max(0, right)] = False
        assert not found[p][outside].any()
        assert found[p][~outside].min() > 0


@pytest.mark.parametrize(
    ("backbone", "channels", "norms"),
    [
        ("vgg16", [512, 512, 1024], True),
        ("resnet38", [12, 16, 32], False),
        ("resnet50", [512, 1024, 2048], True),
        ("squeezenet", [256, 512, 512], True),
    ],
)
def test_the_taps_of_every_backbone(backbone, channels, norms, monkeypatch):
    """VGG-16 and ResNet-38 as published (docs/methods.md, PSA); ResNet-38 narrow."""
    narrow = replace(resnet38.BACKBONE, build=lambda stride: resnet38.ResNet38(stride, NARROW))
    monkeypatch.setattr(resnet38, "BACKBONE", narrow)
    network = AffinityNetwork(backbone, False, radius=5).eval()
    assert [tap.channels for tap in network.taps] == channels
    assert [type(norm) is nn.GroupNorm for norm in network.norms] == [norms] * 3
    if norms:
        assert [(norm.num_groups, norm.num_channels) for norm in network.norms] == [(8, 64), (16, 128), (32, 256)]
    # Xavier's bound with gain 4: 4 · √(6 / (448 + 448)).
    assert float(network.combine.weight.abs().max()) == pytest.approx(4 * (6 / 896) ** 0.5, rel=1e-3)
    assert network(torch.zeros(1, 3, 72, 64)).shape == (1, 448, 9, 8)


def test_vgg_dilates_fc6_by_four_here_and_not_in_the_classifier():
    from seedbed.methods.backbones.vgg16 import Vgg16
    from seedbed.methods.cam import CamNetwork

    affinity = AffinityNetwork("vgg16", False, radius=5).backbone
    classifier = CamNetwork("vgg16", 3, 8, 0.5, False).backbone
    assert isinstance(affinity, Vgg16)
    assert isinstance(classifier, Vgg16)
    assert (affinity.fc6.dilation, affinity.fc6.padding) == ((4, 4), (4, 4))
    assert classifier.fc6.dilation == (1, 1)


def test_vgg_drops_channels_for_cams_head_and_the_affinity_network_as_psas_code():
    """Once after fc6; of fc7 the CAM head drops the channels, the affinity network none."""
    from seedbed.methods.cam import CamNetwork

    for network in (AffinityNetwork("vgg16", False, radius=5), CamNetwork("vgg16", 3, 8, 0.5, False)):
        dropouts = [type(block.layers[-1]) for block in network.backbone.blocks()[-2:]]
        assert dropouts == [torch.nn.Dropout2d, torch.nn.Identity]
    assert isinstance(network.dropout, torch.nn.Dropout2d)


def test_equal_cells_are_equal_to_vggs_tap_in_training_too():
    """Channels are dropped, not cells: else no pair could come to an affinity of 1."""
    network = AffinityNetwork("vgg16", False, radius=2).train()
    features = torch.ones(1, 512, 16, 16)
    for block in network.backbone.blocks()[-2:]:
        features = block.layers(features)
    assert network.taps[-1].block == block.name
    middle = features[..., 4:12, 4:12]
    assert middle.any()
    torch.testing.assert_close(middle, middle[..., :1, :1].expand_as(middle))


def test_resnet38_is_read_before_b5_and_b6_after_their_norm(monkeypatch):
    torch.manual_seed(0)
    narrow = replace(resnet38.BACKBONE, build=lambda stride: resnet38.ResNet38(stride, NARROW))
    monkeypatch.setattr(resnet38, "BACKBONE", narrow)
    backbone = AffinityNetwork("resnet38", False, radius=5).eval().backbone
    assert isinstance(backbone, resnet38.ResNet38)
    images, seen = 255 * torch.rand(1, 3, 32, 32), []
    for block in (backbone.b5, backbone.b6):
        block.get_submodule("bn_branch2a").register_forward_hook(lambda *a: seen.append(a[2].relu()))
    outputs = backbone.outputs(images)
    taps = backbone.affinity_taps()
    inside = seen[:2]
    torch.testing.assert_close(taps[0].activation(outputs["b4"]), inside[0])
    torch.testing.assert_close(taps[1].activation(outputs["b5"]), inside[1])


def test_the_loss_reaches_b3_and_later_and_new_layers_only(monkeypatch, tmp_path):
    """docs/methods.md, gradients: not conv1a, b2, nor any batch norm."""
    narrow = replace(resnet38.BACKBONE, build=lambda stride: resnet38.ResNet38(stride, NARROW))
    monkeypatch.setattr(resnet38, "BACKBONE", narrow)
    stage = TrainPsa(backbone="resnet38", radius=3, crop=64)
    network = AffinityNetwork("resnet38", True, 3).train()
    groups = stage.groups(network)
    labels = torch.randint(0, 3, (2, 8, 8))
    torch.stack(
        list(stage.losses(network, {"image": 255 * torch.rand(2, 3, 64, 64), "mask": labels}).values())
    ).sum().backward()
    for name, parameter in network.named_parameters():
        early = name.startswith(("backbone.conv1a", "backbone.b2."))
        early |= name.startswith(("backbone.b2_1", "backbone.b2_2"))
        reached = parameter.grad is not None and bool(parameter.grad.any())
        assert reached == (not early and ".bn" not in name), name
    fast = {id(p) for group in groups if group.multiplier >= 10 for p in group.parameters}
    new = {name for name, p in network.named_parameters() if id(p) in fast}
    assert new == {"reduce.0.weight", "reduce.1.weight", "reduce.2.weight", "combine.weight"}
    assert all(group.decay for group in groups if group.multiplier in (1, 10))


def test_the_training_starts_from_imagenet_weights_not_from_the_classifier():
    assert Kind.CHECKPOINT not in TrainPsa.consumes
    stages = psa.REFINER.refine(Meta(20, 500, "vgg16", "imagenet"), 0.15)
    (train,) = (stage for stage in stages if isinstance(stage, TrainPsa))
    assert (train.weights, train.lr, train.momentum, train.crop, train.radius) == ("imagenet", 0.1, 0.0, 448, 5)
    (train,) = (
        s for s in psa.REFINER.refine(Meta(20, 500, "resnet38", "imagenet"), 0.15) if isinstance(s, TrainPsa)
    )
    assert (train.lr, train.weight_decay, train.head_multiplier, train.biases) == (0.01, 5e-4, 10.0, "psa")
    assert (train.batch, train.epochs, train.jitter) == (8, 8, True)
    assert (PsaLabels().low_exponent, PsaLabels().high_exponent) == (4, 32)
    assert (WalkPsa().background_exponent, WalkPsa().power, WalkPsa().steps) == (16, 8, 256)


def test_the_walk_of_one_image_written_out():
    """60 × 44 pixels, padded to 64 × 48: background of the full-size maps, means of 8 × 8, walk, own size."""
    torch.manual_seed(0)
    network = AffinityNetwork("tiny", False, radius=3).eval()
    image = torch.zeros(1, 3, 64, 48)
    image[..., :60, :44] = 255 * torch.rand(1, 3, 60, 44)
    scores = np.random.default_rng(0).random((2, 15, 11), dtype=np.float32)
    maps = ScoreMaps(np.array([3, 7], np.int16), scores, (60, 44))
    affinities = network.affinities(image)[0].detach()
    found = WalkPsa(background_exponent=4.0, power=8.0, steps=16).walked(affinities, 3, maps, (60, 44))
    full = maps.at_full_size()
    start = np.zeros((3, 64, 48), np.float32)
    start[:, :60, :44] = np.concatenate([(1 - full.max(0))[None] ** 4, full])
    cells = torch.from_numpy(start.reshape(3, 8, 8, 6, 8).mean((2, 4)))
    matrix = transition_matrix(affinities, pair_offsets(3), 8.0)
    ended = walk(cells, matrix, 16)
    assert found.labels.tolist() == [0, 3, 7]
    assert found.size == (60, 44)
    assert found.scores.shape == (3, 15, 11)
    # The centre of the cell (5, 4) of the result, 22 and 18 pixels from the corner, lies between four of the walk.
    y, x = 22 / 8 - 0.5, 18 / 8 - 0.5
    (top, down), (left, right) = divmod(y, 1), divmod(x, 1)
    around = ended[:, int(top) : int(top) + 2, int(left) : int(left) + 2]
    rows = around[:, 0] * (1 - down) + around[:, 1] * down
    np.testing.assert_allclose(found.scores[:, 5, 4], rows[:, 0] * (1 - right) + rows[:, 1] * right, rtol=1e-5)


@pytest.mark.slow
def test_the_report_names_the_momentum_of_every_group(chimera, tmp_path):
    """docs/methods.md, the momentum trap: 0 unless asked for."""
    (tmp_path / "scores").mkdir()
    view = chimera.split(Split.WEAK)
    with MapWriter(tmp_path / "scores") as writer:
        for image_id in view.ids:
            tags = view.tags(image_id)
            scores = np.random.default_rng(0).random((len(tags), 16, 16), dtype=np.float32)
            writer.write(image_id, ScoreMaps(np.array(tags, np.int16), scores, view.size(image_id)))
    from tests.contracts.test_contracts import GivenScores

    train = TrainPsa(backbone="tiny", weights="none", crop=64, radius=3, epochs=1, lr=0.01, freeze_early=False)
    stages = [GivenScores(folder=tmp_path / "scores"), PsaLabels(), train, WalkPsa()]
    run = Pipeline(stages, chimera, chimera.digest(), 0, Store(tmp_path / "store"), Machine())
    report = json.loads((run.latest(Kind.CHECKPOINT, Split.WEAK) / "training.json").read_text())
    assert {group["momentum"] for group in report["groups"]} == {0.0}
    assert sorted(group["lr"] for group in report["groups"]) == pytest.approx([0.01, 0.02, 0.1])
    assert set(report["history"][0]) == {"background", "foreground", "negative"}
    reader = MapReader(run.latest(Kind.SCORES, Split.TRAIN))
    maps = reader.read(chimera.ids(Split.TRAIN)[0])
    assert maps.labels[0] == 0
    assert maps.scores.min() >= 0
    assert maps.scores.max() <= 1
