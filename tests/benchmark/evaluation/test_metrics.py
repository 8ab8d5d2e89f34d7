"""Metrics by hand, against slow literal references, and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import ArrayLike

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.evaluation.maps import ScoreMaps
from seedbed.benchmark.evaluation.metrics import (
    THRESHOLDS,
    Confusion,
    PixelAp,
    SignedSeeds,
    SoftScores,
    ThresholdCurve,
    soft_overlap,
    thresholds_with,
)
from seedbed.benchmark.evaluation.scoring import predict
from seedbed.benchmark.evaluation.stages import average_precision

SEEDS = range(12)


def mask(*rows: list[int]) -> np.ndarray:
    return np.array(rows, np.uint8)


def full_size(labels: list[int], scores: ArrayLike) -> ScoreMaps:
    full = np.asarray(scores, np.float32)
    return ScoreMaps(np.array(labels, np.int16), full, (full.shape[1], full.shape[2]))


def random_case(seed: int, classes: int = 5, low: float = 0.0) -> tuple[np.ndarray, ScoreMaps]:
    """Return a truth with 255, and maps of some classes; scores fall on thresholds and on each other often."""
    generator = np.random.default_rng(seed)
    height, width = generator.integers(1, 12, 2)
    truth = generator.choice([*range(classes + 1), 255], (height, width)).astype(np.uint8)
    labels = np.flatnonzero(generator.random(classes) < 0.6) + 1
    scores = generator.uniform(low, 1, (len(labels), height, width)).astype(np.float32)
    on_grid = generator.random(scores.shape) < 0.5
    scores[on_grid] = (np.round(scores[on_grid] * 100) / 100).astype(np.float32)
    return truth, full_size(labels.tolist(), scores)


# --- confusion ---------------------------------------------------------------------------------------------


def test_confusion_by_hand():
    confusion = Confusion.empty(3)
    own = confusion.update(mask([0, 0, 1], [1, 2, 255]), mask([0, 1, 1], [255, 2, 2]))
    # Truth 255 is left out, a predicted 255 is background; class 3 occurs nowhere.
    np.testing.assert_array_equal(own, [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
    assert confusion.matrix.dtype == np.int64
    np.testing.assert_allclose(confusion.by_label(), [1 / 3, 1 / 3, 1, np.nan])
    assert confusion.miou() == pytest.approx(5 / 9)
    assert confusion.classes_counted() == 3
    np.testing.assert_allclose(confusion.by_label("precision"), [1 / 2, 1 / 2, 1, np.nan])
    np.testing.assert_allclose(confusion.by_label("recall"), [1 / 2, 1 / 2, 1, np.nan])
    np.testing.assert_allclose(confusion.by_label("F"), [1 / 2, 1 / 2, 1, np.nan])


def test_a_predicted_255_can_be_left_out():
    confusion = Confusion.empty(1)
    confusion.update(mask([0, 1, 1]), mask([255, 255, 1]), ignore_predicted=True)
    np.testing.assert_array_equal(confusion.matrix, [[0, 0], [0, 1]])


def test_a_class_that_is_only_predicted_or_only_true_counts_as_zero():
    confusion = Confusion.empty(3)
    confusion.update(mask([0, 1]), mask([0, 2]))
    np.testing.assert_allclose(confusion.by_label(), [1, 0, 0, np.nan])
    assert confusion.miou() == pytest.approx(1 / 3)
    assert confusion.classes_counted() == 3
    np.testing.assert_allclose(confusion.by_label("precision"), [1, np.nan, 0, np.nan])
    np.testing.assert_allclose(confusion.by_label("recall"), [1, 0, np.nan, np.nan])
    np.testing.assert_allclose(confusion.by_label("F"), [1, 0, 0, np.nan])


def test_nothing_counted_is_nan():
    confusion = Confusion.empty(2)
    confusion.update(mask([255]), mask([1]))
    assert np.isnan(confusion.miou())
    assert confusion.classes_counted() == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_confusion_equals_scikit_learn(seed):
    from sklearn.metrics import confusion_matrix, jaccard_score

    generator = np.random.default_rng(seed)
    truth, prediction = generator.choice([0, 1, 2, 3, 255], (2, 9, 7)).astype(np.uint8)
    confusion = Confusion.empty(3)
    confusion.update(truth, prediction)
    counted = truth != 255
    pair = truth[counted], np.where(prediction == 255, 0, prediction)[counted]
    np.testing.assert_array_equal(confusion.matrix, confusion_matrix(*pair, labels=[0, 1, 2, 3]))
    np.testing.assert_allclose(confusion.by_label(), jaccard_score(*pair, labels=[0, 1, 2, 3], average=None))


# --- threshold curve ---------------------------------------------------------------------------------------


def literal_prediction(maps: ScoreMaps, threshold: np.float32) -> np.ndarray:
    """Argmax over {constant t, class maps} pixel by pixel, background first."""
    height, width = maps.size
    result = np.zeros((height, width), np.uint8)
    for y in range(height):
        for x in range(width):
            scores = [threshold, *maps.scores[:, y, x]]
            result[y, x] = [0, *maps.labels][int(np.argmax(scores))]
    return result


@pytest.mark.parametrize("seed", SEEDS)
def test_the_curve_equals_the_literal_argmax_at_every_threshold(seed):
    truth, maps = random_case(seed)
    curve = ThresholdCurve.empty(5)
    best, score, _ = predict(maps)
    own = curve.update(truth, best, score)
    for index, threshold in enumerate(THRESHOLDS):
        reference = Confusion.empty(5)
        reference.update(truth, literal_prediction(maps, threshold))
        np.testing.assert_array_equal(curve.confusion(index).matrix, reference.matrix)
        rebuilt = np.zeros_like(reference.matrix)
        label = np.where(own.passed > index, own.label, 0)
        np.add.at(rebuilt, (own.truth, label), own.pixels)
        np.testing.assert_array_equal(rebuilt, reference.matrix)
        np.testing.assert_allclose(curve.miou()[index], reference.miou())


def test_scores_next_to_a_threshold_fall_on_the_right_side():
    t = THRESHOLDS[15]
    scores = np.array([[[np.nextafter(t, np.float32(0)), t, np.nextafter(t, np.float32(1))]]], np.float32)
    curve = ThresholdCurve.empty(1)
    curve.update(mask([1, 1, 1]), *predict(full_size([1], scores))[:2])
    np.testing.assert_array_equal(curve.at(0.15).matrix, [[0, 0], [2, 1]])
    np.testing.assert_array_equal(curve.at(0.14).matrix, [[0, 0], [0, 3]])


def test_all_zero_maps_and_images_without_maps_are_background():
    for maps in (full_size([1, 2], np.zeros((2, 1, 3))), full_size([], np.zeros((0, 1, 3)))):
        curve = ThresholdCurve.empty(2)
        curve.update(mask([0, 1, 255]), *predict(maps)[:2])
        for index in (0, 99):
            np.testing.assert_array_equal(curve.confusion(index).matrix, [[1, 0, 0], [1, 0, 0], [0, 0, 0]])


def test_a_background_channel_needs_no_threshold():
    # Background wins, loses, and ties (then it comes first, as the lowest label).
    maps = full_size([0, 2], [[[0.9, 0.0, 0.5]], [[0.8, 0.001, 0.5]]])
    curve = ThresholdCurve.empty(2)
    curve.update(mask([0, 2, 2]), *predict(maps)[:2])
    for index in range(len(THRESHOLDS)):
        np.testing.assert_array_equal(curve.confusion(index).matrix, [[1, 0, 0], [0, 0, 0], [1, 0, 1]])


def test_of_equal_class_scores_the_lower_label_wins():
    best, _, _ = predict(full_size([2, 4], [[[0.5]], [[0.5]]]))
    assert best.tolist() == [[2]]


def test_the_best_threshold_is_the_lowest_of_the_best_and_at_most_059():
    curve = ThresholdCurve.empty(1)
    # Background scores 0.3, the object 0.5: everything in [0.30, 0.50) is perfect.
    curve.update(mask([0, 1]), *predict(full_size([1], [[[0.3, 0.5]]]))[:2])
    assert curve.best() == (0.3, 1.0)
    high = ThresholdCurve.empty(1)
    high.update(mask([0, 1]), *predict(full_size([1], [[[0.8, 0.9]]]))[:2])
    assert high.best() == (0.0, 0.25)


def test_other_thresholds_can_be_added_and_are_no_candidates_for_the_best():
    with pytest.raises(ConfigError, match=r"0\.155"):
        ThresholdCurve.empty(1).at(0.155)
    curve = ThresholdCurve.empty(1, thresholds_with(0.155, 0.15))
    assert len(curve.thresholds) == 101
    # Only 0.155 tells the object from background.
    curve.update(mask([0, 1]), *predict(full_size([1], [[[0.153, 0.157]]]))[:2])
    assert curve.at(0.155).miou() == 1
    assert curve.best() == (0.0, 0.25)


# --- soft metrics ------------------------------------------------------------------------------------------


def test_soft_metrics_by_hand():
    soft = SoftScores.empty(3)
    truth = mask([1, 1, 0, 255, 2])
    maps = full_size([1], [[[0.5, 1.0, 0.25, 1.0, 0.0]]])
    own = soft.update(truth, maps, maps.at_full_size())
    assert own.labels.tolist() == [1, 2]
    # Class 1: Σmin 1.5, Σmax 1 + 1 + 0.25, ΣM 1.75, ΣG 2. Class 2 has no map.
    np.testing.assert_allclose(own.overlap, [1.5 / 2.25, 0])
    np.testing.assert_allclose(own.precision, [1.5 / 1.75, 0])
    np.testing.assert_allclose(own.recall, [0.75, 0])
    other = full_size([1], np.zeros((1, 1, 1)))
    soft.update(mask([1]), other, other.at_full_size())
    by_class = soft.by_class()
    np.testing.assert_allclose(by_class[0], [np.nan, 0.75 / 2.25, 0, np.nan])
    np.testing.assert_allclose(by_class[1], [np.nan, 0.75 / 1.75, 0, np.nan])
    np.testing.assert_allclose(by_class[2], [np.nan, 0.375, 0, np.nan])
    assert soft.images.tolist() == [0, 2, 1, 0]


@pytest.mark.parametrize("seed", SEEDS)
def test_soft_metrics_equal_the_equations(seed):
    truth, maps = random_case(seed)
    own = SoftScores.empty(5).update(truth, maps, maps.at_full_size())
    present = sorted({int(v) for v in truth.flat} - {0, 255})
    assert own.labels.tolist() == present
    for position, label in enumerate(present):
        smaller = larger = heat = target = 0.0
        for y, x in np.argwhere(truth != 255):
            row = np.flatnonzero(maps.labels == label)
            m = float(maps.scores[row[0], y, x]) if len(row) else 0.0
            g = float(truth[y, x] == label)
            smaller, larger, heat, target = smaller + min(m, g), larger + max(m, g), heat + m, target + g
        assert own.overlap[position] == pytest.approx(smaller / larger)
        assert own.precision[position] == pytest.approx(smaller / heat if heat else 0)
        assert own.recall[position] == pytest.approx(smaller / target)


def test_soft_overlap_of_two_maps():
    first, second = np.array([[[0.2, 0.6]], [[0, 0]]]), np.array([[[0.4, 0.3]], [[0, 0]]])
    np.testing.assert_allclose(soft_overlap(first, second), [0.5, 0])


# --- pixel AP ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("low", [0.0, -1.0])
def test_pixel_ap_equals_scikit_learn(seed, low):
    from sklearn.metrics import average_precision_score

    cases = [random_case(100 * seed + i, low=low) for i in range(4)]
    ranking = PixelAp.empty(5)
    for truth, maps in cases:
        ranking.update(truth, maps, maps.at_full_size())
    values = ranking.by_class()
    assert np.isnan(values[0])
    for label in range(1, 6):
        positive, scores = [], []
        for truth, maps in cases:
            if label not in truth:
                continue
            row = np.flatnonzero(maps.labels == label)
            score = maps.scores[row[0]].astype(np.float16) if len(row) else np.zeros(truth.shape, np.float16)
            positive.append(truth[truth != 255] == label)
            scores.append(score[truth != 255])
        if not positive:
            assert np.isnan(values[label])
            continue
        reference = average_precision_score(np.concatenate(positive), np.concatenate(scores).astype(float))
        assert values[label] == pytest.approx(reference, abs=1e-12)


def test_minus_zero_and_zero_are_one_rank():
    ranking = PixelAp.empty(1)
    maps = full_size([1], [[[-0.0, 0.0]]])
    ranking.update(mask([0, 1]), maps, maps.at_full_size())
    assert ranking.by_class()[1] == 0.5


# --- signed seeds ------------------------------------------------------------------------------------------


def test_signed_seeds_by_hand():
    truth = mask([1, 0, 2, 1, 255])
    maps = full_size([1, 2], [[[4.0, -2.0, -1.0, 1.0, 4.0]], [[-1.0, -1.0, 0.5, -0.2, 9.0]]])
    # Scaled by maxima 4 and 9, minima 2 and 1: class 1 (1, −1, −½, ¼), class 2 (−1, −1, 1/18, −0.2).
    seeds = SignedSeeds.empty(2, (0.0, 0.1, 0.3))
    seeds.update(truth, maps, maps.at_full_size())
    at_0, at_10, at_30 = seeds.results()
    assert at_0 == {"threshold": 0.0, "mIoU": 1.0, "recall": 1.0, "coverage": 1.0}
    assert at_10["coverage"] == 0.75
    assert at_10["mIoU"] == 1.0
    assert at_10["recall"] == pytest.approx(2 / 3)
    assert at_30["coverage"] == 0.5
    assert at_30["recall"] == pytest.approx(0.5)


def test_background_seeds_need_all_classes_below_and_zero_is_empty():
    seeds = SignedSeeds.empty(2, (0.0,))
    maps = full_size([1, 2], [[[-1.0, -1.0, 0.0]], [[-1.0, 0.0, 0.0]]])
    seeds.update(mask([0, 0, 0]), maps, maps.at_full_size())
    assert seeds.results()[0]["coverage"] == pytest.approx(1 / 3)


# --- all states --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_merged_parts_equal_the_whole(seed):
    cases = [random_case(10 * seed + i, low=-0.5) for i in range(6)]

    def states(part):
        confusion, curve, soft = Confusion.empty(5), ThresholdCurve.empty(5), SoftScores.empty(5)
        ranking, seeds = PixelAp.empty(5), SignedSeeds.empty(5)
        for truth, maps in part:
            best, score, full = predict(maps)
            confusion.update(truth, best)
            curve.update(truth, best, score)
            for state in (soft, ranking, seeds):
                state.update(truth, maps, full)
        return confusion, curve, soft, ranking, seeds

    merged = states(cases[:2])
    for part in (cases[2:3], [], cases[3:]):
        for state, more in zip(merged, states(part), strict=True):
            state.merge(more)
    whole = states(cases)
    np.testing.assert_array_equal(merged[0].matrix, whole[0].matrix)
    np.testing.assert_array_equal(merged[1].counts, whole[1].counts)
    np.testing.assert_allclose(merged[2].sums, whole[2].sums)
    np.testing.assert_array_equal(merged[2].images, whole[2].images)
    np.testing.assert_array_equal(merged[3].by_class(), whole[3].by_class())
    assert merged[4].results() == whole[4].results()


def test_merging_does_not_tie_two_states_together():
    truth, maps = random_case(0)
    first, second = PixelAp.empty(5), PixelAp.empty(5)
    second.update(truth, maps, maps.at_full_size())
    before = second.by_class()
    first.merge(second)
    first.update(1 - np.minimum(truth, 1), maps, maps.at_full_size())
    np.testing.assert_array_equal(second.by_class(), before)


def test_average_precision_is_the_area_under_the_steps_and_equal_scores_are_one_step():
    """Ranked 1, {1, 0}, 0, 1: precision 1 at recall 1/3, 2/3 at 2/3 (both of the tie), 3/5 at 1."""
    scores = np.array([0.9, 0.5, 0.5, 0.4, 0.1])
    positive = np.array([True, True, False, False, True])
    assert average_precision(scores, positive) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3, abs=1e-15)
    assert average_precision(-scores, ~positive) == pytest.approx((1 / 2 * 1 / 2) + (2 / 4 * 1 / 2), abs=1e-15)
    assert average_precision(scores, np.zeros(5, bool)) is None
