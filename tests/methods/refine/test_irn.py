"""IRN: labels by hand, paths and affinities against loops, where gradients go, the walk of one image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from seedbed.benchmark.evaluation.maps import MapWriter, ScoreMaps
from seedbed.benchmark.evaluation.threshold import SelectThreshold
from seedbed.benchmark.pipeline.stage import Context, Kind, Meta
from seedbed.benchmark.training.augmentation import MEAN_COLOUR
from seedbed.benchmark.training.inference import pad
from seedbed.datasets.base import Split
from seedbed.datasets.io.images import decode_mask
from seedbed.methods.backbones import resnet38
from seedbed.methods.refine import irn, irn_crf
from seedbed.methods.refine.affinity import ClassScores
from seedbed.methods.refine.crf import CrfMasks
from seedbed.methods.refine.irn import IrnLabels, TrainIrn, WalkIrn, cut, edges
from seedbed.methods.refine.irn.network import EdgeNetwork, affinities, path, path_affinities
from seedbed.methods.refine.random_walk import pair_offsets, transition_matrix, walk
from tests.helpers.fakes import FolderDataset
from tests.methods.backbones.test_resnet38 import NARROW


def test_paths_by_hand():
    assert path((0, 3)) == ((0, 0), (0, 1), (0, 2), (0, 3))
    assert path((2, 0)) == ((0, 0), (1, 0), (2, 0))
    # Squared distances of (0, 1) and (1, 0) from the diagonal are ½.
    assert path((1, 1)) == ((0, 0), (0, 1), (1, 0), (1, 1))
    assert path((1, -1)) == ((0, -1), (0, 0), (1, -1), (1, 0))
    # (0, 2) and (1, 0) are 2/√5 away from the line to (1, 2), (0, 1) and (1, 1) 1/√5.
    assert path((1, 2)) == ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2))


@pytest.mark.parametrize("offset", pair_offsets(10))
def test_a_path_is_what_lies_close_to_the_line(offset):
    line = np.array(offset, float)
    for y in range(min(0, offset[0]), max(0, offset[0]) + 1):
        for x in range(min(0, offset[1]), max(0, offset[1]) + 1):
            cell = np.array([y, x], float)
            away = cell - line * (cell @ line) / (line @ line)
            assert ((y, x) in path(offset)) == (away @ away < 1 - 1e-12)
    assert {(0, 0), offset} <= set(path(offset))


def test_affinities_are_those_of_a_loop_over_paths():
    edge = torch.rand(2, 9, 12, generator=torch.Generator().manual_seed(0))
    found = path_affinities(edge, radius=4, margin=3)
    assert found.shape == (2, len(pair_offsets(4)), 6, 6)
    for p, offset in enumerate(pair_offsets(4)):
        for y in range(6):
            for x in range(3, 9):
                strongest = torch.stack([edge[:, y + down, x + right] for down, right in path(offset)]).amax(0)
                torch.testing.assert_close(found[:, p, y, x - 3], 1 - strongest)


def test_in_the_walk_nothing_lies_outside_the_grid():
    edge = torch.rand(7, 8) * 0.9
    found = affinities(edge, radius=3)
    assert found.shape == (len(pair_offsets(3)), 7, 8)
    torch.testing.assert_close(found[:, :5, 2:6], path_affinities(edge[None], 3, 2)[0])
    for p, (down, right) in enumerate(pair_offsets(3)):
        outside = torch.ones(7, 8, dtype=torch.bool)
        outside[: 7 - down, max(0, -right) : 8 - max(0, right)] = False
        assert not found[p][outside].any()
        assert found[p][~outside].min() > 0


def test_seeds_by_hand():
    maps = ScoreMaps(np.array([4, 9], np.int16), np.array([[[0.2, 0.5, -1.0]], [[0.31, 0.4, 0.04]]]), (1, 3))
    scores = ClassScores.of(maps)
    assert cut(scores, 0.30).tolist() == [[2, 1, 0]]
    assert cut(scores, 0.05).tolist() == [[2, 1, 0]]
    assert cut(scores, 0.45).tolist() == [[0, 1, 0]]


def test_a_background_channel_of_the_methods_own_must_be_exceeded_too():
    maps = ScoreMaps(np.array([0, 9], np.int16), np.array([[[0.6, 0.1]], [[0.5, 0.5]]]), (1, 2))
    assert cut(ClassScores.of(maps), 0.30).tolist() == [[0, 1]]


def test_labels_by_hand(tmp_path, monkeypatch):
    """With a CRF that keeps its seeds: sure foreground, sure background, and 255 between the thresholds."""
    scores = np.array([[[0.9, 0.2, 0.01, 0.0]], [[0.0, 0.1, 0.02, 0.4]]], np.float32)
    image = np.zeros((1, 4, 3), np.uint8)
    data = FolderDataset(
        tmp_path / "data", {"a": image}, {"a": np.array([[4, 4, 0, 9]], np.uint8)}, list("abcdefghi")
    )

    def no_crf(image, unaries, kernels, iterations):
        assert vars(kernels) == vars(irn.PRESETS["irn"])
        for unary in unaries:
            probabilities = np.unique(np.exp(-unary).round(6))
            np.testing.assert_allclose(probabilities, [0.15, 0.7], rtol=1e-5)
        return [np.exp(-unary) for unary in unaries]

    monkeypatch.setattr(irn, "dense_crfs", no_crf)
    (tmp_path / "scores").mkdir()
    with MapWriter(tmp_path / "scores") as writer:
        writer.write("a", ScoreMaps(np.array([4, 9], np.int16), scores, (1, 4)))
    IrnLabels().label(data.split(Split.WEAK), tmp_path / "scores", tmp_path, "a")
    assert decode_mask(tmp_path / "a.png").tolist() == [[4, 255, 0, 9]]


@pytest.mark.parametrize("backbone", ["resnet50", "resnet38", "squeezenet", "vgg16", "tiny"])
def test_edges_have_stride_four_on_every_backbone(backbone, monkeypatch):
    """ResNet-38 has no stride 16, and is narrow here."""
    narrow = replace(resnet38.BACKBONE, build=lambda stride: resnet38.ResNet38(stride, NARROW))
    monkeypatch.setattr(resnet38, "BACKBONE", narrow)
    network = EdgeNetwork(backbone, False, frozen=False).eval()
    assert network(torch.zeros(2, 3, 64, 48)).shape == (2, 16, 12)


def test_resnet50_is_read_after_the_pooled_stem_and_every_layer():
    """docs/methods.md, IRN: 64, 256, 512, 1024 and 2048 channels at stride 4, 4, 8, 16 and 16."""
    network = EdgeNetwork("resnet50", True, frozen=True)
    assert [tap.channels for tap in network.taps] == [64, 256, 512, 1024, 2048]
    outputs = network.backbone.outputs(torch.zeros(1, 3, 64, 64))
    assert [64 // outputs[tap.name].shape[-1] for tap in network.taps] == [4, 4, 8, 16, 16]
    assert network.combine.in_channels == 160
    assert network.combine.bias is not None
    norms = [module for module in network.reduce.modules() if isinstance(module, torch.nn.GroupNorm)]
    assert [(norm.num_groups, norm.num_channels) for norm in norms] == [(4, 32)] * 5


def test_the_loss_reaches_the_edge_branch_alone():
    """docs/methods.md, gradients: nothing of the backbone, whose batch norm stays as it is."""
    torch.manual_seed(0)
    network = EdgeNetwork("resnet50", True, frozen=True).train()
    assert network.reduce.training
    assert not any(module.training for module in network.backbone.modules())
    before = {name: tensor.clone() for name, tensor in network.backbone.state_dict().items()}
    batch = {"image": 255 * torch.rand(2, 3, 64, 64), "mask": torch.randint(0, 3, (2, 64, 64))}
    stage = TrainIrn(radius=5, crop=64)
    torch.stack(list(stage.losses(network, batch).values())).sum().backward()
    for name, parameter in network.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.any())
        assert reached == (not name.startswith("backbone.")), name
    for name, tensor in network.backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    (group,) = stage.groups(network)
    learning = sum(p.numel() for n, p in network.named_parameters() if not n.startswith("backbone."))
    assert sum(p.numel() for p in group.parameters) == learning
    assert (stage.lr, group.multiplier, stage.momentum, stage.weight_decay) == (0.1, 1.0, 0.0, 1e-4)


def test_without_pretrained_weights_the_backbone_learns_too():
    stages = irn.REFINER.refine(Meta(6, 96, "tiny", "none"), 0.15)
    (train,) = (stage for stage in stages if isinstance(stage, TrainIrn))
    assert not train.freeze_backbone
    network = EdgeNetwork("tiny", False, frozen=False).train()
    batch = {"image": 255 * torch.rand(2, 3, 96, 96), "mask": torch.randint(0, 3, (2, 96, 96))}
    torch.stack(list(train.losses(network, batch).values())).sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in network.parameters())


def test_the_label_of_a_cell_is_that_of_the_pixel_at_its_centre(monkeypatch):
    """A 512 crop reduced to 128 by Pillow's nearest, which takes pixel 4i + 2 (IRN code)."""
    seen = []
    monkeypatch.setattr(irn, "affinity_losses", lambda pairs, labels, *rest: seen.append(labels) or {})
    mask = torch.arange(64 * 64).view(1, 64, 64)
    pillow = np.asarray(
        Image.fromarray(mask[0].numpy().astype(np.int32)).resize((16, 16), Image.Resampling.NEAREST)
    )
    network = EdgeNetwork("tiny", False, frozen=False)
    TrainIrn(radius=3, crop=64).losses(network, {"image": torch.zeros(1, 3, 64, 64), "mask": mask})
    assert torch.equal(seen[0], mask[:, 2::4, 2::4])
    np.testing.assert_array_equal(seen[0][0], pillow)


