"""The dense CRF: unaries by hand, the order of labels, presets, the same masks for any number of processes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from seedbed.benchmark.evaluation.maps import ScoreMaps
from seedbed.benchmark.evaluation.threshold import seed_mask
from seedbed.methods.refine import crf
from seedbed.methods.refine.crf import (
    PRESETS,
    CrfMasks,
    Kernels,
    background_by_exponent,
    crf_mask,
    dense_crf,
    dense_crf_by_compat,
    icd_unary,
    label_unary,
    score_unary,
)

BLACK = np.zeros((1, 1, 3), np.uint8)


def test_the_presets_are_those_of_the_papers_codes():
    """docs/methods.md, Dense CRF, row by row."""
    rows = {name: tuple(vars(kernels).values()) for name, kernels in PRESETS.items()}
    assert rows == {
        "psa": (3, 3, 80, 13, 10),
        "irn": (3, 3, 50, 5, 10),
        "icd": (3, 3, 80, 13, 10),
        "rrm_test": (3, 3, 83, 5, 4),
        "deeplab": (1, 3, 67, 3, 4),
    }


def test_label_unary_by_hand():
    """IRN: 0.7 for the label, the rest shared: 0.15 each of two others."""
    unary = label_unary(np.array([[1]], np.uint8), 3)
    np.testing.assert_allclose(np.exp(-unary[:, 0, 0]), [0.15, 0.7, 0.15], rtol=1e-6)
    np.testing.assert_allclose(np.exp(-label_unary(np.array([[0]], np.uint8), 2)[:, 0, 0]), [0.7, 0.3], rtol=1e-6)


def test_icd_unary_by_hand():
    """docs/methods.md, Dense CRF: over 21 classes 0.512 against 0.0244; undefined pixels are uniform."""
    unary = icd_unary(np.array([[4, 255]], np.uint8), 21)
    probabilities = np.exp(-unary)
    assert probabilities[4, 0, 0] == pytest.approx(0.512, abs=5e-4)
    assert probabilities[0, 0, 0] == pytest.approx(0.0244, abs=5e-5)
    np.testing.assert_allclose(probabilities[:, 0, 1], 1 / 21, rtol=1e-5)


def signed_maps() -> ScoreMaps:
    """Return ICD's maps of two classes over 2 × 4 pixels: 7, background; undefined, 12."""
    cells = np.array([[[0.6, -0.5], [0.0, -0.2]], [[-0.3, -0.1], [-0.4, 0.9]]])
    return maps_of([7, 12], cells.repeat(2, 2), (2, 4))


def test_icd_labels_are_undefined_where_the_best_score_is_0():
    assert seed_mask(signed_maps(), 0.0).tolist() == [[7, 7, 0, 0], [255, 255, 12, 12]]
    # Cells of two pixels are undefined as a whole, and their neighbours are not.
    stored = maps_of([7, 12], np.array([[[0.6, 0.0]], [[-0.3, -0.4]]]), (1, 4))
    assert seed_mask(stored, 0.0).tolist() == [[7, 7, 255, 255]]


def test_a_score_of_0_is_background_in_maps_that_are_not_signed():
    assert seed_mask(maps_of([7], np.array([[[0.5, 0.0]]]), (1, 2)), 0.1).tolist() == [[7, 0]]
    with_background = maps_of([0, 7], np.array([[[0.0, 1.0]], [[0.0, -0.5]]]), (1, 2))
    assert seed_mask(with_background, 0.0).tolist() == [[0, 0]]
    assert seed_mask(maps_of([], np.zeros((0, 1, 1)), (1, 2)), 0.0).tolist() == [[0, 0]]


