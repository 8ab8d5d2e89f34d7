"""What every data set offers: five splits of images and tags, with masks if the protocol allows them.

Labels are 0 for background, 1..C for the foreground classes in the order of `Dataset.classes`, and 255
(`IGNORE_INDEX`) for pixels that no metric and no loss counts.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from seedbed.benchmark.errors import ConfigError, DataError, MaskForbiddenError, unknown_name
from seedbed.datasets.io.digest import file_digests
from seedbed.datasets.io.images import decode_grey, decode_image, decode_mask, image_size
from seedbed.datasets.io.labels import IGNORE_INDEX as IGNORE_INDEX
from seedbed.datasets.io.labels import MaskLabels

CLASSES_OPTION = "classes"
"""The option of every data set that chooses some of its classes (datasets/subset.py); no loader gets it."""
TAGS_FROM_MASKS = "masks"
"""The `Dataset.tag_source` of a data set whose tags are the labels in its masks."""
Progress = Callable[[int, int], None]
"""Called with (done, total)."""


class Split(StrEnum):
    """The five splits of the protocol (docs/protocol.md)."""

    WEAK = "weak"
    """Training images and their tags; asking for a mask raises an error."""
    TUNE = "tune"
    """The fifth of `train` whose ids hash lowest: the only masks that may guide a choice."""
    TRAIN = "train"
    """The split on which the quality of seeds and pseudo-masks is reported."""
    VAL = "val"
    """The split on which the segmentation network is reported, once per published row."""
    TEST = "test"
    """Images without masks; predictions are exported for a server."""


@dataclass(frozen=True)
class Problem:
    """One problem of a data set. A check fails only for severity `error`."""

    severity: Literal["error", "warning"]
    file: Path
    message: str

    @classmethod
    def of(cls, error: DataError) -> Problem:
        """Return an error as a problem. The message of every DataError begins with the file."""
        file, _, text = str(error).partition(": ")
        return cls("error", Path(file), text)


class Dataset(ABC):
    """A data set on disk. Opening one reads lists and tags, never pixels."""

    name: str
    """The loader's name, part of the digest."""
    own_name: str | None = None
    """The user's name for it in `seedbed.toml`."""
    root: Path
    classes: tuple[str, ...]
    """Foreground class names; the label of `classes[i]` is i + 1."""
    category_ids: tuple[int, ...] = ()
    """The class numbers in the annotations, if they differ from the labels."""
    tag_source: str
    """The source of the tags, for the log (`Annotations/*.xml`, a file name, `masks`)."""
    mask_source: str
    """The source of the masks, for the log."""
    notices: tuple[str, ...] = ()
    """Notes for the user about this copy of the data set, for example that it is a subset."""
    class_choice: str = ""
    """Which of its classes were chosen, in words for tables; empty if it has all of them."""

    @abstractmethod
    def ids(self, split: Split) -> tuple[str, ...]:
        """Return the ids of a split in a fixed order; empty if the data set does not have the split."""

    @abstractmethod
    def image_path(self, image_id: str) -> Path:
        """Return the path of an image (which may not exist)."""

    @abstractmethod
    def mask_path(self, image_id: str) -> Path:
        """Return the path of an image's true mask (which may not exist)."""

    @abstractmethod
    def tags(self, image_id: str) -> tuple[int, ...]:
        """Return the labels (1..C, ascending) of the classes that the image is tagged with."""

    @abstractmethod
    def saliency_path(self, image_id: str) -> Path | None:
        """Return the path of the image's saliency map; None if the data set has no saliency maps."""

    @abstractmethod
    def label_files(self) -> tuple[Path, ...]:
        """Return the files besides images and masks that define the data set (lists, tags, JSON)."""

    @abstractmethod
    def layout_problems(self) -> Iterator[Problem]:
        """Yield the problems of the lists and tag files of this layout (see `seedbed.datasets.tools.check`)."""

    @property
    def display_name(self) -> str:
        """The name for messages and records: the user's own, else the loader's."""
        return self.own_name or self.name

    @cached_property
    def mask_labels(self) -> MaskLabels:
        """Which labels the mask files may have, and what they become."""
        return MaskLabels(len(self.classes))

    def list_file(self, split: Split) -> Path:
        """Return the file that a split's ids come from, for messages."""
        return self.root

    def digest(self, cache: Path | None = None, progress: Progress | None = None) -> str:
        """Return the sha256 (hex) of everything that defines the data set, independent of its folder.

        That is: name, classes, the ids of each split, tags, and the content of all image, mask, saliency and
        label files; a missing file counts as missing. If the tags come from the masks, the masks' content
        represents them. `cache` is a JSON file that keeps the digests of files by size and modification time, so
        that a second call reads no file again.
        """
        ids = {str(split): self.ids(split) for split in Split}
        labelled = list(dict.fromkeys((*ids["weak"], *ids["train"], *ids["val"])))
        files = {f"image/{i}": self.image_path(i) for i in dict.fromkeys((*labelled, *ids["test"]))}
        files |= {f"mask/{i}": self.mask_path(i) for i in labelled}
        files |= {f"saliency/{i}": path for i in labelled if (path := self.saliency_path(i)) is not None}
        # The position keeps apart files of the same name in different folders.
        files |= {f"label/{n}/{path.name}": path for n, path in enumerate(self.label_files())}
        tags = {} if self.tag_source == TAGS_FROM_MASKS else {i: self.tags(i) for i in labelled}
        content = {
            "name": self.name,
            "classes": self.classes,
            "ids": ids,
            "tags": tags,
            "files": file_digests(files, self.root, cache, progress),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def split(self, split: Split | str, supervision: Literal["weak", "full"] = "weak") -> SplitView:
        """Return one split. `supervision="full"` allows the masks of `weak` (the fully supervised bound).

        Raises ConfigError for an unknown split, DataError for an empty one.
        """
        try:
            split = Split(split)
        except ValueError:
            raise ConfigError(f"unknown split {split!r}. Valid: {', '.join(Split)}") from None
        ids = self.ids(split)
        if not ids:
            raise DataError(
                f"{self.root}: the split {split.value!r} of {self.display_name} is empty or has no list"
            )
        return SplitView(self, split, ids, supervision == "full")

    @property
    def has_saliency(self) -> bool:
        """Whether the data set was opened with a folder of saliency maps. Raises DataError without images."""
        return self.saliency_path(self.split(Split.WEAK).ids[0]) is not None

    @cached_property
    def long_side(self) -> int:
        """Median of the longer image side in pixels, over up to 64 images spread over `weak`.

        Unreadable images are skipped; they raise an error when used. Raises DataError if none can be read.
        """
        ids = self.split(Split.WEAK).ids
        step = max(1, len(ids) // 64)
        sides, problems = [], []
        for image_id in ids[::step][:64]:
            try:
                sides.append(max(image_size(self.image_path(image_id))))
            except DataError as error:
                problems.append(error)
        if not sides:
            raise problems[0]
        return int(np.median(sides))


class DatasetPlugin(Protocol):
    """How a data set is opened: the object `DATASET` of a file in `datasets/`."""

    @property
    def name(self) -> str:
        """The file's name without `.py`."""
        ...

    @property
    def official_counts(self) -> Mapping[Split, int] | None:
        """Number of images of the official splits; None if there is no official release."""
        ...

    def open(self, root: Path, **options: Any) -> Dataset:
        """Open the data set at `root`. Raises ConfigError for unknown options, DataError if there is none."""
        ...


def refuse_options(unknown: Mapping[str, object], dataset: str, opener: Callable[..., Dataset]) -> None:
    """Raise ConfigError for the first of the `unknown` options, and name the valid ones of `opener`."""
    kinds = inspect.signature(opener).parameters.values()
    valid = [CLASSES_OPTION, *(p.name for p in kinds if p.kind is p.KEYWORD_ONLY)]
    for option in unknown:
        raise unknown_name(f"option of {dataset}", option, valid)


def existing_folder(folder: Path | str | None, what: str) -> Path | None:
    """Return the folder as a Path, or None. Raises DataError if it does not exist."""
    if folder is None:
        return None
    if not Path(folder).is_dir():
        raise DataError(f"{folder}: no such folder ({what})")
    return Path(folder)


@dataclass(frozen=True)
class SplitView:
    """The images of one split, with only what the protocol allows."""

    dataset: Dataset
    split: Split
    ids: tuple[str, ...]
    full_supervision: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.dataset.classes

    @property
    def has_masks(self) -> bool:
        return self.split in (Split.TUNE, Split.TRAIN, Split.VAL) or (
            self.split is Split.WEAK and self.full_supervision
        )

    def size(self, image_id: str) -> tuple[int, int]:
        """Return (height, width) in pixels, read from the file's header."""
        return image_size(self.dataset.image_path(image_id))

    def image(self, image_id: str, reduction: int = 1) -> NDArray[np.uint8]:
        """Return the image, uint8 (H, W, 3) RGB; a JPEG at 1/`reduction` of its size (`decode_image`).

        Raises DataError if it is missing or broken.
        """
        return decode_image(self.dataset.image_path(image_id), reduction)

    def tags(self, image_id: str) -> tuple[int, ...]:
        """Return the labels (1..C, ascending) of the image's tags."""
        return self.dataset.tags(image_id)

    def mask(self, image_id: str) -> NDArray[np.uint8]:
        """Return the true mask, uint8 (H, W) of labels and 255.

        Raises MaskForbiddenError on `weak` and `test`; DataError if the file is missing or broken, has another
        size than the image, or has an unknown label.
        """
        if not self.has_masks:
            raise MaskForbiddenError(f"the split {self.split.value!r} shows no masks (asked for {image_id!r})")
        path = self.dataset.mask_path(image_id)
        mask = decode_mask(path)
        self._check_size(image_id, path, "mask", mask)
        labels = self.dataset.mask_labels
        if unknown := labels.unknown(mask):
            raise DataError(f"{path}: labels {unknown} are outside 0..{labels.count} and 255")
        return labels.counted(mask)

    def saliency(self, image_id: str) -> NDArray[np.float32]:
        """Return the saliency map, float32 (H, W) in [0, 1].

        Raises DataError if the data set was opened without saliency maps, or if the file is missing or broken, not
        grey, or of another size than the image.
        """
        path = self.dataset.saliency_path(image_id)
        if path is None:
            raise DataError(f"{self.dataset.root}: {self.dataset.display_name} was opened without saliency maps")
        grey = decode_grey(path)
        self._check_size(image_id, path, "saliency map", grey)
        return grey.astype(np.float32) / np.float32(255)

    def _check_size(self, image_id: str, path: Path, what: str, found: NDArray[np.uint8]) -> None:
        height, width = self.size(image_id)
        if found.shape != (height, width):
            raise DataError(
                f"{path}: the {what} is {found.shape[1]}x{found.shape[0]}, its image {width}x{height} pixels"
            )


def tune_ids(train: tuple[str, ...]) -> tuple[str, ...]:
    """Return the fifth of `train` whose ids have the lowest sha256, in the order of `train`."""
    ranked = sorted(train, key=lambda i: hashlib.sha256(i.encode()).hexdigest())
    chosen = set(ranked[: max(1, len(train) // 5)]) if train else set()
    return tuple(i for i in train if i in chosen)
