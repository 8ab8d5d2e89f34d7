"""The numbers that papers report, from `reported.yaml`: shown beside measured numbers, never ranked with them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from seedbed.benchmark.errors import DataError, unknown_name

FILE = Path(__file__).parent / "reported.yaml"


@dataclass(frozen=True)
class ReportedRow:
    """One row of a paper's table."""

    label: str
    own: Literal["own", "baseline", "cited"]
    """Source: the paper's method, a baseline that its authors ran, or other work."""
    values: Mapping[str, float | None]
    """By column, in the table's unit; None if the paper prints none."""
    notes: str = ""


@dataclass(frozen=True)
class ReportedTable:
    """One table, or figure, of a paper."""

    id: str
    number: str
    caption: str
    unit: str
    """`%`, `fraction` or `hours`."""
    protocol: Mapping[str, str]
    """Data set, split, metric, backbone, and other details of the measurement."""
    columns: tuple[str, ...]
    rows: tuple[ReportedRow, ...]
    note: str = ""

    def value(self, row: str, column: str) -> float | None:
        """Return the printed value; None if there is none."""
        return next((r.values.get(column) for r in self.rows if r.label == row), None)


@dataclass(frozen=True)
class ReportedPaper:
    """One paper."""

    id: str
    title: str
    venue: str
    method: str
    """Name of its method in the registry."""
    tables: tuple[ReportedTable, ...]


@functools.cache
def papers() -> tuple[ReportedPaper, ...]:
    """Return all papers. Raises DataError for a file of another form."""
    import yaml

    try:
        return tuple(_paper(content) for content in yaml.safe_load(FILE.read_text("utf-8"))["papers"])
    except (KeyError, TypeError, yaml.YAMLError) as error:
        raise DataError(f"{FILE}: not a file of reported numbers ({error!r})") from None


def table(name: str) -> tuple[ReportedPaper, ReportedTable]:
    """Return a table by its id, and its paper. Raises ConfigError for an unknown one."""
    known = {each.id: (paper, each) for paper in papers() for each in paper.tables}
    if name not in known:
        raise unknown_name("table", name, known)
    return known[name]


def _paper(content: Mapping[str, Any]) -> ReportedPaper:
    return ReportedPaper(**{**content, "tables": tuple(map(_table, content["tables"]))})


def _table(content: Mapping[str, Any]) -> ReportedTable:
    rows = tuple(ReportedRow(**row) for row in content["rows"])
    return ReportedTable(**{**content, "columns": tuple(content["columns"]), "rows": rows})
