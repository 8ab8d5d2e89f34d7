"""AdvCAM: its steps against a literal transcription, the mask by hand, and what each term reaches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.evaluation.maps import MapReader, ScoreMaps
from seedbed.benchmark.pipeline.hparams import override
from seedbed.benchmark.pipeline.stage import Context, Kind, Meta, Precision
from seedbed.benchmark.training.checkpoint import save_network
from seedbed.datasets.base import Dataset, Split
from seedbed.methods import advcam
from seedbed.methods.advcam import CLASSIFIERS, METHOD, InferAdvCam, grad_cam, masked_change, unflipped
from seedbed.methods.cam import CamNetwork, InferCam
from seedbed.methods.esol import EsolNetwork
from seedbed.methods.sc_cam import SubcategoryNetwork
from tests.helpers.fakes import FolderDataset, random_scene

VOC: dict[str, Any] = {"classes": 20, "long_side": 500}
CLASSES = ("cat", "dog", "cow")
SMALL = InferAdvCam(steps=3, scales=(1.0,), step_size=0.3)


def network(classes: int = 3) -> CamNetwork:
    """Return a tiny network in eval mode, always the same, whose maps are not flat."""
    torch.manual_seed(0)
    net = CamNetwork("tiny", classes, stride=8, dropout=0.5, pretrained=False).eval().requires_grad_(False)
    torch.nn.init.normal_(net.classifier.weight)
    net.classifier.weight -= net.classifier.weight.mean(1, keepdim=True)
    # With its first statistics all locations of a tiny network look alike.
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    net.train()(255 * torch.rand(16, 3, 32, 32))
    return net.eval()


def views(flip: bool = True, seed: int = 1) -> Tensor:
    """Return an image float32 (1, 3, 24, 40) in 0..255, and its mirror image if `flip`."""
    image = 255 * torch.rand(1, 3, 24, 40, generator=torch.Generator().manual_seed(seed))
    return torch.cat([image, image.flip(-1)]) if flip else image


def context(precision: Precision = "fp32", **fields: Any) -> Context:
    return Context(seed=0, split=Split.TRAIN, precision=precision, **fields)


class Literal:
    """The authors' procedure in float64 for one class, one view after another, with a Grad-CAM of its own."""

    def __init__(self, stage: InferAdvCam, images: Tensor, label: int, classes: int = 3) -> None:
        self.stage, self.label = stage, label
        self.network = network(classes).double()
        colours = self.network.backbone.normalise
        self.mean, self.std = colours.mean, colours.std
        self.x = (images.double() / 255 - self.mean) / self.std
        self.first: Tensor | None = None
        self.total = torch.zeros(())

    def features(self, x: Tensor) -> Tensor:
        return self.network.backbone(255 * (x * self.std + self.mean))

    def objective(self, x: Tensor) -> Tensor:
        """Return L (Section 3.3)."""
        features = self.features(x)
        logits = self.network.classifier(features)
        value = torch.zeros((), dtype=torch.float64)
        for view in logits:
            for k, location_logits in enumerate(view):
                kept = location_logits.clamp(min=0) if self.stage.logits == "rectified" else location_logits
                if k == self.label:
                    value = value + kept.mean()
                elif self.stage.other_classes:
                    value = value - kept.mean()
        weights = self.network.classifier.weight[self.label, :, 0, 0].expand(len(x), -1)
        if self.stage.mask_map == "grad_cam":
            apart = features.detach().requires_grad_()
            score = self.network.classifier(apart)[:, self.label].clamp(min=0).sum()
            (gradient,) = torch.autograd.grad(score, apart)
            weights = gradient.sum((2, 3)) / (gradient > 0).sum()
        maps = [(weights[v, :, None, None] * features[v]).sum(0).clamp(min=0) for v in range(len(x))]
        region = maps[0] + maps[1].flip(-1) if len(x) == 2 else maps[0]
        if self.first is None:
            self.first = region.detach()
        for row, line in enumerate(region):
            for column, here in enumerate(line):
                if here / region.max() > self.stage.mask_threshold:
                    value = value - self.stage.mask_weight * (here - self.first[row, column]).abs()
        return value

    def step(self) -> None:
        """Climb one step (Equation 3), and add up the map before it."""
        self.total = self.total + self.network.classifier(self.features(self.x))[:, self.label].clamp(min=0)
        x = self.x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self.objective(x), x)
        if self.stage.gradient == "normalised":
            gradient = gradient / gradient.abs().max()
        self.x = (self.x + self.stage.step_size * gradient).clamp(self.x.min(), self.x.max())

    def maps(self, steps: int) -> Tensor:
        """Return Σ CAM(x^t), (V, h, w)."""
        for _ in range(steps):
            self.step()
        return self.total + self.network.classifier(self.features(self.x))[:, self.label].clamp(min=0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient": "raw", "step_size": 30.0},
        {"logits": "plain"},
        {"other_classes": False},
        {"mask_weight": 0.0},
        {"mask_weight": 700.0, "mask_threshold": 0.2},
        {"mask_map": "cam"},
        {"mask_map": "cam", "mask_weight": 0.5, "mask_threshold": 0.0},
    ],
)
@pytest.mark.parametrize("flip", [True, False])
def test_steps_are_those_of_the_literal_transcription(changes, flip, tmp_path):
    """The second step is the first with a mask: at x⁰ the map has not changed yet."""
    stage = replace(SMALL, **changes)
    images = views(flip)
    for steps in (0, 1, 3):
        ours = stage.climb(network(), images, torch.tensor([2, 0]), steps, context(scratch=tmp_path))
        for found, label in zip(ours, (2, 0), strict=True):
            expected = Literal(stage, images, label).maps(steps)
            assert float(expected.max()) > 0
            torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.max()))


