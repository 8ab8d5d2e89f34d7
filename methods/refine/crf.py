"""Dense CRF (Krähenbühl & Koltun, NIPS 2011) on seeds, with the presets of the papers' codes.

`PRESETS` holds the numbers (docs/methods.md): standard deviations in pixels of the image's own size and in 0–255
colour units, Potts compatibilities, ten mean-field iterations on the raw RGB image. Only the labels present in
an image compete, except for `icd`, which uses all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import FloatDistribution

from seedbed.benchmark.evaluation.maps import ScoreMaps, opened
from seedbed.benchmark.evaluation.threshold import SelectThreshold, read_threshold, seed_mask, threshold_mask
from seedbed.benchmark.pipeline.hparams import hp
from seedbed.benchmark.pipeline.stage import Context, Kind, Meta, Stage
from seedbed.datasets.base import IGNORE_INDEX, Dataset, SplitView
from seedbed.datasets.io.images import write_mask

LEAST_LIKELY = 0.1
"""After ICD's CRF, a pixel whose best label is less likely gets 255 (ICD code)."""
MOST_CHANNELS = 32
"""Channels that `dense_crf_by_compat` filters at once; more gain nothing."""
BLOCK = 1 << 14
"""Rows of logits that are exponentiated at once, so that they stay in the processor's cache."""


@dataclass(frozen=True)
class Kernels:
    """The pairwise terms of one preset."""

    gaussian_sxy: float
    gaussian_compat: float
    bilateral_sxy: float
    bilateral_srgb: float
    bilateral_compat: float


PRESETS: dict[str, Kernels] = {
    "psa": Kernels(3, 3, 80, 13, 10),
    "irn": Kernels(3, 3, 50, 5, 10),
    "icd": Kernels(3, 3, 80, 13, 10),
    "rrm_test": Kernels(3, 3, 83, 5, 4),
    "deeplab": Kernels(1, 3, 67, 3, 4),
}


def dense_crf(
    image: NDArray[np.uint8], unary: NDArray[np.float32], kernels: Kernels, iterations: int = 10
) -> NDArray[np.float32]:
    """Return the marginals float32 (L, H, W), summing to 1, of a dense CRF.

    `image` is uint8 (H, W, 3) RGB, `unary` float32 (L, H, W): negative log scores, of any normalisation.
    """
    (marginals,) = dense_crfs(image, [unary], kernels, iterations)
    return marginals


def dense_crfs(
    image: NDArray[np.uint8], unaries: Sequence[NDArray[np.float32]], kernels: Kernels, iterations: int = 10
) -> list[NDArray[np.float32]]:
    """Return `dense_crf` of several unaries of one shape; the filters of the image are built once."""
    labels, height, width = unaries[0].shape
    if labels == 1:
        return [np.ones_like(unary) for unary in unaries]
    crf = _with_filters(image, labels, kernels, kernels.bilateral_compat)
    marginals = []
    for unary in unaries:
        crf.setUnaryEnergy(np.ascontiguousarray(unary.reshape(labels, -1), np.float32))
        marginals.append(np.array(crf.inference(iterations), np.float32).reshape(labels, height, width))
    return marginals


def dense_crf_by_compat(
    image: NDArray[np.uint8],
    unary: NDArray[np.float32],
    kernels: Kernels,
    compats: Sequence[float],
    iterations: int = 10,
) -> list[NDArray[np.float32]]:
    """Return `dense_crf` for each of `compats` in place of `kernels.bilateral_compat`, equal up to rounding.

    The filters of the image are built once. They are linear and treat channels alike, so one pass filters the
    channels of many CRFs. As only differences of logits matter, L labels need L − 1 channels: the marginal of each
    label minus that of label 0. Where fewer than two CRFs fit into MOST_CHANNELS, each runs alone.
    """
    from pydensecrf.eigen import matrixXf

    others = len(unary) - 1
    if others == 0 or 2 * others > MOST_CHANNELS:
        alone = (replace(kernels, bilateral_compat=compat) for compat in compats)
        return [dense_crf(image, unary, changed, iterations) for changed in alone]
    energies = np.asarray(unary[1:] - unary[0], np.float32).reshape(others, -1)
    at_once = MOST_CHANNELS // others
    marginals: list[NDArray[np.float32]] = []
    for start in range(0, len(compats), at_once):
        weights = np.array(compats[start : start + at_once], np.float32)
        energy = np.tile(energies, (len(weights), 1))
        # pydensecrf adds an array to the energies, and subtracts a number, which is a Potts compatibility.
        crf = _with_filters(image, len(energy), kernels, -weights.repeat(others))
        crf.setUnaryEnergy(energy)
        logits, (differences, _, filtered) = matrixXf(-energy), crf.startInference()
        for _ in range(iterations):
            rows, into = _rows(logits, others), _rows(differences, others)
            for block in range(0, len(rows), BLOCK):
                probabilities = _softmax(rows[block : block + BLOCK])
                into[block : block + BLOCK] = (probabilities[1:] - probabilities[0]).T
            crf.stepInference(differences, logits, filtered)
        by_compat = _rows(logits, others).reshape(-1, len(weights), others)
        marginals += [_softmax(by_compat[:, i]).reshape(unary.shape) for i in range(len(weights))]
    return marginals


