"""Every metric as a state that is updated image by image, takes constant memory, and can be merged.

Truth and predictions are labels uint8 (H, W): 0 background, 1..C classes, 255 ignored. Values are fractions
in [0, 1], never percent. No state depends on the order of the images or on how processes share them,
except for the last bits of the sums in `SoftScores`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.evaluation.maps import ScoreMaps

IGNORE = 255
RANKS = 65_536
THRESHOLDS: NDArray[np.float32] = (np.arange(100) / 100).astype(np.float32)
"""0.00, 0.01 … 0.99."""
ORACLE_LIMIT = 0.59
"""The best threshold is searched in 0.00 … 0.59 (docs/methods.md, Data)."""
Labels = NDArray[np.uint8]
Values = NDArray[np.float64]
Counts = NDArray[np.integer]
"""(…, 3, L): pixels that have each label in truth and prediction, in the truth, and in the prediction."""
COUNTED: Mapping[str, Callable[[NDArray, NDArray, NDArray], tuple[NDArray, NDArray]]] = {
    "IoU": lambda both, truth, predicted: (both, truth + predicted - both),
    "precision": lambda both, truth, predicted: (both, predicted),
    "recall": lambda both, truth, predicted: (both, truth),
    "F": lambda both, truth, predicted: (2 * both, truth + predicted),
}
"""The metrics of counted pixels: the parts of a ratio per label, from the three rows of Counts.

Each is recorded per label (`IoU_cat`), and as the mean over labels whose denominator is not 0 (`mIoU`). The parts
must be linear in the counts, so that the parts of a split are the sums of those of its images."""


def thresholds_with(*more: float) -> NDArray[np.float32]:
    """Return the usual thresholds and `more`, float32, ascending, without duplicates."""
    return np.unique(np.append(THRESHOLDS, np.array(more, np.float32)))


def threshold_index(thresholds: NDArray[np.float32], threshold: float) -> int:
    """Return the index of `threshold` in `thresholds`. Raises ConfigError if it is not among them."""
    places = np.flatnonzero(np.abs(thresholds - np.float32(threshold)) <= 1e-6)
    if len(places) == 0:
        raise ConfigError(
            f"the threshold {threshold} was not measured; the curve has {len(thresholds)} "
            f"from {thresholds[0]:g} to {thresholds[-1]:g}"
        )
    return int(places[0])


def counted_parts(metric: str, counts: Counts) -> tuple[NDArray, NDArray]:
    """Return numerator and denominator (…, L) of a metric of COUNTED, from Counts (…, 3, L)."""
    return COUNTED[metric](*np.moveaxis(counts, -2, 0))


def ratio(numerator: NDArray, denominator: NDArray) -> Values:
    """Return numerator / denominator, NaN where the denominator is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominator > 0, numerator / denominator, np.nan)


def mean_of_known(values: Values) -> Values:
    """Return the mean (…) over the last axis of the values (…, L) that are not NaN; NaN if there are none."""
    known = ~np.isnan(values)
    if values.ndim == 1:
        return values[known].mean() if known.any() else np.array(np.nan)
    # Several means at once; masked, not selected, so the last bit may differ from that of a single mean.
    return ratio(np.where(known, values, 0).sum(-1), known.sum(-1))


