"""Splitting vs. Merging: losses by hand, where each loss ends, the streams' maps, and what is measured of them."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from seedbed.benchmark.errors import DataError
from seedbed.benchmark.evaluation.maps import MapReader, ScoreMaps
from seedbed.benchmark.evaluation.metrics import soft_overlap
from seedbed.benchmark.evaluation.records import read_records
from seedbed.benchmark.evaluation.threshold import threshold_mask
from seedbed.benchmark.pipeline.hparams import override
from seedbed.benchmark.pipeline.pipeline import Pipeline
from seedbed.benchmark.pipeline.stage import Kind, Machine, Meta
from seedbed.benchmark.pipeline.store import Store
from seedbed.benchmark.training.checkpoint import load_network
from seedbed.datasets.base import Dataset, Split
from seedbed.methods.backbones.base import build_backbone
from seedbed.methods.splitting_merging import (
    METHOD,
    SplittingMergingNetwork,
    TrainSplittingMerging,
    discrepancy,
    pooled_loss,
)
from seedbed.methods.splitting_merging.maps import LEVELS, StreamScores, min_max, score_maps, union

META = Meta(classes=6, long_side=64, backbone="tiny")


def training(backbone: str, long_side: int = 500) -> TrainSplittingMerging:
    stage = METHOD.localise(Meta(classes=20, long_side=long_side, backbone=backbone, weights="imagenet"))[0]
    assert isinstance(stage, TrainSplittingMerging)
    return stage


def network(classes: int = 3, pretrained: bool = False) -> SplittingMergingNetwork:
    torch.manual_seed(0)
    built = SplittingMergingNetwork("tiny", classes, stride=8, pretrained=pretrained)
    built.start_from(build_backbone("tiny", 8, pretrained), deviation=0.1)
    return built


def example(classes: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {"image": 255 * torch.rand(2, 3, 40, 48), "tags": torch.tensor([[1.0, 0, 1], [0, 1, 0]])[:, :classes]}


def ones(maps: Tensor) -> Tensor:
    return torch.ones(maps.shape[:2])


def test_the_published_recipe():
    """Section 4.1 and docs/methods.md, Splitting vs. Merging."""
    stage = training("vgg16")
    assert (stage.epochs, stage.lr, stage.head_multiplier, stage.stride) == (20, 0.01, 10.0, 16)
    assert (stage.side, stage.crop, stage.beta, stage.intersection) == (256, 224, 20.0, True)
    assert (stage.optimiser, stage.momentum, stage.weight_decay, stage.batch) == ("sgd", 0.9, 5e-4, 16)
    assert (stage.power, stage.decay_every, stage.biases, stage.deviation) == (0.9, "step", "as_weights", 0.01)
    infer, measure = METHOD.localise(Meta(20, 500, "vgg16"))[1], METHOD.measurements(Meta(20, 500, "vgg16"))[0]
    for inference in (infer.settings(), measure.settings()):
        assert (inference["scales"], inference["flip"], inference["long_side"]) == ([1.0], False, 0)
    assert infer.settings()["union"] == "abc"


def test_the_stride_is_16_where_the_backbone_has_it_and_sizes_shrink_with_the_images():
    assert [training(name).stride for name in ("vgg16", "resnet50", "squeezenet", "tiny")] == [16, 16, 16, 8]
    small = training("tiny", long_side=64)
    assert (small.side, small.crop) == (64, 56)


def test_vgg_ends_at_conv5_and_shares_two_blocks():
    with torch.device("meta"):
        built = SplittingMergingNetwork("vgg16", 20, stride=16, pretrained=True)
        expanded, reference = built.features(torch.zeros(1, 3, 64, 80))
    widths = {
        name: [layer.out_channels for layer in part.modules() if isinstance(layer, torch.nn.Conv2d)]
        for name, part in built.named_children()
        if name != "normalise"
    }
    stream = [256] * 3 + [512] * 6
    assert widths == {
        "shared": [64, 64, 128, 128],
        "reference": stream,
        "expanding": stream,
        **{head: [512, 20] for head in "abc"},
    }
    assert expanded.shape == reference.shape == (1, 512, 4, 5)


def test_both_streams_give_the_features_of_the_backbone_that_they_start_from():
    built, backbone, images = (
        network().eval(),
        build_backbone("tiny", 8, False).eval(),
        255 * torch.rand(1, 3, 40, 48),
    )
    built.start_from(backbone, deviation=0.01)
    expanded, reference = built.features(images)
    torch.testing.assert_close(expanded, backbone(images))
    torch.testing.assert_close(reference, backbone(images))


def test_the_streams_start_alike_and_apart_from_each_other_and_the_classifiers_differ(chimera, tmp_path):
    """A training at rate 0 leaves what it started from."""
    run = pipeline(chimera, tmp_path, {"epochs": 1, "lr": 0.0})
    trained: Any = load_network(run.latest(Kind.CHECKPOINT, Split.WEAK))
    expanding, reference = trained.expanding.state_dict(), trained.reference.state_dict()
    assert expanding.keys() == reference.keys()
    assert all(torch.equal(expanding[name], reference[name]) for name in expanding)
    shared_memory = {p.data_ptr() for p in trained.expanding.parameters()}
    assert not shared_memory & {p.data_ptr() for p in trained.reference.parameters()}
    weights = [head[0].weight for head in (trained.a, trained.b, trained.c)]
    assert not any(torch.equal(weights[i], weights[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert all(float(w.detach().std()) == pytest.approx(0.1, rel=0.1) for w in weights)


def test_batch_norm_of_pretrained_layers_is_held_in_both_streams():
    for pretrained in (True, False):
        norms = [
            m for m in network(pretrained=pretrained).train().modules() if isinstance(m, torch.nn.BatchNorm2d)
        ]
        assert len(norms) == 4 + 4 + 4
        assert {norm.training for norm in norms} == {not pretrained}


def test_the_discrepancy_by_hand():
    """Eq. 1–2: softmax of (log 3, 0) is (¾, ¼), of (0, 0) it is (½, ½); the mean of |¼|, |¼| is ¼."""
    first, second = torch.tensor([[[[math.log(3.0), 0.0]]]]), torch.zeros(1, 1, 1, 2)
    assert float(discrepancy(first, second, ones(first))) == pytest.approx(-0.25)
    assert float(discrepancy(first, first + 7, ones(first))) == pytest.approx(0, abs=1e-6)


def test_the_discrepancy_lies_between_its_bounds_and_reaches_the_lower_one():
    first, second = torch.full((2, 3, 4, 5), -90.0), torch.full((2, 3, 4, 5), -90.0)
    first[:, :, 0, 0] = second[:, :, 3, 4] = 90.0
    assert float(discrepancy(first, second, ones(first))) == pytest.approx(-2 / 20)
    for scale in (0.1, 1.0, 30.0):
        torch.manual_seed(int(scale))
        value = float(discrepancy(scale * torch.randn(2, 3, 4, 5), scale * torch.randn(2, 3, 4, 5), ones(first)))
        assert -2 / 20 <= value < 0


def slow_discrepancy(first: np.ndarray, second: np.ndarray, counted: np.ndarray) -> float:
    """Eq. 1–2 as printed, loop by loop, over the counted classes of each image."""
    values = []
    for image in range(len(first)):
        total, (classes, height, width) = 0.0, first.shape[1:]
        for c in range(classes):
            sum_first = sum(math.exp(value) for value in first[image, c].flat)
            sum_second = sum(math.exp(value) for value in second[image, c].flat)
            for i in range(height):
                for j in range(width):
                    z_first = math.exp(first[image, c, i, j]) / sum_first
                    z_second = math.exp(second[image, c, i, j]) / sum_second
                    total += counted[image, c] * abs(z_first - z_second)
        values.append(-total / (height * width * counted[image].sum()))
    return float(np.mean(values))


def slow_classification(maps: np.ndarray, tags: np.ndarray) -> float:
    """Binary cross entropy on the spatial means, mean over classes and images."""
    terms = []
    for n, c in np.ndindex(tags.shape):
        probability = 1 / (1 + math.exp(-maps[n, c].mean()))
        terms.append(-tags[n, c] * math.log(probability) - (1 - tags[n, c]) * math.log(1 - probability))
    return float(np.mean(terms))


@pytest.mark.parametrize("which", ["all", "present"])
def test_every_loss_is_its_equation(which):
    """Against a literal transcription in float64 on the maps of a network."""
    stage = TrainSplittingMerging(backbone="tiny", weights="none", beta=7.0, discrepancy_classes=which)
    built, batch = network().train(), example()
    maps = [m.detach().double().numpy() for m in built.score_maps(batch["image"])]
    tags = batch["tags"].double().numpy()
    counted = tags if which == "present" else np.ones_like(tags)
    expected = {
        "classification_a": slow_classification(maps[0], tags),
        "classification_b": slow_classification(maps[1], tags),
        "classification_c": slow_classification(maps[2], tags),
        "intersection": slow_classification(np.minimum(maps[0], maps[1]), tags),
        "discrepancy": 7.0 * slow_discrepancy(maps[0], maps[1], counted),
    }
    found = {name: float(value.detach()) for name, value in stage.losses(built, batch).items()}
    assert found == pytest.approx(expected, rel=1e-5)
    assert found["discrepancy"] < -1e-3


def test_the_intersection_is_of_the_raw_maps():
    """min(−1, 3) = −1 and min(2, 0) = 0; their mean is −½. After a ReLU it would be 0."""
    first, second = torch.tensor([[[[-1.0, 2.0]]]]), torch.tensor([[[[3.0, 0.0]]]])
    loss = pooled_loss(torch.minimum(first, second), torch.ones(1, 1))
    assert float(loss) == pytest.approx(math.log(1 + math.exp(0.5)))


def test_each_loss_reaches_what_it_should_and_nothing_else():
    """The discrepancy reaches both convolutions of A and B and no feature; the intersection not the reference."""
    reach = {
        "classification_a": {"shared", "expanding", "a"},
        "classification_b": {"shared", "expanding", "b"},
        "classification_c": {"shared", "reference", "c"},
        "intersection": {"shared", "expanding", "a", "b"},
        "discrepancy": {"a", "b"},
    }
    stage = TrainSplittingMerging(backbone="tiny", weights="none")
    for name, parts in reach.items():
        built = network().train()
        losses = stage.losses(built, example())
        assert losses.keys() == reach.keys()
        losses[name].backward()
        touched = {n for n, p in built.named_parameters() if p.grad is not None and p.grad.any()}
        assert {n.partition(".")[0] for n in touched} == parts
        for part in parts & {"a", "b", "c"}:
            assert {f"{part}.0.weight", f"{part}.0.bias", f"{part}.2.weight"} <= touched


def test_equal_classifiers_have_no_discrepancy_gradient():
    built = network()
    built.b.load_state_dict(built.a.state_dict())
    stage = TrainSplittingMerging(backbone="tiny", weights="none")
    stage.losses(built, example())["discrepancy"].backward()
    assert not any(p.grad.any() for p in built.parameters() if p.grad is not None)


def test_beta_and_the_intersection_are_settings():
    def losses(**settings: Any) -> dict[str, float]:
        stage = TrainSplittingMerging(backbone="tiny", weights="none", **settings)
        return {name: float(v.detach()) for name, v in stage.losses(network(), example()).items()}

    usual, without = losses(), losses(intersection=False)
    assert without == {name: value for name, value in usual.items() if name != "intersection"}
    assert losses(beta=0.0)["discrepancy"] == 0
    assert losses(beta=50.0)["discrepancy"] == pytest.approx(2.5 * usual["discrepancy"])


def test_a_step_on_the_discrepancy_alone_drives_the_maps_of_a_and_b_apart():
    built, batch = network(), example()
    stage = TrainSplittingMerging(backbone="tiny", weights="none")
    optimiser = torch.optim.SGD(built.parameters(), lr=0.1)
    before, others = stage.losses(built, batch)["discrepancy"], copy.deepcopy(built.expanding.state_dict())
    before.backward()
    optimiser.step()
    assert float(stage.losses(built, batch)["discrepancy"].detach()) < float(before.detach())
    assert all(torch.equal(others[n], p) for n, p in built.expanding.named_parameters())


def test_the_logits_are_the_mean_of_three_and_the_maps_come_in_their_order():
    built, images = network().eval(), example()["image"]
    for value, head in enumerate((built.a, built.b, built.c), start=1):
        torch.nn.init.zeros_(head[2].weight)
        torch.nn.init.constant_(head[2].bias, value)
    built.c[2].bias.data[0] = -6.0
    maps = built.maps(images)
    assert maps.shape == (2, 9, 5, 6)
    assert maps[0, :, 0, 0].tolist() == [1, 1, 1, 2, 2, 2, 0, 3, 3]
    assert built(images)[0].tolist() == pytest.approx([-1, 2, 2])


def test_min_max_and_union_by_hand():
    maps = torch.tensor([[[[2.0, 4.0]]], [[[0.0, 0.0]]], [[[8.0, 6.0]]]])
    scaled = min_max(maps)
    torch.testing.assert_close(scaled.flatten(1), torch.tensor([[0.0, 1], [0, 0], [1, 0]]), atol=1e-4, rtol=0)
    assert union(scaled, "ab").tolist() == scaled[0].tolist()
    assert union(scaled, "b").tolist() == scaled[1].tolist()
    assert union(scaled, "c").tolist() == scaled[2].tolist()
    torch.testing.assert_close(union(scaled, "abc"), torch.ones(1, 1, 2), atol=1e-4, rtol=0)


def test_the_fixed_threshold_is_the_background_with_exponent_2():
    """The best class wins over (1 − m)² just where it exceeds (3 − √5)/2."""
    assert METHOD.fixed_threshold == pytest.approx((3 - math.sqrt(5)) / 2, abs=1e-6)
    maps = torch.rand(2, 60, 60, generator=torch.Generator().manual_seed(0))
    plain, with_background = (score_maps(maps, (2, 5), (60, 60), exponent) for exponent in (None, 2.0))
    assert with_background.labels.tolist() == [0, 2, 5]
    np.testing.assert_allclose(with_background.scores[0], (1 - maps.amax(0)) ** 2, rtol=1e-6)
    masks = [threshold_mask(plain, METHOD.fixed_threshold), threshold_mask(with_background, 0.9)]
    np.testing.assert_array_equal(*masks)
    assert set(np.unique(masks[0]).tolist()) == {0, 2, 5}
    other = threshold_mask(score_maps(maps, (2, 5), (60, 60), 4.0), 0.9)
    assert (other == 0).sum() < (masks[0] == 0).sum()


def test_an_image_without_tags_has_no_maps_and_no_background():
    assert score_maps(torch.zeros(0, 4, 4), (), (16, 16), 2.0).labels.tolist() == []


def test_saliency_takes_part_in_the_background_alone():
    """M_fore = max(M, M_sal): background (1 − ½)² where saliency is ½ and no class is seen."""
    maps = torch.tensor([[[0.0, 0.8, 0.2]]])
    found = score_maps(maps, (2,), (1, 3), 2.0, np.array([[0.5, 0.5, 0.0]], np.float32))
    np.testing.assert_allclose(found.scores[:, 0], [[0.25, 0.04, 0.64], [0.0, 0.8, 0.2]], rtol=1e-5)


def test_with_saliency_the_supervision_is_another(chimera, tmp_path, monkeypatch):
    method = dataclasses.replace(METHOD, saliency=True)
    assert (METHOD.supervision, method.supervision) == ("I", "I+S")
    few = {"TrainSplittingMerging.epochs": 1}
    run = Pipeline(override(method.localise(META), few), chimera, "d", 0, Store(tmp_path), Machine())
    maps = MapReader(run.latest(Kind.SCORES, Split.TRAIN)).read(chimera.ids(Split.TRAIN)[0])
    assert maps.labels[0] == 0
    monkeypatch.setattr(type(chimera), "saliency_path", lambda self, image_id: None)
    run = Pipeline(override(method.localise(META), few), chimera, "e", 0, Store(tmp_path), Machine())
    with pytest.raises(DataError, match="without saliency"):
        run.latest(Kind.SCORES, Split.TRAIN)


def streams(first: list[float], second: list[float]) -> dict[str, ScoreMaps]:
    """Return maps of label 2 on 1 × 4 pixels: M_A, M_B, and M_C = 0."""
    maps = torch.tensor([first, second, [0.0] * 4])[:, None, None]
    return {level: score_maps(union(maps, which), (2,), (1, 4), None) for level, which in LEVELS.items()}


def test_the_measurements_by_hand():
    """Table 1: Σmin/Σmax of M_A and M_B. Tables 2–3: of a map and the mask. Pixels that are 255 do not count."""
    scores = StreamScores.empty(2)
    truth = np.array([[2, 2, 0, 255]], np.uint8)
    scores.update("a", truth, streams([1.0, 0.0, 0.5, 0.9], [0.5, 0.5, 0.0, 0.1]))
    scores.update("b", truth, streams([0.2, 0.2, 0.0, 0.0], [0.2, 0.2, 0.0, 1.0]))
    scores.update("c", truth, streams([0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]))
    records = {r.name: r for r in scores.records(("cat", "dog"), "train")}
    similarity = records["streams_AB.train/similarity_dog"]
    # ½ of 1 + ½ + ½, then 1; the third image has nothing to compare.
    assert (similarity.value, similarity.count) == (pytest.approx((0.25 + 1) / 2), 2)
    assert records["streams_AB.train/msimilarity"].value == similarity.value
    assert records["streams_AB.train/similarity_cat"].value is None
    # M_A covers 1 of 2, then 0.4, then nothing; of what it says 1 of 1.5 is right, then all, then nothing.
    assert records["stream_A.train/msoft_recall"].value == pytest.approx((0.5 + 0.2 + 0) / 3)
    assert records["stream_A.train/msoft_precision"].value == pytest.approx((1 / 1.5 + 1 + 0) / 3)
    assert records["stream_A.train/msoft_overlap"].value == pytest.approx((1 / 2.5 + 0.2 + 0) / 3)
    # U(A, B) is (1, ½, ½) in the first image.
    assert records["union_AB.train/msoft_overlap"].value == pytest.approx((1.5 / 2.5 + 0.2 + 0) / 3)
    assert records["stream_C.train/msoft_recall"].value == 0
    rows = {(row["level"], row["id"]): row for row in scores.rows}
    assert len(rows) == len(scores.rows) == 5 * 3 + 2
    assert rows["stream_A", "a"] == pytest.approx(
        {"level": "stream_A", "id": "a", "labels": 2, "overlap": 1 / 2.5, "precision": 1 / 1.5, "recall": 0.5}
    )
    assert rows["streams_AB", "a"]["overlap"] == pytest.approx(0.25)


def pipeline(data: Dataset, folder: Path, training: dict[str, Any], **inference: Any) -> Pipeline:
    """Return the chain of the method and of its measurements, with other settings of the two stages."""
    settings = {f"TrainSplittingMerging.{name}": value for name, value in training.items()}
    settings |= {f"InferSplittingMerging.{name}": value for name, value in inference.items()}
    stages = override([*METHOD.localise(META), *METHOD.measurements(META)], settings)
    return Pipeline(stages, data, data.digest(), 0, Store(folder), Machine())


def test_the_records_agree_with_the_saved_maps_and_a_picture_is_drawn(chimera, tmp_path):
    """What is measured of the union is what is saved of it, but for float16; M_C and all options come through."""
    few = {"epochs": 6, "batch": 4}
    run = pipeline(chimera, tmp_path, few)
    folder = run.latest(Kind.RECORDS, Split.TRAIN)
    assert (folder / "streams.png").stat().st_size > 1000
    records = {r.name: r.value for r in read_records(folder / "records.parquet")}
    view = chimera.split(Split.TRAIN)
    for which, level in (("abc", "union_ABC"), ("c", "stream_C")):
        reader = MapReader(pipeline(chimera, tmp_path, few, union=which).latest(Kind.SCORES, Split.TRAIN))
        by_class: dict[int, list[float]] = {}
        for image_id in view.ids:
            maps, truth = reader.read(image_id), view.mask(image_id)
            inside = truth != 255
            for label, full in zip(maps.labels.tolist(), maps.at_full_size(), strict=True):
                if (truth == label).any():
                    overlap = soft_overlap(full[inside][None], (truth == label)[inside][None].astype(float))
                    by_class.setdefault(label, []).append(float(overlap[0]))
        expected = float(np.mean([np.mean(values) for values in by_class.values()]))
        assert expected > 0
        assert records[f"{level}.train/msoft_overlap"] == pytest.approx(expected, abs=1e-3)
    background = pipeline(chimera, tmp_path, few, background_exponent=2.0).latest(Kind.SCORES, Split.TRAIN)
    image_id = view.ids[0]
    maps = MapReader(background).read(image_id)
    assert maps.labels.tolist() == [0, *view.tags(image_id)]
    np.testing.assert_allclose(maps.scores[0], (1 - maps.scores[1:].max(0)) ** 2, atol=2e-3)
