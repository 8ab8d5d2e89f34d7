"""RRM: recipes, losses by hand and against a slow reference, what each loss reaches, where tags are looked at."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from seedbed.benchmark.pipeline.stage import Context, Kind, Meta
from seedbed.benchmark.training.checkpoint import load_network, save_network
from seedbed.benchmark.training.loop import EpochSampler, parameter_groups
from seedbed.datasets.base import Split
from seedbed.datasets.io.images import decode_mask
from seedbed.methods.cam import CamNetwork, InferCam, TrainCam
from seedbed.methods.rrm import METHOD, PredictRrm, Rrm, RrmExamples, TrainRrm, crops, cross_entropies
from seedbed.methods.rrm.network import RrmNetwork, online_maps
from tests.helpers.fakes import FolderDataset, random_scene

VOC = Meta(classes=20, long_side=500, backbone="resnet50", weights="imagenet")
TINY = {"backbone": "tiny", "classes": 3, "stride": 8, "dropout": 0.5}


def network(pretrained: bool = False) -> RrmNetwork:
    torch.manual_seed(0)
    return RrmNetwork(width=8, dilation=2, **TINY, pretrained=pretrained).train()


def stages(meta: Meta, method: Rrm = METHOD) -> tuple[TrainCam, TrainRrm, InferCam, PredictRrm]:
    classify, train, infer, predict = method.localise(meta)
    assert isinstance(classify, TrainCam)
    assert isinstance(train, TrainRrm)
    assert isinstance(infer, InferCam)
    assert isinstance(predict, PredictRrm)
    return classify, train, infer, predict


def test_the_published_recipe_starts_from_the_cam_network():
    _, train, _, predict = stages(VOC)
    assert (train.lr, train.head_multiplier, train.weight_decay, train.momentum) == (7e-4, 10, 1e-5, 0)
    assert (train.optimiser, train.power, train.biases, train.batch, train.epochs) == ("sgd", 0.9, "psa", 4, 8)
    assert (train.crop, train.long_side, train.scale_low, train.scale_high) == (321, 500, 0.7, 1.3)
    assert (train.scale_drawn, train.jitter, train.width, train.dilation) == ("batch", False, 512, 12)
    assert (train.cam_scales, train.rule, train.share) == ((0.5, 1.5, 2.0), "code", 0.4)
    assert (train.energy_weight, train.sigma_rgb, train.sigma_xy, train.energy_scale) == (1e-7, 15, 100, 0.5)
    assert (predict.scales, predict.flip, predict.crf, predict.suppress_absent) == ((1,), False, "rrm_test", True)


def test_from_imagenet_all_layers_have_one_rate_in_the_second_half():
    """RRM code: 7e-4 in every group; weight decay stays off for the head's biases."""
    network = RrmNetwork(8, 1, **TINY, pretrained=True)
    rates = {}
    for recipe in ("cam", "imagenet"):
        train = stages(VOC, Rrm(recipe=recipe))[1]
        groups = parameter_groups(network.cam.backbone, [network.cam.classifier, network.head], train)
        rates[recipe] = [(train.lr * group.multiplier, group.decay) for group in groups]
    assert {rate for rate, _ in rates["imagenet"]} == {7e-4}
    assert rates["imagenet"][-1] == (7e-4, False)
    assert rates["cam"][-1] == (pytest.approx(1.4e-2), False)


def test_the_recipe_from_imagenet_classifies_alone_in_the_first_half():
    classify, train, *_ = stages(VOC, Rrm(recipe="imagenet"))
    assert (classify.epochs, classify.lr, classify.batch, classify.crop) == (12, 0.01, 8, 448)
    assert (classify.long_side_low, classify.long_side_high, classify.freeze_early) == (500, 500, False)
    assert (train.epochs, train.lr, train.batch, train.crop, train.head_multiplier) == (12, 7e-4, 8, 448, 1)
    assert (train.scale_low, train.scale_high, train.jitter, train.dilation) == (1, 1, True, 12)


def test_sizes_and_the_energy_go_with_the_images_of_the_data_set():
    """A crop of 160 is about half of 321: σ halves, and the weight grows by the fourth power."""
    _, train, _, predict = stages(Meta(classes=6, long_side=250, backbone="resnet50", size=250))
    assert (train.crop, train.long_side, train.dilation, predict.long_side) == (160, 250, 6, 250)
    assert train.sigma_xy == pytest.approx(100 * 160 / 321)
    assert train.energy_weight == pytest.approx(1e-7 * (321 / 160) ** 4)