@dataclass
class Confusion:
    """A confusion matrix over a whole split."""

    matrix: NDArray[np.int64]
    """(C + 1, C + 1): pixels by [truth, prediction]."""

    @classmethod
    def empty(cls, classes: int) -> Confusion:
        """Return the state before the first image, for `classes` foreground classes."""
        return cls(np.zeros((classes + 1, classes + 1), np.int64))

    def update(self, truth: Labels, prediction: Labels, ignore_predicted: bool = False) -> NDArray[np.int64]:
        """Count one image and return its own matrix.

        A predicted 255 counts as background (IRN code). With `ignore_predicted` it is left out, as in ICD's
        script (docs/methods.md, Metrics).
        """
        size = len(self.matrix)
        counted = truth != IGNORE
        if ignore_predicted:
            counted &= prediction != IGNORE
        predicted = np.where(prediction == IGNORE, 0, prediction)[counted].astype(np.int64)
        pairs = truth[counted].astype(np.int64) * size + predicted
        own = np.bincount(pairs, minlength=size * size).reshape(size, size)
        self.matrix += own
        return own

    def merge(self, other: Confusion) -> None:
        """Add the counts of another part of the split."""
        self.matrix += other.matrix

    def by_label(self, metric: str = "IoU") -> Values:
        """Return a metric of COUNTED per label (C + 1,); NaN where its denominator is 0."""
        counts = np.stack([np.diag(self.matrix), self.matrix.sum(1), self.matrix.sum(0)])
        return ratio(*counted_parts(metric, counts))

    def miou(self) -> float:
        """Return the mean IoU over the labels whose union is not empty, background included; NaN if all are."""
        return float(mean_of_known(self.by_label()))

    def classes_counted(self) -> int:
        """Return the number of labels whose union is not empty."""
        return int((~np.isnan(self.by_label())).sum())


@dataclass(frozen=True)
class ImageCurve:
    """What one image adds to a ThresholdCurve: the nonzero cells of its histogram."""

    truth: NDArray[np.uint8]
    label: NDArray[np.uint8]
    """The best foreground class; 0 if the image has no maps."""
    passed: NDArray[np.uint8]
    """The number of thresholds that the score exceeds."""
    pixels: NDArray[np.int64]


@dataclass
class ThresholdCurve:
    """The exact confusion matrices of all thresholds, from one pass over the pixels.

    A prediction at threshold t is the argmax over the constant t for background and the class maps, so a pixel
    gets its best class if that score exceeds t. Only its truth, its best class, and the number of thresholds that
    its score exceeds matter.
    """

    thresholds: NDArray[np.float32]
    """(n,) ascending."""
    counts: NDArray[np.int64]
    """(C + 1, C + 1, n + 1): pixels by [truth, best class, thresholds passed]."""

    @classmethod
    def empty(cls, classes: int, thresholds: NDArray[np.float32] = THRESHOLDS) -> ThresholdCurve:
        """Return the state before the first image."""
        if len(thresholds) > 254 or (np.diff(thresholds) <= 0).any():
            raise ValueError("thresholds must ascend, and be at most 254")
        return cls(thresholds, np.zeros((classes + 1, classes + 1, len(thresholds) + 1), np.int64))

    def update(self, truth: Labels, best: Labels, score: NDArray[np.float32]) -> ImageCurve:
        """Count one image: its truth, best foreground class and that class's score, all (H, W)."""
        size, bins = self.counts.shape[1:]
        counted = truth != IGNORE
        passed = np.searchsorted(self.thresholds, score[counted], side="left")
        cell = (truth[counted].astype(np.int64) * size + best[counted]) * bins + passed
        pixels = np.bincount(cell, minlength=self.counts.size)
        self.counts += pixels.reshape(self.counts.shape)
        cells = np.flatnonzero(pixels)
        pair, own_passed = np.divmod(cells, bins)
        own_truth, label = np.divmod(pair, size)
        return ImageCurve(
            own_truth.astype(np.uint8), label.astype(np.uint8), own_passed.astype(np.uint8), pixels[cells]
        )

    def merge(self, other: ThresholdCurve) -> None:
        """Add the counts of another part of the split."""
        self.counts += other.counts

    def confusion(self, index: int) -> Confusion:
        """Return the confusion matrix at `thresholds[index]`."""
        matrix = self.counts[:, :, index + 1 :].sum(2)
        matrix[:, 0] += self.counts[:, :, : index + 1].sum((1, 2))
        return Confusion(matrix)

    def at(self, threshold: float) -> Confusion:
        """Return the confusion matrix at a threshold of the curve. Raises ConfigError for any other."""
        return self.confusion(threshold_index(self.thresholds, threshold))

    def miou(self) -> Values:
        """Return the mIoU at each threshold (n,)."""
        return np.array([self.confusion(i).miou() for i in range(len(self.thresholds))])

    def best(self) -> tuple[float, float]:
        """Return (threshold, mIoU) of the highest mIoU in 0.00, 0.01 … 0.59; the lowest of equal ones."""
        allowed = np.isin(self.thresholds, THRESHOLDS) & (self.thresholds <= np.float32(ORACLE_LIMIT))
        values = np.where(allowed, np.nan_to_num(self.miou(), nan=-1.0), -2.0)
        index = int(values.argmax())
        return round(float(self.thresholds[index]), 6), float(values[index])


