"""A data set with some of its classes: the option `classes` of every data set.

    voc2012[cat,cow]             as the name of a data set, in any command and in a sweep's file
    classes = ["cat", "cow"]     as a key in seedbed.toml

The loader does not know: it opens the whole data set, which `ClassSubset` wraps.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

from seedbed.benchmark.errors import ConfigError, DataError, unknown_name
from seedbed.datasets.base import Dataset, Problem, Progress, Split, tune_ids
from seedbed.datasets.io.labels import MaskLabels


class ClassSubset(Dataset):
    """The classes `chosen` of a data set, labelled 1..K in the data set's order, whatever the order of `chosen`.

    Pixels of other classes are 255, and tags of other classes vanish. Images of `weak`, `train` and `val` that are
    not tagged with a chosen class leave the lists; with tags from masks, this reads all masks once. An image whose
    tags cannot be read stays, so that `seedbed data check` names it. `tune` is a fifth of what is left of `train`.
    There is no `test`: its tags are not known, and a server scores all classes.

    Raises ConfigError if `chosen` is empty, names a class twice, or one that the data set does not have.
    """

    def __init__(self, whole: Dataset, chosen: Sequence[str]) -> None:
        _check(whole, chosen)
        labels = tuple(label for label, name in enumerate(whole.classes, start=1) if name in chosen)
        self.whole, self.root = whole, whole.root
        self.classes = tuple(whole.classes[label - 1] for label in labels)
        self.name = subset_name(whole.name, self.classes)
        self.mask_labels = MaskLabels(len(whole.classes), labels)
        self.category_ids = tuple(whole.category_ids[label - 1] for label in labels if whole.category_ids)
        self.tag_source, self.mask_source = whole.tag_source, whole.mask_source
        self.class_choice = f"{len(labels)} of {len(whole.classes)} classes: {', '.join(self.classes)}"
        note = f"{self.class_choice}; pixels of other classes are not counted, images without a class are left out"
        self.notices = (*whole.notices, note)
        self._label = {label: new for new, label in enumerate(labels, start=1)}

    def ids(self, split: Split) -> tuple[str, ...]:
        return self._ids[split]

    def image_path(self, image_id: str) -> Path:
        return self.whole.image_path(image_id)

    def mask_path(self, image_id: str) -> Path:
        return self.whole.mask_path(image_id)

    def tags(self, image_id: str) -> tuple[int, ...]:
        return tuple(self._label[label] for label in self.whole.tags(image_id) if label in self._label)

    def saliency_path(self, image_id: str) -> Path | None:
        return self.whole.saliency_path(image_id)

    def label_files(self) -> tuple[Path, ...]:
        return self.whole.label_files()

    def layout_problems(self) -> Iterator[Problem]:
        return self.whole.layout_problems()

    def list_file(self, split: Split) -> Path:
        return self.whole.list_file(split)

    def digest(self, cache: Path | None = None, progress: Progress | None = None) -> str:
        """Return the sha256 (hex) of what defines the subset; the labels in the mask files are part of it."""
        content = [super().digest(cache, progress), self.mask_labels.count, *self._label]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @cached_property
    def _ids(self) -> dict[Split, tuple[str, ...]]:
        lists = {split: self.whole.ids(split) for split in (Split.WEAK, Split.TRAIN, Split.VAL)}
        shown = {image_id for image_id in {i for ids in lists.values() for i in ids} if self._shows(image_id)}
        left = {split: tuple(i for i in ids if i in shown) for split, ids in lists.items()}
        return {**left, Split.TUNE: tune_ids(left[Split.TRAIN]), Split.TEST: ()}

    def _shows(self, image_id: str) -> bool:
        try:
            return bool(self.tags(image_id))
        except DataError:
            return True


def subset_name(name: str, classes: Iterable[str]) -> str:
    """Return `NAME[CLASS,CLASS]`."""
    return f"{name}[{','.join(classes)}]"


def split_name(name: str) -> tuple[str, list[str] | None]:
    """Return the name and the classes of `NAME[CLASS,CLASS]`; None without brackets."""
    found = re.fullmatch(r"([^\[\]]+)\[(.*)\]", name)
    if not found:
        return name, None
    return found[1], [word.strip() for word in found[2].split(",") if word.strip()]


def _check(whole: Dataset, chosen: Sequence[str]) -> None:
    if isinstance(chosen, str) or not chosen:
        raise ConfigError(f"classes of {whole.display_name}: expected a list of at least one name, not {chosen!r}")
    for name in chosen:
        if name not in whole.classes:
            raise unknown_name(f"class of {whole.display_name}", str(name), whole.classes)
    if len(set(chosen)) < len(chosen):
        raise ConfigError(f"classes of {whole.display_name}: {', '.join(chosen)} contains a duplicate")