def test_edges_learn_from_images_resized_as_by_pillow(tmp_path, monkeypatch):
    """IRN code: bicubic on uint8, where DeepLab's and RRM's are OpenCV's."""
    seen = []
    monkeypatch.setattr(irn, "fit", lambda network, losses, examples, *rest: seen.append(examples.transform))
    monkeypatch.setattr(irn, "save_network", lambda *rest: None)
    scene = {"a": np.zeros((20, 20, 3), np.uint8)}, {"a": np.ones((20, 20), np.uint8)}
    data = FolderDataset(tmp_path / "data", *scene, ["x"])
    stage = TrainIrn(backbone="tiny", weights="none", freeze_backbone=False, crop=64, radius=3)
    stage.run(data, {Kind.CONFIDENT_LABELS: tmp_path}, tmp_path, Context(0, Split.WEAK, tmp_path))
    assert seen[0].resampling == "bicubic"


def padded_image() -> tuple[EdgeNetwork, torch.Tensor]:
    """Return a network, and an image of 50 × 61 pixels padded to 64 × 64."""
    torch.manual_seed(0)
    network = EdgeNetwork("tiny", False, frozen=False).eval()
    return network, pad(255 * torch.rand(1, 3, 50, 61), 64, 64)


def test_edges_are_the_mean_over_the_image_that_is_mirrored_and_then_padded():
    """IRN code: both are padded at the right, cut to the image's cells, and the one is turned back."""
    network, image = padded_image()
    found = edges(network, image, (50, 61))
    colour = torch.tensor(MEAN_COLOUR)[:, None, None].expand(1, 3, 64, 3)
    mirrored = torch.cat([image[..., :61].flip(-1), colour], -1)
    assert not torch.equal(mirrored, image.flip(-1))
    logits = network(image)[0, :13, :16] + network(mirrored)[0, :13, :16].flip(-1)
    torch.testing.assert_close(found, (logits / 2).sigmoid())
    # Where nothing is padded both ways are one.
    full = 255 * torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(edges(network, full, (64, 64)), edges(network, full, (64, 64), "canvas"))


