"""The table of a study in the paper's own form, as text: ours, the paper's in brackets, and the difference."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from seedbed.benchmark.studies.result import ClaimResult, StudyCell, StudyResult, signed
from seedbed.benchmark.sweeps.trial_files import write_text
from seedbed.leaderboard.analysis.ranking import NOTHING
from seedbed.leaderboard.tables.latex import escape as latex_escape
from seedbed.leaderboard.tables.text import escape as markdown_escape

EXPLAINED = (
    "Each cell: ours ± standard deviation over random seeds, in brackets what the paper reports, then the "
    "difference. "
    "The paper's numbers are of another setting where the protocol differs, and are not ranked with ours."
)


def cell_text(cell: StudyCell, digits: int) -> str:
    """Return "41.20 ± 0.31 (48.30, −7.10)"; what is missing is told in its place."""
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
    """Return a claim with what was found of it."""
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
    """Return the conditions of ours and of the paper's numbers, a line each."""
    named = (("ours", study.protocol["ours"]), ("the paper", study.protocol["paper"]))
    return [f"{who}: " + ", ".join(f"{name} {text}" for name, text in told.items()) for who, told in named]


def markdown(study: StudyResult) -> str:
    """Return the table as GitHub's Markdown."""

    def line(texts: list[str]) -> str:
        return f"| {' | '.join(map(markdown_escape, texts))} |"

    lines = [f"# {markdown_escape(study.label)}: {markdown_escape(study.title)}", ""]
    lines += [
        f"{markdown_escape(study.paper)}, on {markdown_escape(study.dataset)}, in {study.unit}. {EXPLAINED}",
        "",
    ]
    lines += [line(["", *study.columns]), f"| --- |{' ---: |' * len(study.columns)}"]
    lines += [line([row.label, *(cell_text(cell, study.digits) for cell in row.cells)]) for row in study.rows]
    for title, texts in (
        ("What the paper says", [claim_text(claim, study.digits) for claim in study.claims]),
        ("Conditions", facts(study)),
        ("Remarks", remarks(study)),
    ):
        if texts:
            lines += ["", f"## {title}", "", *(f"- {markdown_escape(text)}" for text in texts)]
    lines += ["", f"Made by `{study.command}`, code {study.code}."]
    return "\n".join(lines) + "\n"


def latex(study: StudyResult) -> str:
    """Return the table as LaTeX with booktabs, to be put into a paper."""
    lines = [
        f"% {study.label}, made by: {study.command}".replace("\n", " "),
        f"\\begin{{tabular}}{{l{'r' * len(study.columns)}}}",
        "\\toprule",
        " & ".join(["", *map(latex_escape, study.columns)]) + " \\\\",
        "\\midrule",
    ]
    for row in study.rows:
        texts = [row.label, *(cell_text(cell, study.digits) for cell in row.cells)]
        lines.append(" & ".join(map(latex_escape, texts)) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", f"% {EXPLAINED}"]) + "\n"


def comma_separated(study: StudyResult) -> str:
    """Return one line a cell, unrounded."""
    out = io.StringIO()
    names = ["study", "dataset", "unit", "row", "column"]
    values = ["ours", "std", "low", "high", "seeds", "paper", "difference", "missing"]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*names, *(name.replace("seeds", "random_seeds") for name in values)])
    head = [study.label, study.dataset, study.unit]
    for row in study.rows:
        for column, cell in zip(study.columns, row.cells, strict=True):
            writer.writerow([*head, row.label, column, *(asdict(cell)[name] for name in values)])
    return out.getvalue()


FORMATS = {"md": markdown, "tex": latex, "csv": comma_separated}
"""By the suffix of their files."""


def write_tables(folder: Path, study: StudyResult) -> None:
    """Write `table.md`, `table.tex` and `table.csv`."""
    for suffix, text_of in FORMATS.items():
        write_text(folder / f"table.{suffix}", text_of(study))


def terminal(study: StudyResult) -> str:
    """Return the table for a terminal. Many columns stand one below the other."""
    title = f"{study.label}: {study.title} ({study.paper}; {study.dataset}, in {study.unit})"
    rows = [[row.label, *(cell_text(cell, study.digits) for cell in row.cells)] for row in study.rows]
    table = [["", *study.columns], *rows]
    if len(study.columns) > 8:
        table = [list(line) for line in zip(*table, strict=True)]
    widths = [max(len(line[index]) for line in table) for index in range(len(table[0]))]
    align: Callable[[int, str], str] = lambda i, text: text.rjust(widths[i]) if i else text.ljust(widths[i])  # noqa: E731
    lines = [title, *("  ".join(align(i, text) for i, text in enumerate(line)).rstrip() for line in table), ""]
    lines += [f"  {claim_text(claim, study.digits)}" for claim in study.claims]
    lines += [f"  note: {text}" for text in remarks(study)]
    return "\n".join([*lines, f"  {EXPLAINED}"]) + "\n"