def test_the_settings_change_the_maps(tmp_path):
    """Else the test above could not tell them apart."""

    def found(**changes: Any) -> Tensor:
        stage = replace(SMALL, **changes)
        return stage.climb(network(), views(), torch.tensor([2]), 3, context(scratch=tmp_path))

    variants = [found(), found(gradient="raw"), found(logits="plain"), found(other_classes=False)]
    variants += [found(mask_weight=0.0), found(mask_weight=700.0), found(mask_map="cam")]
    variants += [found(mask_weight=700.0, mask_threshold=0.2), found(step_size=0.1)]
    for i, one in enumerate(variants):
        for other in variants[:i]:
            assert (one - other).abs().max() > 1e-3 * one.max()


def test_the_masked_change_by_hand():
    """M is where the map is above half of its maximum; the change of other places does not count."""
    first = torch.tensor([[[1.0, 2.0, 3.0]], [[0.0, 0.0, 0.0]]])
    maps = torch.tensor([[[2.0, 4.0, 1.5]], [[0.0, 0.0, 0.0]]], requires_grad=True)
    change = masked_change(maps, first, 0.5)
    assert change.tolist() == [2.0, 0.0]  # 2 is not above 2; |4 − 2|
    change.sum().backward()
    assert maps.grad.tolist() == [[[0.0, 1.0, 0.0]], [[0.0, 0.0, 0.0]]]
    assert masked_change(maps, first, 0.0).tolist() == [4.5, 0.0]
    assert masked_change(maps, first, 1.0).tolist() == [0.0, 0.0]


def test_the_objective_by_hand():
    """Two classes, two views, two locations."""
    logits = torch.tensor([[[[[1.0, -3.0]], [[2.0, 2.0]]], [[[3.0, 1.0]], [[-4.0, 0.0]]]]])
    maps, first = torch.tensor([[[4.0, 1.0]]]), torch.tensor([[[3.0, 5.0]]])
    label = torch.tensor([0])

    def value(**changes: Any) -> float:
        return float(replace(SMALL, mask_weight=10.0, **changes).objective(logits, label, maps, first))

    assert value() == pytest.approx((0.5 + 2) - (2 + 0) - 10 * 1)
    assert value(other_classes=False) == pytest.approx(0.5 + 2 - 10)
    assert value(logits="plain") == pytest.approx((-1 + 2) - (2 - 2) - 10)
    assert value(mask_threshold=0.2) == pytest.approx(2.5 - 2 - 10 * (1 + 4))


