"""A plain table as Markdown, LaTeX and CSV, for papers and READMEs."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

from seedbed.leaderboard.analysis.ranking import NOTHING
from seedbed.leaderboard.tables.latex import escape as latex_escape
from seedbed.leaderboard.tables.text import escape as markdown_escape


@dataclass(frozen=True)
class Table:
    """Titles of columns and rows of texts, each row as long as the titles."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def markdown(table: Table) -> str:
    """Return the table as GitHub's Markdown."""
    lines = [table.columns, tuple("---" for _ in table.columns), *table.rows]
    escaped = [[cell if cell == "---" else markdown_escape(cell) for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def latex(table: Table) -> str:
    """Return the table as a `tabular` that needs booktabs."""
    rows = [" & ".join(map(latex_escape, row)) + " \\\\" for row in table.rows]
    head = " & ".join(map(latex_escape, table.columns)) + " \\\\"
    begin = f"\\begin{{tabular}}{{{'l' * len(table.columns)}}}"
    return "\n".join([begin, "\\toprule", head, "\\midrule", *rows, "\\bottomrule", "\\end{tabular}", ""])


def comma_separated(table: Table) -> str:
    """Return the table as CSV."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([table.columns, *table.rows])
    return out.getvalue()


FORMATS = {"md": markdown, "tex": latex, "csv": comma_separated}
"""By the suffix of their files."""


def printed(value: float | None) -> str:
    """Return a number as papers print it, with a decimal at least, and a dash where there is none."""
    if value is None:
        return NOTHING
    text = f"{value:g}"
    return text if "." in text else f"{text}.0"


def number(value: float | None, digits: int = 2) -> str:
    """Return a number with so many decimals, and a dash where there is none."""
    return NOTHING if value is None else f"{value:.{digits}f}"