def test_undefined_pixels_reach_icds_crf_as_uniform_scores(monkeypatch):
    """ICD code: their unary is the same for all labels; a pixel that stays below 0.1 is 255 after the CRF."""
    given = []

    def no_crf(image, unary, kernels, iterations):
        given.append(np.exp(-unary))
        return given[-1]

    monkeypatch.setattr(crf, "dense_crf", no_crf)
    mask = crf_mask(CrfMasks(preset="icd"), np.zeros((2, 4, 3), np.uint8), signed_maps(), 0.0, classes=20)
    np.testing.assert_allclose(given[0][:, 1, 0], 1 / 21, rtol=1e-5)
    assert given[0][7, 0, 0] == pytest.approx(0.512, abs=5e-4)
    assert mask.tolist() == [[7, 7, 0, 0], [255, 255, 12, 12]]


def test_icds_crf_fills_undefined_pixels_from_what_they_look_like():
    """The square is sure but for a hole of undefined pixels; a seed that calls the hole background does worse."""
    image, truth = noisy_scene()
    scores = np.where(truth == 1, 0.9, -0.9)[None]
    scores[:, 16:24, 16:24] = 0
    mask = crf_mask(CrfMasks(preset="icd"), image, maps_of([3], scores, truth.shape), 0.0, classes=20)
    assert ((mask == 3) == (truth == 1)).all()


def test_score_unary_is_clipped_and_not_normalised():
    unary = score_unary(np.array([[[0.0]], [[0.5]], [[1.0]]], np.float32))
    np.testing.assert_allclose(unary[:, 0, 0], [-np.log(1e-5), np.log(2), 0], rtol=1e-5, atol=1e-7)


def test_background_by_exponent_by_hand():
    maps = np.array([[[0.5, 0.0]], [[0.2, 0.1]]], np.float32)
    np.testing.assert_allclose(background_by_exponent(maps, 2.0), [[0.25, 0.81]], rtol=1e-6)


def noisy_scene() -> tuple[np.ndarray, np.ndarray]:
    """Return an image with a red square on blue, and a seed that covers only part of the square."""
    image = np.zeros((40, 50, 3), np.uint8)
    image[..., 2] = 200
    image[10:30, 10:30] = (200, 0, 0)
    truth = np.zeros((40, 50), np.uint8)
    truth[10:30, 10:30] = 1
    return image, truth


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_crf_moves_a_coarse_seed_to_the_edges_of_the_image(preset):
    image, truth = noisy_scene()
    seed = np.zeros_like(truth)
    seed[8:28, 8:28] = 1
    marginals = dense_crf(image, label_unary(seed, 2), PRESETS[preset])
    assert marginals.shape == (2, 40, 50)
    assert marginals.dtype == np.float32
    np.testing.assert_allclose(marginals.sum(0), 1, atol=1e-4)
    refined = marginals.argmax(0)
    assert (refined != truth).mean() < (seed != truth).mean()


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_the_order_of_labels_makes_no_difference(preset):
    image, truth = noisy_scene()
    scores = np.random.default_rng(0).random((4, *truth.shape), dtype=np.float32)
    scores[2] += truth
    order = [2, 0, 3, 1]
    marginals = dense_crf(image, score_unary(scores), PRESETS[preset])
    shuffled = dense_crf(image, score_unary(scores[order]), PRESETS[preset])
    np.testing.assert_allclose(shuffled, marginals[order], atol=1e-4)


def test_a_single_label_needs_no_crf():
    image, _ = noisy_scene()
    assert (dense_crf(image, np.zeros((1, 40, 50), np.float32), PRESETS["irn"]) == 1).all()


def maps_of(labels: list[int], scores: np.ndarray, size: tuple[int, int]) -> ScoreMaps:
    return ScoreMaps(np.array(labels, np.int16), scores.astype(np.float32), size)


@pytest.mark.parametrize("preset", ["irn", "psa", "icd"])
def test_masks_carry_the_labels_of_the_classes_not_their_positions(preset):
    image, truth = noisy_scene()
    scores = np.stack([truth * 0.9, np.zeros_like(truth) + 0.01])
    mask = crf_mask(CrfMasks(preset=preset), image, maps_of([7, 12], scores, (40, 50)), 0.3, classes=20)
    assert set(np.unique(mask)) == {0, 7}
    assert ((mask == 7) == (truth == 1)).mean() > 0.97


