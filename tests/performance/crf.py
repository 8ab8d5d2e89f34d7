"""What all strengths of the dense CRF cost in one pass, against one CRF for each, on photographs.

    python -m tests.performance.crf                    the passes alone, with two and three labels
    python -m tests.performance.crf search [images]    SelectCrf, against CrfMasks and its scores for each strength
    python -m tests.performance.crf stopping [images]  what it would save to stop a CRF early

The preset is `irn`; the labels are the true masks on a grid of 32 pixels, enlarged.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seedbed.benchmark.evaluation.formats import PngMasks
from seedbed.benchmark.evaluation.maps import MapWriter, ScoreMaps, resize_bilinear
from seedbed.benchmark.evaluation.scoring import score_masks
from seedbed.benchmark.pipeline.stage import Context, Kind
from seedbed.datasets.base import Dataset, Split
from seedbed.datasets.voc2012 import DATASET
from seedbed.methods.refine.crf import PRESETS, CrfMasks, dense_crf, dense_crf_by_compat, label_unary
from seedbed.methods.refine.crf_tuned import COMPATS, SelectCrf
from tests.helpers.measurement import Row, least_seconds, photographs, print_table

CELL, IRN = 32, PRESETS["irn"]
GOAL = 2
Problem = tuple[NDArray[np.uint8], NDArray[np.float32]]


def coarse(mask: NDArray[np.uint8], labels: Sequence[int]) -> NDArray[np.float32]:
    """Return the share of each label in the cells of a grid, float32 (L, h, w)."""
    height, width = (length // CELL * CELL for length in mask.shape)
    cells = (mask[:height, :width].reshape(height // CELL, CELL, -1, CELL) == label for label in labels)
    return np.array([inside.mean((1, 3)) for inside in cells], np.float32)


def problems(data: Dataset, images: int, labels: int) -> list[Problem]:
    """Return photographs with `labels` labels, background included, and their unaries."""
    view = data.split(Split.TRAIN)
    chosen = [image_id for image_id in view.ids if len(view.tags(image_id)) == labels - 1]
    found = []
    for image_id in chosen[:images]:
        mask = view.mask(image_id)
        shares = resize_bilinear(coarse(mask, [0, *view.tags(image_id)]), mask.shape)
        found.append((view.image(image_id), label_unary(shares.argmax(0).astype(np.uint8), labels)))
    return found


def one_by_one(of: Sequence[Problem], compats: Sequence[float]) -> None:
    """Run one CRF for each strength."""
    for image, unary in of:
        for compat in compats:
            dense_crf(image, unary, replace(IRN, bilateral_compat=compat))


def together(of: Sequence[Problem], compats: Sequence[float]) -> None:
    """Run one pass for all strengths."""
    for image, unary in of:
        dense_crf_by_compat(image, unary, IRN, compats)


def rows(images: int = 2) -> Iterator[Row]:
    """Measure the passes."""
    data = DATASET.open(photographs())
    for labels in (2, 3):
        of = problems(data, images, labels)
        for compats in (COMPATS[1::2], COMPATS):
            tasks = {"each": partial(one_by_one, of, compats), "all": partial(together, of, compats)}
            least = {name: seconds / images for name, seconds in least_seconds(tasks, rounds=1).items()}
            what = f"Dense CRF of an image, {labels} labels, {len(compats)} strengths, in one pass"
            yield Row(what, "s", least["all"], "one CRF for each", least["each"], GOAL)


def search(images: int = 40) -> Iterator[Row]:
    """Measure the search of `crf_tuned`; raises AssertionError if it finds other mIoUs than the masks have."""
    view = DATASET.open(photographs()).split(Split.TUNE)
    view = replace(view, ids=view.ids[:images])
    few: Any = SimpleNamespace(split=lambda split: view)
    with tempfile.TemporaryDirectory() as name:
        folder, expected = Path(name), {}
        with MapWriter(folder) as writer:
            for image_id in view.ids:
                mask, tags = view.mask(image_id), view.tags(image_id)
                writer.write(image_id, ScoreMaps(np.array(tags, np.int16), coarse(mask, tags), mask.shape))
        (folder / "threshold.json").write_text('{"threshold": 0.5}')
        inputs = {Kind.SCORES: folder, Kind.THRESHOLD: folder}
        context = Context(seed=0, split=Split.TUNE, scratch=folder)
        start = time.process_time()
        for compat in COMPATS:
            (masks := folder / f"{compat:g}").mkdir()
            CrfMasks(bilateral_compat=compat).run(few, inputs, masks, context)
            expected[f"{compat:g}"] = score_masks(PngMasks(masks), view).confusion.miou()
        middle = time.process_time()
        (found := folder / "found").mkdir()
        SelectCrf().run(few, inputs, found, context)
        end = time.process_time()
        miou = json.loads((found / "threshold.json").read_text())["crf"]["miou"]
    np.testing.assert_allclose([miou[compat] for compat in expected], [*expected.values()], atol=1e-4)
    what = f"Search over {len(COMPATS)} strengths on {len(view)} images"
    yield Row(what, "s", end - middle, "masks and scores for each", middle - start, GOAL)


def stopping(images: int = 8) -> None:
    """Print the iterations until no marginal changes by more than 0.01, and the pixels that then differ."""
    of = problems(DATASET.open(photographs()), images, 2)
    for compat in (1.0, 4.0, 10.0):
        kernels, needed, pixels, other = replace(IRN, bilateral_compat=compat), [], 0, 0
        for image, unary in of:
            states = [dense_crf(image, unary, kernels, iterations) for iterations in range(11)]
            changes = [np.abs(after - before).max() for before, after in pairwise(states)]
            needed.append(next((n for n, change in enumerate(changes, 1) if change <= 0.01), 10))
            pixels += image[..., 0].size
            other += (states[needed[-1]].argmax(0) != states[10].argmax(0)).sum()
        print(
            f"strength {compat:g}: {np.mean(needed):.1f} of 10 iterations, {sum(n < 10 for n in needed)} of "
            f"{len(needed)} images stop; {other} of {pixels} pixels differ",
            flush=True,
        )


def main() -> None:
    """Run the measurement that the command names."""
    number = [int(word) for word in sys.argv[2:3]]
    if sys.argv[1:2] == ["stopping"]:
        stopping(*number)
    elif sys.argv[1:2] == ["search"]:
        print_table({"crf": partial(search, *number)})
    elif sys.argv[1:] == []:
        print_table({"crf": rows})
    else:
        sys.exit("usage: python -m tests.performance.crf [search|stopping] [images]")


if __name__ == "__main__":
    main()
