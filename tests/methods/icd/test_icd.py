"""ICD: its losses against slow transcriptions, what each one reaches, signs, refinement, superpixels and seeds."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.evaluation.maps import MapReader, ScoreMaps
from seedbed.benchmark.evaluation.records import read_records
from seedbed.benchmark.evaluation.threshold import threshold_mask
from seedbed.benchmark.pipeline.hparams import override
from seedbed.benchmark.pipeline.pipeline import Pipeline
from seedbed.benchmark.pipeline.stage import Context, Kind, Machine, Meta
from seedbed.benchmark.pipeline.store import Store
from seedbed.benchmark.training.checkpoint import load_network, load_tensors
from seedbed.datasets.base import Dataset, Split
from seedbed.datasets.io.images import decode_mask, write_mask
from seedbed.methods.icd import METHOD, Branches, IcdNetwork, TrainIcd
from seedbed.methods.icd.losses import (
    bottom_up_loss,
    cam_loss,
    extremes_to_one,
    membership,
    refine,
    top_down_loss,
    warm_up,
)
from seedbed.methods.icd.maps import (
    InferIcd,
    InferIcdWithSaliency,
    MeasureIcd,
    background_channel,
    seed_scores,
    seeds,
)
from seedbed.methods.icd.superpixels import ComputeSuperpixels, merge, segment_means

META = Meta(classes=6, long_side=64, backbone="tiny")


def network(backbone: str = "tiny", classes: int = 3, **settings: Any) -> IcdNetwork:
    torch.manual_seed(0)
    usual: dict[str, Any] = {"pools": False, "source": "conv5", "structure": "c", "width": 8, "deviation": 0.1}
    return IcdNetwork(backbone, classes, 8, pretrained=False, **{**usual, **settings}).train()


def batch(labels: tuple[tuple[int, ...], ...] = ((1,), (2, 3), (2,))) -> dict[str, Tensor]:
    """Return images with these tags, four superpixels each, and two columns of padding."""
    torch.manual_seed(1)
    tags = torch.zeros(len(labels), 3)
    for row, present in zip(tags, labels, strict=True):
        row[[label - 1 for label in present]] = 1
    superpixels = torch.arange(2)[:, None] * 2 + torch.arange(2)[None]
    mask = superpixels.repeat_interleave(20, 0).repeat_interleave(20, 1).expand(len(labels), -1, -1).clone()
    mask[..., -2:] = 255
    return {"image": 255 * torch.rand(len(labels), 3, 40, 40), "tags": tags, "mask": mask}


# Recipe and network


def test_the_published_recipe():
    """Section 5.2 and docs/methods.md, ICD."""
    superpixels, train, infer = METHOD.localise(Meta(20, 500, "vgg16", weights="imagenet"))
    assert isinstance(superpixels, ComputeSuperpixels)
    assert isinstance(train, TrainIcd)
    assert isinstance(infer, InferIcd)
    assert (superpixels.scale, superpixels.sigma, superpixels.min_size, superpixels.most) == (75, 0.8, 75, 64)
    assert (train.epochs, train.batch, train.lr, train.momentum, train.weight_decay) == (20, 32, 1e-3, 0.9, 5e-4)
    assert (train.decay_every, train.power, train.head_multiplier, train.biases) == ("epoch", 0.9, 10, "no_decay")
    assert (train.crop, train.scales, train.stride, train.pools) == (321, (0.5, 0.75, 1, 1.25, 1.5), 8, True)
    assert (train.source, train.structure, train.bottom_up, train.refinement) == ("conv5", "c", "squared", "vote")
    assert (train.bottom_up_weight, train.sign_momentum, train.ignored_band) == (5, 0.9, 0.2)
    assert (train.warm_up_epochs, train.width, train.deviation) == (2, 1024, 0.01)
    assert (infer.scales, infer.flip, infer.branch) == ((1.0,), False, "top_down")
    assert METHOD.fixed_threshold == 0


@pytest.mark.parametrize(
    ("settings", "features", "outputs"),
    [
        ({"structure": "a"}, 512, 512),
        ({"structure": "b"}, 512, 8),
        ({"structure": "c"}, 512, 512 + 16),
        ({"structure": "d"}, 512, 512 + 2048),
        ({"source": "conv4"}, 512, 512 + 16),
        ({"source": "fc6"}, 1024, 1024 + 16),
        ({"source": "concat"}, 2048, 2048 + 16),
    ],
)
def test_sources_and_structures_of_vgg(settings, features, outputs):
    """Tables 5 and 6."""
    with torch.device("meta"):
        net = network("vgg16", 20, pools=True, **settings)
        branches = net.branches(torch.zeros(2, 3, 64, 80))
    assert net.direction.shape == (20, features)
    assert net.head.in_channels == outputs
    assert {tuple(maps.shape) for maps in branches} == {(2, 20, 8, 10)}


@pytest.mark.parametrize("settings", [{"source": "fc6"}, {"structure": "d"}])
def test_what_the_backbone_does_not_have_is_refused(settings):
    with pytest.raises(ConfigError, match="fc6"):
        network(**settings)


def test_the_directions_are_unit_vectors_and_the_batch_norm_has_no_scale():
    net, images = network().eval(), batch()["image"]
    assert not net.norm.affine
    before = net.branches(images).bottom_up
    net.direction.data *= 7
    torch.testing.assert_close(net.branches(images).bottom_up, before)
    normed = (net.backbone(images).relu() - net.norm.running_mean[:, None, None]) / (
        net.norm.running_var[:, None, None] + 1e-5
    ).sqrt()
    units = net.direction / net.direction.norm(dim=1, keepdim=True)
    torch.testing.assert_close(before, torch.einsum("cd,bdhw->bchw", units, normed), rtol=1e-4, atol=1e-5)


def fake_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(backbone: Any, *_: Any) -> None:
        for layers in backbone.new_layers():
            for parameter in layers.parameters():
                nn.init.constant_(parameter, 0.5)

    monkeypatch.setattr("seedbed.methods.icd.initialise", fill)


@pytest.mark.parametrize("copied", [True, False])
@pytest.mark.usefixtures("quick_weights")
def test_fc6_and_fc7_start_as_copies_of_pretrained_ones_and_learn_at_the_base_rate(monkeypatch, tmp_path, copied):
    fake_weights(monkeypatch)
    net = network("vgg16", width=1024)
    new = TrainIcd(copy_fc=copied).initialise(net, Context(0, Split.WEAK, tmp_path))
    heads: list[nn.Module] = [net.classifier, net.head]
    if copied:
        assert new == heads
        assert all((p == 0.5).all() for p in net.fc.parameters())
    else:
        assert new == [*heads, *net.fc]
        assert not any((p == 0.5).all() for p in net.fc.parameters())


@pytest.mark.usefixtures("quick_weights")
def test_without_pretrained_ones_fc6_and_fc7_are_new(monkeypatch, tmp_path):
    monkeypatch.setattr("seedbed.methods.icd.initialise", lambda *_: None)
    net = network("vgg16")
    new = TrainIcd().initialise(net, Context(0, Split.WEAK, tmp_path))
    named = {id(p): name.partition(".")[0] for name, p in net.named_parameters()}
    found = [named[id(p)] for layers in new for p in layers.parameters()]
    assert found == ["classifier"] * 2 + ["head"] + ["backbone"] * 4 + ["fc"] * 4


# Losses


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("form", ["squared", "absolute", "sigmoid"])
def test_the_bottom_up_losses_are_their_equations(form):
    """Eq. 1, 8 and 10 over images of one class; image 1 has two, image 2 none."""
    torch.manual_seed(0)
    maps = torch.randn(4, 3, 4, 5, dtype=torch.float64)
    tags = torch.tensor([[0.0, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1]])
    total = 0.0
    for image, label in ((0, 1), (3, 2)):
        for x in maps[image, label].flatten().tolist():
            if form == "squared":
                total -= x * x
            elif form == "absolute":
                total -= abs(x)
            else:
                positive = x > 0
                total -= math.log(sigmoid(x)) if positive else math.log(1 - sigmoid(x))
    assert float(bottom_up_loss(maps, tags, form)) == pytest.approx(total / 20 / 4, rel=1e-6)


def test_the_classification_loss_is_summed_over_classes():
    torch.manual_seed(0)
    logits, tags = torch.randn(2, 3), torch.tensor([[1.0, 0, 1], [0, 0, 0]])
    total = 0.0
    for n, c in np.ndindex(2, 3):
        p = sigmoid(float(logits[n, c]))
        total -= math.log(p) if tags[n, c] else math.log(1 - p)
    assert float(cam_loss(logits, tags)) == pytest.approx(total / 2, rel=1e-6)


@pytest.mark.parametrize("band", [0.0, 0.2])
def test_the_top_down_loss_is_that_of_section_4_3(band):
    torch.manual_seed(0)
    logits, refined = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    tags = torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    total = 0.0
    for n, c in np.ndindex(2, 3):
        if not tags[n, c]:
            continue
        plane = refined[n, c].double()
        for x, s in zip(logits[n, c].flatten().tolist(), plane.flatten().tolist(), strict=True):
            scaled = s / float(plane.max()) if s > 0 else s / -float(plane.min())
            if abs(scaled) > band or band == 0:
                total -= (math.log(sigmoid(x)) if s > 0 else math.log(1 - sigmoid(x))) / 20
    assert float(top_down_loss(logits, refined, tags, band)) == pytest.approx(total / 2, rel=1e-5)


def test_the_warm_up_rises_from_almost_nothing_to_1():
    assert [warm_up(time, 2.0) for time in (0, 1, 2, 9)] == pytest.approx([math.exp(-10), math.exp(-5), 1, 1])
    assert warm_up(0, 0) == 1


def test_extremes_become_1_on_either_side():
    scores = torch.tensor([[[4.0, 2.0], [-1.0, -0.5]], [[0.0, 0.0], [-3.0, -6.0]]])
    expected = [[[1, 0.5], [-1, -0.5]], [[0, 0], [-0.5, -1]]]
    torch.testing.assert_close(extremes_to_one(scores), torch.tensor(expected))


@pytest.mark.parametrize(
    ("loss", "parts"),
    [
        ("cam", {"backbone", "classifier"}),
        ("bottom_up", {"direction"}),
        ("top_down", {"backbone", "fc", "head"}),
    ],
)
def test_each_loss_reaches_what_it_should_and_nothing_else(loss, parts):
    """docs/methods.md, ICD: L_bu reaches w alone, L_td all but w and the CAM branch's classifier."""
    net = network()
    stage = TrainIcd(backbone="tiny", weights="none", warm_up_epochs=0.0)
    found = stage.losses(net, batch(), 0.0)
    assert set(found) == {"cam", "bottom_up", "top_down"}
    found[loss].backward()
    reached = {n.partition(".")[0] for n, p in net.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == parts


def test_the_bottom_up_loss_changes_no_input_of_the_batch_norm():
    net, images = network(), batch()["image"].requires_grad_()
    tags = batch()["tags"]
    bottom_up_loss(net.branches(images).bottom_up, tags, "squared").backward()
    assert images.grad is None


def test_images_of_several_classes_do_not_enter_the_bottom_up_loss():
    net, stage = network(), TrainIcd(backbone="tiny", weights="none")
    stage.losses(net, batch(((1, 2), (2, 3), ())), 0.0)["bottom_up"].backward()
    assert not net.direction.grad.any()


# The sign


def test_negated_directions_with_swapped_means_leave_the_scores_unchanged():
    net = network().eval()
    net.cam_means.copy_(torch.tensor([[1.0, 2.0, 0.5], [0.5, 3.0, 0.1]]))
    images = batch()["image"]
    before = net.signed(net.branches(images).bottom_up)
    net.direction.data[1] *= -1
    net.cam_means[:, 1] = net.cam_means.flip(0)[:, 1].clone()
    torch.testing.assert_close(net.signed(net.branches(images).bottom_up), before)
    assert not before.requires_grad


def test_the_running_means_by_hand():
    """Class 1: image 1 has 4 and 0 on its positive side, mean 2; image 2 has none, 0. Class 2 is absent."""
    net = network(classes=2)
    cam = torch.tensor([[[[4.0, -1.0, 6.0]], [[9.0] * 3]], [[[5.0, 1.0, 3.0]], [[9.0] * 3]]])
    side = torch.tensor([[[[1.0, 1.0, -1.0]], [[1.0] * 3]], [[[-1.0, -1.0, -1.0]], [[1.0] * 3]]])
    net.cam_means.copy_(torch.tensor([[10.0, 7.0], [20.0, 8.0]]))
    net.watch(Branches(cam, side, side), torch.tensor([[1.0, 0.0], [1.0, 0.0]]), 0.9)
    expected = [[0.9 * 10 + 0.1 * 1.0, 7.0], [0.9 * 20 + 0.1 * (6 + 3) / 2, 8.0]]
    torch.testing.assert_close(net.cam_means, torch.tensor(expected))


# The refinement


def test_a_cell_of_321_pixels_is_its_eighth_pixel_and_lies_in_one_superpixel():
    """MXNet's BilinearResize2D, as in the authors' code: 41 cells of 321 pixels are the pixels 0, 8, …, 320."""
    superpixels = torch.randint(0, 64, (1, 321, 321), generator=torch.Generator().manual_seed(0))
    members = membership(superpixels, (41, 41))
    assert torch.equal(members.argmax(1).view(41, 41), superpixels[0, ::8, ::8])
    assert set(members.unique().tolist()) == {0, 1}


def test_the_membership_by_hand():
    """Of six pixels, four cells lie on 0, 5/3, 10/3 and 5."""
    members = membership(torch.tensor([[[0, 1, 2, 3, 3, 4]]]), (1, 4))[0]
    expected = torch.zeros(256, 4)
    expected[0, 0] = expected[4, 3] = expected[3, 2] = 1
    expected[1, 1], expected[2, 1] = 1 / 3, 2 / 3
    torch.testing.assert_close(members, expected)


def test_the_membership_is_the_resized_one_hot_map():
    torch.manual_seed(0)
    superpixels = torch.randint(0, 9, (2, 30, 41))
    superpixels[..., -4:] = 255
    one_hot = F.one_hot(superpixels, 256).permute(0, 3, 1, 2).float()
    for size in ((4, 6), (15, 41), (30, 41), (1, 1)):
        members = membership(superpixels, size)
        expected = F.interpolate(one_hot, size, mode="bilinear", align_corners=True).flatten(2)
        torch.testing.assert_close(members, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(members.sum(1), torch.ones(2, size[0] * size[1]))


@pytest.mark.parametrize("backbone", ["vgg16", "resnet50", "tiny", "squeezenet"])
@pytest.mark.parametrize("long_side", [64, 96, 112, 250, 500])
def test_the_cells_of_every_crop_lie_on_pixels(backbone, long_side):
    meta = Meta(6, long_side, backbone, weights="none" if backbone == "tiny" else "imagenet")
    train = METHOD.localise(meta)[1]
    assert isinstance(train, TrainIcd)
    assert train.crop % train.stride == 1


def test_the_refined_maps_of_an_image_have_the_superpixels_of_every_eighth_pixel(tmp_path):
    """21 × 30 pixels have 3 × 4 cells, and each cell a superpixel of its own, so the scores stay as they are."""
    mask = np.arange(21 * 30).reshape(21, 30) % 251
    write_mask(tmp_path / "a.png", mask.astype(np.uint8))
    assert len(np.unique(mask[::8, ::8])) == 12
    scores = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0))
    refined = MeasureIcd()._refined(scores, (1,), tmp_path / "a.png", stride=8)
    torch.testing.assert_close(refined, scores)
    # An image that the network sees with half its sides: a cell is 16 pixels of its own.
    refined = MeasureIcd(long_side=15)._refined(scores[:, :2, :2], (1,), tmp_path / "a.png", stride=8)
    torch.testing.assert_close(refined, scores[:, :2, :2])