@dataclass(frozen=True)
class ImageSoft:
    """The soft metrics of one image, by class in its true mask."""

    labels: NDArray[np.int64]
    overlap: Values
    precision: Values
    recall: Values


def soft_overlap(first: NDArray[np.floating], second: NDArray[np.floating]) -> Values:
    """Return Σmin/Σmax over pixels of maps (K, …) against maps (K, …), (K,); 0 if both are all zero.

    Splitting vs. Merging, Eq. 4; between two maps of the same class it is the similarity of its Table 1.
    """
    axes = tuple(range(1, first.ndim))
    smaller = np.minimum(first, second).sum(axes, dtype=np.float64)
    larger = np.maximum(first, second).sum(axes, dtype=np.float64)
    return np.nan_to_num(ratio(smaller, larger))


@dataclass
class SoftScores:
    """Soft overlap, precision and recall (Splitting vs. Merging, Eq. 4–6), mean over a class's images.

    For each image and each class c in its true mask, with M its map (0 if the class has none) and G its
    mask, over the pixels that are not 255: Σmin(M,G)/Σmax(M,G), Σmin(M,G)/ΣM, Σmin(M,G)/ΣG. An all-zero map has
    precision 0.
    """

    sums: Values
    """(3, C + 1): overlap, precision, recall, summed over images."""
    images: NDArray[np.int64]
    """(C + 1,): images of each class."""

    @classmethod
    def empty(cls, classes: int) -> SoftScores:
        """Return the state before the first image."""
        return cls(np.zeros((3, classes + 1)), np.zeros(classes + 1, np.int64))

    def update(self, truth: Labels, maps: ScoreMaps, full: NDArray[np.float32]) -> ImageSoft:
        """Count one image; `full` are its maps at full size (K, H, W)."""
        counted = truth != IGNORE
        inside = truth[counted]
        labels = np.array([label for label in np.unique(inside) if label != 0], np.int64)
        values = np.zeros((3, len(labels)))
        for column, label in enumerate(labels):
            row = np.flatnonzero(maps.labels == label)
            if len(row) == 0:
                continue
            scores = np.maximum(full[row[0]][counted], 0).astype(np.float64)
            target = inside == label
            common, area, total = np.minimum(scores, 1)[target].sum(), target.sum(), scores.sum()
            larger = np.maximum(scores, target).sum()
            values[:, column] = (common / larger, common / total if total > 0 else 0.0, common / area)
        self.sums[:, labels] += values
        self.images[labels] += 1
        return ImageSoft(labels, *values)

    def merge(self, other: SoftScores) -> None:
        """Add the sums of another part of the split."""
        self.sums += other.sums
        self.images += other.images

    def by_class(self) -> Values:
        """Return overlap, precision and recall by label (3, C + 1); NaN if a class has no image."""
        return ratio(self.sums, np.broadcast_to(self.images, self.sums.shape))


