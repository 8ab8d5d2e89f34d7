"""Files to download: each table as Markdown, LaTeX and CSV, each figure as SVG with its numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from seedbed.benchmark.studies.reported import ReportedTable
from seedbed.leaderboard.analysis.ranking import Board
from seedbed.leaderboard.analysis.result import Analysis
from seedbed.leaderboard.site.content import Content, figure_file, reported_name, study_name
from seedbed.leaderboard.site.rows import main_table
from seedbed.leaderboard.tables import csv, latex, markdown
from seedbed.leaderboard.tables import study as study_tables
from seedbed.leaderboard.tables.claims import claims_table
from seedbed.leaderboard.tables.columns import printed
from seedbed.leaderboard.tables.table import Column, Table, text_table

WHOLE: Mapping[str, Callable[[Board, Analysis], str]] = {
    "md": markdown.leaderboard,
    "tex": latex.leaderboard,
    "csv": csv.leaderboard,
}
"""The tables with all columns, by the suffix of their files."""
FORMATS: Mapping[str, Callable[[Table], str]] = {
    "md": lambda table: "\n".join([*markdown.table(table), ""]),
    "tex": lambda table: "\n".join([*latex.table(table), ""]),
    "csv": csv.table,
}
"""Small tables, by the suffix of their files."""


def downloads(content: Content) -> Iterator[tuple[str, str]]:
    """Yield the path and the text of each file."""
    for view, own in zip(content.views, content.analysis.groups, strict=True):
        only = replace(content.board, groups=(view.group,))
        # Sentences and average ranks are about all groups together.
        analysis = Analysis((own,), (), (), ())
        for suffix, text in WHOLE.items():
            yield f"tables/{view.name}.{suffix}", text(only, analysis)
    for name, table in _small(content).items():
        for suffix, text_of in FORMATS.items():
            yield f"tables/{name}.{suffix}", text_of(table)
    for study in content.studies:
        for suffix, text_of_study in study_tables.FORMATS.items():
            yield f"tables/{study_name(study)}.{suffix}", text_of_study(study)
    for figure in content.analysis.figures:
        yield figure_file(figure, "svg"), figure.svg
        yield figure_file(figure, "csv"), figure.csv


def _small(content: Content) -> dict[str, Table]:
    found = {f"{view.name}-main": main_table(view) for view in content.views}
    claims = claims_table(content.studies)
    found |= {"claims": claims} if claims.rows else {}
    return found | {reported_name(paper, t): reported_table(t) for paper in content.papers for t in paper.tables}


def reported_table(table: ReportedTable) -> Table:
    """Return a table of a paper as it was printed."""
    rows = [
        (row.label, *(printed(row.values.get(name)) for name in table.columns), row.notes) for row in table.rows
    ]
    numbers = [Column(f"{name} ({table.unit})", number=True) for name in table.columns]
    return text_table([Column(""), *numbers, Column("notes")], rows)
