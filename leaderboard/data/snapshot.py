"""The snapshot: everything that the tables are made from, in one file, `results.parquet`.

One row a run and metric; a run without metrics has one row whose metric is null. The schema's metadata holds the
version under `seedbed.results`. The columns:

| column | what it holds |
|---|---|
| sweep, key | the sweep, and the key that is the run's own within it |
| method, refiner, dataset, supervision, backbone, initialisation, segmentation | what was run |
| segmentation_backbone, segmentation_initialisation | of the segmentation network; empty: the method's |
| crf_preset, multi_scale | settings of the dense CRF, scales of inference |
| selection | how the threshold of the training masks was chosen |
| tuning_masks | how many masks a choice of threshold or settings could see; null if that was not recorded |
| phase | `search`, or `confirm`: the trials that are reported |
| settings, number | `default`, `best` or `suggested`; the number of the search trial, empty in `confirm` |
| parameters | what a search drew, as JSON `{"Stage.field": value}`; of a `best` trial: what is not the default |
| space | of a search trial: the distributions of its parameters, as JSON of Optuna's; empty where not recorded |
| command | what a user types to run the trial again, `DIR` and `FILE` for paths; empty where not recorded |
| seed | the trial's seed |
| status, reason | `complete`, `pruned`, `failed`, `unfinished` or `missing`, and why |
| device, hardware | `cpu` or `cuda`, and the name of the processor |
| code, dirty, data_digest | commit, whether it had uncommitted changes, digest of the data |
| trials | the search trials that were planned for each cell |
| metric, value | a record's name (`val/mIoU`, a fraction), or `stage/KEY`: the seconds that this stage took |

The rows are in a fixed order, without run ids and times of day: the same results give the same file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from seedbed.benchmark.errors import DataError

VERSION = b"3"
STAGE = "stage/"
_WHOLE = ("tuning_masks", "seed", "trials")
_SINCE = {
    b"1": ("segmentation_backbone", "segmentation_initialisation", "parameters", "space", "command"),
    b"2": ("parameters", "space", "command"),
    VERSION: (),
}
"""The columns, all of text, that came after a version."""


class Scope(NamedTuple):
    """What runs must have in common to be compared."""

    dataset: str
    supervision: str
    backbone: str
    initialisation: str
    segmentation_backbone: str
    segmentation_initialisation: str


@dataclass(frozen=True, kw_only=True)
class Run:
    """One trial, with the columns of the snapshot as fields."""

    sweep: str
    key: str
    method: str
    refiner: str
    dataset: str
    supervision: str
    backbone: str
    initialisation: str
    segmentation_backbone: str = ""
    segmentation_initialisation: str = ""
    crf_preset: str
    multi_scale: str
    segmentation: str
    selection: str
    tuning_masks: int | None
    phase: str
    settings: str
    number: str
    parameters: str = ""
    space: str = ""
    command: str = ""
    seed: int
    status: str
    reason: str
    device: str
    hardware: str
    code: str
    dirty: str
    data_digest: str
    trials: int
    metrics: Mapping[str, float | None]
    """Records by name, and seconds by `stage/KEY`; None where a number does not exist."""

    @property
    def scope(self) -> Scope:
        """What the run may be compared within."""
        return Scope(
            self.dataset,
            self.supervision,
            self.backbone,
            self.initialisation,
            self.segmentation_backbone or self.backbone,
            self.segmentation_initialisation or self.initialisation,
        )

    @property
    def cell(self) -> tuple[str, ...]:
        """What a search belongs to: everything that decides the trial but settings, phase and seed."""
        return *self.scope, self.method, self.refiner

    @property
    def stages(self) -> dict[str, float]:
        """Return the seconds of each stage that the trial needed, by key."""
        return {
            name.removeprefix(STAGE): seconds
            for name, seconds in self.metrics.items()
            if name.startswith(STAGE) and seconds is not None
        }


COLUMNS = tuple(field.name for field in fields(Run) if field.name != "metrics")
SCHEMA = pa.schema(
    [
        *((name, pa.int64() if name in _WHOLE else pa.string()) for name in COLUMNS),
        ("metric", pa.string()),
        ("value", pa.float64()),
    ],
    metadata={"seedbed.results": VERSION},
)


def _order(run: Run) -> tuple[object, ...]:
    number = int(run.number) if run.number.isdecimal() else -1
    return *run.cell, run.phase, run.settings, number, run.seed, run.key


def table_of(runs: Iterable[Run]) -> pa.Table:
    """Return the snapshot's table of runs, in its fixed order. NaN and infinity become null."""
    ordered = sorted(runs, key=_order)
    metrics: list[str | None] = []
    values: list[float | None] = []
    counts = []
    for run in ordered:
        named = sorted(run.metrics.items())
        metrics += [name for name, _ in named] or [None]
        values += [value if value is not None and math.isfinite(value) else None for _, value in named] or [None]
        counts.append(max(1, len(named)))
    columns = {
        name: pa.array([getattr(run, name) for run in ordered], SCHEMA.field(name).type) for name in COLUMNS
    }
    repeated = pa.table(columns).take(pa.array(np.repeat(np.arange(len(ordered)), counts)))
    tail = [pa.array(metrics, pa.string()), pa.array(values, pa.float64())]
    return pa.Table.from_arrays([*(column.combine_chunks() for column in repeated.columns), *tail], schema=SCHEMA)


def runs_of(table: pa.Table) -> list[Run]:
    """Return the runs of a table that `table_of` made."""
    if not table.num_rows:
        return []
    keys = table["key"].combine_chunks().dictionary_encode().indices.to_numpy()
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    ends = [*starts[1:].tolist(), table.num_rows]
    metrics = table["metric"].combine_chunks().dictionary_encode()
    names, codes = metrics.dictionary.to_pylist(), metrics.indices.to_pylist()
    values = table["value"].to_pylist()
    heads = table.select(list(COLUMNS)).take(pa.array(starts)).to_pylist()
    runs = []
    for head, start, end in zip(heads, starts.tolist(), ends, strict=True):
        measured = zip(codes[start:end], values[start:end], strict=True)
        runs.append(Run(**head, metrics={names[code]: value for code, value in measured if code is not None}))
    return runs


def write_snapshot(path: Path, table: pa.Table) -> None:
    """Write a snapshot, by one rename."""
    temporary = path.with_name(path.name + ".tmp")
    pq.write_table(table, temporary)
    temporary.replace(path)


def read_snapshot(path: Path) -> pa.Table:
    """Read a snapshot. Raises DataError for a missing file, another version or other columns.

    One of an earlier version gets the columns that came later, empty.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: not a snapshot of results ({error})") from None
    version = (table.schema.metadata or {}).get(b"seedbed.results")
    if version not in _SINCE:
        raise DataError(f"{path}: a snapshot of version {version!r}, this Seedbed reads {VERSION!r}")
    for name in set(_SINCE[version]) - set(table.column_names):
        table = table.append_column(name, pa.repeat("", table.num_rows))
    if set(table.column_names) == set(SCHEMA.names):
        table = table.select(SCHEMA.names).replace_schema_metadata(SCHEMA.metadata)
    if not table.schema.equals(SCHEMA):
        raise DataError(f"{path}: a snapshot with other columns than version {version.decode()} has")
    return table