def slow_cross_entropies(logits, labels):
    """Two means over pixels, in float64."""
    values: dict[bool, list[float]] = {True: [], False: []}
    for b, y, x in np.ndindex(*labels.shape):
        label = int(labels[b, y, x])
        if label != 255:
            scores = logits[b, :, y, x].double()
            values[label == 0].append(float(torch.logsumexp(scores, 0) - scores[label]))
    return {"background": np.mean(values[True]), "foreground": np.mean(values[False])}


def test_cross_entropies_are_the_means_over_the_whole_batch():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 4, 5, 6), torch.randint(0, 4, (2, 5, 6))
    labels[torch.rand(2, 5, 6) < 0.4] = 255
    for name, value in slow_cross_entropies(logits, labels).items():
        assert float(cross_entropies(logits, labels)[name]) == pytest.approx(value, rel=1e-6)


def test_cross_entropies_by_hand():
    """Two labels with logits (0, log 3): background costs log 4, label 1 log 4/3; 255 costs nothing."""
    logits = torch.tensor([0.0, math.log(3)]).view(1, 2, 1, 1).expand(1, 2, 1, 4)
    losses = cross_entropies(logits, torch.tensor([[[0, 1, 1, 255]]]))
    assert float(losses["background"]) == pytest.approx(math.log(4))
    assert float(losses["foreground"]) == pytest.approx(math.log(4 / 3))


@pytest.mark.parametrize("label", [0, 2, 255])
def test_a_group_without_pixels_costs_nothing_and_keeps_its_gradient(label):
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    losses = cross_entropies(logits, torch.full((1, 4, 4), label))
    empty = {0: ["foreground"], 2: ["background"], 255: ["background", "foreground"]}[label]
    assert [name for name, loss in losses.items() if loss.item() == 0] == empty
    sum(losses.values()).backward()
    assert torch.isfinite(logits.grad).all()
    assert (label == 255) == (not logits.grad.any())


def test_online_maps_are_the_mean_over_scales_and_carry_no_gradient():
    rrm, images = network().eval(), 255 * torch.rand(2, 3, 32, 40)
    features = rrm.cam.backbone(images)
    expected = torch.zeros(2, 3, 4, 5)
    for size in ((32, 40), (16, 20), (48, 60), (64, 80)):
        scaled = F.interpolate(images, size, mode="bilinear", align_corners=False)
        maps = F.conv2d(rrm.cam.backbone(scaled), rrm.cam.classifier.weight).relu()
        expected += F.interpolate(maps, (4, 5), mode="bilinear", align_corners=False) / 4
    maps = online_maps(rrm, images, features, (0.5, 1.5, 2.0))
    torch.testing.assert_close(maps, expected)
    assert not maps.requires_grad
    assert rrm.training


def test_online_maps_leave_the_statistics_of_batch_norm_alone_and_drop_channels():
    """The authors' network stays in train mode; its dropout lies in the backbone."""
    rrm, images = network(), 255 * torch.rand(2, 3, 32, 32)
    layers = rrm.cam.backbone.layers
    layers[-1] = torch.nn.Sequential(layers[-1], torch.nn.Dropout2d(0.5))
    features = rrm.cam.backbone(images)
    before = [buffer.clone() for buffer in rrm.buffers()]
    first, second = (online_maps(rrm, images, features, (0.5,)) for _ in range(2))
    assert not torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(before, rrm.buffers(), strict=True))
    assert any(module.training for module in rrm.modules() if isinstance(module, torch.nn.BatchNorm2d))
    held = network(pretrained=True)
    online_maps(held, images, held.cam.backbone(images), (0.5,))
    assert not any(module.training for module in held.modules() if isinstance(module, torch.nn.BatchNorm2d))


def test_crops_hold_the_maps_of_the_tagged_classes():
    maps = torch.arange(2 * 3 * 4.0).view(2, 3, 2, 2)
    first, second = crops(torch.zeros(2, 3, 8, 8).byte(), torch.tensor([[1.0, 0, 1], [0, 0, 0]]), maps)
    assert first[0].shape == (8, 8, 3)
    assert first[1] == (1, 3)
    np.testing.assert_array_equal(first[2], maps[0, [0, 2]])
    assert second[1] == ()


