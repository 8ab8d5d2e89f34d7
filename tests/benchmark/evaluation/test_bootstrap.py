"""The bootstrap on cases with known answers."""

from __future__ import annotations

import numpy as np
import pytest

from seedbed.benchmark.evaluation.bootstrap import (
    draw_images,
    interval_of,
    over_seeds,
    rank_intervals,
    ranks_of,
    resampled,
)
from seedbed.benchmark.evaluation.metrics import Confusion
from seedbed.benchmark.evaluation.per_image import ratios


def counts_of(matrices: list[np.ndarray]) -> np.ndarray:
    """Return (images, 3, labels) of confusion matrices [truth, prediction], one an image."""
    return np.stack([np.stack([np.diag(m), m.sum(1), m.sum(0)]) for m in matrices])


def resampled_miou(counts: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Return the mIoU (resamples,) of a run on each resample."""
    return resampled(ratios("IoU", tuple(map(str, range(len(counts)))), counts), drawn)


def random_run(generator: np.random.Generator, images: int, labels: int = 4, skill: float = 2.0) -> np.ndarray:
    """Return counts of random confusion matrices; a higher skill has heavier diagonals, equal in distribution."""
    weight = 1 + skill * np.eye(labels)
    return counts_of(
        [generator.poisson(20 * weight * generator.gamma(2, size=(labels, 1))) for _ in range(images)]
    )


def test_miou_by_hand():
    """Three images of two labels, one drawn twice, one not."""
    matrices = [np.array([[3, 1], [0, 4]]), np.array([[2, 0], [2, 0]]), np.array([[5, 0], [0, 5]])]
    drawn = np.array([[2, 1, 0], [0, 0, 3], [1, 1, 1]], np.uint16)
    # Twice the first and once the second: [[8, 2], [2, 8]], both 8/12. Perfect. All: [[10, 1], [2, 9]].
    expected = [8 / 12, 1.0, (10 / 13 + 9 / 12) / 2]
    assert resampled_miou(counts_of(matrices), drawn).tolist() == pytest.approx(expected, abs=1e-15)


def test_a_label_without_a_union_is_not_counted_and_nothing_at_all_is_no_number():
    counts = np.array([[[3, 0], [6, 0], [3, 0]]])
    assert ratios("IoU", ("a",), counts).value() == 0.5
    assert np.isnan(ratios("IoU", ("a",), np.zeros((1, 3, 2))).value())
    drawn = np.array([[1], [0]], np.uint16)
    np.testing.assert_array_equal(resampled_miou(counts, drawn), [0.5, np.nan])


def test_the_products_are_what_a_slow_loop_finds():
    generator = np.random.default_rng(1)
    matrices = [generator.poisson(3, (4, 4)) * (generator.random((4, 4)) < 0.3) for _ in range(30)]
    drawn = draw_images(30, 300, seed=2)
    assert (drawn.sum(axis=1) == 30).all()
    slow = []
    for weights in drawn:
        total = Confusion.empty(3)
        for matrix, times in zip(matrices, weights, strict=True):
            for _ in range(times):
                total.merge(Confusion(matrix.astype(np.int64)))
        slow.append(total.miou())
    assert resampled_miou(counts_of(matrices), drawn).tolist() == pytest.approx(slow, abs=1e-15)


def test_every_image_is_drawn_once_on_average_and_as_often_as_a_binomial_says():
    drawn = draw_images(50, 4000, seed=0)
    assert drawn.mean() == 1
    # Binomial(50, 1/50): variance 0.98, and (49/50)⁵⁰ of all draws are 0.
    assert drawn.var() == pytest.approx(0.98, abs=0.02)
    assert (drawn == 0).mean() == pytest.approx(0.98**50, abs=0.005)


def test_the_same_seed_draws_the_same_images_and_another_one_others():
    assert (draw_images(9, 50, seed=3) == draw_images(9, 50, seed=3)).all()
    assert (draw_images(9, 50, seed=3) != draw_images(9, 50, seed=4)).any()


def test_p_and_interval_by_hand():
    values = np.arange(-2, 18) / 10
    # 20 values, three of them at or below 0, 18 at or above: 2 · (1 + 3)/21.
    assert interval_of(values).p == pytest.approx(8 / 21)
    # Quantiles by linear interpolation: 0.025 · 19 = 0.475 steps of 0.1 from the end.
    assert interval_of(values)[:2] == (pytest.approx(-0.2 + 0.0475), pytest.approx(1.7 - 0.0475))
    assert interval_of(np.full(99, 0.1)).p == pytest.approx(2 / 100)


def test_identical_rows_differ_by_nothing():
    run = random_run(np.random.default_rng(0), 40)
    drawn = draw_images(40, 200, seed=0)
    difference = resampled_miou(run, drawn) - resampled_miou(run.copy(), drawn)
    assert interval_of(difference) == (0, 0, 1)
    assert interval_of(over_seeds(np.stack([difference] * 3, axis=1), [0, 0, 0], 0, 0)) == (0, 0, 1)


def significant(p: list[float]) -> float:
    return float(np.mean(np.array(p) <= 0.05))


PAIRS = 400
BOUND = 0.05 + 2.5 * float(np.sqrt(0.05 * 0.95 / PAIRS))
"""Of rows that do not differ at most so many are called significant: the level, and 2.5 binomial deviations."""


def test_rows_that_do_not_differ_are_no_more_often_significant_than_the_level_says():
    """Over images: two runs of one distribution on each set of images."""
    p = []
    for pair in range(PAIRS):
        generator = np.random.default_rng([7, pair])
        drawn = draw_images(60, 499, seed=pair)
        p.append(interval_of(np.subtract(*(resampled_miou(random_run(generator, 60), drawn) for _ in range(2)))).p)
    assert 0.01 < significant(p) <= BOUND


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_methods_that_do_not_differ_are_no_more_often_significant_over_seeds_than_the_level_says(seeds):
    """Training decides all here: the seeds' numbers scatter, and images hardly matter.

    To resample the seeds themselves would call 24 % of such pairs with three seeds significant.
    """
    p = []
    for pair in range(PAIRS):
        generator = np.random.default_rng([8, pair])
        points = generator.normal(0, 0.01, seeds)
        by_seed = points + generator.normal(0, 1e-5, (499, 1))
        p.append(interval_of(over_seeds(by_seed, points.tolist(), 0, pair)).p)
    assert 0.01 < significant(p) <= BOUND


def test_a_planted_difference_is_found_and_is_in_the_interval():
    found, covered = [], []
    for pair in range(60):
        generator = np.random.default_rng([9, pair])
        drawn = draw_images(60, 499, seed=pair)
        better, worse = random_run(generator, 60, skill=2.6), random_run(generator, 60, skill=2.0)
        low, high, p = interval_of(resampled_miou(better, drawn) - resampled_miou(worse, drawn))
        found.append(p <= 0.05 and low > 0)
        # A diagonal of 1 + skill of 4 + skill pixels: IoU = (1 + s)/(7 + s).
        covered.append(low <= 3.6 / 9.6 - 3 / 9 <= high)
    assert np.mean(found) > 0.9
    # Large images decide more, so a split's IoU scatters around that of the means: about 95 %, within its error.
    assert np.mean(covered) > 0.85


def test_seeds_widen_an_interval_that_images_alone_make_too_narrow():
    by_seed = np.tile([0.10, 0.20, 0.30], (4000, 1))
    low, high, p = interval_of(over_seeds(by_seed, [0.1, 0.2, 0.3], 0, 0))
    # s = 0.1, n = 3: 0.2 ± 4.303 · 0.1/√3, as a t-test has it.
    assert low == pytest.approx(0.2 - 0.2484, abs=0.001)
    assert high == pytest.approx(0.2 + 0.2484, abs=0.001)
    # t = √3 · 2 has p = 0.0742 with two degrees of freedom.
    assert p == pytest.approx(0.0742, abs=0.001)


def test_ranks_in_resamples():
    assert ranks_of(np.array([[0.1, 0.3, 0.2], [0.3, 0.3, 0.1]])).tolist() == [[3, 1, 2], [1, 1, 3]]


def test_a_clear_order_has_ranks_without_doubt_and_equal_rows_have_all_ranks():
    generator = np.random.default_rng(0)
    clear = np.array([0.5, 0.3, 0.1]) + generator.normal(0, 0.01, (500, 3))
    assert rank_intervals(clear) == [(1, 1), (2, 2), (3, 3)]
    mixed = np.array([0.5, 0.3, 0.3]) + generator.normal(0, 0.01, (500, 3))
    assert rank_intervals(mixed) == [(1, 1), (2, 3), (2, 3)]
