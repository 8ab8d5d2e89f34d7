"""One result as a file: a run with the counted pixels of each image, to hand from one group to another.

    NAME.seedbed.json   the run: what it is, under which conditions, its numbers, and digests of both files
    NAME.parquet        its statistics of images, one row per measurement, image and label:

| column | what it holds |
|---|---|
| measurement | the mIoU that the counts give: `val/mIoU`, `pseudo_mask.train/mIoU_tuned` |
| id, label | the image, and the label: 0 background, 1..C classes |
| intersection, truth, predicted | pixels that have the label in both, in the truth, in the prediction |

Reading recomputes every number from the counts. Numbers that do not follow from counted pixels, such as soft
overlap, are not in the file. A digest guards against damage and careless changes, not against a forger.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from seedbed.benchmark.errors import DataError
from seedbed.benchmark.evaluation.metrics import COUNTED, counted_parts, mean_of_known, ratio
from seedbed.benchmark.evaluation.per_image import file_name
from seedbed.benchmark.evaluation.records import RecordName
from seedbed.benchmark.files import atomic, write_text
from seedbed.benchmark.paths import slug
from seedbed.datasets.io.digest import file_digest
from seedbed.leaderboard.data.per_image import ImageStatistics, RunImages, files_of
from seedbed.leaderboard.data.snapshot import Run, runs_of

VERSION = 1
SUFFIX = ".seedbed.json"
SCHEMA = pa.schema(
    [
        ("measurement", pa.string()),
        ("id", pa.string()),
        ("label", pa.uint8()),
        ("intersection", pa.int64()),
        ("truth", pa.int64()),
        ("predicted", pa.int64()),
    ]
)
KINDS = SCHEMA.names[-3:]


@dataclass(frozen=True, eq=False)
class Result:
    """A run with its statistics of images."""

    run: Run
    """Its metrics follow from `images`."""
    classes: tuple[str, ...]
    """The foreground classes; label k is `classes[k − 1]`."""
    images: Mapping[str, RunImages]
    """By the mIoU that they give: `val/mIoU`, `pseudo_mask.train/mIoU_tuned`."""

    @classmethod
    def of(cls, run: Run, classes: Sequence[str], images: Mapping[str, RunImages]) -> Result:
        """Return the result whose numbers are computed from its images."""
        ordered = {name: images[name] for name in sorted(images)}
        metrics = dict(pair for name, own in ordered.items() for pair in _metrics(name, own, classes))
        return cls(replace(run, metrics=metrics), tuple(classes), ordered)


def _metrics(measurement: str, images: RunImages, classes: Sequence[str]) -> Iterator[tuple[str, float | None]]:
    """Yield the name and the value of every number of one measurement, as `records_of_mask_scores` names them."""
    name = RecordName.parse(measurement)
    assert name is not None
    labels = ("background", *classes)
    counts = np.zeros((3, len(labels)), np.int64)
    np.add.at(counts.T, images.label, images.pixels)
    for metric in COUNTED:
        values = ratio(*counted_parts(metric, counts))
        yield str(name.of(f"m{metric}")), _known(float(mean_of_known(values)))
        if metric == "IoU":
            yield str(name.of("classes")), float(np.isfinite(values).sum())
        for label, value in zip(labels, values.tolist(), strict=True):
            yield str(name.of(metric, label)), _known(value)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def file_of(folder: Path, run: Run) -> Path:
    """Return the path in `folder` of the result of a run."""
    name = f"{slug(run.method)}-{slug(run.refiner)}-{slug(run.dataset)}-seed{run.seed}-{run.key[:8]}"
    return folder / f"{name}{SUFFIX}"


def write_result(folder: Path, result: Result) -> Path:
    """Write a result into `folder`, which is created, and return the path of its JSON file."""
    path = file_of(folder, result.run)
    folder.mkdir(parents=True, exist_ok=True)
    statistics = path.with_name(path.name.removesuffix(SUFFIX) + ".parquet")
    with atomic(statistics) as temporary:
        pq.write_table(_table(result.images), temporary, compression="zstd", compression_level=9)
    content: dict[str, Any] = {
        "seedbed_result": VERSION,
        "run": asdict(result.run),
        "classes": list(result.classes),
        "statistics": {"file": statistics.name, "sha256": file_digest(statistics)},
    }
    write_text(path, json.dumps({**content, "sha256": _digest(content)}, indent=1, ensure_ascii=False) + "\n")
    return path


def _table(images: Mapping[str, RunImages]) -> pa.Table:
    tables = []
    for measurement, own in images.items():
        order = np.lexsort((own.label, own.image))
        columns = [
            pa.repeat(measurement, len(order)),
            pa.array(own.ids, pa.string()).take(pa.array(own.image[order])),
            pa.array(own.label[order], pa.uint8()),
            *(pa.array(own.pixels[order, kind], pa.int64()) for kind in range(len(KINDS))),
        ]
        tables.append(pa.Table.from_arrays(columns, schema=SCHEMA))
    return pa.concat_tables(tables) if tables else SCHEMA.empty_table()


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def statistics_of(path: Path) -> Path:
    """Return the Parquet file that belongs to a result's JSON file. Raises DataError if it is not there."""
    name = str(_content(path)["statistics"]["file"])
    found = path.with_name(Path(name).name)
    if not found.is_file():
        raise DataError(f"{found}: no such file; a result has two files, and {path.name} is one of them")
    return found


