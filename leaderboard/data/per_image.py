"""The statistics per image, from which the mIoU of any choice of images follows exactly: `per_image.parquet`.

One row per run, image and label that has pixels in the truth or in the prediction:

| column | what it holds |
|---|---|
| id, label | the image, and the label: 0 background, 1..C classes |
| key | of the run in the snapshot |
| intersection, truth, predicted | pixels that have the label in both, in the truth, in the prediction |

The schema's metadata holds the version under `seedbed.images`, and under `seedbed.images.without` the runs that
have no statistics, with the reason, as JSON. Rows are sorted by image, label and key: the same content gives the
same file, and what all runs share takes next to no space.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from seedbed.benchmark.errors import DataError
from seedbed.benchmark.evaluation.per_image import file_name, read_confusions
from seedbed.benchmark.files import atomic
from seedbed.leaderboard.data.collect import PER_IMAGE, SweepReader
from seedbed.leaderboard.data.measures import measures
from seedbed.leaderboard.data.snapshot import Run, runs_of

VERSION = b"1"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("label", pa.uint8()),
        ("key", pa.string()),
        ("intersection", pa.int32()),
        ("truth", pa.int32()),
        ("predicted", pa.int32()),
    ]
)
Counts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class RunImages:
    """The statistics of one run, without zeros: most images have few of the labels."""

    ids: tuple[str, ...]
    """The images, sorted."""
    image: NDArray[np.int64]
    """(n,): places in `ids`."""
    label: NDArray[np.int64]
    """(n,): 0 background, 1..C classes."""
    pixels: NDArray[np.int64]
    """(n, 3): pixels that have the label in truth and prediction, in the truth, in the prediction."""

    @classmethod
    def of(cls, ids: tuple[str, ...], counts: Counts) -> RunImages:
        """Return the statistics of images (sorted) with `counts` (images, 3, labels)."""
        image, label = np.nonzero(counts.sum(axis=1))
        return cls(ids, image, label, counts[image, :, label])

    @property
    def counts(self) -> Counts:
        """(images, 3, labels): pixels of the intersection, of the truth, of the prediction; background first."""
        counts = np.zeros((len(self.ids), 3, 1 + int(self.label.max(initial=0))), np.int64)
        counts[self.image, :, self.label] = self.pixels
        return counts


@dataclass(frozen=True)
class ImageStatistics:
    """The statistics of many runs, by the runs' keys."""

    runs: Mapping[str, RunImages] = field(default_factory=dict)
    without: Mapping[str, str] = field(default_factory=dict)
    """Why a run has no statistics."""


def collect_images(tracking_uri: str, sweeps: Sequence[str], snapshot: pa.Table) -> ImageStatistics:
    """Return the statistics of the snapshot's complete runs, by the measure that their group is ranked by.

    They are the artifacts `per_image/…` of the runs in MLflow. A run that lacks them is in `without`. Raises
    ConfigError for a store or a sweep that is not there.
    """
    store = SweepReader(tracking_uri)
    places = {key: run for sweep in sweeps for key, run in store.places(sweep).items()}
    found: dict[str, RunImages] = {}
    without: dict[str, str] = {}
    confirming = snapshot.filter(pc.field("phase") == "confirm")
    for run, file in files_of(runs_of(confirming)):
        if run.key not in places:
            without[run.key] = "MLflow no longer has the run"
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = store.download(places[run.key], f"{PER_IMAGE}/{file}", Path(folder))
            if path is None:
                without[run.key] = f"MLflow does not have its artifact per_image/{file}"
                continue
            try:
                cells = read_confusions(path)
                found[run.key] = RunImages.of(cells.ids, cells.counts())
            except (OSError, pa.ArrowInvalid, KeyError) as error:
                # The error's own text names a folder of this machine, and the reason is published.
                without[run.key] = f"its artifact per_image/{file} cannot be read ({type(error).__name__})"
    return ImageStatistics(found, without)


def files_of(runs: Sequence[Run]) -> list[tuple[Run, str]]:
    """Return each complete confirming run that has the number that ranks its group, and its per-image file.

    The number of a reference is that on `val`, if it has one.
    """
    ranked_by = measures(run for run in runs if not run.reference)
    files = []
    for run in runs:
        if run.phase == "confirm" and run.status == "complete":
            names = (measures([run]) if run.reference else ranked_by)[run.scope].records
            record = next((name for name in names if run.metrics.get(str(name)) is not None), None)
            if record is not None:
                files.append((run, file_name(record)))
    return files


def write_images(path: Path, images: ImageStatistics) -> None:
    """Write the statistics by one rename."""
    keys = sorted(images.runs)
    ids = sorted({name for run in images.runs.values() for name in run.ids})
    number = {name: index for index, name in enumerate(ids)}
    columns: list[list[NDArray]] = [[] for _ in SCHEMA]
    for index, key in enumerate(keys):
        run = images.runs[key]
        place = np.array([number[name] for name in run.ids], np.int64)[run.image]
        parts = [place, run.label, np.full(len(place), index), *run.pixels.T]
        for column, values in zip(columns, parts, strict=True):
            column.append(values)
    joined = [np.concatenate(column) if column else np.zeros(0, np.int64) for column in columns]
    order = np.lexsort(joined[2::-1])
    joined = [column[order] for column in joined]
    arrays = [
        pa.array(ids, pa.string()).take(pa.array(joined[0])),
        pa.array(joined[1], pa.uint8()),
        pa.array(keys, pa.string()).take(pa.array(joined[2])),
        *(pa.array(column, pa.int32()) for column in joined[3:]),
    ]
    metadata = {
        "seedbed.images": VERSION,
        "seedbed.images.without": json.dumps(dict(images.without), sort_keys=True),
    }
    table = pa.Table.from_arrays(arrays, schema=SCHEMA.with_metadata(metadata))
    with atomic(path, flush=False) as temporary:
        pq.write_table(table, temporary, compression="zstd", compression_level=9)


def read_images(path: Path) -> ImageStatistics:
    """Read what `write_images` wrote. Raises DataError for a missing file, another version or other columns."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: not the statistics of images ({error})") from None
    metadata = table.schema.metadata or {}
    if metadata.get(b"seedbed.images") != VERSION or not table.schema.equals(SCHEMA):
        version = metadata.get(b"seedbed.images")
        raise DataError(f"{path}: statistics of images of version {version!r}, this Seedbed reads {VERSION!r}")
    coded = table["key"].combine_chunks().dictionary_encode()
    codes, keys = coded.indices.to_numpy(), coded.dictionary.to_pylist()
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(len(keys) + 1))
    ids = table["id"].combine_chunks().dictionary_encode()
    image, names = ids.indices.to_numpy(), np.array(ids.dictionary.to_pylist(), object)
    label = table["label"].to_numpy().astype(np.int64)
    kinds = ("intersection", "truth", "predicted")
    values = np.stack([table[name].to_numpy() for name in kinds], axis=1).astype(np.int64)
    runs = {}
    for index, key in enumerate(keys):
        rows = order[starts[index] : starts[index + 1]]
        # Images are numbered in the sorted order of the rows, so numbers sort as names do.
        known, position = np.unique(image[rows], return_inverse=True)
        runs[key] = RunImages(tuple(names[known]), position, label[rows], values[rows])
    return ImageStatistics(runs, json.loads(metadata[b"seedbed.images.without"]))