def batch(labels: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """Return a batch whose images have these tags, the last column padding."""
    torch.manual_seed(1)
    images, inside = 255 * torch.rand(len(labels), 3, 40, 40), torch.zeros(len(labels), 40, 40).long()
    images[..., -8:], inside[..., -8:] = 0, 255
    tags = torch.zeros(len(labels), 3)
    for row, present in zip(tags, labels, strict=True):
        row[[label - 1 for label in present]] = 1
    return {"image": images, "tags": tags, "mask": inside}


def given_labels(label, items):
    """Stand for the CRFs: a patch of background, one of each tag, the rest unsure."""
    for image, tags, _ in items:
        labels = np.full(image.shape[:2], 255, np.uint8)
        for position, tag in enumerate((0, *tags)):
            labels[5:15, 8 * position : 8 * position + 6] = tag
        yield labels


@pytest.mark.parametrize(
    ("loss", "branch"),
    [
        ("classification", "cam.classifier"),
        ("background", "head"),
        ("foreground", "head"),
        ("energy", "head"),
    ],
)
def test_each_loss_reaches_the_backbone_and_its_own_branch_alone(loss, branch):
    """docs/methods.md, RRM: no gradient goes through the labels, and so none of the head's to the classifier."""
    rrm = network()
    TrainRrm(energy_weight=1.0).losses(rrm, given_labels)(batch([(1,), (2, 3)]), 0.0)[loss].backward()
    reached = {name for name, p in rrm.named_parameters() if p.grad is not None and p.grad.any()}
    everything = {name for name, _ in rrm.named_parameters()}
    assert reached == {name for name in everything if name.startswith(("cam.backbone", branch))}


def test_losses_are_finite_without_a_labelled_pixel_and_without_tags():
    def unsure(label, items):
        return iter([np.full(image.shape[:2], 255, np.uint8) for image, *_ in items])

    rrm = network()
    losses = TrainRrm().losses(rrm, unsure)(batch([(1,), ()]), 0.0)
    assert float(losses["labelled"]) == float(losses["background"]) == float(losses["foreground"]) == 0
    torch.stack(list(losses.values())).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in rrm.parameters() if p.grad is not None)
    whole = TrainRrm().losses(network(), map)(batch([(), ()]), 0.0)
    assert float(whole["labelled"]) == 1


def test_the_energy_takes_weight_labels_and_padding(monkeypatch):
    taken = {}

    def energy(probabilities, images, labels, roi, **settings):
        taken.update(probabilities=probabilities, images=images, labels=labels, roi=roi, **settings)
        return probabilities.sum()

    monkeypatch.setattr("seedbed.methods.rrm.dense_energy_loss", energy)
    stage = TrainRrm(energy_weight=0.25, sigma_xy=7, energy_kernel="exact", energy_gradient="exact")
    losses = stage.losses(network(), given_labels)(batch([(1,), (2, 3)]), 0.0)
    assert float(losses["energy"]) == pytest.approx(0.25 * 2 * 40 * 40)
    torch.testing.assert_close(taken["probabilities"].sum(1), torch.ones(2, 40, 40))
    assert taken["roi"][..., :32].all()
    assert not taken["roi"][..., 32:].any()
    assert taken["images"].dtype == torch.uint8
    assert taken["labels"][1, 10, 10] == 2
    settings = {name: taken[name] for name in ("sigma_rgb", "sigma_xy", "scale", "kernel", "gradient")}
    assert list(settings.values()) == [15.0, 7.0, 0.5, "exact", "exact"]


@pytest.fixture
def folder(tmp_path):
    """Return a data set of twelve images of 20 × 40 pixels."""
    scenes = {f"i{n:02}": random_scene(n, 20, 40, (1 + n % 2,)) for n in range(12)}
    images, masks = ({i: scene[k] for i, scene in scenes.items()} for k in (0, 1))
    return FolderDataset(tmp_path / "data", images, masks)