def slow_refine(scores: np.ndarray, labels: list[int], members: np.ndarray, form: str) -> np.ndarray:
    """Refine the scores (C, N) of one image with members (S, N), superpixel by superpixel."""
    result = np.zeros_like(scores)
    best = scores[labels].max(0)
    for weights in members:
        if weights.sum() == 0:
            continue
        mean = {c: float((weights * scores[c]).sum() / weights.sum()) for c in labels}
        if form == "vote":
            strength = {
                c: float((weights * np.maximum(scores[c], 0) / np.maximum(best, 1e-5)).sum()) for c in labels
            }
            foreground = any(float((weights * np.sign(scores[c])).sum()) > 1e-5 for c in labels)
            taker = max(labels, key=lambda c: strength[c])
            for c in labels:
                part = np.maximum(scores[c], 0) if foreground and c == taker else np.minimum(scores[c], 0)
                mean[c] = float((weights * part).sum() / weights.sum())
        for c in labels:
            result[c] += mean[c] * weights
    return result


@pytest.mark.parametrize("form", ["vote", "mean"])
def test_the_refinement_is_its_slow_transcription(form):
    torch.manual_seed(0)
    scores, superpixels = torch.randn(3, 4, 6, 7), torch.randint(0, 5, (3, 24, 28)).sort(2).values
    tags = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 1], [1, 1, 1, 0]])
    members = membership(superpixels, (6, 7))
    found = refine(scores, tags, members, form)
    for n in range(3):
        labels = tags[n].nonzero()[:, 0].tolist()
        slow = slow_refine(scores[n].flatten(1).double().numpy(), labels, members[n].double().numpy(), form)
        np.testing.assert_allclose(found[n].flatten(1), slow, atol=1e-5)


