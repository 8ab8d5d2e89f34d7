"""Reliable labels of RRM: the rules by hand on given CRFs, and against a slow transcription with the real one."""

from __future__ import annotations

import numpy as np
import pytest

from seedbed.benchmark.parallel import task_map
from seedbed.methods.refine.crf import PRESETS, dense_crf, dense_crfs, score_unary
from seedbed.methods.rrm import reliable_labels
from seedbed.methods.rrm.reliable_labels import ReliableLabels

GREY = np.full((1, 10, 3), 128, np.uint8)


def given_crfs(monkeypatch: pytest.MonkeyPatch, *marginals: np.ndarray) -> None:
    """Let the CRFs return `marginals`, each (labels, 10), one an exponent, whatever they are given."""
    results = [np.asarray(m, np.float32)[:, None] for m in marginals]
    monkeypatch.setattr(reliable_labels, "dense_crfs", lambda *_: results)


def row(*values: float) -> np.ndarray:
    """Return the map of one class on ten pixels in a row; its maximum is 1."""
    return np.array([[values]], np.float32)


def certain(*labels: int) -> np.ndarray:
    """Return marginals of two labels, of 0.9 and 0.1."""
    return np.where(np.arange(2)[:, None] == np.array(labels), 0.9, 0.1)


def test_the_code_labels_the_top_of_the_foreground_and_the_low_of_the_background(monkeypatch):
    """Eight candidates over 0.1; element ⌊0.6 · 8⌋ = 4 is 0.7; three are greater. (1 − 0.006)^32 = 0.82 > 0.8."""
    given_crfs(monkeypatch, certain(1, 1, 1, 1, 1, 1, 1, 1, 0, 0), certain(1, 1, 1, 1, 1, 1, 1, 1, 0, 0))
    maps = row(1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.006, 0.008)
    assert ReliableLabels()((GREY, (7,), maps)).tolist() == [[7, 7, 7, 255, 255, 255, 255, 255, 0, 255]]
    assert ReliableLabels(share=1.0)((GREY, (7,), maps)).tolist() == [[7] * 7 + [255, 0, 255]]


def test_the_code_takes_foreground_from_the_low_exponent_and_background_from_the_high(monkeypatch):
    """Sure by the map are pixels 0 to 2 (foreground) and 9. Of them: 0 is foreground in both CRFs, 1 background by
    the high one, 2 background by the low one alone, which is no label; 9 is background in both."""
    low, high = certain(1, 1, 0, 1, 1, 1, 1, 1, 1, 0), certain(1, 0, 1, 1, 1, 1, 1, 1, 1, 0)
    given_crfs(monkeypatch, low, high)
    maps = row(1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.05, 0.0)
    labels = ReliableLabels()((GREY, (2,), maps))
    assert labels.tolist() == [[2, 0, 255, 255, 255, 255, 255, 255, 255, 0]]


def test_the_code_labels_no_pixel_that_its_crfs_are_unsure_of(monkeypatch):
    low, high = certain(*[1] * 8, 0, 0), certain(*[1] * 8, 0, 0)
    low[:, 1] = high[:, 1] = (0.21, 0.79)
    high[:, 9] = (0.79, 0.21)
    given_crfs(monkeypatch, low, high)
    maps = row(1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.0, 0.0)
    labels = ReliableLabels()((GREY, (2,), maps))
    assert labels.tolist() == [[2, 255, 2, 255, 255, 255, 255, 255, 0, 255]]


def test_a_class_that_the_low_crf_does_not_see_makes_nothing_sure(monkeypatch):
    """Where the low CRF sees foreground alone, the map's background is no candidate."""
    given_crfs(monkeypatch, certain(*[1] * 10), certain(*[1] * 9, 0))
    maps = row(1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.0)
    assert ReliableLabels()((GREY, (2,), maps))[0, 9] == 255


def test_a_class_without_candidates_gets_no_label(monkeypatch):
    given_crfs(monkeypatch, certain(*[1] * 10), certain(*[1] * 10))
    assert (ReliableLabels()((GREY, (2,), np.zeros((1, 1, 10), np.float32))) == 255).all()


@pytest.mark.parametrize("rule", ["code", "paper"])
def test_an_image_without_tags_is_background(rule):
    assert (ReliableLabels(rule)((GREY, (), np.zeros((0, 1, 10), np.float32))) == 0).all()


@pytest.mark.parametrize(("share", "rank"), [(0.1, 9), (0.2, 8), (0.3, 7), (0.4, 6), (0.6, 4), (0.8, 2), (1.0, 0)])
def test_the_threshold_is_the_element_of_rank_one_minus_the_share(share, rank):
    """The ratios of Table 1; (1 − 0.8) · 10 is a little less than 2 in floating point."""
    values = np.random.default_rng(0).permutation(10).astype(np.float32)
    assert ReliableLabels(share=share)._threshold(values) == rank