def test_grad_cam_by_hand():
    """Two views with 1 and 2 positive locations, 5 positive weights: maps times 1/15 and 2/15."""
    maps = torch.tensor([[[[3.0, 0.0]], [[6.0, 3.0]]]])
    torch.testing.assert_close(grad_cam(maps, torch.tensor([5])), torch.tensor([[[[0.2, 0.0]], [[0.8, 0.4]]]]))
    assert not grad_cam(torch.zeros(1, 2, 1, 2), torch.tensor([5])).any()
    assert torch.isfinite(grad_cam(maps, torch.tensor([0]))).all()


def test_a_step_by_hand():
    """The largest gradient moves by the step size, and no colour leaves the image's range."""
    images = torch.tensor([0.0, 1.0, 0.5, 0.9]).reshape(1, 1, 1, 2, 2)
    gradient = torch.tensor([4.0, 4.0, -2.0, 1.0]).reshape(1, 1, 1, 2, 2)
    moved = replace(SMALL, step_size=0.2).step(images, gradient)
    torch.testing.assert_close(moved.flatten(), torch.tensor([0.2, 1.0, 0.4, 0.95]))
    moved = replace(SMALL, step_size=0.1, gradient="raw").step(images, gradient)
    torch.testing.assert_close(moved.flatten(), torch.tensor([0.4, 1.0, 0.3, 1.0]))
    assert torch.equal(SMALL.step(images, torch.zeros_like(images)), images)


def test_classes_climb_apart(tmp_path):
    """One class after another gives what all together give."""
    ctx = context(scratch=tmp_path)
    together = SMALL.climb(network(), views(), torch.tensor([1, 2]), 3, ctx)
    for place, label in enumerate((1, 2)):
        alone = SMALL.climb(network(), views(), torch.tensor([label]), 3, ctx)[0]
        torch.testing.assert_close(together[place], alone, rtol=1e-3, atol=1e-4 * float(alone.max()))
    assert not torch.allclose(together[0], together[1])


def test_the_score_rises(tmp_path):
    """Without the mask the class's mean map of every step is above that of the step before."""
    stage = replace(SMALL, mask_weight=0.0, step_size=0.05)
    sums = [stage.climb(network(), views(), torch.tensor([2]), n, context(scratch=tmp_path)) for n in range(4)]
    means = [float(s.mean()) for s in sums]
    assert means[0] < means[1] - means[0] < means[2] - means[1] < means[3] - means[2]


def test_the_mask_holds_what_was_found(tmp_path):
    """A large λ: the highest places of the map change less."""
    ctx, label = context(scratch=tmp_path), torch.tensor([2])
    first = SMALL.climb(network(), views(), label, 0, ctx)
    high = first > 0.5 * first.max()

    def change(weight: float) -> float:
        stage = replace(SMALL, mask_weight=weight, step_size=0.1)
        last = stage.climb(network(), views(), label, 6, ctx) - stage.climb(network(), views(), label, 5, ctx)
        return float((last - first)[high].abs().mean())

    assert change(1000.0) < 0.7 * change(0.0)


def terms(net: CamNetwork, images: Tensor, first: Tensor | None, label: int = 2) -> dict[str, Tensor]:
    """Return each term of L of one class, by name."""
    logits = net.locations(images)[None]
    labels = torch.tensor([label])
    maps = unflipped(logits[:, :, label].relu()).sum(1)
    first = maps.detach() if first is None else first
    alone = replace(SMALL, other_classes=False, mask_weight=0.0)
    own = alone.objective(logits, labels, maps, first)
    others = replace(alone, other_classes=True).objective(logits, labels, maps, first) - own
    masked = replace(alone, mask_weight=1.0).objective(logits, labels, maps, first) - own
    return {"own": own, "others": others, "mask": masked}


@pytest.mark.parametrize(
    ("name", "moved", "reaches"),
    [
        ("own", False, {2}),
        ("others", False, {0, 1}),
        ("mask", False, set()),  # at x⁰ nothing has changed
        ("mask", True, {2}),
    ],
)
def test_what_each_term_reaches(name, moved, reaches):
    """The table of docs/methods.md, AdvCAM: the image, through the logits of these classes, and no weight."""
    net = network()
    images = views().requires_grad_()
    hooked: list[Tensor] = []
    handle = net.classifier.register_forward_hook(lambda *found: hooked.append(found[-1]))
    first = unflipped(net.locations(views(seed=2))[None, :, 2].relu()).sum(1) if moved else None
    value = terms(net, images, first)[name].sum()
    handle.remove()
    through, image = torch.autograd.grad(value, [hooked[-1], images], allow_unused=True)
    assert {k for k in range(3) if through is not None and through[:, k].any()} == reaches
    assert (image is not None and bool(image.any())) == bool(reaches)
    assert all(p.grad is None for p in net.parameters())


