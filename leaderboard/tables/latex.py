"""Tables as LaTeX with booktabs, and the whole leaderboard as a document to compile or to copy from."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from seedbed.leaderboard.analysis.ranking import Board
from seedbed.leaderboard.analysis.result import Analysis
from seedbed.leaderboard.tables.columns import EMPTY, MARKS, NUMBERS, group_table, ranking, remarks, summary
from seedbed.leaderboard.tables.pairwise import FACTS, comparison_tables
from seedbed.leaderboard.tables.table import Column, Table, sections

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


def table(shown: Table) -> list[str]:
    """Return a table as the lines of a `tabular` that needs booktabs."""
    layout = "".join("r" if column.number else "l" for column in shown.columns)
    rows = [
        [_wide(f"\\textbf{{{escape(c.text)}}}" if c.marked else escape(c.text), c.width) for c in cells]
        for cells in shown.cells
    ]
    return [
        f"\\begin{{tabular}}{{{layout}}}",
        "\\toprule",
        *_sections(shown.columns),
        _line(map(escape, shown.titles)),
        "\\midrule",
        *map(_line, rows[: len(rows) - shown.apart]),
        *(["\\midrule", *map(_line, rows[len(rows) - shown.apart :])] if shown.apart else []),
        "\\bottomrule",
        "\\end{tabular}",
    ]


def _line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + " \\\\"


def _wide(text: str, width: int) -> str:
    return text if width == 1 else f"\\multicolumn{{{width}}}{{c}}{{{text}}}"


def _sections(columns: Sequence[Column]) -> list[str]:
    """Return a line with the titles of the sections, and a thin rule below each; nothing if there are none."""
    rules, first = [], 1
    for section, width in sections(columns):
        if section:
            rules.append(f"\\cmidrule(lr){{{first}-{first + width - 1}}}")
        first += width
    return [_line(_wide(escape(section), width) for section, width in sections(columns)), *rules] if rules else []


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


def leaderboard(board: Board, analysis: Analysis | None = None) -> str:
    """Return a document that compiles with pdflatex, booktabs and geometry.

    With an analysis it has the intervals, and ends with what can be told apart.
    """
    if not board.groups:
        return f"{_HEAD}{EMPTY}\n\\end{{document}}\n"
    facts = " · ".join(f"{name}: {text}" for name, text in summary(board))
    parts = [f"{escape(facts)}\n\n{escape(NUMBERS)} {escape(MARKS)}\n"]
    analyses = [None] * len(board.groups) if analysis is None else analysis.groups
    for group, own in zip(board.groups, analyses, strict=True):
        shown = group_table(group, own)
        parts.append(
            f"\\section*{{{escape(shown.title)}}}\n{escape(ranking(group))}\\par\\medskip\n{_small(shown)}"
            + _items(f"{name}: {remark}" for name, remark in remarks(group))
        )
    if analysis is not None:
        parts += _analysed(board, analysis)
    return _HEAD + "\n".join(parts) + "\\end{document}\n"


def _analysed(board: Board, analysis: Analysis) -> list[str]:
    """Return the sentences and tables of an analysis."""
    parts = ["\\section*{What can be told apart}\n", _items(analysis.sentences)]
    tables = list(comparison_tables(board, analysis))
    if tables:
        parts.append(f"{escape(FACTS)}\n")
    parts += [f"\\subsection*{{{escape(shown.title)}}}\n{_small(shown)}" for shown in tables]
    if analysis.images_without:
        parts += ["No confidence intervals: per-image statistics are missing.\n", _items(analysis.images_without)]
    return parts


def _small(shown: Table) -> str:
    return "{\\scriptsize" + "\n".join(table(shown)) + "\\par}\n"


def _items(texts: Iterable[str]) -> str:
    """Return a list; nothing if it would be empty, which LaTeX refuses."""
    lines = [f"\\item {escape(text)}" for text in texts]
    if not lines:
        return ""
    return "\n".join(["\\begin{itemize}\\footnotesize", *lines, "\\end{itemize}"]) + "\n"
