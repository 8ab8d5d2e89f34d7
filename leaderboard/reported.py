"""Numbers printed in the papers; never ranked with measured ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class ReportedRow:
    """One row of a printed table; `own` is `own`, `baseline` or `cited`."""

    label: str
    own: str
    values: Mapping[str, float | None]
    notes: str


@dataclass(frozen=True)
class ReportedTable:
    """A printed table; the values of its rows are by the names of the columns, in `unit`."""

    id: str
    number: str
    caption: str
    protocol: Mapping[str, str]
    unit: str
    columns: tuple[str, ...]
    rows: tuple[ReportedRow, ...]
    note: str


@dataclass(frozen=True)
class ReportedPaper:
    """The printed tables of a paper, and the name of its method in the registry."""

    id: str
    title: str
    method: str
    tables: tuple[ReportedTable, ...]


def papers() -> tuple[ReportedPaper, ...]:
    """Return the papers, none yet."""
    return ()
