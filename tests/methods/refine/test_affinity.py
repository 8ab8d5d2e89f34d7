"""What PSA and IRN share: the loss by hand and against loops, the scores they start from, maps on other grids."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.evaluation.maps import ScoreMaps, resize_bilinear
from seedbed.methods.refine.affinity import ClassScores, affinity_losses, check_grid, on_image, to_grid
from seedbed.methods.refine.random_walk import pair_offsets

OFFSETS = pair_offsets(2)
"""(0, 1), (1, −1), (1, 0) and (1, 1) but for the two diagonals, which are √2 < 2 away."""


def test_the_loss_by_hand():
    """A 2 × 3 grid has one anchor, (0, 1), labelled 1; its partners are 1 to the right and 2, 0, 255 below."""
    labels = torch.tensor([[[0, 1, 1], [2, 0, 255]]])
    affinities = torch.tensor([0.5, 0.25, 0.125, 0.9]).view(1, 4, 1, 1)
    losses = affinity_losses(affinities, labels, OFFSETS, 1)
    assert OFFSETS == ((0, 1), (1, -1), (1, 0), (1, 1))
    assert losses["background"] == 0
    assert losses["foreground"].item() == pytest.approx(-math.log(0.5 + 1e-5) / 4, rel=1e-4)
    negative = -(math.log(1 + 1e-5 - 0.25) + math.log(1 + 1e-5 - 0.125)) / 2
    assert losses["negative"].item() == pytest.approx(negative / 2, rel=1e-4)


def test_the_loss_is_that_of_a_loop_over_all_pairs():
    generator = torch.Generator().manual_seed(0)
    offsets, margin = pair_offsets(3), 2
    labels = torch.randint(0, 4, (2, 7, 9), generator=generator)
    labels[labels == 3] = 255
    affinities = torch.rand(2, len(offsets), 5, 5, generator=generator)
    sums, counts = {"background": 0.0, "foreground": 0.0, "negative": 0.0}, {}
    for image in range(2):
        for p, (down, right) in enumerate(offsets):
            for y in range(7 - margin):
                for x in range(margin, 9 - margin):
                    first, second = int(labels[image, y, x]), int(labels[image, y + down, x + right])
                    value = float(affinities[image, p, y, x - margin])
                    if 255 in (first, second):
                        continue
                    part = "negative" if first != second else "foreground" if first else "background"
                    sums[part] -= math.log(1 + 1e-5 - value if part == "negative" else value + 1e-5)
                    counts[part] = counts.get(part, 0) + 1
    found = affinity_losses(affinities, labels, offsets, margin)
    for part, weight in (("background", 0.25), ("foreground", 0.25), ("negative", 0.5)):
        assert found[part].item() == pytest.approx(weight * sums[part] / (counts[part] + 1e-5), rel=1e-5)


def test_a_batch_without_any_sure_pair_costs_nothing():
    affinities = torch.full((1, 4, 1, 1), 0.5, requires_grad=True)
    losses = affinity_losses(affinities, torch.full((1, 2, 3), 255), OFFSETS, 1)
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert total == 0
    assert affinities.grad is not None
    assert not affinities.grad.any()


def maps(labels: list[int], scores: list[float], size: tuple[int, int] = (2, 2)) -> ScoreMaps:
    full = np.array(scores, np.float32)[:, None, None] * np.ones((1, *size), np.float32)
    return ScoreMaps(np.array(labels, np.int16), full.reshape(len(labels), *size), size)


def test_scores_below_zero_count_as_zero():
    scores = ClassScores.of(maps([3, 5], [-0.5, 0.75]))
    assert scores.labels.tolist() == [3, 5]
    np.testing.assert_allclose(scores.scores[:, 0, 0], [0, 0.75])
    np.testing.assert_allclose(scores.with_background(2.0)[:, 1, 1], [0.0625, 0, 0.75])


def test_a_background_channel_stands_for_the_exponent_of_the_walk():
    scores = ClassScores.of(maps([0, 5], [0.25, 0.5]))
    assert scores.labels.tolist() == [5]
    np.testing.assert_allclose(scores.background(16.0), 0.25)
    np.testing.assert_allclose(scores.background(8.0), 0.5)
    np.testing.assert_allclose(scores.background(32.0), 0.0625)


def test_an_image_without_classes_is_all_background():
    scores = ClassScores.of(ScoreMaps(np.zeros(0, np.int16), np.zeros((0, 1, 1), np.float32), (2, 3)))
    np.testing.assert_array_equal(scores.with_background(4.0), np.ones((1, 2, 3)))


def test_finer_features_are_averaged_and_coarser_ones_enlarged():
    features = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])
    assert to_grid(features, (2, 2)) is features
    assert to_grid(features, (1, 1)).item() == 4
    np.testing.assert_allclose(to_grid(features, (2, 4))[0, 0, 0], [1, 1.5, 2.5, 3])


@pytest.mark.parametrize(("cell", "size"), [(8, (96, 64)), (8, (75, 50)), (4, (75, 50)), (4, (37, 90))])
def test_maps_keep_their_place_on_the_image(cell, size):
    """A slope over padded cells is read off at the centres of the cells that span the image."""
    height, width = size
    rows, columns = -(-height // cell), -(-width // cell)
    slope = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")) * 1.0
    found = on_image((slope + 0.5) * cell, (cell, cell), size)
    grid = -(-height // 4), -(-width // 4)
    assert found.shape == (2, *grid)
    expected = np.stack(
        np.meshgrid(*((np.arange(n) + 0.5) * (s / n) for n, s in zip(grid, size, strict=True)), indexing="ij")
    )
    # The outermost half cell has nothing to interpolate with.
    inside = (expected > cell / 2) & (expected < np.array([rows, columns])[:, None, None] * cell - cell / 2)
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-3)


def test_maps_that_fit_are_left_as_they_are():
    same = torch.rand(2, 24, 16)
    np.testing.assert_allclose(on_image(same, (4, 4), (96, 64)), same.numpy(), atol=1e-6)


def test_an_image_shown_smaller_has_larger_cells():
    """Of an image of 96 × 96 pixels that a network sees with 48 × 48, a cell of 8 is 16 pixels of its own."""
    map_ = torch.rand(1, 6, 6)
    expected = resize_bilinear(map_.numpy().copy(), (24, 24))
    np.testing.assert_allclose(on_image(map_, (16, 16), (96, 96)), expected, atol=1e-6)


def test_crops_that_do_not_fit_are_refused_with_what_does():
    check_grid("TrainPsa", 72, 8, 5, 8)
    with pytest.raises(ConfigError, match=r"TrainPsa\.crop = 70: give a multiple of 8"):
        check_grid("TrainPsa", 70, 8, 5, 8)
    with pytest.raises(ConfigError, match=r"crop = 64: too small for the radius 5; give at least 72"):
        check_grid("TrainPsa", 64, 8, 5, 8)