def test_edges_of_a_mirrored_canvas_are_symmetric():
    network, image = padded_image()
    found = edges(network, image, (50, 61), "canvas")
    logits = network(image)[0] + network(image.flip(-1))[0].flip(-1)
    torch.testing.assert_close(found, (logits / 2).sigmoid()[:13, :16])
    mirrored = edges(network, image.flip(-1), (64, 64), "canvas")
    torch.testing.assert_close(mirrored.flip(-1), edges(network, image, (64, 64), "canvas"))


def test_the_walk_of_one_image_written_out():
    """Maps at stride 4 times (1 − edge), walk, enlarged, divided by the greatest value of all classes."""
    generator = torch.Generator().manual_seed(0)
    found_edges = torch.rand(12, 10, generator=generator)
    scores = torch.rand(2, 12, 10, generator=generator)
    maps = ScoreMaps(np.array([3, 7], np.int16), scores.numpy(), (48, 40))
    found = WalkIrn(radius=3, steps=8).walked(found_edges, maps, (48, 40))
    start = scores * (1 - found_edges)
    matrix = transition_matrix(affinities(found_edges, 3), pair_offsets(3), 10.0)
    ended = walk(start, matrix, 8)
    full = torch.nn.functional.interpolate(ended[None], (48, 40), mode="bilinear")[0]
    assert full.max() < ended.max()
    np.testing.assert_allclose(found.scores, (ended / full.max()).numpy(), rtol=1e-4, atol=1e-6)
    assert found.labels.tolist() == [3, 7]
    assert found.size == (48, 40)
    assert found.at_full_size().max() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("cell", "size"), [(1, (45, 38)), (1, (48, 40)), (4, (48, 40))])