def test_the_networks_weights_and_buffers_stay(tmp_path):
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    SMALL.climb(net, views(), torch.tensor([0, 2]), 3, context(scratch=tmp_path))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


@pytest.fixture
def data(tmp_path) -> Dataset:
    """Return images of different sizes, tags of none, one, two and three classes."""
    tags = {"none": (), "one": (2,), "two": (1, 3), "three": (1, 2, 3)}
    scenes = {name: random_scene(n, 24 + 8 * n, 40, labels) for n, (name, labels) in enumerate(tags.items())}
    images, masks = ({name: scene[k] for name, scene in scenes.items()} for k in (0, 1))
    return FolderDataset(tmp_path / "data", images, masks, classes=CLASSES, tags=tags)


def run(stage: InferCam, data: Dataset, folder: Any, precision: Precision = "fp32") -> dict[str, ScoreMaps]:
    """Return the maps of a stage by image id; the network is always the same."""
    checkpoint = folder / "network"
    if not checkpoint.exists():
        checkpoint.mkdir()
        save_network(checkpoint, network())
    out = folder / f"maps{len(list(folder.iterdir()))}"
    out.mkdir()
    stage.run(data, {Kind.CHECKPOINT: checkpoint}, out, context(precision, scratch=out))
    reader = MapReader(out)
    return {image_id: reader.read(image_id) for image_id in data.split(Split.TRAIN).ids}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"scales": (1.0,), "flip": False},
        {"long_side": 48, "scales": (0.5, 1.5), "cell": 1},
        {"square_root": True},
    ],
)
def test_without_a_step_the_maps_are_those_of_cam(settings, data, tmp_path):
    ours, cams = (run(stage, data, tmp_path) for stage in (InferAdvCam(steps=0, **settings), InferCam(**settings)))
    for image_id in cams:
        assert ours[image_id].labels.tolist() == cams[image_id].labels.tolist()
        assert ours[image_id].size == cams[image_id].size
        # The classes of an image are a batch, which may round otherwise.
        np.testing.assert_allclose(ours[image_id].scores, cams[image_id].scores, rtol=2e-3)


def test_maps_are_the_mean_of_all_scales_and_steps(data, tmp_path):
    """Scales below 1 climb half as many steps, and images without tags have no maps."""
    stage = replace(SMALL, scales=(0.5, 1.0), cell=8)
    found = run(stage, data, tmp_path)
    assert found["none"].scores.shape == (0, 3, 5)
    assert found["three"].labels.tolist() == [1, 2, 3]
    view = data.split(Split.TRAIN)
    image = torch.from_numpy(view.image("two").copy()).permute(2, 0, 1)
    expected = torch.zeros(1, 5, 5)
    for scale, steps in ((0.5, 1), (1.0, 3)):
        size = (round(40 * scale), round(40 * scale))
        scaled = advcam.resize_image(image, size).float()[None]
        maps = stage.climb(
            network(), torch.cat([scaled, scaled.flip(-1)]), torch.tensor([0]), steps, context(scratch=tmp_path)
        )
        maps = torch.nn.functional.interpolate(maps, (5, 5), mode="bilinear")
        expected += maps[:, 0] + maps[:, 1].flip(-1)
    expected = expected / expected.max()
    np.testing.assert_allclose(found["two"].scores[:1], expected.numpy(), atol=2e-3)


def test_runs_repeat_and_the_batch_of_classes_does_not_matter(data, tmp_path, monkeypatch):
    first, again = (run(SMALL, data, tmp_path) for _ in range(2))
    half = run(SMALL, data, tmp_path, precision="bf16")
    monkeypatch.setattr(advcam, "PIXELS_A_BATCH", {"cpu": 1})
    single = run(SMALL, data, tmp_path)
    for image_id, maps in first.items():
        np.testing.assert_array_equal(again[image_id].scores, maps.scores)
        np.testing.assert_allclose(single[image_id].scores, maps.scores, atol=4e-3)
        assert half[image_id].scores.shape == maps.scores.shape
        assert np.isfinite(half[image_id].scores).all()
    assert any((half[i].scores != first[i].scores).any() for i in first)


