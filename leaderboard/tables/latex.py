"""The leaderboard as a LaTeX document: one booktabs table a group, to compile as it is or to copy from."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from seedbed.leaderboard.analysis.ranking import Board, Group, Row
from seedbed.leaderboard.analysis.result import Analysis
from seedbed.leaderboard.tables.columns import (
    Column,
    cells,
    columns_of,
    group_title,
    ranking,
    remarks,
    sections,
)
from seedbed.leaderboard.tables.pairwise import FACTS, TextTable, titled
from seedbed.leaderboard.tables.text import EMPTY, MARKS, NUMBERS, summary

_NOTHING = "\0"
_SIGNS = {
    _NOTHING: "{}",
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "%": r"\%",
    "_": r"\_",
    "&": r"\&",
    "#": r"\#",
    "$": r"\$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    # After the end of a row these two would be its options.
    "[": "{[}",
    "*": "{*}",
    "±": r"$\pm$",
    "−": r"$-$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "–": "--",
    "…": r"\dots{}",
    "≤": r"$\leq$",
    "√": r"$\surd$",
    "₁": r"$_1$",
    "₂": r"$_2$",
    "²": r"$^2$",
    "‘": "`",
    "’": "'",
    "“": "``",
    "”": "''",
}
_HEAD = r"""\documentclass{article}
\usepackage[a3paper,landscape,margin=1cm]{geometry}
\usepackage{booktabs}
\setlength{\tabcolsep}{3pt}
\setlength{\parindent}{0pt}
\begin{document}
"""


def latex(board: Board, analysis: Analysis | None = None) -> str:
    """Return a document that compiles with pdflatex, booktabs and geometry.

    With an analysis it has the intervals, and ends with what can be told apart.
    """
    if not board.groups:
        return f"{_HEAD}{EMPTY}\n\\end{{document}}\n"
    facts = " · ".join(f"{name}: {text}" for name, text in summary(board))
    parts = [f"{escape(facts)}\n\n{escape(NUMBERS)} {escape(MARKS)}\n"]
    if analysis is None:
        parts += [_table(group, columns_of(group)) for group in board.groups]
    else:
        groups = zip(board.groups, analysis.groups, strict=True)
        parts += [*(_table(group, columns_of(group, own)) for group, own in groups), *_said(board, analysis)]
    return _HEAD + "\n".join(parts) + "\\end{document}\n"


def escape(text: str) -> str:
    """Return text that LaTeX sets as it is: signs escaped, accents left away, other alphabets as "?"."""
    # Two hyphens would become a dash, which spoils a command that is copied.
    apart = re.sub("-(?=-)", f"-{_NOTHING}", " ".join(text.split()))
    return "".join(map(_sign, apart))


def _sign(sign: str) -> str:
    if sign in _SIGNS:
        return _SIGNS[sign]
    plain = unicodedata.normalize("NFKD", sign).encode("ascii", "ignore").decode()
    return "".join(_SIGNS.get(letter, letter) for letter in plain if letter.isprintable()) or "?"


def _said(board: Board, analysis: Analysis) -> list[str]:
    """Return what an analysis says, and its tables."""
    parts = ["\\section*{What can be told apart}\n", _items(analysis.sentences)]
    tables = list(titled(board, analysis))
    if tables:
        parts.append(f"{escape(FACTS)}\n")
    parts += map(_small, tables)
    if analysis.images_without:
        parts += ["No intervals, for want of statistics of images:\n", _items(analysis.images_without)]
    return parts


def _small(table: TextTable) -> str:
    lines = [
        f"\\subsection*{{{escape(table.title)}}}",
        f"{{\\scriptsize\\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
        "\\toprule",
        " & ".join(map(escape, table.header)) + " \\\\",
        "\\midrule",
        *(" & ".join(map(escape, row)) + " \\\\" for row in table.rows),
        "\\bottomrule",
        "\\end{tabular}\\par}",
    ]
    return "\n".join(lines) + "\n"


def _items(texts: Sequence[str]) -> str:
    """Return a list, nothing where it would be empty: LaTeX refuses an empty one."""
    if not texts:
        return ""
    lines = ["\\begin{itemize}\\footnotesize", *(f"\\item {escape(text)}" for text in texts), "\\end{itemize}"]
    return "\n".join(lines) + "\n"


def _table(group: Group, columns: tuple[Column, ...]) -> str:
    layout = "".join("r" if column.number else "l" for column in columns)
    lines = [
        f"\\section*{{{escape(group_title(group))}}}",
        f"{escape(ranking(group))}\\par\\medskip",
        f"{{\\scriptsize\\begin{{tabular}}{{{layout}}}",
        "\\toprule",
        " & ".join(_wide(escape(section), width, "c") for section, width in sections(columns)) + " \\\\",
        *_rules(columns),
        " & ".join(escape(column.title) for column in columns) + " \\\\",
        "\\midrule",
        *(_row(row, columns) for row in group.rows),
        "\\bottomrule",
        "\\end{tabular}\\par}",
    ]
    listed = [f"\\item {escape(name)}: {escape(remark)}" for name, remark in remarks(group)]
    if listed:
        lines += ["\\begin{itemize}\\footnotesize", *listed, "\\end{itemize}"]
    return "\n".join(lines) + "\n"


def _rules(columns: tuple[Column, ...]) -> list[str]:
    """Return a thin rule below the title of each section of columns."""
    rules, first = [], 1
    for section, width in sections(columns):
        if section:
            rules.append(f"\\cmidrule(lr){{{first}-{first + width - 1}}}")
        first += width
    return rules


def _row(row: Row, columns: tuple[Column, ...]) -> str:
    texts = []
    for cell in cells(row, columns):
        text = escape(cell.text)
        texts.append(_wide(f"\\textbf{{{text}}}" if cell.marked else text, cell.width, "c"))
    return " & ".join(texts) + " \\\\"


def _wide(text: str, width: int, layout: str) -> str:
    return text if width == 1 else f"\\multicolumn{{{width}}}{{{layout}}}{{{text}}}"
