"""CAM: the published recipes, the loss and the maps by hand, what learns and what does not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from seedbed.benchmark.evaluation.maps import MapReader
from seedbed.benchmark.pipeline.stage import Context, Kind, Meta
from seedbed.benchmark.training.checkpoint import save_network
from seedbed.datasets.base import Split
from seedbed.methods import cam
from seedbed.methods.cam import METHOD, CamNetwork, InferCam, TrainCam, multi_label_soft_margin, normalised_maps
from seedbed.methods.sc_cam import Subcategories, TrainSubcategories
from tests.helpers.fakes import FolderDataset, random_scene

VOC = {"classes": 20, "long_side": 500}


def stages(backbone: str, weights: str = "imagenet") -> tuple[TrainCam, InferCam]:
    train, infer = METHOD.localise(Meta(**VOC, backbone=backbone, weights=weights))
    assert isinstance(train, TrainCam)
    assert isinstance(infer, InferCam)
    return train, infer


def test_the_published_recipes():
    """docs/methods.md, CAM, the table."""
    vgg, _ = stages("vgg16")
    assert (vgg.batch, vgg.epochs, vgg.lr, vgg.head_multiplier, vgg.weight_decay) == (16, 15, 0.1, 10.0, 5e-4)
    assert (vgg.long_side_low, vgg.long_side_high, vgg.crop, vgg.jitter) == (256, 512, 448, True)
    assert (vgg.dropout, vgg.momentum, vgg.biases, vgg.optimiser, vgg.stride) == (0.5, 0.0, "psa", "sgd", 8)
    wide, _ = stages("resnet38", "sha256:x")
    assert (wide.batch, wide.epochs, wide.lr, wide.head_multiplier) == (16, 15, 0.01, 10.0)
    assert (wide.long_side_low, wide.long_side_high, wide.crop, wide.jitter) == (256, 512, 448, True)
    assert (wide.dropout, wide.momentum, wide.biases, wide.optimiser, wide.stride) == (0.5, 0.0, "psa", "sgd", 8)
    assert (wide.weight_decay, wide.freeze_early) == (5e-4, True)
    resnet, _ = stages("resnet50")
    assert (resnet.batch, resnet.epochs, resnet.lr, resnet.weight_decay) == (16, 5, 0.1, 1e-4)
    assert (resnet.long_side_low, resnet.long_side_high, resnet.crop) == (320, 640, 512)
    assert (resnet.jitter, resnet.dropout, resnet.momentum, resnet.stride) == (False, 0.0, 0.0, 16)
    assert [x.classifier_init for x in (vgg, wide, resnet)] == ["xavier", "xavier", "torch"]


@pytest.mark.parametrize("start", ["xavier", "torch"])
def test_the_classifiers_start_from_xaviers_weights_or_torchs(start, chimera, tmp_path, monkeypatch):
    """Uniform up to √(6 / (inputs + outputs)), or up to 1 / √inputs; ResNet-38's deviations: 0.0220 and 0.0090."""
    seen = []
    monkeypatch.setattr(cam, "fit", lambda network, *_: seen.append(network))
    Subcategories(4, []).write(tmp_path)
    for stage in (TrainCam, TrainSubcategories):
        training = stage(backbone="tiny", weights="none", classifier_init=start)
        context = Context(seed=0, split=Split.WEAK, scratch=tmp_path)
        training.run(chimera, {Kind.TAGS: tmp_path}, tmp_path, context)
    heads = [head for network in seen for head in network.classifiers()]
    assert [head.weight.shape[:2] for head in heads] == [(6, 128), (6, 128), (24, 128)]
    for head in heads:
        outputs, inputs = head.weight.shape[:2]
        bound = (6 / (inputs + outputs)) ** 0.5 if start == "xavier" else inputs**-0.5
        assert float(head.weight.detach().abs().max()) == pytest.approx(bound, rel=0.02)
    deviations = (6 / 4116) ** 0.5 / 3**0.5, 4096**-0.5 / 3**0.5
    assert deviations == pytest.approx((0.0220, 0.0090), abs=5e-5)


def test_only_vgg_takes_the_square_root_of_its_maps():
    names = ("vgg16", "resnet38", "resnet50", "squeezenet")
    assert [stages(name)[1].square_root for name in names] == [True, False, False, False]


def test_sizes_shrink_with_the_images_of_the_data_set():
    train, _ = METHOD.localise(Meta(classes=6, long_side=100, backbone="resnet50", weights="none"))
    assert isinstance(train, TrainCam)
    assert (train.long_side_low, train.long_side_high, train.crop) == (64, 128, 104)
    assert not train.freeze_early


def test_loss_by_hand():
    """Mean over classes of −log σ(x) for a tag and −log σ(−x) without: x = (0, log 3)."""
    logits, tags = torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([[1.0, 0.0]])
    assert float(multi_label_soft_margin(logits, tags)) == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_maps_of_absent_classes_are_left_out_and_the_others_reach_one():
    maps = torch.zeros(3, 2, 2)
    maps[0] = 4.0
    maps[2, 0, 1] = 0.5
    result = normalised_maps(maps, (3,), (8, 8))
    assert result.labels.tolist() == [3]
    np.testing.assert_allclose(result.scores, [[[0, 0.5 / (0.5 + 1e-5)], [0, 0]]], rtol=1e-6)
    assert normalised_maps(maps, (), (8, 8)).scores.shape == (0, 2, 2)


@pytest.mark.parametrize("cell", [4, 1])
def test_maps_are_stored_in_cells_of_so_many_pixels(tmp_path, cell):
    """PSA code: at the image's full size."""
    image, mask = random_scene(0, 22, 35, (1, 2))
    data = FolderDataset(tmp_path / "data", {"a": image}, {"a": mask})
    network = CamNetwork("tiny", len(data.classes), stride=8, dropout=0.0, pretrained=False).eval()
    save_network(tmp_path, network)
    InferCam(cell=cell).run(data, {Kind.CHECKPOINT: tmp_path}, tmp_path, Context(0, Split.TRAIN, tmp_path))
    maps = MapReader(tmp_path).read("a")
    assert maps.scores.shape[1:] == (-(-22 // cell), -(-35 // cell))
    assert maps.size == (22, 35)


def test_pooling_and_the_classifier_commute():
    torch.manual_seed(0)
    network = CamNetwork("tiny", 4, stride=8, dropout=0.0, pretrained=False).eval()
    images = 255 * torch.rand(2, 3, 48, 48)
    pooled = network.backbone(images).mean((2, 3), keepdim=True)
    torch.testing.assert_close(network(images), network.classifier(pooled)[:, :, 0, 0])
    assert network.maps(images).shape == (2, 4, 6, 6)
    assert network.maps(images).min() >= 0


def test_the_loss_reaches_layer3_layer4_and_the_head_alone():
    """docs/methods.md, CAM, the row of CAM ResNet-50."""
    network = CamNetwork("resnet50", 3, stride=16, dropout=0.0, pretrained=True).train()
    before = {n: b.clone() for n, b in network.named_buffers()}
    for module in network.backbone.early:
        module.requires_grad_(False)
    multi_label_soft_margin(network(torch.randn(2, 3, 64, 64)), torch.eye(3)[:2]).backward()
    reached = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    prefixes = {name.removeprefix("backbone.").partition(".")[0] for name in reached}
    assert prefixes == {"layer3", "layer4", "classifier"}
    assert all(torch.equal(before[n], b) for n, b in network.named_buffers())
