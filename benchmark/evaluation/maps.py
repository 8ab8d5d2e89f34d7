"""Localisation maps on disk: one Arrow IPC file per folder, memory-mapped.

`maps.arrow` has one row per image:

    id          string          image id
    height      int32           image height in pixels
    width       int32           image width in pixels
    labels      list<int16>     class labels of the maps, ascending; 0 is an explicit background channel
    map_height  int32           height of each map in cells
    map_width   int32           width of each map in cells
    scores      binary          float16, little-endian, C order (labels, map_height, map_width)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from seedbed.benchmark.errors import DataError
from seedbed.benchmark.pipeline.store import way_out

FILE = "maps.arrow"
IMAGES_A_BATCH = 64
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("labels", pa.list_(pa.int16()), nullable=False),
        pa.field("map_height", pa.int32(), nullable=False),
        pa.field("map_width", pa.int32(), nullable=False),
        pa.field("scores", pa.binary(), nullable=False),
    ]
)


@dataclass(frozen=True, eq=False)
class ScoreMaps:
    """The localisation maps of one image. Raises ValueError if the fields do not fit each other."""

    labels: NDArray[np.int16]
    """(K,) labels in ascending order, 0 for an explicit background channel; may be empty."""
    scores: NDArray[np.floating]
    """(K, h, w), finite; in [0, 1] after normalisation, signed for ICD."""
    size: tuple[int, int]
    """Image height and width in pixels."""

    def __post_init__(self) -> None:
        if self.labels.ndim != 1 or (np.diff(self.labels) <= 0).any() or (self.labels < 0).any():
            raise ValueError(f"labels must be ascending and not negative, not {self.labels.tolist()}")
        if self.scores.ndim != 3 or len(self.scores) != len(self.labels):
            raise ValueError(f"{len(self.labels)} labels do not fit scores of shape {self.scores.shape}")
        if len(self.labels) and min(self.scores.shape) == 0:
            raise ValueError(f"maps without cells: scores of shape {self.scores.shape}")

    def at_full_size(self) -> NDArray[np.float32]:
        """Return the maps at the image's size, float32 (K, H, W), by `resize_bilinear`."""
        return resize_bilinear(self.scores.astype(np.float32, copy=False), self.size)


