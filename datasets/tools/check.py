"""Finds what is wrong with a data set: everything (`check`), or in seconds before a training (`preflight`)."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from seedbed.benchmark.errors import DataError
from seedbed.benchmark.parallel import map_in_order
from seedbed.datasets.base import IGNORE_INDEX, TAGS_FROM_MASKS, Dataset, Problem, Progress, Split
from seedbed.datasets.io.images import decode_grey, decode_image, decode_mask, is_turned
from seedbed.datasets.io.labels import MaskLabels
from seedbed.datasets.io.tags import Tags, mask_labels

NAMED = 20
"""Maximum number of problems that `preflight` names; it counts all."""
SAMPLE = 8
"""Images per split whose pixels `preflight` reads."""
DARK = 128
"""Saliency maps of a data set that stay below this are not scaled to 0..255."""
UNTAGGED = "no image of `weak` is tagged with a class"
LABELLED = (Split.WEAK, Split.TRAIN, Split.VAL)


def check(dataset: Dataset, processes: int = 1, progress: Progress | None = None) -> list[Problem]:
    """Return every problem of a data set, in an order that does not depend on `processes`.

    Errors: a list, image, mask or saliency map that is missing or broken; sizes that differ; a mask with unknown
    labels; an id twice in a list, or in two of training, `val` and `test`; an empty split; no or unknown tags;
    saliency maps that stay below half of 255. Warnings: tags and mask that disagree; masks that mostly show other
    classes than the tags; images of `weak` without a mask, which only the fully supervised bound needs; classes
    without a training image; images with an EXIF orientation; splits without a counted pixel; saliency maps that
    are black, or brighter on background than on objects. Every image and mask is decoded whole.
    """
    problems = [*dataset.layout_problems(), *_list_problems(dataset, (*LABELLED, Split.TEST)), *_overlaps(dataset)]
    jobs = list(_jobs(dataset))
    unmasked = []
    facts: dict[str, _Facts] = {}
    for done, (job, (found, seen)) in enumerate(zip(jobs, map_in_order(_look, jobs, processes), strict=True), 1):
        problems += job.problems + found
        facts[job.image_id] = seen
        if job.masked == "perhaps" and not job.mask.exists():
            unmasked.append(job.mask)
        if progress is not None:
            progress(done, len(jobs))
    if unmasked:
        text = f"{len(unmasked)} images of `weak` have no mask, this is the first; full supervision needs them"
        problems.append(Problem("warning", unmasked[0], text))
    from_masks = dataset.tag_source == TAGS_FROM_MASKS
    tags = {job.image_id: facts[job.image_id].labels if from_masks else job.tags for job in jobs}
    problems += [*_untrained_classes(dataset, tags), *_uncounted_splits(dataset, facts)]
    turned = [job.image for job in jobs if facts[job.image_id].turned]
    if turned:
        text = (
            f"{len(turned)} images have an EXIF orientation, this is the first; they are read as they are stored"
        )
        problems.append(Problem("warning", turned[0], f"{text}, so their masks must not be turned either"))
    problems += [*_other_classes(jobs, facts.values()), *_saliency_problems(jobs, facts.values())]
    return problems


def preflight(
    dataset: Dataset, *, allow_val_in_training: bool = False, full_supervision: bool = False, processes: int = 0
) -> list[str]:
    """Raise DataError, listing all problems, if a training on the data set would fail; return warnings.

    Looks at the lists, at the tags, at the existence of every file that a run needs, and at the pixels of a few
    masks and saliency maps, whose form is usually that of all. `full_supervision` also needs the masks of `weak`.
    With `processes`, the data set must pickle. A data set that a dry run plans, and that is not generated yet, has
    nothing to look at.
    """
    if not dataset.root.exists():
        return []
    problems = [problem for problem in dataset.layout_problems() if problem.severity == "error"]
    problems += _list_problems(dataset, LABELLED)
    overlaps = [] if allow_val_in_training else list(_overlaps(dataset, (Split.VAL,)))
    problems += [*overlaps, *_missing_files(dataset, full_supervision)]
    if not problems:
        problems += [*_no_tags(dataset), *_problems_of_a_sample(dataset)]
    if processes > 0 and (error := _pickling_error(dataset)):
        problems.append(
            Problem("error", dataset.root, f"cannot be sent to worker processes ({error}); use --workers 0")
        )
    warnings = [f"{problem.file}: {problem.message}" for problem in problems if problem.severity == "warning"]
    listed = [f"{problem.file}: {problem.message}" for problem in problems if problem.severity == "error"]
    if not listed:
        return warnings
    hint = "\nTo train on images of `val` on purpose, give --allow-val-in-training." if overlaps else ""
    if len(listed) == 1:
        raise DataError(listed[0] + hint)
    more = f"\n  … and {len(listed) - NAMED} more" if len(listed) > NAMED else ""
    shown = "\n  ".join(listed[:NAMED])
    raise DataError(f"{dataset.root}: {len(listed)} problems, found before any training:\n  {shown}{more}{hint}")


def without_masks(dataset: Dataset) -> list[Path]:
    """Return the masks of `weak` that do not exist, so that no network can be trained on true masks."""
    return [path for image_id in dataset.ids(Split.WEAK) if not (path := dataset.mask_path(image_id)).exists()]


def val_in_training(dataset: Dataset) -> tuple[str, ...]:
    """Return the ids of `val` that are also in `weak` or `train`."""
    training = {*dataset.ids(Split.WEAK), *dataset.ids(Split.TRAIN)}
    return tuple(i for i in dict.fromkeys(dataset.ids(Split.VAL)) if i in training)


@dataclass(frozen=True)
class _Job:
    image_id: str
    image: Path
    mask: Path
    masked: Literal["yes", "perhaps", "no"]
    saliency: Path | None
    tags: Tags | None
    """None if there are no tags to compare with the mask."""
    classes: tuple[str, ...]
    labels: MaskLabels
    problems: list[Problem]


@dataclass
class _Facts:
    """What was seen of an image; None if there is no such file, or a broken one."""

    labels: Tags | None = None
    """Of the mask."""
    counted: bool | None = None
    """Whether the mask has a pixel other than 255."""
    turned: bool = False
    """Whether the image has an EXIF orientation."""
    peak: int | None = None
    """Largest value of the saliency map, 0..255."""
    contrast: float | None = None
    """Mean saliency of the objects less that of the background; None also without either."""


def _list_problems(dataset: Dataset, splits: Iterable[Split]) -> Iterator[Problem]:
    for split in splits:
        ids = dataset.ids(split)
        for image_id, count in Counter(ids).items():
            if count > 1:
                yield Problem(
                    "error", dataset.list_file(split), f"{image_id} is listed {count} times in `{split}`"
                )
        if not ids and split is not Split.TEST:
            yield Problem("error", dataset.list_file(split), f"the split `{split}` is empty")


def _overlaps(dataset: Dataset, held_out: Sequence[Split] = (Split.VAL, Split.TEST)) -> Iterator[Problem]:
    """Yield the ids of `held_out` splits that are in an earlier split too."""
    seen = {i: s for s in (Split.WEAK, Split.TRAIN) for i in dataset.ids(s)}
    for split in held_out:
        ids = dict.fromkeys(dataset.ids(split), split)
        for image_id in ids:
            if image_id in seen:
                text = f"{image_id} is in `{split}` and in `{seen[image_id]}`"
                yield Problem("error", dataset.list_file(split), text)
        seen |= ids


def _missing_files(dataset: Dataset, full_supervision: bool) -> Iterator[Problem]:
    weak, train, val = ({*dataset.ids(split)} for split in LABELLED)
    from_masks = dataset.tag_source == TAGS_FROM_MASKS
    masked = train | val | (weak if full_supervision or from_masks else set())
    for image_id in dict.fromkeys(i for split in LABELLED for i in dataset.ids(split)):
        needed: list[Path | None] = [dataset.image_path(image_id)]
        needed.append(dataset.mask_path(image_id) if image_id in masked else None)
        needed.append(dataset.saliency_path(image_id) if image_id in weak | train else None)
        for path in needed:
            if path is not None and not path.exists():
                yield Problem("error", path, "no such file")
        if not from_masks:
            try:
                dataset.tags(image_id)
            except DataError as error:
                yield Problem.of(error)


def _problems_of_a_sample(dataset: Dataset) -> list[Problem]:
    """Return the errors that a few images show: of true masks in `train` and `val`, of saliency maps in `weak`.

    An image that cannot be read is not among them: it says nothing about the others, and the trial that needs it
    fails with its name.
    """
    chosen: dict[str, Split] = {}
    for split in LABELLED:
        ids = dataset.ids(split)
        chosen |= dict.fromkeys(ids[:: max(1, len(ids) // SAMPLE)][:SAMPLE], split)
    jobs = [_job(dataset, i, "no" if s is Split.WEAK else "yes", labelled=True) for i, s in chosen.items()]
    # No stage reads the saliency maps of `val`.
    jobs = [replace(job, saliency=None) if chosen[job.image_id] is Split.VAL else job for job in jobs]
    found = [_look(job) for job in jobs]
    problems = [problem for look, _ in found for problem in look]
    facts = [seen for _, seen in found]
    problems += _saliency_problems(jobs, facts)
    images = {dataset.image_path(image_id) for image_id in chosen}
    errors = [problem for problem in problems if problem.severity == "error" and problem.file not in images]
    return [*errors, *_other_classes(jobs, facts)]


def _pickling_error(dataset: Dataset) -> str:
    try:
        pickle.dumps(dataset)
    except Exception as error:  # pickle raises what the object's own code raises
        return f"{type(error).__name__}: {error}"
    return ""


def _jobs(dataset: Dataset) -> Iterator[_Job]:
    weak = {*dataset.ids(Split.WEAK)}
    scored = {*dataset.ids(Split.TRAIN), *dataset.ids(Split.VAL)}
    if dataset.tag_source == TAGS_FROM_MASKS:
        scored |= weak
    for image_id in dict.fromkeys(i for split in Split for i in dataset.ids(split)):
        labelled = image_id in scored or image_id in weak
        masked: Literal["yes", "perhaps", "no"] = "yes" if image_id in scored else "perhaps" if labelled else "no"
        yield _job(dataset, image_id, masked, labelled)


def _job(dataset: Dataset, image_id: str, masked: Literal["yes", "perhaps", "no"], labelled: bool) -> _Job:
    problems: list[Problem] = []
    tags = None
    if labelled and dataset.tag_source != TAGS_FROM_MASKS:
        try:
            tags = dataset.tags(image_id)
        except DataError as error:
            problems.append(Problem.of(error))
    return _Job(
        image_id=image_id,
        image=dataset.image_path(image_id),
        mask=dataset.mask_path(image_id),
        masked=masked,
        saliency=dataset.saliency_path(image_id) if labelled else None,
        tags=tags,
        classes=dataset.classes,
        labels=dataset.mask_labels,
        problems=problems,
    )


def _look(job: _Job) -> tuple[list[Problem], _Facts]:
    problems: list[Problem] = []
    facts = _Facts()
    size = mask = None
    try:
        size = decode_image(job.image).shape[:2]
        facts.turned = is_turned(job.image)
    except DataError as error:
        problems.append(Problem.of(error))
    if job.masked == "yes" or (job.masked == "perhaps" and job.mask.exists()):
        try:
            stored = decode_mask(job.mask)
            if unknown := job.labels.unknown(stored):
                text = f"labels {unknown} are outside 0..{job.labels.count} and 255"
                problems.append(Problem("error", job.mask, text))
            mask = job.labels.counted(stored)
            problems += _look_at_mask(job, mask, size)
            facts.labels, facts.counted = mask_labels(mask, len(job.classes)), bool((mask != IGNORE_INDEX).any())
        except DataError as error:
            problems.append(Problem.of(error))
    if job.saliency is not None:
        try:
            saliency = decode_grey(job.saliency)
            problems += _compare_sizes(job.saliency, saliency.shape, size)
            facts.peak, facts.contrast = int(saliency.max()), _contrast(saliency, mask)
        except DataError as error:
            problems.append(Problem.of(error))
    return problems, facts


def _look_at_mask(job: _Job, mask: NDArray[np.uint8], size: tuple[int, ...] | None) -> Iterator[Problem]:
    yield from _compare_sizes(job.mask, mask.shape, size)
    shown = mask_labels(mask, len(job.classes))
    if job.tags is not None and shown != job.tags:
        tagged, seen = (" ".join(job.classes[i - 1] for i in which) or "nothing" for which in (job.tags, shown))
        yield Problem("warning", job.mask, f"shows {seen}, the tags are {tagged}")


def _contrast(saliency: NDArray[np.uint8], mask: NDArray[np.uint8] | None) -> float | None:
    if mask is None or mask.shape != saliency.shape:
        return None
    objects, background = saliency[(mask != 0) & (mask != IGNORE_INDEX)], saliency[mask == 0]
    return float(objects.mean() - background.mean()) if objects.size and background.size else None


def _compare_sizes(path: Path, found: tuple[int, ...], image: tuple[int, ...] | None) -> list[Problem]:
    if image is None or found == image:
        return []
    text = f"is {found[1]}x{found[0]} pixels, its image {image[1]}x{image[0]}"
    return [Problem("error", path, text)]


def _untrained_classes(dataset: Dataset, tags: dict[str, Tags | None]) -> Iterator[Problem]:
    known = [found for image_id in dataset.ids(Split.WEAK) if (found := tags.get(image_id)) is not None]
    seen = {label for found in known for label in found}
    missing = [name for label, name in enumerate(dataset.classes, start=1) if label not in seen]
    if known and not seen:
        yield Problem("error", dataset.list_file(Split.WEAK), UNTAGGED)
    elif known and missing:
        text = f"{len(missing)} of {len(dataset.classes)} classes have no image in `weak`: {', '.join(missing)}"
        yield Problem("warning", dataset.list_file(Split.WEAK), text)


def _no_tags(dataset: Dataset) -> Iterator[Problem]:
    # Stops at the first image with a tag, so tags that come from masks cost little.
    try:
        if not any(dataset.tags(image_id) for image_id in dataset.ids(Split.WEAK)):
            yield Problem("error", dataset.list_file(Split.WEAK), UNTAGGED)
    except DataError as error:
        yield Problem.of(error)


def _other_classes(jobs: Sequence[_Job], facts: Iterable[_Facts]) -> Iterator[Problem]:
    """Yield a warning if most classes in the true masks of `train` and `val` are not tags of their images."""
    compared = [
        (job, {*seen.labels}, {*job.tags})
        for job, seen in zip(jobs, facts, strict=True)
        if job.masked == "yes" and job.tags is not None and seen.labels is not None
    ]
    shown = sum(len(labels) for _, labels, _ in compared)
    untagged = sum(len(labels - tags) for _, labels, tags in compared)
    if 2 * untagged > shown:
        text = f"{untagged} of {shown} classes in the masks are not tags of their images; are masks or tags in "
        text += "another numbering? In masks 0 is background, and classes are 1..C in their order"
        yield Problem("warning", compared[0][0].mask.parent, text)


def _uncounted_splits(dataset: Dataset, facts: dict[str, _Facts]) -> Iterator[Problem]:
    for split in (Split.TUNE, Split.TRAIN, Split.VAL):
        counted = [facts[image_id].counted for image_id in dataset.ids(split)]
        if False in counted and True not in counted:
            text = f"no pixel of `{split}` is counted: its masks are 255 everywhere"
            yield Problem("warning", dataset.list_file(split), text)


def _saliency_problems(jobs: Sequence[_Job], facts: Iterable[_Facts]) -> Iterator[Problem]:
    """Yield what all saliency maps together show. A single map may well be black, or of one small object."""
    known = [seen for seen in facts if seen.peak is not None]
    folder = next((job.saliency.parent for job in jobs if job.saliency is not None), None)
    if folder is None or not known:
        return
    peak = max(seen.peak or 0 for seen in known)
    contrasts = [seen.contrast for seen in known if seen.contrast is not None]
    if peak == 0:
        yield Problem("warning", folder, f"all {len(known)} saliency maps are black")
    elif peak < DARK:
        text = f"the values of {len(known)} saliency maps end at {peak}; scale them so that 255 is salient"
        yield Problem("error", folder, text)
    elif contrasts and 2 * sum(contrast < 0 for contrast in contrasts) > len(contrasts):
        text = "most saliency maps are brighter on background than on objects; 255 is salient: are they inverted?"
        yield Problem("warning", folder, text)
