"""What all thresholds at once cost, against one threshold. Run: python -m tests.performance.threshold_curve

Both begin with the maps at full size (float32, 500x375) and end with a confusion matrix of the split: for one
threshold (argmax, comparison, one bincount), and for a hundred (ThresholdCurve).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from seedbed.benchmark.evaluation.maps import ScoreMaps, resize_bilinear
from seedbed.benchmark.evaluation.metrics import Confusion, ThresholdCurve
from seedbed.benchmark.evaluation.scoring import predict
from tests.helpers.measurement import Row, least_seconds, print_table

CLASSES, HEIGHT, WIDTH, IMAGES = 20, 375, 500, 24
Image = tuple[np.ndarray, ScoreMaps]


def synthetic(seed: int) -> Image:
    """Return a mask with a border of 255, and smooth maps of one to three classes at full size."""
    generator = np.random.default_rng(seed)
    labels = np.sort(generator.choice(np.arange(1, CLASSES + 1), 1 + seed % 3, replace=False)).astype(np.int16)
    truth = np.zeros((HEIGHT, WIDTH), np.uint8)
    for label in labels:
        top, left = generator.integers(0, HEIGHT // 2), generator.integers(0, WIDTH // 2)
        truth[top : top + 150, left : left + 200] = 255
        truth[top + 3 : top + 147, left + 3 : left + 197] = label
    coarse = generator.random((len(labels), 24, 32), dtype=np.float32)
    return truth, ScoreMaps(labels, resize_bilinear(coarse, (HEIGHT, WIDTH)), (HEIGHT, WIDTH))


def one_threshold(images: list[Image]) -> None:
    """Confusion matrix at 0.15."""
    confusion = Confusion.empty(CLASSES)
    for truth, maps in images:
        best, score, _ = predict(maps)
        confusion.update(truth, np.where(score > np.float32(0.15), best, np.uint8(0)))


def all_thresholds(images: list[Image]) -> None:
    """Confusion matrices at 0.00, 0.01 … 0.99."""
    curve = ThresholdCurve.empty(CLASSES)
    for truth, maps in images:
        best, score, _ = predict(maps)
        curve.update(truth, best, score)


def rows() -> Iterator[Row]:
    """Measure both for one image."""
    images = [synthetic(seed) for seed in range(IMAGES)]
    least = least_seconds({"one": lambda: one_threshold(images), "all": lambda: all_thresholds(images)})
    one, every = (1000 * least[name] / IMAGES for name in ("one", "all"))
    yield Row("Scores at 100 thresholds", "ms an image", every, "scores at one threshold", one)


if __name__ == "__main__":
    print_table({"threshold_curve": rows})