def test_a_superpixel_votes_and_goes_to_one_class():
    """Two superpixels of two cells: the first is foreground of class 1, the second is background."""
    scores = torch.tensor([[[[2.0, 4.0, 1.0, -3.0]], [[1.0, -1.0, -2.0, -2.0]]]])
    members = torch.zeros(1, 256, 4)
    members[0, 0, :2] = members[0, 1, 2:] = 1
    found = refine(scores, torch.ones(1, 2), members, "vote")
    # Votes of the second: (1 − 1) and (−1 − 1), none above 0; its class 1 is the mean of 0 and −3.
    assert found.flatten(1).tolist() == [[3, 3, -1.5, -1.5, -0.5, -0.5, -2, -2]]
    assert refine(scores, torch.tensor([[1.0, 0.0]]), members, "none")[0, 1].abs().sum() == 0


# Superpixels


def slow_merge(features: np.ndarray, sizes: np.ndarray, most: int) -> list[set[int]]:
    """Merge the most similar pair again and again, every similarity computed anew."""
    groups = [({i}, features[i], int(sizes[i])) for i in range(len(sizes))]
    while len(groups) > most:
        pairs = [(i, j) for i in range(len(groups)) for j in range(i + 1, len(groups))]

        def similarity(pair: tuple[int, int]) -> float:
            (_, a, m), (_, b, n) = groups[pair[0]], groups[pair[1]]
            return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b) + 1 - (m + n) / sizes.sum())

        i, j = max(pairs, key=similarity)
        (one, a, m), (two, b, n) = groups[i], groups[j]
        groups[i] = (one | two, (m * a + n * b) / (m + n), m + n)
        del groups[j]
    return [members for members, *_ in groups]