def read_result(path: Path) -> Result:
    """Read a result, and compute its numbers again.

    Raises DataError for a missing file, one of another kind or version, or content that does not have the recorded
    digest.
    """
    content, statistics = _content(path), statistics_of(path)
    if file_digest(statistics) != content["statistics"]["sha256"]:
        raise DataError(f"{statistics}: not the file that belongs to {path.name}, or damaged; get both again")
    try:
        table = pq.read_table(statistics)
        if not table.schema.equals(SCHEMA):
            raise DataError(
                f"{statistics}: not the statistics of a result; it has {', '.join(table.column_names)}"
            )
        return Result.of(Run(**content["run"]), content["classes"], _images(table))
    except (pa.ArrowInvalid, TypeError, KeyError) as error:
        raise DataError(f"{path}: not a result of this version of Seedbed ({error})") from None


def _content(path: Path) -> dict[str, Any]:
    if path.is_file() and not path.name.endswith(SUFFIX):
        raise DataError(f"{path}: not a result; its name ends in {SUFFIX}")
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
        digest, version = content.pop("sha256"), content["seedbed_result"]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path}: not a result that `seedbed export result` or `seedbed submit` wrote") from None
    if version != VERSION:
        raise DataError(f"{path}: a result of version {version!r}, this Seedbed reads {VERSION}")
    if digest != _digest(content):
        raise DataError(f"{path}: was changed after it was written (its digest does not fit); get it again")
    return content


def _images(table: pa.Table) -> dict[str, RunImages]:
    found = {}
    measurements = np.array(table["measurement"].to_pylist(), object)
    for measurement in sorted(set(measurements.tolist())):
        if RecordName.parse(measurement) is None:
            raise KeyError(f"unknown measurement {measurement!r}")
        own = table.filter(pa.array(measurements == measurement))
        ids, image = np.unique(np.array(own["id"].to_pylist(), str), return_inverse=True)
        pixels = np.stack([own[kind].to_numpy() for kind in KINDS], axis=1)
        label = own["label"].to_numpy().astype(np.int64)
        found[measurement] = RunImages(tuple(ids.tolist()), image, label, pixels)
    return found


def with_results(images: ImageStatistics, snapshot: pa.Table, results: Sequence[Result]) -> ImageStatistics:
    """Return the statistics of a snapshot's runs: `images`, and those of results that are among the runs."""
    own = {result.run.key: result for result in results}
    runs, without = dict(images.runs), dict(images.without)
    for run, file in files_of(runs_of(snapshot)):
        if run.key in own:
            by_file = {_file(name): found for name, found in own[run.key].images.items()}
            runs[run.key] = by_file[file]
            without.pop(run.key, None)
    return ImageStatistics(runs, without)


def _file(measurement: str) -> str:
    name = RecordName.parse(measurement)
    assert name is not None
    return file_name(name)