def _with_filters(image: NDArray[np.uint8], channels: int, kernels: Kernels, bilateral_compat: Any) -> Any:
    """Return a `DenseCRF2D` of the image with the filters of the kernels."""
    from pydensecrf.densecrf import DenseCRF2D

    crf = DenseCRF2D(image.shape[1], image.shape[0], channels)
    crf.addPairwiseGaussian(sxy=kernels.gaussian_sxy, compat=kernels.gaussian_compat)
    crf.addPairwiseBilateral(
        sxy=kernels.bilateral_sxy,
        srgb=kernels.bilateral_srgb,
        rgbim=np.array(image, np.uint8, order="C"),
        compat=bilateral_compat,
    )
    return crf


def _rows(matrix: Any, columns: int) -> NDArray[np.float32]:
    """Return a view (…, columns) of pydensecrf's matrix (channels, pixels), whose memory goes pixel by pixel."""
    return np.asarray(matrix).T.reshape(-1, columns)


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the probabilities (L, N) of logits (N, L − 1) relative to that of label 0."""
    columns = np.ascontiguousarray(logits.T)
    highest = np.maximum(columns.max(0), 0)
    probabilities = np.exp(np.concatenate([-highest[None], columns - highest]))
    return probabilities / probabilities.sum(0)


def score_unary(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return −log of scores or probabilities (L, H, W), clipped at 1e-5, not normalised (PSA, DeepLab)."""
    return -np.log(np.maximum(scores, 1e-5, dtype=np.float32))


def label_unary(labels: NDArray[np.uint8], count: int, confidence: float = 0.7) -> NDArray[np.float32]:
    """Return the unary of hard labels 0..count−1 (H, W): `confidence`, the rest shared by the others (IRN)."""
    other = (1 - confidence) / max(1, count - 1)
    chosen = labels[None] == np.arange(count)[:, None, None]
    return -np.log(np.where(chosen, confidence, other)).astype(np.float32)


def icd_unary(labels: NDArray[np.uint8], count: int) -> NDArray[np.float32]:
    """Return ICD's unary over all `count` labels: 0.5 against 0.5/count, renormalised; 255 is uniform."""
    chosen = labels[None] == np.arange(count)[:, None, None]
    scores = np.where(chosen, 0.5, 0.5 / count)
    scores[:, labels == IGNORE_INDEX] = 1.0
    return -np.log(scores / scores.sum(0)).astype(np.float32)


def background_by_exponent(scores: NDArray[np.float32], exponent: float) -> NDArray[np.float32]:
    """Return the background score (1 − max over classes)^exponent, (H, W), of maps (K, H, W) in [0, 1]."""
    return (1 - scores.max(0)) ** np.float32(exponent)


