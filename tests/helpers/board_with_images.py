"""A small made-up sweep for tests of the statistics: runs, their images, and what a search drew."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from optuna.distributions import FloatDistribution, distribution_to_json

from seedbed.benchmark.evaluation.metrics import Confusion
from seedbed.leaderboard.data.per_image import ImageStatistics, RunImages
from seedbed.leaderboard.data.snapshot import Run
from tests.leaderboard.tables.test_leaderboard import make

CLASSES = ("background", "cat", "dog")
SPACE = {
    "TrainCam.lr": json.loads(distribution_to_json(FloatDistribution(1e-3, 1.0, log=True))),
    "Crf.weight": json.loads(distribution_to_json(FloatDistribution(0.0, 10.0))),
}


def confusions(skill: float, seed: int, images: int = 40) -> list[np.ndarray]:
    """Return confusion matrices int64 of images whose truth is the same for every skill and seed.

    `skill` in [0, 1] is the share of pixels that are right, but for noise that depends on the seed.
    """
    truth = np.random.default_rng(0).multinomial(400, [0.6, 0.25, 0.15], size=images)
    generator = np.random.default_rng([1, seed, round(1e6 * skill)])
    right = [[generator.binomial(count, skill) for count in of_image] for of_image in truth]
    found = []
    for of_image, hits in zip(truth, right, strict=True):
        matrix = np.diag(hits)
        for label, (count, hit) in enumerate(zip(of_image, hits, strict=True)):
            matrix[label, (label + 1) % 3] = count - hit
        found.append(matrix.astype(np.int64))
    return found


def images_of(matrices: Sequence[np.ndarray]) -> RunImages:
    """Return the statistics of images with these confusion matrices [truth, prediction]."""
    counts = np.stack([np.stack([np.diag(m), m.sum(1), m.sum(0)]) for m in matrices])
    return RunImages.of(tuple(f"image{number:03d}" for number in range(len(matrices))), counts)


def confirmed(skill: float, seeds: Sequence[int] = (0, 1, 2), **changes) -> list[tuple[Run, RunImages]]:
    """Return confirming runs on `val` with their images, a seed a run."""
    found = []
    for seed in seeds:
        matrices = confusions(skill, seed)
        total = Confusion(np.sum(matrices, axis=0))
        metrics = {"val/mIoU": total.miou(), "stage/a": 3600.0 * changes.get("hours", 1.0)}
        metrics |= {f"val/IoU_{name}": float(iou) for name, iou in zip(CLASSES, total.by_label(), strict=True)}
        rest = {name: value for name, value in changes.items() if name != "hours"}
        found.append((make(seed=seed, metrics=metrics, **rest), images_of(matrices)))
    return found


def searched(scores: Sequence[float], **changes) -> list[Run]:
    """Return search trials with these scores; the score of a suggested one is its drawn `TrainCam.lr`, nearly."""
    generator = np.random.default_rng(3)
    runs = []
    for number, score in enumerate(scores):
        drawn = {"TrainCam.lr": 10 ** (3 * score - 3), "Crf.weight": float(generator.uniform(0, 10))}
        runs.append(
            make(
                phase="search",
                settings="suggested" if number else "default",
                number=str(number),
                seed=1000,
                metrics={"pseudo_mask.tune/mIoU_tuned": score, f"stage/{number}": 60.0},
                parameters=json.dumps(drawn, sort_keys=True),
                space=json.dumps(SPACE, sort_keys=True),
                **changes,
            )
        )
    return runs


def statistics(*rows: Sequence[tuple[Run, RunImages]]) -> ImageStatistics:
    """Return the statistics of several rows' runs."""
    return ImageStatistics({run.key: images for row in rows for run, images in row})
