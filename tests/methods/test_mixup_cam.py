"""Mixup-CAM: Equations 2.2–2.5 by hand and against literal loops; what each switch and each loss reaches."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy import stats

from seedbed.benchmark.pipeline.stage import Context, Kind, Meta
from seedbed.benchmark.training.checkpoint import save_network
from seedbed.datasets.base import Split
from seedbed.methods import mixup_cam
from seedbed.methods.cam import METHOD as CAM
from seedbed.methods.cam import CamNetwork, TrainCam
from seedbed.methods.mixup_cam import (
    METHOD,
    MeasureUncertainty,
    TrainMixupCam,
    class_entropy,
    concentration,
    mixed,
    mixup,
)

VOC: dict[str, Any] = {"classes": 20, "long_side": 500, "weights": "imagenet"}
OFF = {"alpha": 0.0, "entropy_weight": 0.0, "concentration_weight": 0.0}


def training(backbone: str) -> TrainMixupCam:
    train, _ = METHOD.localise(Meta(**VOC, backbone=backbone))
    assert isinstance(train, TrainMixupCam)
    return train


def network(dropout: float = 0.0) -> CamNetwork:
    """Return a tiny network of four classes in training mode, always the same."""
    torch.manual_seed(0)
    return CamNetwork("tiny", 4, stride=8, dropout=dropout, pretrained=False).train()


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Return five images with one to three tags."""
    generator = torch.Generator().manual_seed(1)
    tags = torch.tensor([[1.0, 0, 0, 0], [0, 1, 1, 0], [1, 1, 0, 1], [0, 0, 0, 1], [0, 1, 0, 0]])
    return {"image": 255 * torch.rand(5, 3, 40, 40, generator=generator), "tags": tags}


def literal_entropy(logits: torch.Tensor, constant_maximum: bool = True) -> torch.Tensor:
    """Equation 2.3, one location after another."""
    images, classes, height, width = logits.shape
    p = 1 / (1 + (-logits).exp())
    total = logits.new_zeros(())
    for b in range(images):
        maximum = p[b].max().detach() if constant_maximum else p[b].max()
        for h in range(height):
            for w in range(width):
                exponentials = [(p[b, c, h, w] / maximum).exp() for c in range(classes)]
                for one in exponentials:
                    q = one / sum(exponentials)
                    total = total - q * q.log() / (height * width)
    return total / images