def test_merging_is_its_slow_transcription():
    random = np.random.default_rng(0)
    for most in (1, 3, 8, 40):
        features, sizes = random.normal(size=(20, 5)), random.integers(1, 50, 20)
        found = merge(features, sizes, most)
        groups = [set(np.flatnonzero(found == number).tolist()) for number in range(found.max() + 1)]
        assert sorted(map(sorted, groups)) == sorted(map(sorted, slow_merge(features, sizes, most)))
        assert len(groups) == min(most, 20)


def test_means_over_segments_are_those_of_the_upsampled_features():
    """25 × 33 pixels have 4 × 5 cells at stride 8, whose corners are aligned as MXNet aligns them."""
    random = np.random.default_rng(0)
    features, segments = random.normal(size=(3, 4, 5)).astype(np.float32), random.integers(0, 6, (25, 33))
    upsampled = F.interpolate(torch.tensor(features)[None], (25, 33), mode="bilinear", align_corners=True)[
        0
    ].numpy()
    expected = [upsampled[:, segments == s].mean(1) for s in range(6)]
    np.testing.assert_allclose(segment_means(features, segments, (8, 8)), expected, atol=1e-5)


def test_cells_of_features_lie_on_every_eighth_pixel_by_hand():
    """Each pixel a segment of its own: cells at 0 and 4, and the last one reaches to the end."""
    features, segments = np.array([[[0.0, 4.0]]], np.float32), np.arange(6)[None]
    assert segment_means(features, segments, (4, 4))[:, 0].tolist() == [0, 1, 2, 3, 4, 4]
    own = segment_means(np.arange(6, dtype=np.float32)[None, None], segments, (1, 1))
    assert own[:, 0].tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("workers", [0, 2])