def test_maps_in_cells_of_one_pixel_are_the_codes(cell, size):
    """IRN code: enlarged by four, cut to the image, divided by the greatest value there.

    In cells of four pixels they are, too, where these fit the image.
    """
    generator = torch.Generator().manual_seed(0)
    found_edges, scores = (torch.rand(shape, generator=generator) for shape in ((12, 10), (2, 12, 10)))
    maps = ScoreMaps(np.array([3, 7], np.int16), scores.numpy(), size)
    found = WalkIrn(radius=3, steps=2, cell=cell).walked(found_edges, maps, size)
    matrix = transition_matrix(affinities(found_edges, 3), pair_offsets(3), 10.0)
    ended = walk(scores * (1 - found_edges), matrix, 2)
    expected = torch.nn.functional.interpolate(ended[None], scale_factor=4, mode="bilinear")[0]
    expected = expected[:, : size[0], : size[1]]
    assert found.scores.shape == (2, size[0] // cell, size[1] // cell)
    np.testing.assert_allclose(found.at_full_size(), (expected / expected.max()).numpy(), atol=1e-5)


def test_maps_of_another_grid_are_resized_without_losing_what_is_between_cells():
    """An image shown with half its size: every cell of the walk is the mean of about four of the maps."""
    scores = np.random.default_rng(0).random((1, 24, 20), dtype=np.float32)
    maps = ScoreMaps(np.array([3], np.int16), scores, (96, 80))
    found = WalkIrn(radius=3, steps=1).walked(torch.ones(12, 10), maps, (48, 40))
    assert not found.scores.any()
    found = WalkIrn(radius=3, steps=8).walked(torch.rand(12, 10) * 0.1, maps, (48, 40))
    assert found.scores.shape == (1, 24, 20)
    assert found.size == (96, 80)
    assert found.scores.max() > 0.9


def test_an_edge_holds_the_walk_back():
    """A wall between two halves: the score of the left half stays there."""
    wall = torch.zeros(16, 16)
    wall[:, 8] = 1
    scores = np.zeros((1, 16, 16), np.float32)
    scores[0, 6:10, 2:4] = 1
    with_wall, without = (
        WalkIrn(steps=256).walked(e, ScoreMaps(np.array([1], np.int16), scores, (64, 64)), (64, 64)).scores[0]
        for e in (wall, torch.zeros(16, 16))
    )
    assert with_wall[:, :8].min() > 0.5
    assert with_wall[:, 9:].max() < 0.01
    assert without[:, 9:].min() > 0.5


def test_an_image_without_classes_has_no_maps():
    maps = ScoreMaps(np.zeros(0, np.int16), np.zeros((0, 1, 1), np.float32), (64, 64))
    assert len(WalkIrn().walked(torch.zeros(16, 16), maps, (64, 64)).labels) == 0


def test_settings_are_the_published_ones():
    *_, select, _ = irn.REFINER.refine(Meta(20, 500, "resnet50", "imagenet"), 0.15)
    train, inference = (
        next(s for s in irn.REFINER.refine(Meta(20, 500, "resnet50", "imagenet"), 0.15) if isinstance(s, kind))
        for kind in (TrainIrn, WalkIrn)
    )
    assert isinstance(select, SelectThreshold)
    assert select.value == 0.25
    assert replace(train, long_side=500) == TrainIrn()
    assert (train.epochs, train.batch, train.crop, train.radius) == (3, 32, 512, 10)
    assert (train.scale_low, train.scale_high, train.momentum) == (0.5, 1.5, 0.0)
    assert (IrnLabels().foreground_threshold, IrnLabels().background_threshold) == (0.30, 0.05)
    assert (inference.padded, inference.radius, inference.power, inference.steps) == (512, 5, 10.0, 256)


def test_irn_crf_is_irn_with_a_crf_on_its_masks():
    meta = Meta(20, 500, "resnet50", "imagenet")
    plain, with_crf = (module.REFINER.refine(meta, 0.15) for module in (irn, irn_crf))
    assert with_crf[:-1] == plain[:-1]
    assert isinstance(with_crf[-1], CrfMasks)
    assert with_crf[-1].preset == "irn"
