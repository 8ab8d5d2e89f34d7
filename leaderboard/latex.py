"""The leaderboard as a LaTeX document: one booktabs table a group, to compile as it is or to copy from."""

from __future__ import annotations

import unicodedata

from leaderboard.columns import COLUMNS, cells, group_title, ranked_by, remarks, sections
from leaderboard.standing import Board, Group, Row
from leaderboard.tables import EMPTY, MARKS, NUMBERS, summary

_SIGNS = {
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


def latex(board: Board) -> str:
    """Return a document that compiles with pdflatex, booktabs and geometry."""
    if not board.groups:
        return f"{_HEAD}{EMPTY}\n\\end{{document}}\n"
    facts = " · ".join(f"{name}: {text}" for name, text in summary(board))
    parts = [f"{escape(facts)}\n\n{escape(NUMBERS)} {escape(MARKS)}\n", *map(_table, board.groups)]
    return _HEAD + "\n".join(parts) + "\\end{document}\n"


def escape(text: str) -> str:
    """Return text that LaTeX sets as it is: signs escaped, accents left away, other alphabets as "?"."""
    return "".join(map(_sign, " ".join(text.split())))


def _sign(sign: str) -> str:
    if sign in _SIGNS:
        return _SIGNS[sign]
    plain = unicodedata.normalize("NFKD", sign).encode("ascii", "ignore").decode()
    return "".join(_SIGNS.get(letter, letter) for letter in plain if letter.isprintable()) or "?"


def _table(group: Group) -> str:
    layout = "".join("r" if column.number else "l" for column in COLUMNS)
    lines = [
        f"\\section*{{{escape(group_title(group))}}}",
        f"Ranked by {escape(ranked_by(group))}.\\par\\medskip",
        f"{{\\scriptsize\\begin{{tabular}}{{{layout}}}",
        "\\toprule",
        " & ".join(_wide(escape(section), width, "c") for section, width in sections()) + " \\\\",
        *_rules(),
        " & ".join(escape(column.title) for column in COLUMNS) + " \\\\",
        "\\midrule",
        *map(_row, group.rows),
        "\\bottomrule",
        "\\end{tabular}\\par}",
    ]
    listed = [f"\\item {escape(name)}: {escape(remark)}" for name, remark in remarks(group)]
    if listed:
        lines += ["\\begin{itemize}\\footnotesize", *listed, "\\end{itemize}"]
    return "\n".join(lines) + "\n"


def _rules() -> list[str]:
    """Return a thin rule below the title of each section of columns."""
    rules, first = [], 1
    for section, width in sections():
        if section:
            rules.append(f"\\cmidrule(lr){{{first}-{first + width - 1}}}")
        first += width
    return rules


def _row(row: Row) -> str:
    texts = []
    for cell in cells(row):
        text = escape(cell.text)
        texts.append(_wide(f"\\textbf{{{text}}}" if cell.marked else text, cell.width, "c"))
    return " & ".join(texts) + " \\\\"


def _wide(text: str, width: int, layout: str) -> str:
    return text if width == 1 else f"\\multicolumn{{{width}}}{{{layout}}}{{{text}}}"
