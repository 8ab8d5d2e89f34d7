"""What all thresholds at once cost, against one threshold. Run: python -m tests.performance.threshold_curve

Both begin with the maps at full size (float32, 500x375) and end with a confusion matrix of the split: for one
threshold (argmax, comparison, one bincount), and for a hundred (ThresholdCurve).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from seedbed.benchmark.evaluation.maps import ScoreMaps, resize_bilinear
from seedbed.benchmark.evaluation.metrics import Confusion, ThresholdCurve
from seedbed.benchmark.evaluation.scoring import predict

CLASSES, HEIGHT, WIDTH, IMAGES, REPEATS = 20, 375, 500, 24, 5
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


def milliseconds(task: Callable[[list[Image]], None], images: list[Image]) -> float:
    """Return the median time of one image."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        task(images)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times) / len(images)


def main() -> None:
    """Print both times and their ratio."""
    images = [synthetic(seed) for seed in range(IMAGES)]
    one, curve = milliseconds(one_threshold, images), milliseconds(all_thresholds, images)
    print(f"one threshold   {one:6.2f} ms an image")
    print(f"100 thresholds  {curve:6.2f} ms an image, {curve / one:.2f} times as much")


if __name__ == "__main__":
    main()