def test_the_paper_takes_a_share_of_every_class_where_map_and_crf_agree(monkeypatch):
    """(1 − 0.3)^4 = 0.24 < 0.3 and (1 − 0.2)^4 = 0.41 > 0.2: six foreground pixels and four of background.

    Element 3 of the six is 0.7, element 2 of the four is 1, which two have: what is not below them stays.
    """
    given_crfs(monkeypatch, certain(1, 0, 1, 1, 1, 1, 0, 0, 0, 0))
    maps = row(1.0, 0.9, 0.7, 0.6, 0.5, 0.3, 0.2, 0.1, 0.0, 0.0)
    labels = ReliableLabels("paper")((GREY, (3,), maps))
    assert labels.tolist() == [[3, 255, 3, 255, 255, 255, 255, 255, 0, 0]]


def test_the_cam_alone_labels_a_share_of_every_class_whatever_a_crf_says(monkeypatch):
    """As above without the CRF: three of six foreground pixels, 0.7 and more, and the background that is 1."""
    given_crfs(monkeypatch, certain(*[0] * 10))
    maps = row(1.0, 0.9, 0.7, 0.6, 0.5, 0.3, 0.2, 0.1, 0.0, 0.0)
    assert ReliableLabels("cam")((GREY, (3,), maps)).tolist() == [[3, 3, 3, 255, 255, 255, 255, 255, 0, 0]]


def slow_labels(image, tags, maps, share):
    """The code's rule pixel by pixel, in float64 but for the CRF and the powers that it gets."""
    height, width = image.shape[:2]
    scores = maps / (maps.max((1, 2), keepdims=True) + np.float32(1e-5))
    low_background, high_background = (((1 - scores.max(0)) ** np.float32(e))[None] for e in (4, 32))
    kernels = PRESETS["psa"]
    low = dense_crf(image, score_unary(np.concatenate([low_background, scores])), kernels)
    high = dense_crf(image, score_unary(np.concatenate([high_background, scores])), kernels)
    seen = {int(low[:, y, x].argmax()) for y in range(height) for x in range(width)}
    thresholds = {}
    for position in seen - {0}:
        candidates = sorted(
            float(scores[position - 1, y, x])
            for y in range(height)
            for x in range(width)
            if np.concatenate([high_background, scores])[:, y, x].argmax() == position
            and scores[position - 1, y, x] > 0.1
        )
        if candidates:
            thresholds[position] = candidates[int((1 - share) * len(candidates))]
    labels = np.full((height, width), 255, np.uint8)
    for y in range(height):
        for x in range(width):
            position = int(np.concatenate([high_background, scores])[:, y, x].argmax())
            if position == 0:
                sure = 0 in seen and high_background[0, y, x] > 0.8
            else:
                sure = position in thresholds and float(scores[position - 1, y, x]) > thresholds[position]
            if not sure or max(high[0, y, x], *low[1:, y, x]) < 0.8:
                continue
            if high[:, y, x].argmax() == 0:
                labels[y, x] = 0
            elif low[:, y, x].argmax() != 0:
                labels[y, x] = tags[low[:, y, x].argmax() - 1]
    return labels


def scene(seed: int) -> tuple[np.ndarray, tuple[int, ...], np.ndarray]:
    """Return a noisy image of two patches of colour, and maps of two classes that peak in them."""
    rng = np.random.default_rng(seed)
    image = rng.normal(90, 12, (24, 28, 3))
    image[4:14, 3:12] += (110, 0, 0)
    image[10:22, 15:26] += (0, 0, 110)
    ys, xs = np.mgrid[:24, :28]
    peaks = [np.exp(-((ys - y) ** 2 + (xs - x) ** 2) / s) for y, x, s in ((8, 7, 25), (16, 20, 18))]
    maps = np.stack(peaks) * 5 * rng.uniform(0.9, 1, (2, 24, 28))
    return image.clip(0, 255).astype(np.uint8), (2, 5), np.where(maps > 0.01, maps, 0).astype(np.float32)


@pytest.mark.parametrize("share", [0.4, 0.7])
def test_the_codes_rule_is_the_slow_one(share):
    seen = set()
    for seed in range(3):
        image, tags, maps = scene(seed)
        labels = ReliableLabels(share=share)((image, tags, maps))
        np.testing.assert_array_equal(labels, slow_labels(image, tags, maps, share))
        seen |= set(np.unique(labels).tolist())
    assert seen == {0, 2, 5, 255}


def test_several_unaries_give_the_marginals_of_each():
    image, _, maps = scene(0)
    unaries = [score_unary(maps / 5), score_unary(1 - maps / 5)]
    together = dense_crfs(image, unaries, PRESETS["psa"])
    for marginals, unary in zip(together, unaries, strict=True):
        np.testing.assert_array_equal(marginals, dense_crf(image, unary, PRESETS["psa"]))


def test_labels_do_not_depend_on_the_number_of_processes():
    crops = [scene(seed) for seed in range(4)]
    with task_map(0) as here, task_map(2) as there:
        for _ in range(2):
            alone, shared = list(here(ReliableLabels(), crops)), list(there(ReliableLabels(), crops))
            np.testing.assert_array_equal(alone, shared)
    assert any((labels != 255).any() for labels in alone)
