"""The segmentation network: losses by hand and against a slow reference, pyramid, recipes of the paper."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from benchmark.stage import Meta
from methods.segment import (
    DeepLab,
    TrainSegmentation,
    TrainSupervised,
    mask_cross_entropy,
    pyramid_logits,
    segmentation_stages,
)


def slow_cross_entropy(logits, masks, class_balanced):
    """Cross entropy as sums over pixels, in float64."""
    by_label: dict[int, list[float]] = {}
    for b in range(masks.shape[0]):
        for y in range(masks.shape[1]):
            for x in range(masks.shape[2]):
                label = int(masks[b, y, x])
                if label == 255:
                    continue
                values = logits[b, :, y, x].double()
                loss = float(torch.logsumexp(values, 0) - values[label])
                by_label.setdefault(label, []).append(loss)
    if not by_label:
        return 0.0
    if class_balanced:
        return sum(sum(v) / len(v) for v in by_label.values()) / len(by_label)
    return sum(map(sum, by_label.values())) / sum(map(len, by_label.values()))


@pytest.mark.parametrize("class_balanced", [False, True])
def test_cross_entropy_equals_the_sum_over_pixels_and_ignores_255(class_balanced):
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 5, 6)
    masks = torch.randint(0, 4, (2, 5, 6))
    masks[0, :2] = 255
    masks[masks == 3] = 1
    loss = mask_cross_entropy(logits, masks, class_balanced)
    assert float(loss) == pytest.approx(slow_cross_entropy(logits, masks, class_balanced), abs=1e-5)


def test_cross_entropy_by_hand():
    logits = torch.tensor([[[[0.0]], [[math.log(3.0)]]]])
    assert float(mask_cross_entropy(logits, torch.tensor([[[1]]]), False)) == pytest.approx(math.log(4 / 3))


@pytest.mark.parametrize("class_balanced", [False, True])
def test_a_batch_without_a_labelled_pixel_gives_zero_and_a_gradient(class_balanced):
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = mask_cross_entropy(logits, torch.full((1, 2, 2), 255), class_balanced)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_masks_are_brought_to_the_size_of_the_logits_by_nearest():
    logits = torch.zeros(1, 2, 2, 2)
    logits[0, 1, 0, 0] = 5.0
    masks = torch.zeros(1, 4, 4, dtype=torch.long)
    masks[0, :2, :2] = 1
    small = masks[:, ::2, ::2]
    assert float(mask_cross_entropy(logits, masks, False)) == float(mask_cross_entropy(logits, small, False))


def test_the_pyramid_adds_the_maximum_over_scales():
    network = nn.Conv2d(3, 2, 1)
    images = torch.randn(1, 3, 16, 16)
    single = pyramid_logits(network, images, (1.0,))
    assert len(single) == 1
    full = pyramid_logits(network, images, (1.0, 0.5))
    assert [x.shape[-1] for x in full] == [16, 8, 16]
    upsampled = nn.functional.interpolate(full[1], (16, 16), mode="bilinear", align_corners=False)
    assert torch.equal(full[2], torch.maximum(full[0], upsampled))


def test_aspp_is_the_sum_of_its_branches():
    torch.manual_seed(0)
    network = DeepLab("tiny", classes=3, stride=8, rates=(1, 2), pretrained=False).eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        features = network.backbone(images)
        expected = sum(branch(features) for branch in network.aspp)
        assert torch.allclose(network(images), expected)
    assert network(images).shape == (1, 4, 4, 4)


def test_deeplab_v2_resnet101_is_the_default_for_voc_sized_images():
    """docs/methods.md, Segmentation network."""
    train, _ = segmentation_stages(Meta(classes=20, long_side=500, backbone="resnet101", weights="imagenet"))
    assert isinstance(train, TrainSegmentation)
    assert (train.stride, train.rates, train.crop) == (8, (6, 12, 18, 24), 321)
    assert (train.lr, train.momentum, train.weight_decay, train.power) == (2.5e-4, 0.9, 5e-4, 0.9)
    assert (train.batch, train.head_multiplier, train.biases, train.pyramid) == (10, 10.0, "psa", (1.0, 0.75, 0.5))
    assert round(20_000 * train.batch / 10_582) == train.epochs


def test_the_upper_bound_has_the_same_network_and_settings():
    meta = Meta(classes=20, long_side=500, backbone="resnet101", weights="imagenet")
    weak, full = segmentation_stages(meta)[0], segmentation_stages(meta, "full")[0]
    assert isinstance(full, TrainSupervised)
    assert full.settings() == weak.settings()
    assert full.consumes == ()
