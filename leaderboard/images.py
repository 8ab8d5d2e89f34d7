"""Statistics of single images, from which intervals are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


@dataclass(frozen=True)
class ImageStatistics:
    """The statistics of all images."""


def collect_images(tracking_uri: str, sweeps: Sequence[str], snapshot: Any) -> ImageStatistics:
    """Return the statistics of the images of all runs."""
    return ImageStatistics()


def read_images(path: Path) -> ImageStatistics:
    """Read what `write_images` wrote."""
    pq.read_table(path)
    return ImageStatistics()


def write_images(path: Path, images: ImageStatistics) -> None:
    """Write the statistics."""
    pq.write_table(pa.table({}), path)
