"""Counts of a data set, as tables of text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from seedbed.datasets.base import Dataset, Split
from seedbed.datasets.io.images import image_size

SAMPLE = 500
"""Images of a split whose size is read."""


@dataclass(frozen=True)
class StatisticsTable:
    """A title, column names and rows, all text."""

    title: str
    header: list[str]
    rows: list[list[str]]


def statistics(dataset: Dataset) -> list[StatisticsTable]:
    """Return two tables: images and sizes a split, and images a class in `weak`, `train` and `val`."""
    sources = f"tags from {dataset.tag_source}; masks from {dataset.mask_source}"
    title = f"{dataset.display_name} at {dataset.root}: {sources}"
    title += f"; {dataset.class_choice}" if dataset.class_choice else ""
    header = ["split", "images", "tags an image", "width min/median/max", "height min/median/max"]
    return [StatisticsTable(title, header, [_split_row(dataset, split) for split in Split]), _class_table(dataset)]


def _split_row(dataset: Dataset, split: Split) -> list[str]:
    ids = dataset.ids(split)
    if not ids:
        return [str(split), "0", "", "", ""]
    tagged = "" if split is Split.TEST else f"{np.mean([len(dataset.tags(i)) for i in ids]):.2f}"
    step = -(-len(ids) // SAMPLE)
    heights, widths = np.array([image_size(dataset.image_path(i)) for i in ids[::step]]).T
    return [str(split), str(len(ids)), tagged, _range(widths), _range(heights)]


def _class_table(dataset: Dataset) -> StatisticsTable:
    splits = [split for split in (Split.WEAK, Split.TRAIN, Split.VAL) if dataset.ids(split)]
    counts = np.zeros((len(dataset.classes), len(splits)), np.int64)
    for column, split in enumerate(splits):
        for image_id in dataset.ids(split):
            counts[[tag - 1 for tag in dataset.tags(image_id)], column] += 1
    rows = [[name, *map(str, row)] for name, row in zip(dataset.classes, counts.tolist(), strict=True)]
    return StatisticsTable("images a class", ["class", *map(str, splits)], rows)


def _range(values: np.ndarray) -> str:
    return f"{values.min()} / {np.median(values):.0f} / {values.max()}"
