"""The labels of mask files, and what they mean in a data set of some of their classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IGNORE_INDEX = 255


@dataclass(frozen=True)
class MaskLabels:
    """Which labels mask files may have, and which of them a data set counts."""

    count: int
    """Classes in the files: labels 0..`count` and 255 are valid."""
    kept: tuple[int, ...] | None = None
    """The labels in the files of the data set's classes, in their order; None: the files' own."""

    def unknown(self, mask: NDArray[np.uint8]) -> list[int]:
        """Return the labels of a mask file that are not valid, ascending."""
        return [int(label) for label in np.unique(mask) if self.count < label < IGNORE_INDEX]

    def counted(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a file's mask uint8 (H, W) in the data set's labels: other classes become 255."""
        if self.kept is None:
            return mask
        table = np.full(256, IGNORE_INDEX, np.uint8)
        table[[0, *self.kept]] = np.arange(len(self.kept) + 1)
        return table[mask]