def literal_concentration(logits: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
    """Equation 2.4, one location after another."""
    images, classes, height, width = logits.shape
    places = [(h, w) for h in range(height) for w in range(width)]
    total = logits.new_zeros(())
    for b in range(images):
        for c in range(classes):
            if tags[b, c] == 0:
                continue
            m = logits[b, c].clamp(min=0)
            m = m / (m.sum() + 1e-5)
            mean_h = sum(h * m[h, w] for h, w in places)
            mean_w = sum(w * m[h, w] for h, w in places)
            total = total + sum(((h - mean_h) ** 2 + (w - mean_w) ** 2) * m[h, w] for h, w in places)
    return total / images


def test_the_recipe_of_the_published_backbone():
    """docs/methods.md, Mixup-CAM."""
    train = training("resnet38")
    assert train == TrainMixupCam(backbone="resnet38", biases="psa")
    assert (train.batch, train.epochs, train.lr, train.head_multiplier) == (16, 61, 0.01, 10.0)
    assert (train.weight_decay, train.momentum, train.optimiser, train.biases) == (5e-4, 0.0, "sgd", "psa")
    assert (train.long_side_low, train.long_side_high, train.crop, train.jitter) == (256, 512, 224, True)
    assert (train.alpha, train.entropy_weight, train.concentration_weight) == (0.2, 0.02, 2e-4)
    assert (train.stride, train.dropout) == (8, 0.5)


@pytest.mark.parametrize(
    ("backbone", "weight"), [("vgg16", 2e-4 / 4), ("resnet50", 2e-4 * (28 / 32) ** 2), ("squeezenet", 2e-4)]
)
def test_other_backbones_train_as_cam_does_and_the_concentration_is_as_large_on_their_grid(backbone, weight):
    train, (cam, _) = training(backbone), CAM.localise(Meta(**VOC, backbone=backbone))
    assert {name: train.settings()[name] for name in cam.settings()} == cam.settings()
    assert train.concentration_weight == pytest.approx(weight)
    cells = train.crop // train.stride
    uniform = concentration(torch.ones(1, 20, cells, cells), torch.eye(20)[:1])
    assert train.concentration_weight * float(uniform) == pytest.approx(0.026, rel=0.01)


def test_mixing_by_hand():
    values = torch.tensor([[1.0, 0.0], [0.0, 4.0]])
    mixture = mixed(values, torch.tensor([1, 0]), 0.25)
    assert mixture.tolist() == [[0.25, 3.0], [0.75, 1.0]]


def test_images_and_tags_are_mixed_alike_with_one_share_from_torchs_own_generator():
    """The image shows its own number, so that share and partner can be read from the mixture."""
    numbers, tags = torch.arange(6.0), torch.eye(6)
    torch.manual_seed(5)
    images, mixed_tags = mixup(numbers[:, None, None, None].expand(6, 3, 2, 2), tags, 0.2)
    torch.testing.assert_close(images[:, 0, 0, 0], mixed_tags @ numbers)
    torch.testing.assert_close(mixed_tags.sum(1), torch.ones(6))
    assert len({round(float(share), 5) for share in mixed_tags.flatten() if 0 < share < 1}) == 2
    torch.manual_seed(5)
    assert torch.equal(mixup(images, tags, 0.2)[1], mixed_tags)
    assert not torch.equal(mixup(images, tags, 0.2)[1], mixed_tags)


def test_shares_are_beta_distributed():
    torch.manual_seed(0)
    drawn = [mixup(torch.zeros(2, 3, 1, 1), torch.eye(2), 0.2)[1][0] for _ in range(600)]
    shares = [float(share) for share, other in drawn if other > 0]
    assert len(shares) > 200
    assert stats.kstest(shares, stats.beta(0.2, 0.2).cdf).pvalue > 0.05
    assert stats.kstest(shares, stats.beta(1.0, 1.0).cdf).pvalue < 1e-6


def test_a_share_of_one_is_the_batch_itself(batch):
    partners = torch.tensor([2, 0, 4, 1, 3])
    assert torch.equal(mixed(batch["image"], partners, 1.0), batch["image"])
    assert torch.equal(mixed(batch["tags"], partners, 1.0), batch["tags"])


def losses_and_gradients(stage: TrainCam, batch, dropout: float):
    net = network(dropout)
    torch.manual_seed(7)
    named = stage.losses(net, batch)
    loss = torch.stack([value for name, value in named.items() if name not in stage.measured]).sum()
    loss.backward()
    return loss.detach(), [p.grad for p in net.parameters()]


def test_with_everything_off_it_is_cam_bit_for_bit(batch):
    (ours, our_gradients), (cams, cams_gradients) = (
        losses_and_gradients(stage, batch, dropout=0.5) for stage in (TrainMixupCam(**OFF), TrainCam())
    )
    assert torch.equal(ours, cams)
    assert all(torch.equal(a, b) for a, b in zip(our_gradients, cams_gradients, strict=True))
    assert not torch.equal(ours, losses_and_gradients(TrainMixupCam(**OFF | {"alpha": 0.2}), batch, 0.5)[0])


def test_a_drawn_share_of_one_gives_cams_loss_bit_for_bit(batch, monkeypatch):
    class One:
        def __init__(self, *_: float) -> None: ...

        def sample(self) -> torch.Tensor:
            return torch.tensor(1.0)

    monkeypatch.setattr(mixup_cam, "Beta", One)
    stage = TrainMixupCam(**OFF | {"alpha": 0.2})
    assert torch.equal(*(losses_and_gradients(s, batch, dropout=0.0)[0] for s in (stage, TrainCam())))


@pytest.mark.parametrize(
    ("entropy_weight", "concentration_weight", "minimised"),
    [
        (0.0, 0.0, {"classification"}),
        (0.02, 0.0, {"classification", "weighted_entropy"}),
        (0.0, 2e-4, {"classification", "weighted_concentration"}),
        (0.02, 2e-4, {"classification", "weighted_entropy", "weighted_concentration"}),
    ],
)
def test_the_rows_of_table_2_1(batch, entropy_weight, concentration_weight, minimised):
    stage = TrainMixupCam(entropy_weight=entropy_weight, concentration_weight=concentration_weight)
    losses = stage.losses(network(), batch)
    assert set(losses) == minimised | {"entropy", "concentration"}
    assert set(losses) - set(stage.measured) == minimised
    for name, weight in (("entropy", entropy_weight), ("concentration", concentration_weight)):
        assert weight == 0 or float(losses[f"weighted_{name}"].detach()) == pytest.approx(
            weight * float(losses[name].detach())
        )


def test_the_entropy_is_that_of_the_equation_and_the_maximum_is_a_constant():
    torch.manual_seed(2)
    logits = 3 * torch.randn(2, 4, 3, 2, dtype=torch.float64)
    ours, theirs, others = (logits.clone().requires_grad_() for _ in range(3))
    value, expected = class_entropy(ours), literal_entropy(theirs)
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)
    value.backward()
    expected.backward()
    literal_entropy(others, constant_maximum=False).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-8)
    assert (ours.grad - others.grad).abs().max() > 1e-4


def test_the_entropy_of_twenty_classes_has_a_narrow_range():
    """Smallest where six classes are certain and the others impossible; largest where all are alike."""
    values = []
    for certain in range(1, 21):
        logits = torch.full((1, 20, 1, 1), -80.0)
        logits[:, :certain] = 80.0
        values.append(float(class_entropy(logits)))
    assert min(values) == pytest.approx(2.8725, abs=5e-5)
    assert max(values) == pytest.approx(math.log(20), abs=5e-5) == pytest.approx(2.9957, abs=5e-5)
    torch.manual_seed(0)
    assert 2.8725 < float(class_entropy(10 * torch.randn(4, 20, 7, 7))) < 2.9957
    assert math.isfinite(float(class_entropy(torch.full((1, 20, 2, 2), -500.0))))


