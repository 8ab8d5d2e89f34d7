"""Training and prediction of the segmentation network: losses by hand and against slow references."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from seedbed.benchmark.pipeline.registry import BACKBONES
from seedbed.benchmark.pipeline.stage import Context, Meta
from seedbed.benchmark.training.checkpoint import save_network
from seedbed.datasets.base import Split
from seedbed.datasets.io.images import decode_mask
from seedbed.methods.refine.crf import Kernels, dense_crf
from seedbed.methods.segmentation.deeplab import DeepLab
from seedbed.methods.segmentation.stages import (
    PredictMasks,
    TrainSegmentation,
    TrainSupervised,
    mask_cross_entropy,
    predict_masks,
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


def sure_of(labels: torch.Tensor) -> torch.Tensor:
    """Return logits (1, L, h, w) that are sure of labels (h, w): cross entropy with any other label is 100."""
    return 100.0 * nn.functional.one_hot(labels).permute(2, 0, 1)[None].float()


def test_a_cell_has_the_label_of_the_pixel_at_its_centre_by_hand():
    """One cell per 8 × 8 pixels: pixel (4, 4) of each, not pixel (0, 0), its top left corner."""
    masks = torch.zeros(1, 16, 16, dtype=torch.long)
    masks[0, 4, 4], masks[0, 4, 12], masks[0, 12, 4], masks[0, 12, 12] = 1, 2, 3, 4
    assert float(mask_cross_entropy(sure_of(torch.tensor([[1, 2], [3, 4]])), masks, False)) == 0
    assert float(mask_cross_entropy(sure_of(torch.tensor([[0, 0], [0, 4]])), masks, False)) == pytest.approx(75)


@pytest.mark.parametrize("sides", [((321, 321), (41, 41)), ((321, 240), (30, 41)), ((65, 97), (9, 13))])
def test_masks_are_reduced_as_by_pil(sides):
    """deeplab-pytorch reduces masks by PIL's nearest and warns of the other."""
    (height, width), (rows, columns) = sides
    masks = np.random.default_rng(0).integers(0, 3, (height, width)).astype(np.uint8)
    small = np.asarray(Image.fromarray(masks).resize((columns, rows), Image.Resampling.NEAREST))
    logits = sure_of(torch.from_numpy(small.astype(np.int64)))
    assert float(mask_cross_entropy(logits, torch.from_numpy(masks)[None].long(), False)) == 0


def test_labels_do_not_shift_against_the_logits():
    """A square in the middle of the image stays in the middle of the grid."""
    masks = torch.zeros(1, 65, 65, dtype=torch.long)
    masks[0, 20:45, 20:45] = 1
    small = torch.zeros(9, 9, dtype=torch.long)
    small[3:6, 3:6] = 1
    assert float(mask_cross_entropy(sure_of(small), masks, False)) == 0


def test_the_pyramid_adds_the_maximum_over_scales():
    network = nn.Conv2d(3, 2, 1)
    images = 255 * torch.rand(1, 3, 16, 16)
    single = pyramid_logits(network, images, (1.0,))
    assert len(single) == 1
    full = pyramid_logits(network, images, (1.0, 0.5))
    assert [x.shape[-1] for x in full] == [16, 8, 16]
    upsampled = nn.functional.interpolate(full[1], (16, 16), mode="bilinear", align_corners=False)
    assert torch.equal(full[2], torch.maximum(full[0], upsampled))


def test_the_pyramid_spans_the_whole_image():
    """At 0.75 the 9 pixels become 6 that span them all: as deeplab-pytorch, and not the first 8 of them."""
    seen = []
    images = torch.arange(9.0).expand(1, 3, 9, 9)

    class Spy(nn.Module):
        def forward(self, given):
            seen.append(given[0, 0, 0])
            return given

    pyramid_logits(Spy(), images, (1.0, 0.75))
    torch.testing.assert_close(seen[1], torch.tensor([0.25, 1.75, 3.25, 4.75, 6.25, 7.75]))


def test_the_loss_is_the_sum_over_scales_and_their_maximum_by_hand():
    """Odds of class 1 against background, by input size; the cross entropy of class 1 is log(1 + 1/odds)."""
    odds = {16: 2.0, 12: 5.0, 8: 3.0}

    class Fake(nn.Module):
        def forward(self, images):
            side = images.shape[-1]
            return torch.tensor([0.0, math.log(odds[side])])[None, :, None, None].expand(
                1, 2, side // 8, side // 8
            )

    masks = torch.ones(1, 16, 16, dtype=torch.long)
    masks[0, 0, 8:] = 255
    stage = TrainSegmentation(pyramid=(1.0, 0.75, 0.5))
    loss = stage.losses(Fake())({"image": torch.zeros(1, 3, 16, 16), "mask": masks}, 0.0)["cross_entropy"]
    expected = sum(math.log(1 + 1 / odds) for odds in (2.0, 5.0, 3.0, 5.0))
    assert float(loss) == pytest.approx(expected)


def test_the_maximum_is_taken_pixel_by_pixel_and_class_by_class():
    by_side = {8: [[[1.0, 2.0]], [[5.0, 0.0]]], 4: [[[3.0]], [[1.0]]]}

    class Fake(nn.Module):
        def forward(self, images):
            return torch.tensor([by_side[images.shape[-1]]])

    fused = pyramid_logits(Fake(), torch.zeros(1, 3, 8, 8), (1.0, 0.5))[-1]
    assert fused.tolist() == [[[[3.0, 3.0]], [[5.0, 1.0]]]]


