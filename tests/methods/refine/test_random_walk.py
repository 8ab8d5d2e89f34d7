"""The random walk: pairs and partners by hand, the transition matrix and the walk against dense loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from seedbed.methods.refine.random_walk import gathering, pair_offsets, partners, transition_matrix, walk


@pytest.mark.parametrize(("radius", "count"), [(5, 34), (10, 152)])
def test_the_numbers_of_offsets_are_those_of_psa_and_irn(radius, count):
    offsets = pair_offsets(radius)
    assert len(offsets) == len(set(offsets)) == count


def test_offsets_are_half_of_all_neighbours_closer_than_the_radius():
    every = {(y, x) for y in range(-9, 10) for x in range(-9, 10) if 0 < math.hypot(y, x) < 5}
    # PSA and IRN: in the row itself all up to radius − 1.
    half = set(pair_offsets(5))
    assert half | {(-y, -x) for y, x in half} == every
    assert not half & {(-y, -x) for y, x in half}


def test_partners_by_hand():
    """Anchors of a 4 × 5 grid with margin 1: three rows, the three columns in the middle."""
    grid = torch.arange(20).view(4, 5)
    assert partners(grid, (0, 0), 1).tolist() == [[1, 2, 3], [6, 7, 8], [11, 12, 13]]
    assert partners(grid, (0, 1), 1).tolist() == [[2, 3, 4], [7, 8, 9], [12, 13, 14]]
    assert partners(grid, (1, -1), 1).tolist() == [[5, 6, 7], [10, 11, 12], [15, 16, 17]]


def dense(affinities: np.ndarray, radius: int, power: float) -> np.ndarray:
    """Return T (N, N) in float64, written out: symmetric, 1 on the diagonal, powers, columns that sum to 1."""
    _, height, width = affinities.shape
    matrix = np.eye(height * width)
    for p, (down, right) in enumerate(pair_offsets(radius)):
        for y in range(height):
            for x in range(width):
                if y + down < height and 0 <= x + right < width:
                    here, there = y * width + x, (y + down) * width + x + right
                    matrix[here, there] = matrix[there, here] = affinities[p, y, x]
    matrix = matrix**power
    return matrix / matrix.sum(0, keepdims=True)


@pytest.fixture(params=[(3, 6, 7), (5, 9, 4), (10, 12, 5), (4, 1, 6)])
def case(request: pytest.FixtureRequest) -> tuple[int, torch.Tensor]:
    """Return a radius and random affinities, also on grids smaller than the radius."""
    radius, height, width = request.param
    generator = torch.Generator().manual_seed(radius)
    return radius, torch.rand(len(pair_offsets(radius)), height, width, generator=generator)


def test_the_transition_matrix_is_that_of_a_dense_loop(case):
    radius, affinities = case
    found = transition_matrix(affinities, pair_offsets(radius), 8.0).to_dense().T
    np.testing.assert_allclose(found.numpy(), dense(affinities.numpy(), radius, 8.0), atol=1e-6)


def test_columns_sum_to_one(case):
    radius, affinities = case
    matrix = transition_matrix(affinities, pair_offsets(radius), 10.0)
    np.testing.assert_allclose(matrix.to_dense().T.sum(0).numpy(), 1, rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 8, 256])
def test_the_sparse_walk_is_the_dense_power(case, steps):
    """As the codes have it: v · T^n, T squared again and again."""
    radius, affinities = case
    height, width = affinities.shape[1:]
    scores = torch.rand(3, height, width, generator=torch.Generator().manual_seed(1))
    power = np.linalg.matrix_power(dense(affinities.numpy(), radius, 8.0), steps)
    expected = (scores.flatten(1).double().numpy() @ power).reshape(3, height, width)
    found = walk(scores, transition_matrix(affinities, pair_offsets(radius), 8.0), steps)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-4, atol=1e-5)


def test_a_walk_does_not_cross_where_affinities_are_zero():
    """Two halves without a link: each keeps its own score."""
    offsets = pair_offsets(3)
    left = torch.zeros(6, 8)
    left[:, :4] = 1
    affinities = torch.zeros(len(offsets), 6, 8)
    for p, (down, right) in enumerate(offsets):
        for y in range(6 - down):
            for x in range(8):
                if 0 <= x + right < 8 and left[y, x] == left[y + down, x + right]:
                    affinities[p, y, x] = 1
    ended = walk(torch.stack([left, 1 - left]), transition_matrix(affinities, offsets, 8.0), 100)
    torch.testing.assert_close(ended, torch.stack([left, 1 - left]), atol=1e-5, rtol=0)


def test_classes_walk_independently_of_each_other(case):
    radius, affinities = case
    matrix = transition_matrix(affinities, pair_offsets(radius), 8.0)
    scores = torch.rand(4, *affinities.shape[1:], generator=torch.Generator().manual_seed(2))
    together = walk(scores, matrix, 16)
    alone = torch.cat([walk(scores[k : k + 1], matrix, 16) for k in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-7)


def test_the_product_for_gpus_is_the_sparse_one(case):
    radius, affinities = case
    matrix = transition_matrix(affinities, pair_offsets(radius), 8.0)
    vectors = torch.rand(len(affinities[0].flatten()), 3, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(gathering(matrix)(vectors), matrix @ vectors)


def test_threads_make_no_difference():
    generator = torch.Generator().manual_seed(3)
    affinities, scores = (torch.rand(n, 60, 50, generator=generator) for n in (34, 3))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(walk(scores, transition_matrix(affinities, pair_offsets(5), 8.0), 64))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
