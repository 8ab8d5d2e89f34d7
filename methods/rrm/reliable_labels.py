"""Reliable labels of RRM: the few pixels of a crop whose class the maps and a dense CRF are sure of.

Paper: Zhang et al., "Reliability Does Matter", AAAI 2020, equations (3) to (7).

The authors' code does not do what equations (6) and (7) say (docs/methods.md, RRM, R3 to R5): `rule="code"` is
the code, `rule="paper"` the equations. Equation (6) does not define the case that many background pixels have a
score of 1, which is then the threshold itself: they are kept.

Departures: a class without candidates gets no label (the code raises IndexError), and an image without tags is
background everywhere (the code raises ValueError).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from seedbed.benchmark.evaluation.maps import resize_bilinear
from seedbed.datasets.base import IGNORE_INDEX
from seedbed.methods.refine.crf import PRESETS, background_by_exponent, dense_crfs, score_unary

Crop = tuple[NDArray[np.uint8], tuple[int, ...], NDArray[np.float32]]
"""RGB (H, W, 3); the labels of the tagged classes, ascending; their maps (K, h, w), at least 0."""


Rule = Literal["code", "paper", "cam"]
"""The authors' code, equations (6) and (7), or (6) alone: what Table 2 compares with."""


@dataclass(frozen=True)
class ReliableLabels:
    """Maps a crop to labels uint8 (H, W): 0, tagged classes, and 255 for unsure pixels."""

    rule: Rule = "code"
    low_exponent: float = 4.0
    """α of the background (1 − max)^α for the CRF that finds foreground; other rules use only this CRF."""
    high_exponent: float = 32.0
    """α of the background for the CRF that finds background."""
    share: float = 0.4
    """Share of a class's candidates that are labelled: those with the highest scores."""
    foreground_floor: float = 0.1
    """Minimum score of candidates, exclusive."""
    background_floor: float = 0.8
    """Minimum score of background pixels with `high_exponent`, exclusive."""
    crf_floor: float = 0.8
    """Minimum marginal of a label."""

    def __call__(self, crop: Crop) -> NDArray[np.uint8]:
        """Return the labels of one crop."""
        image, tags, maps = crop
        if not tags:
            return np.zeros(image.shape[:2], np.uint8)
        scores = resize_bilinear(maps, image.shape[:2])
        scores = scores / (scores.max((1, 2), keepdims=True) + np.float32(1e-5))
        rules = {"code": self.by_code, "paper": self.by_paper, "cam": self.by_cam}
        positions, sure = rules[self.rule](image, scores)
        return np.where(sure, np.array([0, *tags], np.uint8)[positions], np.uint8(IGNORE_INDEX))

    def by_code(
        self, image: NDArray[np.uint8], scores: NDArray[np.float32]
    ) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Return positions among background and the tagged classes, and the sure pixels, both (H, W).

        `scores` is (K, H, W), each class at most 1.
        """
        candidates = with_background(scores, self.high_exponent)
        cam = candidates.argmax(0)
        low, high = self._crf(image, scores, self.low_exponent, self.high_exponent)
        foreground, background = low.argmax(0), high.argmax(0) == 0
        sure = np.zeros(background.shape, bool)
        for position in np.unique(foreground):
            score = candidates[position]
            floor = self.background_floor if position == 0 else self.foreground_floor
            own = (cam == position) & (score > floor)
            if position > 0 and own.any():
                own &= score > self._threshold(score[own])
            sure |= own
        # If neither CRF decides, there is no label.
        sure &= background | (foreground > 0)
        sure &= np.maximum(high[0], low[1:].max(0)) >= self.crf_floor
        return np.where(background, 0, foreground), sure

    def by_paper(
        self, image: NDArray[np.uint8], scores: NDArray[np.float32]
    ) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Return the same by equations (6), with one threshold per class and image, and (7)."""
        cam, sure = self.by_cam(image, scores)
        (marginals,) = self._crf(image, scores, self.low_exponent)
        return cam, sure & (marginals.argmax(0) == cam)

    def by_cam(
        self, image: NDArray[np.uint8], scores: NDArray[np.float32]
    ) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Return the same by equation (6) alone: each class's highest scores, without a CRF."""
        candidates = with_background(scores, self.low_exponent)
        cam, best = candidates.argmax(0), candidates.max(0)
        sure = np.zeros(cam.shape, bool)
        for position in np.unique(cam):
            own = cam == position
            sure |= own & (best >= self._threshold(best[own]))
        return cam, sure

    def _crf(
        self, image: NDArray[np.uint8], scores: NDArray[np.float32], *exponents: float
    ) -> list[NDArray[np.float32]]:
        unaries = [score_unary(with_background(scores, exponent)) for exponent in exponents]
        return dense_crfs(image, unaries, PRESETS["psa"])

    def _threshold(self, values: NDArray[np.float32]) -> np.float32:
        """Return the value above which the share of `values` lies."""
        # Rounded first: (1 − 0.8) · 5 is a little less than 1.
        rank = int(round((1 - self.share) * len(values), 6))
        threshold: np.float32 = np.sort(values)[rank]
        return threshold


def with_background(scores: NDArray[np.float32], exponent: float) -> NDArray[np.float32]:
    """Return (1 + K, H, W): the background score (1 − max)^exponent (equation 4), then the classes."""
    return np.concatenate([background_by_exponent(scores, exponent)[None], scores])