def resize_bilinear(maps: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Return maps (K, h, w) resized to float32 (K, *size), as torch's bilinear `F.interpolate`.

    Corners are not aligned: the cell centre of output y is at (y + ½)·h/H − ½ of the input, clamped to the
    outermost centres. Every output is computed elementwise from four inputs, so the result does not depend on
    threads or blocking. Maps that already have this size are returned unchanged.
    """
    if maps.shape[1:] == size:
        return maps
    if len(maps) == 0:
        return np.zeros((0, *size), np.float32)
    (top, bottom, down), (left, right, across) = (
        _neighbours(*lengths) for lengths in zip(maps.shape[1:], size, strict=True)
    )
    rows = _mix(maps[:, top], maps[:, bottom], down[:, None])
    return _mix(rows.take(left, axis=2), rows.take(right, axis=2), across)


def _neighbours(source: int, target: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Return for each output cell the two inputs between which it lies and its distance from the first."""
    # As torch: a float32 scale, then one rounding of the position (a fused multiply-add).
    scale = np.float64(np.float32(source) / np.float32(target))
    position = ((np.arange(target) + 0.5) * scale - 0.5).astype(np.float32).clip(0, source - 1)
    first = position.astype(np.intp)
    return first, np.minimum(first + 1, source - 1), position - first.astype(np.float32)


def _mix(
    first: NDArray[np.float32], second: NDArray[np.float32], weight: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return first·(1 − weight) + second·weight; both inputs are overwritten."""
    first *= 1 - weight
    second *= weight
    first += second
    return first


class MapWriter:
    """Writes `maps.arrow` into a folder; a context manager. The file is complete on exit."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._ids: set[str] = set()
        self._rows: list[dict[str, Any]] = []
        self._writer: Any = None

    def __enter__(self) -> MapWriter:
        self._writer = pa.ipc.new_file(str(self.path), SCHEMA)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._writer.close()
        if kind is not None:
            self.path.unlink()

    def write(self, image_id: str, maps: ScoreMaps) -> None:
        """Add one image; its scores are rounded to float16.

        Raises ValueError, naming the image, for an id that was written before and for scores that are not
        finite (or not in the range of float16).
        """
        if image_id in self._ids:
            raise ValueError(f"{image_id}: its maps were written before")
        with np.errstate(over="ignore"):
            scores = maps.scores.astype("<f2")
        if not np.isfinite(scores).all():
            raise ValueError(f"{image_id}: scores are not finite in float16")
        self._ids.add(image_id)
        self._rows.append(
            {
                "id": image_id,
                "height": maps.size[0],
                "width": maps.size[1],
                "labels": maps.labels.tolist(),
                "map_height": scores.shape[1],
                "map_width": scores.shape[2],
                "scores": scores.tobytes(),
            }
        )
        if len(self._rows) == IMAGES_A_BATCH:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_batch(pa.RecordBatch.from_pylist(self._rows, SCHEMA))
            self._rows.clear()


class MapReader:
    """Reads the maps of a folder that MapWriter wrote. Cheap to create and to send to another process."""

    def __init__(self, folder: Path) -> None:
        """Raises DataError if `maps.arrow` is missing or broken."""
        self.path = Path(folder) / FILE
        self._file()

    def _file(self) -> _MapsFile:
        try:
            status = self.path.stat()
        except OSError:
            raise DataError(
                f"{self.path}: no such file; give the folder of localisation maps that holds it"
            ) from None
        return _open_maps(self.path, status.st_ino, status.st_mtime_ns, status.st_size)

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of all images, in the order of writing."""
        return tuple(self._file().rows)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._file().rows

    def read(self, image_id: str) -> ScoreMaps:
        """Return the maps of one image, float16 and read-only. Raises DataError for an unknown id."""
        file = self._file()
        try:
            batch, index = file.rows[image_id]
        except KeyError:
            raise DataError(f"{self.path}: no maps of the image {image_id!r}") from None
        row = {name: file.batches[batch].column(name)[index] for name in SCHEMA.names[1:]}
        shape = (len(row["labels"]), row["map_height"].as_py(), row["map_width"].as_py())
        try:
            scores = np.frombuffer(row["scores"].as_buffer(), "<f2").reshape(shape)
            if not np.isfinite(scores).all():
                raise ValueError("scores that are not finite")
            labels = np.array(row["labels"].as_py(), np.int16)
            return ScoreMaps(labels, scores, (row["height"].as_py(), row["width"].as_py()))
        except ValueError as error:
            raise DataError(f"{self.path}: broken maps of {image_id!r} ({error})") from None


@dataclass(frozen=True)
class _MapsFile:
    batches: list[Any]
    rows: Mapping[str, tuple[int, int]]
    """Batch, and row within the batch, by image id."""


@lru_cache(maxsize=4)
def _open_maps(path: Path, inode: int, modified: int, size: int) -> _MapsFile:
    """Map the file into memory; the file's identity is part of the cache key, so a changed file is read again."""
    try:
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            if not reader.schema.equals(SCHEMA):
                raise DataError(f"{path}: not a file of localisation maps; its columns are {reader.schema.names}")
            batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: broken or not an Arrow file ({error}); {way_out(path)}") from None
    rows = {
        image_id: (number, index)
        for number, batch in enumerate(batches)
        for index, image_id in enumerate(batch.column("id").to_pylist())
    }
    images = sum(batch.num_rows for batch in batches)
    if len(rows) < images:
        raise DataError(f"{path}: {images} maps of {len(rows)} images; the ids must differ")
    return _MapsFile(batches, rows)


def opened(folder: Path) -> MapReader:
    """Return the reader of a folder's maps; a file that this process has read before is not read again."""
    return MapReader(folder)