def test_an_image_without_classes_is_background():
    image, _ = noisy_scene()
    empty = maps_of([], np.zeros((0, 10, 13)), (40, 50))
    assert not crf_mask(CrfMasks(), image, empty, 0.2, classes=20).any()


def test_a_background_channel_takes_the_place_of_the_exponent():
    image, truth = noisy_scene()
    maps = maps_of([0, 5], np.stack([1 - 0.9 * truth, 0.9 * truth]), (40, 50))
    mask = crf_mask(CrfMasks(preset="psa"), image, maps, 0.3, classes=20)
    assert ((mask == 5) == (truth == 1)).mean() > 0.97


def test_settings_replace_the_presets_numbers():
    kernels = CrfMasks(preset="irn", bilateral_srgb=13.0).kernels()
    assert (kernels.bilateral_sxy, kernels.bilateral_srgb) == (50, 13.0)


@pytest.mark.parametrize(
    ("labels", "compats"), [(2, (1.0, 4.5, 20.0)), (3, (0.0, 10.0)), (12, (2.0, 10.0, 30.0)), (21, (2.0, 10.0))]
)
@pytest.mark.parametrize("preset", ["irn", "psa"])
def test_one_pass_gives_the_marginals_of_one_crf_for_each_strength(labels, compats, preset):
    """Three strengths of 12 labels, with 11 channels each, need two passes; 21 labels a CRF for each strength."""
    assert 2 * 11 <= crf.MOST_CHANNELS < 3 * 11
    assert crf.MOST_CHANNELS < 2 * 20
    image, truth = noisy_scene()
    generator = np.random.default_rng(labels)
    image = (image + generator.integers(0, 50, image.shape)).astype(np.uint8)
    scores = generator.random((labels, *truth.shape), dtype=np.float32) ** 3
    scores[1] += truth / 2
    unary, kernels = score_unary(scores), PRESETS[preset]
    for iterations in (1, 10):
        found = dense_crf_by_compat(image, unary, kernels, compats, iterations)
        assert len(found) == len(compats)
        for compat, marginals in zip(compats, found, strict=True):
            expected = dense_crf(image, unary, replace(kernels, bilateral_compat=compat), iterations)
            assert marginals.dtype == np.float32
            np.testing.assert_allclose(marginals, expected, atol=1e-4)
    assert np.abs(found[0] - found[-1]).max() > 0.1


def test_one_pass_by_hand_without_neighbours():
    """One pixel: each iteration adds to a logit (Gaussian + bilateral compat) times the marginal."""
    unary = np.log(np.array([[[2.0]], [[1.0]], [[4.0]]], np.float32))
    kernels = Kernels(3, 1, 50, 5, 10)
    for compat, found in zip((2.0, 5.0), dense_crf_by_compat(BLACK, unary, kernels, (2.0, 5.0), 1), strict=True):
        weights = np.exp(-unary + (1 + compat) * np.exp(-unary) / np.exp(-unary).sum())
        np.testing.assert_allclose(found, weights / weights.sum(), rtol=1e-5)


def test_strong_kernels_give_no_overflow():
    image, truth = noisy_scene()
    (marginals,) = dense_crf_by_compat(image, 90 * label_unary(truth, 2), PRESETS["irn"], [1000.0])
    np.testing.assert_array_equal(marginals[1], truth)


def test_a_single_label_needs_no_pass():
    image, _ = noisy_scene()
    found = dense_crf_by_compat(image, np.zeros((1, 40, 50), np.float32), PRESETS["irn"], [1.0, 2.0])
    assert [marginals.min() for marginals in found] == [1, 1]
