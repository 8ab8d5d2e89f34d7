"""The results of studies: our table beside the paper's, read from `studies/STUDY/DATASET/table.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedbed.benchmark.errors import DataError
from seedbed.benchmark.files import write_text

FILE = "table.json"


@dataclass(frozen=True)
class StudyCell:
    """Our number beside the paper's, both in the study's unit."""

    ours: float | None
    std: float | None
    low: float | None
    high: float | None
    """The bounds of the 95 % interval."""
    seeds: int
    paper: float | None
    difference: float | None
    missing: str
    """Why we have no number; empty if there is one."""


@dataclass(frozen=True)
class StudyRow:
    """One row, with one cell per column."""

    label: str
    cells: tuple[StudyCell, ...]


@dataclass(frozen=True)
class ClaimResult:
    """A claim of a paper about its table, and whether our numbers support it."""

    text: str
    verdict: str
    """`holds`, `does not hold` or `undecided`."""
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    paper: float | None = None
    """The difference that the paper prints."""


@dataclass(frozen=True)
class StudyResult:
    """One study on one data set."""

    study: str
    title: str
    paper: str
    method: str
    dataset: str
    unit: str
    columns: tuple[str, ...]
    rows: tuple[StudyRow, ...]
    protocol: Mapping[str, Mapping[str, str]]
    """The conditions by name, `ours` and the `paper`'s."""
    claims: tuple[ClaimResult, ...]
    notes: tuple[str, ...]
    command: str
    code: str
    seeds: tuple[int, ...]
    sweep: str = ""
    """The name of the sweep that ran it; empty: that of the study and the data set."""

    @property
    def label(self) -> str:
        """Return the study's name, with that of its sweep if it has its own."""
        return f"{self.study} ({self.sweep})" if self.sweep else self.study

    @property
    def data(self) -> str:
        """Return the data set, with the choice of its classes."""
        classes = self.protocol["ours"].get("classes", "")
        return f"{self.dataset} ({classes})" if classes else self.dataset

    @property
    def digits(self) -> int:
        """Return the number of decimals for the study's unit."""
        return 3 if self.unit == "fraction" else 2

    @property
    def conditions(self) -> list[tuple[str, str, str]]:
        """Return name, our value and the paper's value of each condition that either has."""
        ours, paper = self.protocol["ours"], self.protocol["paper"]
        return [(name, ours.get(name, "–"), paper.get(name, "–")) for name in dict.fromkeys([*ours, *paper])]


def signed(value: float, digits: int = 2) -> str:
    """Return "+1.20" or "−0.31"."""
    # Adding zero turns a rounded −0.0 into 0.0.
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")


def read_studies(folder: Path) -> tuple[StudyResult, ...]:
    """Return the studies in a folder, in the order of their names; none if it does not exist.

    Raises DataError for a file that cannot be read, naming it.
    """
    return tuple(read_study_result(path) for path in sorted(folder.glob(f"*/*/{FILE}")))


def write_result(folder: Path, result: Mapping[str, Any]) -> None:
    """Write the plain values of a result to `table.json`, by one rename."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / FILE, json.dumps(result, indent=1, ensure_ascii=False))


def read_study_result(path: Path) -> StudyResult:
    """Return the study in a file `table.json`. Raises DataError if it cannot be read."""
    try:
        # Python's JSON may hold NaN and Infinity, which are not valid numbers.
        return study_of(json.loads(path.read_text("utf-8"), parse_constant=lambda _: None))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not the table of a study ({error!r}); run the study again") from None


def study_of(content: Mapping[str, Any]) -> StudyResult:
    """Return a study from its plain values, as `table.json` has them (docs/studies.md).

    Raises KeyError, TypeError or ValueError for what is not such a table.
    """
    rows = tuple(
        StudyRow(row["label"], tuple(StudyCell(**cell) for cell in row["cells"])) for row in content["rows"]
    )
    if any(len(row.cells) != len(content["columns"]) for row in rows):
        raise ValueError("a row has more or fewer cells than there are columns")
    protocol = {side: dict(content["protocol"][side]) for side in ("ours", "paper")}
    claims = tuple(ClaimResult(**claim) for claim in content["claims"])
    lists = {name: tuple(content[name]) for name in ("columns", "notes", "seeds")}
    return StudyResult(**{**content, **lists, "rows": rows, "protocol": protocol, "claims": claims})