def test_255_counts_nowhere_and_the_balance_gives_each_label_the_same_weight_by_hand():
    """Cross entropies: background log 2 at three pixels, class 1 log 4 at one, and a fifth pixel without label."""
    odds = torch.tensor([1.0, 1.0, 1.0, 1 / 3, 1e6])
    logits = torch.stack([torch.zeros(5), odds.log()])[None, :, None]
    masks = torch.tensor([[[0, 0, 0, 1, 255]]])
    assert float(mask_cross_entropy(logits, masks, False)) == pytest.approx((3 * math.log(2) + math.log(4)) / 4)
    assert float(mask_cross_entropy(logits, masks, True)) == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_the_upper_bound_has_the_same_network_and_settings():
    meta = Meta(classes=20, long_side=500, backbone="resnet101", weights="imagenet")
    weak, full = segmentation_stages(meta)[0], segmentation_stages(meta, "full")[0]
    assert isinstance(full, TrainSupervised)
    assert full.settings() == weak.settings()
    assert full.consumes == ()


def test_the_upper_bound_trains_on_the_true_masks(chimera, tmp_path):
    context = Context(seed=0, split=Split.WEAK, scratch=tmp_path)
    stage = TrainSupervised(backbone="tiny", weights="none", long_side=64, crop=64, scale_low=1.0, scale_high=1.0)
    examples = stage.examples(chimera, {}, context)
    view = chimera.split(Split.WEAK, supervision="full")
    for index in range(3):
        found, true = examples[0, index]["mask"].numpy(), view.mask(view.ids[index])
        assert np.array_equal(found, true) or np.array_equal(found, true[:, ::-1])


def test_the_training_report_has_the_rates_of_deeplab_v2(chimera, tmp_path):
    """2.5e-4, the head ten times that, its biases twice that again, without decay."""
    stage = TrainSupervised(
        backbone="tiny", weights="none", epochs=1, batch=8, long_side=64, crop=32, pyramid=(1.0,), rates=(1, 2)
    )
    stage.run(chimera, {}, tmp_path, Context(seed=0, split=Split.WEAK, scratch=tmp_path))
    groups = json.loads((tmp_path / "training.json").read_text())["groups"]
    rates = [(group["optimiser"], group["lr"], group["momentum"], group["weight_decay"]) for group in groups]
    slow = [("SGD", 2.5e-4, 0.9, 5e-4), ("SGD", 5e-4, 0.9, 0.0)]
    assert rates == [*slow, ("SGD", 2.5e-3, 0.9, 5e-4), ("SGD", 5e-3, 0.9, 0.0)]
    assert groups[-1]["parameters"] == 2 * 7


@pytest.fixture
def predicted(chimera, tmp_path):
    """Return what predicts with a saved network, and the network."""
    torch.manual_seed(0)
    network = DeepLab("tiny", classes=6, stride=8, rates=(1, 2), pretrained=False).eval()
    for branch in network.aspp:
        nn.init.normal_(branch.weight, std=0.3)  # so that no two classes are all but equal
    (tmp_path / "network").mkdir()
    save_network(tmp_path / "network", network)
    view = chimera.split(Split.VAL)
    view = replace(view, ids=view.ids[:2])

    def predict(**settings):
        out = tmp_path / "masks"
        out.mkdir()
        context = Context(seed=0, split=Split.VAL, scratch=tmp_path)
        predict_masks(PredictMasks(**settings), tmp_path / "network", view, out, context)
        return {image_id: decode_mask(out / f"{image_id}.png") for image_id in view.ids}

    return predict, network, view


def probabilities(logits, size):
    """Return the softmax of logits (1, L, h, w) that are first resized to an image."""
    return nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False).softmax(1)


def test_prediction_is_the_mean_over_scales_and_flips_and_then_the_crf(predicted):
    predict, network, view = predicted
    masks = predict(scales=(0.5, 1.0), flip=True, crf="deeplab")
    for image_id in view.ids:
        image, size = view.image(image_id), view.size(image_id)
        small = Image.fromarray(image).resize((size[1] // 2, size[0] // 2), Image.Resampling.BICUBIC)
        pixels = (image, np.array(small))
        original, half = (torch.from_numpy(p.copy()).permute(2, 0, 1).float()[None] for p in pixels)
        with torch.inference_mode():
            straight = sum(probabilities(network(x), size) for x in (half, original))
            mirrored = sum(probabilities(network(x.flip(-1)), size) for x in (half, original))
        mean = ((straight + mirrored.flip(-1)) / 4)[0].numpy()
        sharpened = dense_crf(image, -np.log(np.maximum(mean, 1e-5)), Kernels(1, 3, 67, 3, 4))
        assert np.array_equal(masks[image_id], sharpened.argmax(0))
        assert not np.array_equal(masks[image_id], mean.argmax(0))


def test_prediction_can_be_the_published_maximum_over_three_sizes(predicted):
    predict, network, view = predicted
    masks = predict(pyramid=(1.0, 0.75, 0.5), scales=(1.0,), flip=False)
    for image_id in view.ids:
        original = torch.from_numpy(view.image(image_id).copy()).permute(2, 0, 1).float()[None]
        with torch.inference_mode():
            fused = pyramid_logits(network, original, (1.0, 0.75, 0.5))[-1]
        assert np.array_equal(masks[image_id], probabilities(fused, view.size(image_id))[0].argmax(0).numpy())


@pytest.mark.parametrize("backbone", BACKBONES.names())
def test_the_crop_follows_the_size_of_the_images(backbone):
    """A crop larger than the images would be filled up with pixels that do not count."""
    full, small = (
        segmentation_stages(Meta(3, side, backbone, "none", side))[0].settings()["crop"] for side in (500, 224)
    )
    assert full <= 500
    assert small == pytest.approx(full * 224 / 500, abs=8)
