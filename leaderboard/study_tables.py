"""The table of a study in the paper's own form, as text: ours, the paper's in brackets, and the difference.

A study's result is the JSON that `benchmark/study_run.py` writes; it is read here as plain values.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from typing import Any

from leaderboard.latex import escape as latex_escape
from leaderboard.study_results import signed
from leaderboard.tables import escape as markdown_escape

NOTHING = "–"
DIGITS = {"%": 2, "fraction": 3, "hours": 2}
EXPLAINED = (
    "Each cell: ours ± standard deviation over seeds, in brackets what the paper reports, then the difference. "
    "The paper's numbers are of another setting where the protocol differs, and are not ranked with ours."
)


def cell_text(cell: Mapping[str, Any], unit: str) -> str:
    """Return "41.20 ± 0.31 (48.30, −7.10)"; what is missing is told in its place."""
    digits = DIGITS.get(unit, 2)
    paper = NOTHING if cell["paper"] is None else f"{cell['paper']:.{digits}f}"
    if cell["ours"] is None:
        return f"{NOTHING} ({paper})"
    text = f"{cell['ours']:.{digits}f}"
    if cell["std"] is not None:
        text += f" ± {cell['std']:.{digits}f}"
    if cell["difference"] is None:
        return f"{text} ({paper})"
    return f"{text} ({paper}, {signed(cell['difference'], digits)})"


def claim_text(claim: Mapping[str, Any], unit: str) -> str:
    """Return a claim with what was found of it."""
    digits = DIGITS.get(unit, 2)
    paper = "" if claim["paper"] is None else f"; the paper has {signed(claim['paper'], digits)}"
    if claim["difference"] is None:
        return f"{claim['verdict']}: {claim['text']} (not measured{paper})"
    found = signed(claim["difference"], digits)
    if claim["low"] is not None:
        low, high = signed(claim["low"], digits), signed(claim["high"], digits)
        found += f", 95 % interval {low} to {high}, p = {claim['p']:.3g}"
    return f"{claim['verdict']}: {claim['text']} ({found}{paper})"


def remarks(result: Mapping[str, Any]) -> list[str]:
    """Return why cells have no number, each reason once with its places, and the study's notes."""
    places: dict[str, list[str]] = {}
    for row in result["rows"]:
        for column, cell in zip(result["columns"], row["cells"], strict=True):
            if cell["missing"]:
                places.setdefault(cell["missing"], []).append(f"{row['label']}, {column}")
    listed = []
    for reason, where in places.items():
        shown = "; ".join(where[:4]) + (f" and {len(where) - 4} more" if len(where) > 4 else "")
        listed.append(f"{shown}: {reason}")
    return [*listed, *result["notes"]]


def facts(result: Mapping[str, Any]) -> list[str]:
    """Return the conditions of ours and of the paper's numbers, a line each."""
    named = (("ours", result["protocol"]["ours"]), ("the paper", result["protocol"]["paper"]))
    return [f"{who}: " + ", ".join(f"{name} {text}" for name, text in told.items()) for who, told in named]


def markdown(result: Mapping[str, Any]) -> str:
    """Return the table as GitHub's Markdown."""

    def line(texts: list[str]) -> str:
        return f"| {' | '.join(map(markdown_escape, texts))} |"

    unit = result["unit"]
    lines = [f"# {markdown_escape(result['study'])}: {markdown_escape(result['title'])}", ""]
    lines += [
        f"{markdown_escape(result['paper'])}, on {markdown_escape(result['dataset'])}, in {unit}. {EXPLAINED}",
        "",
    ]
    lines += [line(["", *result["columns"]]), f"| --- |{' ---: |' * len(result['columns'])}"]
    lines += [line([row["label"], *(cell_text(cell, unit) for cell in row["cells"])]) for row in result["rows"]]
    for title, texts in (
        ("What the paper says", [claim_text(claim, unit) for claim in result["claims"]]),
        ("Conditions", facts(result)),
        ("Remarks", remarks(result)),
    ):
        if texts:
            lines += ["", f"## {title}", "", *(f"- {markdown_escape(text)}" for text in texts)]
    lines += ["", f"Made by `{result['command']}`, code {result['code']}."]
    return "\n".join(lines) + "\n"


def latex(result: Mapping[str, Any]) -> str:
    """Return the table as LaTeX with booktabs, to be put into a paper."""
    unit, columns = result["unit"], result["columns"]
    lines = [
        f"% {result['study']}, made by: {result['command']}".replace("\n", " "),
        f"\\begin{{tabular}}{{l{'r' * len(columns)}}}",
        "\\toprule",
        " & ".join(["", *map(latex_escape, columns)]) + " \\\\",
        "\\midrule",
    ]
    for row in result["rows"]:
        texts = [row["label"], *(cell_text(cell, unit) for cell in row["cells"])]
        lines.append(" & ".join(map(latex_escape, texts)) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", f"% {EXPLAINED}"]) + "\n"


def comma_separated(result: Mapping[str, Any]) -> str:
    """Return one line a cell, unrounded."""
    out = io.StringIO()
    names = ["study", "dataset", "unit", "row", "column"]
    values = ["ours", "std", "low", "high", "seeds", "paper", "difference", "missing"]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*names, *values])
    head = [result["study"], result["dataset"], result["unit"]]
    for row in result["rows"]:
        for column, cell in zip(result["columns"], row["cells"], strict=True):
            writer.writerow([*head, row["label"], column, *(cell[name] for name in values)])
    return out.getvalue()


def terminal(result: Mapping[str, Any]) -> str:
    """Return the table for a terminal. Many columns stand one below the other."""
    unit = result["unit"]
    title = f"{result['study']}: {result['title']} ({result['paper']}; {result['dataset']}, in {unit})"
    rows = [[row["label"], *(cell_text(cell, unit) for cell in row["cells"])] for row in result["rows"]]
    table = [["", *result["columns"]], *rows]
    if len(result["columns"]) > 8:
        table = [list(line) for line in zip(*table, strict=True)]
    widths = [max(len(line[index]) for line in table) for index in range(len(table[0]))]
    align: Callable[[int, str], str] = lambda i, text: text.rjust(widths[i]) if i else text.ljust(widths[i])  # noqa: E731
    lines = [title, *("  ".join(align(i, text) for i, text in enumerate(line)).rstrip() for line in table), ""]
    lines += [f"  {claim_text(claim, unit)}" for claim in result["claims"]]
    lines += [f"  note: {text}" for text in remarks(result)]
    return "\n".join([*lines, f"  {EXPLAINED}"]) + "\n"
