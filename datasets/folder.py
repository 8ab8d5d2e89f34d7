"""A data set in one's own layout, described in docs/folder.md.

images/ID.jpg    masks/ID.png    classes.txt    splits.csv    (tags.csv)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from seedbed.benchmark.errors import DataError
from seedbed.datasets.base import (
    TAGS_FROM_MASKS,
    Dataset,
    Problem,
    Split,
    existing_folder,
    refuse_options,
    tune_ids,
)
from seedbed.datasets.classes import check_classes
from seedbed.datasets.io.image_table import image_rows
from seedbed.datasets.io.images import Folder, decode_mask, read_text, visible_files
from seedbed.datasets.io.tags import SEPARATORS, Tags, mask_labels, readable_tags
from seedbed.datasets.voc2012 import ambiguous_images

IMAGES, MASKS, CLASSES, SPLITS, TAGS = "images", "masks", "classes.txt", "splits.csv", "tags.csv"
NEEDED = {
    IMAGES: "no such folder; put the images there, as ID.jpg or ID.png",
    MASKS: "no such folder; put the masks of `train` and `val` there, as ID.png",
    CLASSES: "no such file; write one foreground class per line, that of label 1 first, without background",
    SPLITS: "no such file; write the header `image_id,split`, and a line such as `ID,train` for each image; "
    "the splits are train, val, and if you need them test and weak",
}
"""What a data set must have, and what to do if it is missing."""
LISTED = (Split.TRAIN, Split.VAL, Split.TEST, Split.WEAK)
"""The splits that splits.csv may name."""
SUFFIXES = (".jpg", ".jpeg", ".png")


class OwnDataset(Dataset):
    """A data set in a layout of two folders and two or three text files.

    `weak` is `train` and what splits.csv lists as `weak`, in the order of that file. Tags come from tags.csv if it
    exists, else from the masks. Wrong rows are left out, and `layout_problems` yields them.
    """

    name = "folder"
    mask_source = f"{MASKS}/"

    def __init__(self, root: Path, saliency: Path | None = None) -> None:
        """Raises DataError, naming all, if folders or files are missing, or if a text file cannot be read."""
        missing = [f"{root / name}: {text}" for name, text in NEEDED.items() if not (root / name).exists()]
        if missing:
            listed = missing[0] if len(missing) == 1 else "\n  ".join([f"{root}: not complete", *missing])
            raise DataError(f"{listed}. See docs/folder.md")
        self.root = root
        self._images, self._masks = Folder(root / IMAGES, SUFFIXES[0], SUFFIXES[1:]), Folder(root / MASKS, ".png")
        self._saliency = None if saliency is None else Folder(saliency, ".png")
        lines = [line for line in read_text(root / CLASSES).splitlines() if line.strip()]
        self.classes = check_classes(lines, root / CLASSES)
        self._splits, self._misplaced, self._row_problems = read_splits(root / SPLITS)
        self._tags: dict[str, Tags] = {}
        self._tag_errors: list[tuple[str, DataError]] = []
        self.tag_source = TAGS if (root / TAGS).exists() else TAGS_FROM_MASKS
        if self.tag_source == TAGS:
            self._refuse_separators()
            self._tags, self._tag_errors = readable_tags(root / TAGS, self.classes)

    def ids(self, split: Split) -> tuple[str, ...]:
        return self._tune if split is Split.TUNE else self._splits[split]

    def image_path(self, image_id: str) -> Path:
        return self._images.file(image_id)

    def mask_path(self, image_id: str) -> Path:
        return self._masks.file(image_id)

    def tags(self, image_id: str) -> Tags:
        if image_id not in self._tags:
            if self.tag_source == TAGS:
                missing = DataError(f"{self.root / TAGS}: has no row for the image {image_id}")
                raise self._untagged.get(image_id, missing)
            self._tags[image_id] = mask_labels(decode_mask(self.mask_path(image_id)), len(self.classes))
        return self._tags[image_id]

    def saliency_path(self, image_id: str) -> Path | None:
        return None if self._saliency is None else self._saliency.file(image_id)

    def label_files(self) -> tuple[Path, ...]:
        names = (CLASSES, SPLITS, TAGS) if self.tag_source == TAGS else (CLASSES, SPLITS)
        return tuple(self.root / name for name in names)

    def layout_problems(self) -> Iterator[Problem]:
        yield from self._row_problems
        labelled = {*self._splits[Split.WEAK], *self._splits[Split.VAL]}
        # `tags` raises the others, so a check names them with their images.
        for image_id, error in self._tag_errors:
            if image_id not in labelled or self._untagged.get(image_id) is not error:
                yield Problem.of(error)
        listed = {*labelled, *self._splits[Split.TEST], *self._misplaced}
        yield from ambiguous_images(self._images, listed)
        unlisted = [n for n in visible_files(self._images.path, SUFFIXES) if Path(n).stem not in listed]
        if unlisted:
            text = (
                f"{len(unlisted)} images are in no split, this is the first; add them to {SPLITS} or remove them"
            )
            yield Problem("warning", self._images.path / unlisted[0], text)
        if self.tag_source == TAGS:
            unknown = [image_id for image_id in self._tags if image_id not in listed]
            if unknown:
                text = f"{len(unknown)} rows are of images that {SPLITS} does not list; the first is {unknown[0]}"
                yield Problem("warning", self.root / TAGS, text)

    def list_file(self, split: Split) -> Path:
        return self.root / SPLITS

    @cached_property
    def _tune(self) -> tuple[str, ...]:
        return tune_ids(self._splits[Split.TRAIN])

    @cached_property
    def _untagged(self) -> dict[str, DataError]:
        """The error of each image that has a row in tags.csv, but no tags."""
        return {i: error for i, error in reversed(self._tag_errors) if i and i not in self._tags}

    def _refuse_separators(self) -> None:
        names = [repr(name) for name in self.classes if re.search(SEPARATORS, name)]
        if names:
            raise DataError(
                f"{self.root / CLASSES}: {', '.join(names)} cannot be told apart in {TAGS}, where a space, comma, "
                "semicolon or | separates classes; write _ instead"
            )


def read_splits(path: Path) -> tuple[dict[Split, tuple[str, ...]], set[str], list[Problem]]:
    """Return the ids of each split of `splits.csv`, the ids in wrong rows, and the problems of these rows.

    `weak` contains `train`. Raises DataError if the file cannot be read or has another header.
    """
    splits: dict[Split, dict[str, None]] = {split: {} for split in LISTED}
    first: dict[tuple[str, str], str] = {}
    misplaced: set[str] = set()
    problems = []
    for place, image_id, cell in image_rows(path, "split"):
        if isinstance(cell, DataError):
            problems.append(Problem.of(cell))
            misplaced.add(image_id)
        elif cell.lower() not in LISTED:
            text = f"unknown split {cell!r} of the image {image_id}. Valid: {', '.join(LISTED)}"
            problems.append(Problem("error", Path(place), text))
            misplaced.add(image_id)
        elif (earlier := first.setdefault((image_id, cell.lower()), place)) != place:
            text = f"{image_id} again in `{cell.lower()}`, as in {earlier.rpartition(', ')[2]}; remove one of them"
            problems.append(Problem("error", Path(place), text))
        else:
            split = Split(cell.lower())
            splits[split][image_id] = None
            if split is Split.TRAIN:
                splits[Split.WEAK].setdefault(image_id)
    return {split: tuple(ids) for split, ids in splits.items()}, misplaced, problems


class _Folder:
    name = "folder"
    official_counts = None

    def open(self, root: Path, *, saliency: Path | str | None = None, **unknown: object) -> Dataset:
        """Open the data set at `root`. `saliency` is a folder of grey maps ID.png."""
        refuse_options(unknown, self.name, self.open)
        return OwnDataset(root, existing_folder(saliency, "the saliency maps"))


DATASET = _Folder()