def test_superpixels_of_a_data_set_follow_its_edges(chimera, tmp_path, workers):
    out = tmp_path / "out"
    out.mkdir()
    ComputeSuperpixels(features="colour", most=12).run(
        chimera, {}, out, Context(0, Split.WEAK, tmp_path, workers=workers)
    )
    view = chimera.split(Split.WEAK)
    assert {path.stem for path in out.glob("*.png")} == set(view.ids)
    purity = []
    for image_id in chimera.ids(Split.TRAIN):
        superpixels, truth = decode_mask(out / f"{image_id}.png"), chimera.split(Split.TRAIN).mask(image_id)
        assert superpixels.shape == truth.shape
        assert 1 <= len(np.unique(superpixels)) <= 12
        for number in np.unique(superpixels):
            inside = truth[superpixels == number]
            purity.append(np.bincount(inside).max())
    # Of all pixels most lie in a superpixel of their own label.
    total = sum(chimera.split(Split.TRAIN).mask(i).size for i in chimera.ids(Split.TRAIN))
    assert sum(purity) / total > 0.8


def test_pretrained_features_need_weights(chimera, tmp_path):
    with pytest.raises(ConfigError, match="colour"):
        ComputeSuperpixels(backbone="tiny", weights="none").run(
            chimera, {}, tmp_path, Context(0, Split.WEAK, tmp_path)
        )