def test_a_killed_run_continues_after_its_last_saved_part(data, tmp_path, monkeypatch):
    monkeypatch.setattr(advcam, "IMAGES_A_PART", 2)
    run(SMALL, data, tmp_path)
    checkpoint, scratch = {Kind.CHECKPOINT: tmp_path / "network"}, tmp_path / "scratch"
    outs = [tmp_path / name for name in ("whole", "killed")]
    for folder in (scratch, *outs, tmp_path / "other"):
        folder.mkdir()
    SMALL.run(data, checkpoint, outs[0], context(scratch=tmp_path / "other"))
    seen, original = [], InferAdvCam.fused

    def dies(self: InferAdvCam, network: CamNetwork, image: Tensor, *rest: Any) -> Tensor:
        seen.append(image.shape[2])
        if len(seen) == 4:
            raise KeyboardInterrupt
        return original(self, network, image, *rest)

    monkeypatch.setattr(InferAdvCam, "fused", dies)
    with pytest.raises(KeyboardInterrupt):
        SMALL.run(data, checkpoint, outs[1], context(scratch=scratch))
    SMALL.run(data, checkpoint, outs[1], context(scratch=scratch))
    assert seen == [24, 32, 40, 48, 40, 48]
    assert (outs[1] / "maps.arrow").read_bytes() == (outs[0] / "maps.arrow").read_bytes()


@pytest.mark.parametrize("kind", [SubcategoryNetwork, EsolNetwork])
def test_other_networks_with_cams_classifier_climb_too(kind, tmp_path):
    extra = {SubcategoryNetwork: {"clusters": 2}, EsolNetwork: {"kernel": 3, "phase": "shrinkage"}}[kind]
    torch.manual_seed(0)
    net = kind("tiny", 3, stride=8, dropout=0.5, pretrained=False, **extra).eval().requires_grad_(False)
    torch.nn.init.normal_(net.classifier.weight)
    for steps in (0, 2):
        maps = SMALL.climb(net, views(), torch.tensor([0, 1]), steps, context(scratch=tmp_path))
        assert torch.isfinite(maps).all()
        if steps == 0:
            torch.testing.assert_close(maps, net.maps(views())[:, [0, 1]].transpose(0, 1))
        else:
            assert not torch.allclose(maps, 3 * net.maps(views())[:, [0, 1]].transpose(0, 1))


@pytest.mark.parametrize("classifier", ["cam", "mixup_cam", "sc_cam"])
@pytest.mark.parametrize("backbone", ["resnet50", "resnet38", "vgg16", "tiny"])
def test_the_classifier_is_that_of_its_method(classifier, backbone):
    meta = Meta(**VOC, backbone=backbone, weights="imagenet")
    (method,) = override([METHOD], {"AdvCam.classifier": classifier})
    stages = method.localise(meta)
    *trainings, infer = CLASSIFIERS[classifier].localise(meta)
    assert stages[:-1] == trainings
    assert type(infer) is InferCam
    ours = stages[-1]
    assert type(ours) is InferAdvCam
    assert ours.square_root == infer.square_root == (backbone == "vgg16")
    if backbone != "tiny":
        assert ours.scales == infer.scales


def test_the_published_settings():
    """docs/methods.md, AdvCAM."""
    stages = METHOD.localise(Meta(**VOC, backbone="resnet50", weights="imagenet"))
    assert stages[-1] == InferAdvCam()
    ours = InferAdvCam()
    assert (ours.steps, ours.step_size, ours.mask_weight, ours.mask_threshold) == (27, 0.08, 7.0, 0.5)
    wide = METHOD.localise(Meta(**VOC, backbone="resnet38", weights="sha256:x"))[-1]
    assert wide == InferAdvCam(steps=8, mask_weight=2.0)


def test_another_classifier_is_refused():
    with pytest.raises(ConfigError, match=r"AdvCam\.classifier.*'cam', 'mixup_cam'"):
        override([METHOD], {"AdvCam.classifier": "rrm"})
