"""The table of a study in the paper's own form, as text: ours, the paper's in brackets, and the difference."""

from __future__ import annotations

from pathlib import Path

from seedbed.benchmark.files import write_text
from seedbed.benchmark.studies.result import ClaimResult, StudyCell, StudyResult, signed
from seedbed.leaderboard.analysis.ranking import NOTHING
from seedbed.leaderboard.tables import latex, markdown, terminal
from seedbed.leaderboard.tables.columns import number
from seedbed.leaderboard.tables.table import Column, Table, text_columns, text_table, unrounded

EXPLAINED = (
    "Each cell: ours ± standard deviation over random seeds, in brackets the paper's number and the "
    "difference. "
    "If the protocol differs, the paper's numbers are from another setting; they are not ranked with ours."
)
SIDES = ("ours", "paper", "difference")


def cell_text(cell: StudyCell, digits: int) -> str:
    """Return "41.20 ± 0.31 (48.30, −7.10)"; a dash stands for a missing number."""
    paper = NOTHING if cell.paper is None else f"{cell.paper:.{digits}f}"
    if cell.ours is None:
        return f"{NOTHING} ({paper})"
    text = f"{cell.ours:.{digits}f}"
    if cell.std is not None:
        text += f" ± {cell.std:.{digits}f}"
    if cell.difference is None:
        return f"{text} ({paper})"
    return f"{text} ({paper}, {signed(cell.difference, digits)})"


def claim_text(claim: ClaimResult, digits: int) -> str:
    """Return a claim with its verdict, our difference and the paper's."""
    paper = "" if claim.paper is None else f"; the paper has {signed(claim.paper, digits)}"
    if claim.difference is None:
        return f"{claim.verdict}: {claim.text} (not measured{paper})"
    found = signed(claim.difference, digits)
    if claim.low is not None and claim.high is not None and claim.p is not None:
        low, high = signed(claim.low, digits), signed(claim.high, digits)
        found += f", 95 % interval {low} to {high}, p = {claim.p:.3g}"
    return f"{claim.verdict}: {claim.text} ({found}{paper})"


def remarks(study: StudyResult) -> list[str]:
    """Return why cells have no number, each reason once with its places, and the study's notes."""
    places: dict[str, list[str]] = {}
    for row in study.rows:
        for column, cell in zip(study.columns, row.cells, strict=True):
            if cell.missing:
                places.setdefault(cell.missing, []).append(f"{row.label}, {column}")
    listed = []
    for reason, where in places.items():
        shown = "; ".join(where[:4]) + (f" and {len(where) - 4} more" if len(where) > 4 else "")
        listed.append(f"{shown}: {reason}")
    return [*listed, *study.notes]


def facts(study: StudyResult) -> list[str]:
    """Return the conditions of our numbers and of the paper's, one per line."""
    named = (("ours", study.protocol["ours"]), ("the paper", study.protocol["paper"]))
    return [f"{who}: " + ", ".join(f"{name} {text}" for name, text in told.items()) for who, told in named]


def table(study: StudyResult) -> Table:
    """Return the study's table, with one column per column of the paper's."""
    rows = [[row.label, *(cell_text(cell, study.digits) for cell in row.cells)] for row in study.rows]
    return text_table(text_columns("", *study.columns), rows, f"{study.label}: {study.title}")


def side_by_side(study: StudyResult) -> Table:
    """Return the study's table with three columns per column of the paper's: ours, paper, difference."""
    columns = [Column("")]
    columns += [Column(kind, section=name, number=True) for name in study.columns for kind in SIDES]
    rows = [
        [row.label, *(text for cell in row.cells for text in _sides(cell, study.digits))] for row in study.rows
    ]
    missing = [
        (i, 1 + len(SIDES) * j)
        for i, row in enumerate(study.rows)
        for j, cell in enumerate(row.cells)
        if cell.missing
    ]
    return text_table(columns, rows, study.title, missing=missing)


def _sides(cell: StudyCell, digits: int) -> tuple[str, str, str]:
    ours = number(cell.ours, digits)
    if cell.std is not None:
        ours += f" ± {number(cell.std, digits)}"
    if cell.low is not None and cell.high is not None:
        ours += f" [{number(cell.low, digits)}, {number(cell.high, digits)}]"
    difference = NOTHING if cell.difference is None else signed(cell.difference, digits)
    return cell.missing or ours, number(cell.paper, digits), difference


def as_markdown(study: StudyResult) -> str:
    """Return the table as GitHub's Markdown, with claims, conditions and remarks."""
    shown = table(study)
    described = ", on ".join(map(markdown.escape, (study.paper, study.data)))
    lines = [f"# {markdown.escape(shown.title)}", "", f"{described}, in {study.unit}. {EXPLAINED}", ""]
    lines += markdown.table(shown)
    for title, texts in (
        ("What the paper says", [claim_text(claim, study.digits) for claim in study.claims]),
        ("Conditions", facts(study)),
        ("Remarks", remarks(study)),
    ):
        if texts:
            lines += ["", f"## {title}", "", *markdown.items(texts)]
    lines += ["", f"Made by `{study.command}`, code {study.code}."]
    return "\n".join(lines) + "\n"


def as_latex(study: StudyResult) -> str:
    """Return the table as LaTeX with booktabs, to be put into a paper."""
    made = f"% {study.label}, made by: {study.command}".replace("\n", " ")
    chosen = [f"% {study.data}"] if study.data != study.dataset else []
    return "\n".join([made, *chosen, *latex.table(table(study)), f"% {EXPLAINED}"]) + "\n"


def as_csv(study: StudyResult) -> str:
    """Return one line per cell, unrounded."""
    names = ["study", "dataset", "unit", "row", "column"]
    values = ["ours", "std", "low", "high", "seeds", "paper", "difference", "missing"]
    head = [study.label, study.data, study.unit]
    rows = (
        [*head, row.label, column, *(getattr(cell, name) for name in values)]
        for row in study.rows
        for column, cell in zip(study.columns, row.cells, strict=True)
    )
    return unrounded([*names, *(name.replace("seeds", "random_seeds") for name in values)], rows)


FORMATS = {"md": as_markdown, "tex": as_latex, "csv": as_csv}
"""By the suffix of their files."""


def write_tables(folder: Path, study: StudyResult) -> None:
    """Write `table.md`, `table.tex` and `table.csv`."""
    for suffix, text_of in FORMATS.items():
        write_text(folder / f"table.{suffix}", text_of(study))


def as_text(study: StudyResult) -> str:
    """Return the table for a terminal; if it has many columns, its columns become rows."""
    title = f"{study.label}: {study.title} ({study.paper}; {study.data}, in {study.unit})"
    shown = table(study)
    if len(study.columns) > 8:
        header, *rows = zip(*[shown.titles, *shown.rows], strict=True)
        shown = text_table(text_columns(*header), rows)
    lines = [title, *terminal.table(shown), ""]
    lines += [f"  {claim_text(claim, study.digits)}" for claim in study.claims]
    lines += [f"  note: {text}" for text in remarks(study)]
    return "\n".join([*lines, f"  {EXPLAINED}"]) + "\n"