# Seeds


def test_the_seeds_by_hand():
    """Pixels: background, class 2 alone, both with class 5's CAM greater, undefined because a score is 0."""
    signed = np.array([[[-1.0, 0.5, 0.9, 0.0]], [[-0.2, -1.0, 0.6, -0.5]]], np.float32)
    cams = np.array([[[0.0, 1.0, 1.0, 1.0]], [[0.0, 0.0, 4.0, 0.0]]], np.float32)
    assert seeds(signed, cams, np.array([2, 5])).tolist() == [[0, 2, 5, 255]]


def test_undefined_pixels_by_hand():
    """Pixels: a class alone with a CAM, one without, both without, a score of 0, and all negative."""
    signed = np.array([[[0.5, 0.5, 0.4, 0.0, -0.1]], [[-1.0, -1.0, 0.8, -0.5, -0.2]]], np.float32)
    cams = np.array([[[1.0, -1.0, -1.0, 1.0, 1.0]], [[0.5, 0.5, 0.0, 1.0, 1.0]]], np.float32)
    assert seeds(signed, cams, np.array([2, 5])).tolist() == [[2, 255, 255, 255, 0]]
    expected = [[[0.5, 0, 0, 0, -0.1]], [[-1, -1, 0, -0.5, -0.2]]]
    np.testing.assert_allclose(seed_scores(signed, cams), np.array(expected, np.float32))
    # Of one class a CAM decides nothing.
    assert seeds(signed[:1], cams[:1], np.array([2])).tolist() == [[2, 2, 2, 255, 0]]
    np.testing.assert_array_equal(seed_scores(signed[:1], cams[:1]), signed[:1])