@pytest.mark.parametrize("drawn", ["batch", "image"])
def test_one_scale_is_drawn_a_batch_or_an_image(folder, drawn):
    """The area inside a crop that holds any image tells the scale."""
    stage = TrainRrm(batch=4, long_side=40, crop=64, scale_drawn=drawn)
    examples = RrmExamples(folder.split(Split.WEAK), stage, seed=3)
    sampler, sizes = EpochSampler(12, 4, 3), []
    for sampler.epoch in range(2):
        for places in sampler:
            areas = {int((examples[place]["mask"] == 0).sum()) for place in places}
            assert all(0.65**2 * 800 < area < 1.35**2 * 800 for area in areas)
            sizes.append(areas)
    assert {len(areas) for areas in sizes} == {1} if drawn == "batch" else max(len(a) for a in sizes) > 2
    assert len(set.union(*sizes)) >= 5
    again = RrmExamples(folder.split(Split.WEAK), stage, seed=3)[(1, 5)]
    assert torch.equal(again["image"], examples[(1, 5)]["image"])


def test_training_starts_from_the_cam_network_and_all_its_layers_learn(folder, tmp_path):
    torch.manual_seed(0)
    cam = CamNetwork(**TINY | {"classes": 2}, pretrained=True)
    for name in ("cam", "still", "moved", "scratch"):
        (tmp_path / name).mkdir()
    save_network(tmp_path / "cam", cam)
    inputs, context = {Kind.CHECKPOINT: tmp_path / "cam"}, Context(0, Split.WEAK, tmp_path / "scratch")
    settings = {"epochs": 1, "batch": 6, "crop": 32, "long_side": 40, "width": 8, "dilation": 1, "momentum": 0.5}
    start = dict(cam.named_parameters())
    for name, lr in (("still", 0.0), ("moved", 0.01)):
        TrainRrm(**settings, lr=lr).run(folder, inputs, tmp_path / name, context)
        trained = load_network(tmp_path / name)
        same = {n: torch.equal(p, start[n]) for n, p in trained.cam.named_parameters()}
        assert all(same.values()) if lr == 0 else not any(same.values())
        (context.scratch / "training.pt").unlink()
    groups = json.loads((tmp_path / "moved/training.json").read_text())["groups"]
    assert [group["lr"] for group in groups] == pytest.approx([0.01, 0.02, 0.1, 0.2])
    assert [group["weight_decay"] for group in groups] == [1e-5, 0, 1e-5, 0]
    assert {group["momentum"] for group in groups} == {0.5}


@pytest.mark.parametrize("suppress", [True, False])
def test_absent_classes_are_suppressed_on_training_images_alone(folder, tmp_path, suppress):
    """On `val` and `test` the tags must make no difference; on training images the masks keep to them."""
    (tmp_path / "rrm").mkdir()
    rrm = RrmNetwork(width=8, dilation=1, **TINY | {"classes": 2}, pretrained=False)
    torch.nn.init.normal_(rrm.head[2].bias, std=5)
    rrm.head[2].bias.data[2] = rrm.head[2].bias.data.amax() + 50
    save_network(tmp_path / "rrm", rrm)
    stage = PredictRrm(suppress_absent=suppress)
    splits = dict.fromkeys(Split, folder.ids(Split.WEAK)[:3])
    for tags in ((1,), (2,), ()):
        named = dict.fromkeys(folder.ids(Split.WEAK), tags)
        data = FolderDataset(folder.root, {}, {}, splits=splits, tags=named)
        for split in Split:
            out = tmp_path / f"{split}{len(tags)}{sum(tags)}"
            out.mkdir()
            stage.run(data, {Kind.CHECKPOINT: tmp_path / "rrm"}, out, Context(0, split, tmp_path))
            found = {int(v) for path in out.glob("*.png") for v in np.unique(decode_mask(path))}
            if suppress and split in (Split.WEAK, Split.TRAIN, Split.TUNE):
                assert found <= {0, *tags}
            else:
                assert found == {2}


def test_the_network_has_maps_and_segmentation_logits():
    rrm, images = network().eval(), 255 * torch.rand(2, 3, 40, 48)
    assert rrm(images).shape == (2, 4, 5, 6)
    assert rrm.maps(images).shape == (2, 3, 5, 6)
    torch.testing.assert_close(rrm.maps(images), rrm.cam.maps(images))
    assert [layer.dilation for layer in rrm.head if hasattr(layer, "dilation")] == [(2, 2), (2, 2)]
