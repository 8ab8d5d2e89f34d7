"""The snapshot: everything that the tables are made from, in one file, `results.parquet`.

One row per run and metric; a run without metrics has one row whose metric is null. The schema's metadata holds the
version under `seedbed.results`. The columns:

| column | what it holds |
|---|---|
| sweep, key | the sweep, and the key that is the run's own within it |
| method, refiner, dataset | what was run |
| supervision, backbone, initialisation, segmentation | under which conditions; empty or null: not recorded |
| segmentation_backbone, segmentation_initialisation | of the segmentation network; empty: the method's |
| crf_preset, multi_scale | settings of the dense CRF, scales of inference |
| selection | how the threshold of the training masks was chosen |
| tuning_masks | how many masks a choice of threshold or settings could see |
| reference | the reference that was measured in place of a method (benchmark/trials/references.py) |
| any other column of text | a condition that a setting is reported as (benchmark/trials/conditions.py) |
| phase | `search`, or `confirm`: the trials that are reported |
| settings | `default`, `best` or `suggested`; `given` of `seedbed run --set`; `submitted` (data/submission.py) |
| number | the number of the search trial, empty in `confirm` |
| parameters | what a search drew, as JSON `{"Stage.field": value}`; of a `best` trial: what is not the default |
| space | of a search trial: the distributions of its parameters, as Optuna's JSON; empty if not recorded |
| recipe | digests of the settings of each stage, as JSON `{"Stage": digest}`; empty if not recorded |
| command | what a user types to run the trial again, `DIR` and `FILE` for paths; empty if not recorded |
| seed | the trial's seed |
| status, reason | `complete`, `pruned`, `failed`, `unfinished` or `missing`, and why |
| device, hardware | `cpu` or `cuda`, and the name of the processor |
| code, dirty, data_digest | commit, whether it had uncommitted changes, digest of the data |
| trials | the search trials that were planned for each cell |
| metric, value | a record's name (`val/mIoU`, a fraction), or `stage/KEY`: the seconds that this stage took |

The rows are in a fixed order, without run ids and times of day: the same results give the same file.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from seedbed.benchmark.errors import DataError
from seedbed.benchmark.files import atomic
from seedbed.leaderboard.data.conditions import CONDITIONS, SCOPE, Scope

VERSION = 5
STAGE = "stage/"
_WHOLE = ("tuning_masks", "seed", "trials")
"""The columns of whole numbers."""
_FIRST_VERSION = {
    **dict.fromkeys(("segmentation_backbone", "segmentation_initialisation"), 2),
    **dict.fromkeys(("parameters", "space", "command"), 3),
    "precision": 4,
    "recipe": 5,
}
"""The first version that has a column, of those that came after version 1. All are of text."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One trial, with the columns of the snapshot as fields."""

    sweep: str
    key: str
    method: str
    refiner: str
    dataset: str
    conditions: Mapping[str, str]
    """By name, those of CONDITIONS and others; "" if one was not recorded."""
    phase: str
    settings: str
    number: str
    parameters: str = ""
    space: str = ""
    recipe: str = ""
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
    """Records by name, and seconds by `stage/KEY`; None if a number does not exist."""

    @functools.cached_property
    def scope(self) -> Scope:
        """The scope within which the run can be compared."""
        scope = Scope(self.dataset, *(self.conditions.get(name, "") for name in SCOPE))
        return scope._replace(
            segmentation_backbone=scope.segmentation_backbone or scope.backbone,
            segmentation_initialisation=scope.segmentation_initialisation or scope.initialisation,
        )

    @functools.cached_property
    def cell(self) -> tuple[str, ...]:
        """The key of a search: everything that identifies a trial except settings, phase and seed."""
        return *self.scope, self.method, self.refiner

    @property
    def reference(self) -> str:
        """The reference that the run measures (benchmark/trials/references.py); empty for a method."""
        return self.conditions.get("reference", "")

    @property
    def stages(self) -> dict[str, float]:
        """Return the seconds of each stage that the trial needed, by key."""
        return {
            name.removeprefix(STAGE): seconds
            for name, seconds in self.metrics.items()
            if name.startswith(STAGE) and seconds is not None
        }


_FIELDS = tuple(field.name for field in fields(Run) if field.name not in ("conditions", "metrics"))


def schema_of(others: Iterable[str] = ()) -> pa.Schema:
    """Return the schema of a snapshot whose runs have `others` as further conditions."""
    # The conditions come after method, refiner and data set.
    place = [field.name for field in fields(Run)].index("conditions")
    names = (*_FIELDS[:place], *CONDITIONS, *sorted(others), *_FIELDS[place:])
    columns = [(name, pa.int64() if name in _WHOLE else pa.string()) for name in names]
    return pa.schema(
        [*columns, ("metric", pa.string()), ("value", pa.float64())], {"seedbed.results": str(VERSION)}
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
    schema = schema_of({name for run in ordered for name in run.conditions} - {*CONDITIONS})
    columns = {name: pa.array(_column(ordered, name), schema.field(name).type) for name in schema.names[:-2]}
    repeated = pa.table(columns).take(pa.array(np.repeat(np.arange(len(ordered)), counts)))
    tail = [pa.array(metrics, pa.string()), pa.array(values, pa.float64())]
    return pa.Table.from_arrays([*(column.combine_chunks() for column in repeated.columns), *tail], schema=schema)


def _column(runs: Sequence[Run], name: str) -> list[object]:
    if name in _FIELDS:
        return [getattr(run, name) for run in runs]
    texts = [run.conditions.get(name, "") for run in runs]
    return [int(text) if text else None for text in texts] if name in _WHOLE else list(texts)


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
    heads = table.select(table.column_names[:-2]).take(pa.array(starts)).to_pylist()
    runs = []
    for head, start, end in zip(heads, starts.tolist(), ends, strict=True):
        measured = zip(codes[start:end], values[start:end], strict=True)
        found = {name: head.pop(name) for name in [*head] if name not in _FIELDS}
        conditions = {name: "" if value is None else str(value) for name, value in found.items()}
        # Drop conditions that only other runs have.
        conditions = {name: text for name, text in conditions.items() if text or name in CONDITIONS}
        own = {names[code]: value for code, value in measured if code is not None}
        runs.append(Run(**head, conditions=conditions, metrics=own))
    return runs


def write_snapshot(path: Path, table: pa.Table) -> None:
    """Write a snapshot by one rename."""
    with atomic(path, flush=False) as temporary:
        pq.write_table(table, temporary)


def read_snapshot(path: Path) -> pa.Table:
    """Read a snapshot. Raises DataError for a missing file, another version or other columns.

    A snapshot of an earlier version gets the later columns, empty.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: not a snapshot of results ({error})") from None
    text = (table.schema.metadata or {}).get(b"seedbed.results", b"").decode()
    version = int(text) if text.isdecimal() else 0
    if not 1 <= version <= VERSION:
        raise DataError(f"{path}: a snapshot of version {text!r}, this Seedbed reads up to {VERSION}")
    for name, first in _FIRST_VERSION.items():
        if first > version and name not in table.column_names:
            table = table.append_column(name, pa.repeat("", table.num_rows))
    schema = schema_of({*table.column_names} - {*schema_of().names})
    if {*table.column_names} == {*schema.names}:
        table = table.select(schema.names).replace_schema_metadata(schema.metadata)
    if not table.schema.equals(schema):
        raise DataError(f"{path}: a snapshot with other columns than version {version} has")
    return table