@dataclass
class PixelAp:
    """Average precision over pixels (ICD, Table 1): all pixels of a class's images, ranked by score.

    Scores are ranked as float16, in 65,536 bins, so memory is constant; equal scores are one step, as in
    scikit-learn's `average_precision_score`.
    """

    classes: int
    counts: dict[int, NDArray[np.int64]]
    """(2, 65536) by label, for the labels that occur: pixels of others and of this label, by score rank."""

    @classmethod
    def empty(cls, classes: int) -> PixelAp:
        """Return the state before the first image."""
        return cls(classes, {})

    def update(self, truth: Labels, maps: ScoreMaps, full: NDArray[np.float32]) -> None:
        """Count one image for each class in its true mask; a class without a map scores 0."""
        counted = truth != IGNORE
        inside = truth[counted]
        for label in np.unique(inside).tolist():
            if label == 0:
                continue
            row = np.flatnonzero(maps.labels == label)
            scores = full[row[0]][counted] if len(row) else np.zeros(len(inside), np.float32)
            cell = (inside == label).astype(np.int64) * RANKS + _rank(scores.astype(np.float16))
            self._add(label, np.bincount(cell, minlength=2 * RANKS).reshape(2, RANKS))

    def merge(self, other: PixelAp) -> None:
        """Add the counts of another part of the split."""
        for label, counts in other.counts.items():
            self._add(label, counts)

    def _add(self, label: int, counts: NDArray[np.int64]) -> None:
        if label in self.counts:
            self.counts[label] += counts
        else:
            self.counts[label] = counts.copy()

    def by_class(self) -> Values:
        """Return average precision by label (C + 1,); NaN for background and for a class without pixels."""
        values = np.full(self.classes + 1, np.nan)
        for label, counts in self.counts.items():
            others, positives = counts[:, ::-1]
            hits = np.cumsum(positives)
            ranked = np.maximum(hits + np.cumsum(others), 1)
            values[label] = float((positives / hits[-1] * (hits / ranked)).sum())
        return values


def _rank(scores: NDArray[np.float16]) -> NDArray[np.int64]:
    """Return the rank of each float16 among all 65,536 in ascending order; −0 and +0 are equal."""
    bits = (scores + np.float16(0)).view(np.uint16).astype(np.int64)
    return np.where(bits >= 0x8000, 0xFFFF - bits, bits + 0x8000)


@dataclass
class SignedSeeds:
    """Seeds of signed maps at thresholds T (ICD, Table 2), on the pixels that they label.

    A pixel gets its best class if that score exceeds T, background if all classes are below −T, and no label
    otherwise. Scores are scaled per image and class by their maximum and |minimum| first.
    """

    thresholds: tuple[float, ...]
    matrices: NDArray[np.int64]
    """(n, C + 1, C + 1): labelled pixels by [truth, prediction]."""
    truths: NDArray[np.int64]
    """(C + 1,): all pixels that are not 255, by truth."""

    @classmethod
    def empty(cls, classes: int, thresholds: Sequence[float] = (0.0, 0.1, 0.3, 0.5)) -> SignedSeeds:
        """Return the state before the first image."""
        size = classes + 1
        return cls(tuple(thresholds), np.zeros((len(thresholds), size, size), np.int64), np.zeros(size, np.int64))

    def update(self, truth: Labels, maps: ScoreMaps, full: NDArray[np.float32]) -> None:
        """Count one image; its maps must not have a background channel."""
        size = len(self.truths)
        counted = truth != IGNORE
        self.truths += np.bincount(truth[counted], minlength=size)
        if len(maps.labels) == 0:
            return
        high = np.maximum(full.max((1, 2), keepdims=True), 1e-12)
        low = np.maximum(-full.min((1, 2), keepdims=True), 1e-12)
        scaled = np.where(full > 0, full / high, full / low)
        best, score = maps.labels[scaled.argmax(0)], scaled.max(0)
        for index, threshold in enumerate(self.thresholds):
            seeds = np.full(truth.shape, IGNORE, np.uint8)
            seeds[score > threshold] = best[score > threshold]
            seeds[score < -threshold] = 0
            state = Confusion(self.matrices[index])
            state.update(truth, seeds, ignore_predicted=True)

    def merge(self, other: SignedSeeds) -> None:
        """Add the counts of another part of the split."""
        self.matrices += other.matrices
        self.truths += other.truths

    def results(self) -> list[dict[str, float]]:
        """Return threshold, mIoU of labelled pixels, recall and coverage, one dictionary per threshold.

        Recall is the mean over labels of correctly labelled pixels divided by true pixels; coverage is the share
        of labelled pixels.
        """
        return [
            {
                "threshold": threshold,
                "mIoU": Confusion(matrix).miou(),
                "recall": float(mean_of_known(ratio(np.diag(matrix), self.truths))),
                "coverage": float(matrix.sum() / max(1, self.truths.sum())),
            }
            for threshold, matrix in zip(self.thresholds, self.matrices, strict=True)
        ]