def test_the_best_score_above_0_is_the_class_of_the_seeds():
    """The file's docstring: wherever the paper defines a class; elsewhere the best score is 0."""
    random = np.random.default_rng(0)
    for classes in (1, 2, 4):
        signed = random.uniform(-1, 1, (classes, 30, 30)).astype(np.float32)
        cams = random.uniform(-0.5, 1, (classes, 30, 30)).astype(np.float32)
        labels = np.arange(3, 3 + classes)
        wanted, scores = seeds(signed, cams, labels), seed_scores(signed, cams)
        found = np.where((scores > 0).any(0), labels[scores.argmax(0)], 0)
        defined = wanted != 255
        assert defined.mean() > 0.5
        np.testing.assert_array_equal(found[defined], wanted[defined])
        np.testing.assert_array_equal(scores.max(0) == 0, ~defined)
        alone = ((signed > 0).sum(0) <= 1) & defined
        np.testing.assert_array_equal(scores[:, alone], signed[:, alone])
        assert np.abs(scores).max() <= 1


# Background told by saliency maps


def grey(*rows: list[int]) -> np.ndarray:
    """Return a saliency map of grey values, as a data set gives it."""
    return np.array(rows, np.float32) / np.float32(255)


def test_the_background_channel_by_hand():
    """Grey 2 is below 0.01 and 3 is not. Halved in width, each cell is the mean of two pixels."""
    saliency = grey([0, 2, 3, 255], [0, 3, 0, 3])
    assert background_channel(saliency, 0.01, (2, 4)).tolist() == [[[1, 1, 0, 0], [1, 0, 1, 0]]]
    assert background_channel(saliency, 0.01, (2, 2)).tolist() == [[[1, 0], [0.5, 0.5]]]
    assert background_channel(saliency, 0.5, (2, 4)).tolist() == [[[1, 1, 1, 0], [1, 1, 1, 1]]]


@pytest.mark.parametrize(("salient", "background"), [(0, 0), (1, 0), (2, 198), (200, 0)])
def test_a_map_with_less_than_1_percent_salient_tells_nothing(salient, background):
    """2 of 200 pixels are 1 %."""
    saliency = np.zeros((10, 20), np.float32)
    saliency.flat[:salient] = 1
    assert background_channel(saliency, 0.01, (10, 20)).sum() == background


class _OneMap:
    """Stands for a split: the saliency map of its only image."""

    def __init__(self, saliency: np.ndarray) -> None:
        self._saliency = saliency

    def saliency(self, _: str) -> np.ndarray:
        return self._saliency


def labels_with(saliency: np.ndarray, scores: list[list[float]]) -> list[int]:
    """Return the seeds of scores of the labels 2 and 5 on one row of pixels."""
    maps = ScoreMaps(np.array([2, 5], np.int16), np.array(scores, np.float32)[:, None], saliency.shape)
    view: Any = _OneMap(saliency)
    found = InferIcdWithSaliency().with_background(view, "i", maps)
    assert found.labels.tolist() == [0, 2, 5]
    np.testing.assert_array_equal(found.scores[1:], maps.scores)
    (row,) = threshold_mask(found, 0.9).tolist()
    return list(row)


def test_seeds_with_saliency_by_hand():
    """Not salient is background whatever the scores, 1 included; salient is the best positive class or nothing."""
    scores = [[-0.5, 0.2, 1.0, -0.1, 0.001, 0.4, 0.0], [-0.9, -0.3, 1.0, -0.1, -1.0, 1.0, 0.0]]
    assert labels_with(grey([0, 2, 1, 3, 3, 255, 255]), scores) == [0, 0, 0, 0, 2, 5, 0]
    # Nothing is salient: the scores alone decide.
    assert labels_with(grey([0] * 7), scores) == [0, 2, 2, 0, 2, 5, 0]


