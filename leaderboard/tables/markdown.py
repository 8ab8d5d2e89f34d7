"""Tables, and the whole leaderboard, as GitHub's Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from seedbed.leaderboard.analysis.ranking import Board
from seedbed.leaderboard.analysis.result import Analysis
from seedbed.leaderboard.tables.columns import (
    EMPTY,
    MARKS,
    NUMBERS,
    columns_of,
    group_table,
    ranking,
    remarks,
    summary,
)
from seedbed.leaderboard.tables.pairwise import FACTS, comparison_tables
from seedbed.leaderboard.tables.table import Column, Table


def table(shown: Table, headings: Sequence[str] | None = None) -> list[str]:
    """Return a table as lines; `headings`, already Markdown, replace the titles of its columns.

    Rows that are set apart are in italics.
    """
    header = list(map(escape, shown.titles)) if headings is None else headings
    rule = ["---:" if column.number else "---" for column in shown.columns]
    plain = len(shown.rows) - shown.apart
    rows = [
        [_text(text, (i, j) in shown.marked, i >= plain) for j, text in enumerate(texts)]
        for i, texts in enumerate(shown.rows)
    ]
    return [f"| {' | '.join(line)} |" for line in (header, rule, *rows)]


def _text(text: str, bold: bool, italic: bool) -> str:
    mark = "**" if bold else "*" if italic and text else ""
    return f"{mark}{escape(text)}{mark}"


def escape(text: str) -> str:
    """Return text that Markdown shows as it is, in one line."""
    # An underscore within a word has no meaning in Markdown.
    return re.sub(r"([\\`*\[\]<>|~#&$]|\b_\B|\B_\b)", r"\\\1", " ".join(text.split()))


def leaderboard(board: Board, analysis: Analysis | None = None) -> str:
    """Return the leaderboard; with an analysis, it has intervals and comparisons."""
    if not board.groups:
        return f"# Leaderboard\n\n{EMPTY}\n"
    facts = " · ".join(f"{name}: {escape(text)}" for name, text in summary(board))
    lines = ["# Leaderboard", "", facts, "", f"{NUMBERS} {MARKS}", ""]
    meanings = {_heading(column): column.meaning for column in columns_of(board.groups[0])}
    analyses = [None] * len(board.groups) if analysis is None else analysis.groups
    for group, own in zip(board.groups, analyses, strict=True):
        shown = group_table(group, own)
        headings = list(map(_heading, shown.columns))
        meanings |= {heading: column.meaning for heading, column in zip(headings, shown.columns, strict=True)}
        lines += [f"## {escape(shown.title)}", "", escape(ranking(group)), "", *table(shown, headings)]
        listed = items(f"{name}: {remark}" for name, remark in remarks(group))
        lines += ["", *listed, ""] if listed else [""]
    if analysis is not None:
        lines += _analysed(board, analysis)
    lines += ["## Columns", "", "`docs/protocol.md` says what each number means.", ""]
    lines += [f"- **{heading}**: {meaning}" for heading, meaning in meanings.items()]
    return "\n".join(lines) + "\n"


def items(texts: Iterable[str]) -> list[str]:
    """Return a list, one line per text."""
    return [f"- {escape(text)}" for text in texts]


def _analysed(board: Board, analysis: Analysis) -> list[str]:
    """Return the sentences and tables of an analysis as lines."""
    lines = ["## What can be told apart", "", *items(analysis.sentences), ""]
    tables = list(comparison_tables(board, analysis))
    if tables:
        lines += [FACTS, ""]
    for shown in tables:
        lines += [f"### {escape(shown.title)}", "", *table(shown), ""]
    if analysis.images_without:
        lines += [
            "No confidence intervals: per-image statistics are missing.",
            "",
            *items(analysis.images_without),
            "",
        ]
    return lines


def _heading(column: Column) -> str:
    return f"{column.section}: {column.title}" if column.section in ("Maps", "Pseudo-masks") else column.title