def test_the_concentration_is_that_of_the_equation():
    torch.manual_seed(3)
    logits = torch.randn(3, 4, 5, 3, dtype=torch.float64)
    tags = torch.tensor([[1.0, 0, 0.3, 0], [0, 0, 0, 0], [0, 1e-3, 0, 1]])
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    value, expected = concentration(ours, tags), literal_concentration(theirs, tags)
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)
    value.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7)
    assert not ours.grad[tags == 0].any()


def test_the_concentration_by_hand():
    maps = torch.zeros(1, 2, 3, 4)
    maps[0, 0, 0, 0] = maps[0, 0, 0, 2] = 5.0  # one cell to each side of the centre
    maps[0, 1, 2, 1] = 5.0
    tags = torch.eye(2)
    assert float(concentration(maps, tags[:1])) == pytest.approx(1, abs=1e-4)
    assert float(concentration(maps, tags[1:])) == pytest.approx(0, abs=1e-8)
    uniform = float(concentration(torch.ones(1, 1, 28, 28), torch.ones(1, 1)))
    assert uniform == pytest.approx((28**2 + 28**2 - 2) / 12) == pytest.approx(130.5)
    assert 2e-4 * uniform == pytest.approx(0.026, abs=2e-4)
    assert float(concentration(-torch.ones(1, 1, 28, 28), torch.ones(1, 1))) == 0


@pytest.mark.parametrize("name", ["classification", "weighted_entropy", "weighted_concentration"])
def test_each_loss_reaches_backbone_and_classifier(batch, name):
    net = network()
    TrainMixupCam().losses(net, batch)[name].backward()
    reached = {n for n, p in net.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {n for n, _ in net.named_parameters()}


@pytest.mark.parametrize("name", ["entropy", "concentration"])
def test_a_weight_lowers_what_it_weighs(batch, name):
    stage = TrainMixupCam(**OFF | {f"{name}_weight": 1.0})
    net = network()
    optimiser = torch.optim.Adam(net.parameters(), lr=0.003)
    values = []
    for _ in range(8):
        losses = stage.losses(net, batch)
        values.append(float(losses[name].detach()))
        optimiser.zero_grad()
        losses[f"weighted_{name}"].backward()
        optimiser.step()
    assert values[-1] < values[0] - 0.02


def test_the_report_of_a_training_has_both_values_where_they_are_switched_off(chimera, tmp_path):
    train, _ = METHOD.localise(Meta(classes=6, long_side=64, backbone="tiny"))
    stage = replace(train, epochs=1, batch=8, **OFF)
    stage.run(chimera, {}, tmp_path, Context(seed=0, split=Split.WEAK, scratch=tmp_path))
    report = json.loads((tmp_path / "training.json").read_text())
    (epoch,) = report["history"]
    assert set(epoch) == {"classification", "entropy", "concentration"}
    assert 0 < epoch["entropy"] <= math.log(6) + 1e-6
    assert stage.totals([epoch]) == [epoch["classification"]]
    assert {group["optimiser"] for group in report["groups"]} == {"AdamW"}


def test_uncertainty_is_measured_on_the_images_as_they_are(chimera, tmp_path):
    net = CamNetwork("tiny", 6, stride=8, dropout=0.5, pretrained=False)
    torch.nn.init.normal_(net.classifier.weight, std=1000)  # the features of an untrained network are small
    (tmp_path / "network").mkdir()
    save_network(tmp_path / "network", net.eval())
    context = Context(seed=0, split=Split.TUNE, scratch=tmp_path)
    MeasureUncertainty().run(chimera, {Kind.CHECKPOINT: tmp_path / "network"}, tmp_path, context)
    view = chimera.split(Split.TUNE)
    entropies, spreads = [], []
    for image_id in view.ids:
        image = torch.from_numpy(view.image(image_id).copy()).permute(2, 0, 1).float()
        with torch.no_grad():
            logits = net.locations(image[None]).double()
        entropies.append(float(literal_entropy(logits)) / math.log(6))
        uniform = torch.ones(1, 1, *logits.shape[2:])
        largest = float(literal_concentration(uniform, torch.ones(1, 1)))
        of_class = [
            float(literal_concentration(logits[:, [t - 1]], torch.ones(1, 1))) for t in view.tags(image_id)
        ]
        spreads.append(np.mean(of_class) / largest)
    rows = {row["metric"]: row for row in pq.read_table(tmp_path / "records.parquet").to_pylist()}
    assert rows["class_entropy"]["value"] == pytest.approx(np.mean(entropies), rel=1e-5)
    assert rows["spread"]["value"] == pytest.approx(np.mean(spreads), rel=1e-4)
    assert {row["count"] for row in rows.values()} == {len(view)}
    assert {(row["level"], row["split"]) for row in rows.values()} == {("seed", "tune")}