@dataclass(frozen=True, kw_only=True)
class CrfStage(Stage):
    """The settings of a dense CRF on thresholded seeds (`irn`, `icd`) or on the maps themselves (`psa`)."""

    consumes = (Kind.SCORES, Kind.THRESHOLD)
    seeded = False

    preset: Literal["irn", "psa", "icd"] = hp("irn", source="docs/methods.md, Dense CRF", report_as="crf_preset")
    background_exponent: float = hp(
        16.0,
        FloatDistribution(1.0, 32.0, log=True),
        when=("preset", "psa"),
        source="PSA code: (1 − max)^16; used by the preset psa only",
    )
    bilateral_sxy: float | None = hp(
        None, FloatDistribution(20, 120), low=1, high=500, source="none: the preset's"
    )
    bilateral_srgb: float | None = hp(
        None, FloatDistribution(2, 20), low=0.1, high=255, source="none: the preset's"
    )
    iterations: int = hp(10, low=1, high=100, source="PSA, IRN and ICD code")

    def kernels(self) -> Kernels:
        """Return the preset's kernels with the stage's changes."""
        given = {field.name: getattr(self, field.name, None) for field in fields(Kernels)}
        return replace(PRESETS[self.preset], **{name: v for name, v in given.items() if v is not None})

    def labels_and_unary(
        self, maps: ScoreMaps, threshold: float, classes: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Return the labels that compete (L,), and their unary float32 (L, H, W), of the maps of one image.

        `classes` is the number of foreground classes of the data set; only `icd` uses absent ones.
        """
        present = np.array([0, *(label for label in maps.labels if label != 0)], np.uint8)
        if len(present) == 1:
            return present, np.zeros((1, *maps.size), np.float32)
        if self.preset == "psa":
            scores = maps.at_full_size()
            if maps.labels[0] != 0:
                scores = np.concatenate([background_by_exponent(scores, self.background_exponent)[None], scores])
            return present, score_unary(scores)
        if self.preset == "icd":
            unary = icd_unary(seed_mask(maps, threshold), classes + 1)
            return np.arange(classes + 1, dtype=np.uint8), unary
        positions = np.searchsorted(present, threshold_mask(maps, threshold)).astype(np.uint8)
        return present, label_unary(positions, len(present))

    def mask(self, competing: NDArray[np.uint8], marginals: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return labels uint8 (H, W) by marginals (L, H, W); of `icd`, 255 where the best is less than 0.1."""
        labels = competing[marginals.argmax(0)]
        if self.preset == "icd":
            labels[marginals.max(0) < LEAST_LIKELY] = IGNORE_INDEX
        return labels


@dataclass(frozen=True, kw_only=True)
class CrfMasks(CrfStage):
    """Pseudo-masks by dense CRF."""

    version = 2
    produces = Kind.MASKS

    bilateral_compat: float | None = hp(
        None, FloatDistribution(1, 20), low=0, high=100, source="none: the preset's"
    )

    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Write one palette PNG per image of the context's split."""
        view = data.split(ctx.split)
        threshold = read_threshold(inputs[Kind.THRESHOLD])
        ctx.for_each_image(partial(self.refine, view, inputs[Kind.SCORES], threshold, out), view.ids, "CrfMasks")

    def refine(self, view: SplitView, scores: Path, threshold: float, out: Path, image_id: str) -> None:
        """Make and write the mask of one image."""
        image, maps = view.image(image_id), opened(scores).read(image_id)
        write_mask(out / f"{image_id}.png", crf_mask(self, image, maps, threshold, len(view.classes)))


def crf_mask(
    stage: CrfMasks, image: NDArray[np.uint8], maps: ScoreMaps, threshold: float, classes: int
) -> NDArray[np.uint8]:
    """Return labels uint8 (H, W) of the maps of one image (H, W, 3) after the stage's CRF.

    `classes` is the number of foreground classes of the data set; only `icd` uses absent ones.
    """
    competing, unary = stage.labels_and_unary(maps, threshold, classes)
    return stage.mask(competing, dense_crf(image, unary, stage.kernels(), stage.iterations))


@dataclass(frozen=True)
class WritePrediction:
    """Writes the mask of one image from a network's probabilities, after a CRF; sent to worker processes."""

    view: SplitView
    preset: Literal["none", "deeplab", "rrm_test"]
    out: Path
    tagged_only: bool = False
    """Only background and the image's tags compete."""

    def __call__(self, prediction: tuple[str, NDArray[np.float32]]) -> None:
        """Take the image id and softmax probabilities float32 (C + 1, H, W) at the image's own size."""
        image_id, probabilities = prediction
        labels = np.arange(len(probabilities), dtype=np.uint8)
        if self.tagged_only:
            labels = np.array([0, *self.view.tags(image_id)], np.uint8)
            probabilities = probabilities[labels]
        if self.preset != "none":
            unary = score_unary(probabilities)
            probabilities = dense_crf(self.view.image(image_id), unary, PRESETS[self.preset])
        write_mask(self.out / f"{image_id}.png", labels[probabilities.argmax(0)])


@dataclass(frozen=True)
class Crf:
    """Threshold, then dense CRF on the seed."""

    name: str = "crf"
    paper: str = "Krähenbühl & Koltun, NIPS 2011; settings of IRN, PSA and ICD"

    def refine(self, meta: Meta, fixed_threshold: float) -> list[Stage]:
        """Choose a threshold, and refine the thresholded seed."""
        return [SelectThreshold(value=fixed_threshold), CrfMasks()]


REFINER = Crf()
