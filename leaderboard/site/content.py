"""The content of the site and the paths of its files, relative to the site's folder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from seedbed.benchmark.paths import slug
from seedbed.benchmark.studies.reported import ReportedPaper, ReportedTable
from seedbed.benchmark.studies.result import StudyResult
from seedbed.leaderboard.analysis.grouping import RowRuns, references_of, rows_by_scope
from seedbed.leaderboard.analysis.ranking import Board
from seedbed.leaderboard.analysis.result import Analysis
from seedbed.leaderboard.data.conditions import Scope
from seedbed.leaderboard.data.snapshot import Run
from seedbed.leaderboard.figures.style import Figure
from seedbed.leaderboard.site.gallery import FOLDER, DatasetGallery
from seedbed.leaderboard.site.rows import GroupView, group_views


@dataclass(frozen=True)
class Content:
    """All that the pages show."""

    board: Board
    runs: tuple[Run, ...]
    """The runs behind the board."""
    analysis: Analysis
    studies: tuple[StudyResult, ...] = ()
    papers: tuple[ReportedPaper, ...] = ()
    galleries: tuple[DatasetGallery, ...] = ()
    no_gallery: str = ""
    """Why there is no gallery; empty if there is one."""

    @cached_property
    def views(self) -> list[GroupView]:
        """The groups with their tables."""
        return group_views(self.board, self.analysis)

    @cached_property
    def rows_by_scope(self) -> dict[Scope, list[RowRuns]]:
        """The runs of each row, by scope, references last."""
        found = rows_by_scope(self.runs)
        return {scope: [*lines, *references_of(self.runs, scope)] for scope, lines in found.items()}

    @property
    def methods(self) -> list[str]:
        """The methods that have a page: those of the rows, of the studies and of the papers."""
        named = {row.method for group in self.board.groups for row in group.rows}
        return sorted(named | {study.method for study in self.studies} | {paper.method for paper in self.papers})

    @property
    def references(self) -> dict[str, str]:
        """The titles of the references that have a page, by name."""
        return {row.method: row.title for group in self.board.groups for row in group.references}

    @property
    def datasets(self) -> list[str]:
        """The data sets that have a page."""
        return sorted({group.scope.dataset for group in self.board.groups})


def method_page(method: str) -> str:
    """Return the path of a method's page."""
    return f"methods/{slug(method)}.html"


def reference_page(reference: str) -> str:
    """Return the path of a reference's page."""
    return f"references/{slug(reference)}.html"


def dataset_page(dataset: str) -> str:
    """Return the path of a data set's page."""
    return f"datasets/{slug(dataset)}.html"


def study_name(study: StudyResult) -> str:
    """Return the name of a study's files."""
    return f"{slug(study.study)}-{slug(study.sweep or study.dataset)}"


def study_page(study: StudyResult) -> str:
    """Return the path of a study's page."""
    return f"studies/{study_name(study)}.html"


def gallery_page(gallery: DatasetGallery) -> str:
    """Return the path of a data set's gallery."""
    return f"{FOLDER}/{slug(gallery.dataset)}.html"


def reported_name(paper: ReportedPaper, table: ReportedTable) -> str:
    """Return the name of a reported table's files."""
    return f"reported-{slug(paper.id)}-{slug(table.id)}"


def figure_file(figure: Figure, suffix: str) -> str:
    """Return the path of a figure's file."""
    return f"figures/{slug(figure.name)}.{suffix}"