def test_no_score_wins_over_background_at_any_size():
    """Both channels are resized by the same steps, so scores of 1 tie with background, which comes first."""
    for size in ((7, 11), (31, 17), (40, 40), (97, 61)):
        scores = np.ones((2, 6, 9), np.float32)
        assert not threshold_mask(ScoreMaps(np.array([0, 3], np.int16), scores, size), 0.0).any()


def test_an_image_without_tags_has_no_maps_and_no_background():
    view: Any = _OneMap(grey([0, 255]))
    empty = ScoreMaps(np.zeros(0, np.int16), np.zeros((0, 1, 2), np.float32), (1, 2))
    assert len(InferIcdWithSaliency().with_background(view, "i", empty).labels) == 0


# The stages


def test_with_saliency_the_maps_are_the_same_behind_a_background_channel(chimera, tmp_path):
    """The stored channel is that of the image's own map, and the class scores are unchanged."""
    plain = pipeline(chimera, tmp_path)
    method = dataclasses.replace(METHOD, saliency=True)
    stages = override(method.localise(META), {"TrainIcd.epochs": 1, "TrainIcd.batch": 8})
    told = Pipeline(stages, chimera, chimera.digest(), 0, Store(tmp_path), Machine())
    readers = [MapReader(run.latest(Kind.SCORES, Split.TRAIN)) for run in (plain, told)]
    view = chimera.split(Split.TRAIN)
    for image_id in view.ids:
        without, maps = (reader.read(image_id) for reader in readers)
        assert maps.labels.tolist() == [0, *view.tags(image_id)]
        np.testing.assert_array_equal(maps.scores[1:], without.scores)
        cells = (maps.scores.shape[1], maps.scores.shape[2])
        channel = background_channel(view.saliency(image_id), 0.01, cells)
        np.testing.assert_allclose(maps.scores[:1], channel, atol=1e-3)
        assert 0 < channel.mean() < 1


def pipeline(data: Dataset, folder: Path, **training: Any) -> Pipeline:
    settings = {f"TrainIcd.{name}": value for name, value in {"epochs": 1, "batch": 8, **training}.items()}
    stages = override([*METHOD.localise(META), *METHOD.measurements(META)], settings)
    return Pipeline(stages, data, data.digest(), 0, Store(folder), Machine())


def test_the_running_means_are_saved_and_the_measurements_are_those_of_tables_1_to_3(chimera, tmp_path):
    run = pipeline(chimera, tmp_path)
    checkpoint = run.latest(Kind.CHECKPOINT, Split.WEAK)
    means = load_tensors(checkpoint / "model.pt")["cam_means"]
    assert means.shape == (2, 6)
    assert means.any()
    trained: Any = load_network(checkpoint)
    torch.testing.assert_close(trained.cam_means, means)
    folder = run.latest(Kind.RECORDS, Split.TRAIN)
    names = {record.name for record in read_records(folder / "records.parquet")}
    for level in ("icd_cam", "icd_bottom_up", "icd_refined", "icd_top_down"):
        wanted = {
            f"{level}.train/{metric}" for metric in ("mpixel_AP", "seed_mIoU_fixed", "seed_mIoU_defined_fixed")
        }
        assert wanted <= names
    assert (folder / "maps.png").stat().st_size > 1000


def test_each_branch_can_make_the_maps(chimera, tmp_path):
    run = pipeline(chimera, tmp_path)
    image_id = chimera.ids(Split.TRAIN)[0]
    top_down = MapReader(run.latest(Kind.SCORES, Split.TRAIN)).read(image_id)
    stages = [dataclasses.replace(s, branch="bottom_up") if isinstance(s, InferIcd) else s for s in run.stages]
    other = Pipeline(stages, chimera, chimera.digest(), 0, Store(tmp_path), Machine())
    bottom_up = MapReader(other.latest(Kind.SCORES, Split.TRAIN)).read(image_id)
    assert not np.array_equal(top_down.scores, bottom_up.scores)
    for maps in (top_down, bottom_up):
        assert maps.scores.min() >= -1
        assert maps.scores.max() <= 1
        assert maps.scores.min() < 0
