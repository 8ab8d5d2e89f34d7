"""Looks at every file of a data set and lists everything that is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from benchmark.errors import DataError
from benchmark.parallel import map_in_order
from datasets.base import IGNORE_INDEX, TAGS_FROM_MASKS, Dataset, Problem, Progress, Split
from datasets.files import decode_image, decode_mask
from datasets.tags import mask_labels


def check(dataset: Dataset, processes: int = 1, progress: Progress | None = None) -> list[Problem]:
    """Return every problem of a data set, in an order that does not depend on `processes`.

    Errors: a list, image, mask or saliency map that is missing or broken; sizes that differ; a mask with unknown
    labels; an id twice in a list, or in two of training, `val` and `test`; an empty split; no or unknown tags.
    Warnings: tags and mask that disagree; images of `weak` without a mask, which only the fully supervised bound
    needs. Every image and mask is decoded whole.
    """
    problems = [*dataset.layout_problems(), *_list_problems(dataset)]
    jobs = list(_jobs(dataset))
    unmasked = []
    for done, (job, found) in enumerate(zip(jobs, map_in_order(_look, jobs, processes), strict=True), start=1):
        problems += job.problems + found
        if job.masked == "perhaps" and not job.mask.exists():
            unmasked.append(job.mask)
        if progress is not None:
            progress(done, len(jobs))
    if unmasked:
        text = f"{len(unmasked)} images of `weak` have no mask, this is the first; full supervision needs them"
        problems.append(Problem("warning", unmasked[0], text))
    return problems


@dataclass(frozen=True)
class _Job:
    image: Path
    mask: Path
    masked: Literal["yes", "perhaps", "no"]
    saliency: Path | None
    tags: tuple[int, ...] | None
    """None where there are none to compare with the mask."""
    classes: tuple[str, ...]
    problems: list[Problem]


def _list_problems(dataset: Dataset) -> Iterator[Problem]:
    for split in (Split.WEAK, Split.TRAIN, Split.VAL, Split.TEST):
        ids = dataset.ids(split)
        for image_id, count in Counter(ids).items():
            if count > 1:
                yield Problem(
                    "error", dataset.list_file(split), f"{image_id} is listed {count} times in `{split}`"
                )
        if not ids and split is not Split.TEST:
            yield Problem("error", dataset.list_file(split), f"the split `{split}` is empty")
    training = {i: s for s in (Split.TRAIN, Split.WEAK) for i in dataset.ids(s)}
    val = dict.fromkeys(dataset.ids(Split.VAL), Split.VAL)
    for seen, split in ((training, Split.VAL), ({**training, **val}, Split.TEST)):
        for image_id in dict.fromkeys(dataset.ids(split)):
            if image_id in seen:
                text = f"{image_id} is in `{split}` and in `{seen[image_id]}`"
                yield Problem("error", dataset.list_file(split), text)


def _jobs(dataset: Dataset) -> Iterator[_Job]:
    scored = {*dataset.ids(Split.TRAIN), *dataset.ids(Split.VAL)}
    weak = {*dataset.ids(Split.WEAK)}
    for image_id in dict.fromkeys(i for split in Split for i in dataset.ids(split)):
        problems: list[Problem] = []
        tags = None
        labelled = image_id in scored or image_id in weak
        if labelled and dataset.tag_source != TAGS_FROM_MASKS:
            try:
                tags = dataset.tags(image_id)
            except DataError as error:
                problems.append(_problem(error))
        yield _Job(
            image=dataset.image_path(image_id),
            mask=dataset.mask_path(image_id),
            masked="yes" if image_id in scored else "perhaps" if labelled else "no",
            saliency=dataset.saliency_path(image_id) if labelled else None,
            tags=tags,
            classes=dataset.classes,
            problems=problems,
        )


def _look(job: _Job) -> list[Problem]:
    problems: list[Problem] = []
    size = None
    try:
        size = decode_image(job.image).shape[:2]
    except DataError as error:
        problems.append(_problem(error))
    if job.masked == "yes" or (job.masked == "perhaps" and job.mask.exists()):
        problems += _look_at_mask(job, size)
    if job.saliency is not None:
        try:
            problems += _compare_sizes(job.saliency, decode_mask(job.saliency, palette=False).shape, size)
        except DataError as error:
            problems.append(_problem(error))
    return problems


def _look_at_mask(job: _Job, size: tuple[int, ...] | None) -> Iterator[Problem]:
    try:
        mask = decode_mask(job.mask)
    except DataError as error:
        yield _problem(error)
        return
    yield from _compare_sizes(job.mask, mask.shape, size)
    unknown = [int(v) for v in np.unique(mask) if len(job.classes) < v < IGNORE_INDEX]
    if unknown:
        yield Problem("error", job.mask, f"labels {unknown} are outside 0..{len(job.classes)} and 255")
    shown = mask_labels(mask, len(job.classes))
    if job.tags is not None and shown != job.tags:
        tagged, seen = (" ".join(job.classes[i - 1] for i in which) or "nothing" for which in (job.tags, shown))
        yield Problem("warning", job.mask, f"shows {seen}, the tags are {tagged}")


def _compare_sizes(path: Path, found: tuple[int, ...], image: tuple[int, ...] | None) -> list[Problem]:
    if image is None or found == image:
        return []
    text = f"is {found[1]}x{found[0]} pixels, its image {image[1]}x{image[0]}"
    return [Problem("error", path, text)]


def _problem(error: DataError) -> Problem:
    # The message of every DataError begins with the file.
    file, _, text = str(error).partition(": ")
    return Problem("error", Path(file), text)
