"""The numbers that papers report, from `reported.yaml`: shown beside measured numbers, never ranked with them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from seedbed.benchmark.errors import ConfigError, DataError, unknown_name
from seedbed.benchmark.validation import read
from seedbed.benchmark.yaml_file import read_yaml

FILE = Path(__file__).parent / "reported.yaml"


@dataclass(frozen=True)
class ReportedRow:
    """One row of a paper's table."""

    label: str
    own: Literal["own", "baseline", "cited"]
    """Source: the paper's method, a baseline that its authors ran, or other work."""
    values: Mapping[str, int | float | None]
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


@dataclass(frozen=True)
class ReportedPapers:
    """The content of `reported.yaml`."""

    papers: tuple[ReportedPaper, ...]


@functools.cache
def papers() -> tuple[ReportedPaper, ...]:
    """Return all papers. Raises ConfigError for a file that is not YAML, DataError for one of another form."""
    content = read_yaml(FILE)
    try:
        return read(ReportedPapers, content, "file of reported numbers").papers
    except ConfigError as error:
        raise DataError(f"{FILE}: {error}") from None


def table(name: str) -> tuple[ReportedPaper, ReportedTable]:
    """Return a table by its id, and its paper. Raises ConfigError for an unknown one."""
    known = {each.id: (paper, each) for paper in papers() for each in paper.tables}
    if name not in known:
        raise unknown_name("table", name, known)
    return known[name]
