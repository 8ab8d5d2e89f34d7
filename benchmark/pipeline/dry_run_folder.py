"""A work folder for a dry run: nothing is written and nothing is generated."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from seedbed.benchmark.errors import DataError
from seedbed.benchmark.pipeline.work_folder import DEMO_IMAGES, DEMO_SIZE, DatasetSpec, WorkFolder, chimera_layout
from seedbed.datasets.base import Dataset, Problem, Split, tune_ids
from seedbed.datasets.chimera import TRAIN, split_sizes
from seedbed.datasets.chimera.world import CLASSES

NOT_KNOWN = "not known"
"""The digest of a data set that cannot have results in the store begins with this."""


class _NotGeneratedError(Exception):
    """A data set would have to be generated first."""


class PlannedChimera(Dataset):
    """The demonstration data set before it is generated; its ids, classes and image size are known."""

    tag_source = mask_source = "not generated yet"

    def __init__(self, root: Path, layout: Literal["voc", "coco"]) -> None:
        self.root, self.name, self.classes = root, f"chimera-{layout}", CLASSES
        weak, val, test = split_sizes(DEMO_IMAGES)
        numbers = tuple(f"{index:06d}" for index in range(DEMO_IMAGES))
        if layout == "coco":
            weak, test = weak + test, 0
        train = numbers[: round(TRAIN * weak) if layout == "voc" else weak]
        self._ids = {
            Split.WEAK: numbers[:weak],
            Split.TRAIN: train,
            Split.TUNE: tune_ids(train),
            Split.VAL: numbers[weak : weak + val],
            Split.TEST: numbers[weak + val : weak + val + test],
        }

    def ids(self, split: Split) -> tuple[str, ...]:
        return self._ids[split]

    def image_path(self, image_id: str) -> Path:
        return self.root / image_id

    def mask_path(self, image_id: str) -> Path:
        return self.root / image_id

    def tags(self, image_id: str) -> NoReturn:
        raise DataError(f"{self.root}: not generated yet")

    def saliency_path(self, image_id: str) -> Path:
        return self.root / image_id

    def label_files(self) -> tuple[Path, ...]:
        return ()

    def layout_problems(self) -> Iterator[Problem]:
        yield from ()


@dataclass(frozen=True)
class _PlannedDatasetSpec(DatasetSpec):
    """Location of the demonstration data set."""

    def open(self) -> Dataset:
        data = super().open()
        data.long_side = DEMO_SIZE
        return data

    def _whole(self, options: Mapping[str, Any]) -> Dataset:
        return PlannedChimera(Path(self.root), chimera_layout(self.name))


class DryRunFolder(WorkFolder):
    """A work folder that is only read."""

    def locate(self, name: str, root: Path | None, given: Mapping[str, Any] | None = None) -> DatasetSpec:
        """Return the location of a data set, or where it would be generated. Raises as `WorkFolder.locate`."""
        try:
            return super().locate(name, root, given)
        except _NotGeneratedError as error:
            spec = self._configured(name, given or {})
            return _PlannedDatasetSpec(spec.name, spec.loader, str(error), spec.options)

    def digest(self, data: Dataset) -> str:
        """Return the data set's digest, or a text of its own if it does not matter: the store is empty."""
        if not data.root.exists() or next(self.store.entries(), None) is None:
            return f"{NOT_KNOWN}: {data.name} at {data.root}"
        with tempfile.TemporaryDirectory() as folder:
            # Known digests of files are used; new ones are not kept.
            if (known := self.root / "digests").is_dir():
                shutil.copytree(known, Path(folder) / known.name)
            return WorkFolder(Path(folder)).digest(data)

    def _demo_chimera(self, layout: Literal["voc", "coco"]) -> Path:
        folder = self.root / "data" / f"chimera-{layout}"
        if not folder.exists():
            raise _NotGeneratedError(folder)
        return folder
