"""From an experiment tracker to the published leaderboard: collect, snapshot, tables, site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.studies.reported import papers
from seedbed.benchmark.studies.result import read_studies
from seedbed.leaderboard.analysis.marks import mark
from seedbed.leaderboard.analysis.ranking import Board, board_of
from seedbed.leaderboard.analysis.result import analyse
from seedbed.leaderboard.data.collect import collect
from seedbed.leaderboard.data.per_image import ImageStatistics, collect_images, read_images, write_images
from seedbed.leaderboard.data.snapshot import Run, read_snapshot, runs_of, write_snapshot
from seedbed.leaderboard.site.content import Content
from seedbed.leaderboard.site.gallery import DatasetGallery, Predict, draw_gallery
from seedbed.leaderboard.site.write import write_site
from seedbed.leaderboard.tables import csv, latex, markdown
from seedbed.leaderboard.tables.pairwise import comparisons

SNAPSHOT = "results.parquet"
IMAGES = "per_image.parquet"
INDEX = "index.html"
FORMATS = {
    "leaderboard.md": markdown.leaderboard,
    "leaderboard.tex": latex.leaderboard,
    "leaderboard.csv": csv.leaderboard,
    "comparisons.csv": comparisons,
}
NO_WORK_FOLDER = "It was built from a snapshot, without the work folder that has the runs' files."
NOT_WANTED = "It was switched off (`seedbed leaderboard --gallery 6` shows six images per data set)."
NOT_THERE = "The work folder has no finished run of these sweeps with its files."


@dataclass(frozen=True)
class Sources:
    """Further content of the site: the studies of a work folder and a gallery of its runs."""

    work: WorkFolder
    pictures: int
    """Images of each data set in the gallery; 0: no gallery."""
    predict: Predict


@dataclass(frozen=True)
class Leaderboard:
    """A leaderboard on disk."""

    board: Board
    paths: list[Path]
    """The snapshot first, then the overview."""


def build(tracking_uri: str, sweep: str | Sequence[str], out: Path, sources: Sources | None = None) -> Leaderboard:
    """Write snapshot, tables and site of one or several sweeps.

    Raises ConfigError for an unknown sweep, DataError for runs that contradict each other.
    """
    sweeps = [sweep] if isinstance(sweep, str) else list(sweep)
    snapshot = collect(tracking_uri, sweeps)
    return write_leaderboard(snapshot, out, collect_images(tracking_uri, sweeps, snapshot), sources)


def write_leaderboard(
    snapshot: Any, out: Path, images: ImageStatistics | None = None, sources: Sources | None = None
) -> Leaderboard:
    """Write snapshot, tables and site of a snapshot, given as table or as path.

    Everything is made from the written snapshot, so the same snapshot gives the same bytes. If `snapshot` is a
    path, per-image statistics in the same folder are read, too. `out` changes only after everything is written.
    Raises DataError for a file that is not a snapshot.
    """
    if isinstance(snapshot, Path) and (snapshot.parent / IMAGES).is_file():
        images = read_images(snapshot.parent / IMAGES)
    table = read_snapshot(snapshot) if isinstance(snapshot, Path) else snapshot
    out.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryDirectory(prefix=".unfinished-", dir=out) as temporary:
            made = _write(table, Path(temporary), images, sources)
            names = [path.relative_to(temporary) for path in made.paths]
            # The overview comes last: a folder with it looks like a finished site.
            for name in sorted(_files(Path(temporary)), key=lambda name: name == Path(INDEX)):
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                (Path(temporary) / name).replace(out / name)
    except OSError as error:
        # An error on a full disk does not name the file.
        error.filename = error.filename or str(out)
        raise
    return Leaderboard(made.board, [out / name for name in names])


def _files(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def _write(table: Any, out: Path, images: ImageStatistics | None, sources: Sources | None) -> Leaderboard:
    write_snapshot(out / SNAPSHOT, table)
    written = [out / SNAPSHOT]
    table = read_snapshot(out / SNAPSHOT)
    runs = tuple(runs_of(table))
    board = board_of(runs)
    analysis = analyse(board, runs, images)
    board = mark(board, analysis.groups)
    galleries, no_gallery = _galleries(runs, out, sources)
    content = Content(
        board=board,
        runs=runs,
        analysis=analysis,
        studies=read_studies(sources.work.root / "studies") if sources else (),
        papers=papers(),
        galleries=galleries,
        no_gallery=no_gallery,
    )
    index, *others = write_site(out, content)
    written.append(index)
    for name, text in FORMATS.items():
        (out / name).write_text(text(board, analysis), "utf-8", newline="\n")
        written.append(out / name)
    if images is not None:
        write_images(out / IMAGES, images)
        written.append(out / IMAGES)
    return Leaderboard(board, [*written, *others])


def _galleries(
    runs: tuple[Run, ...], out: Path, sources: Sources | None
) -> tuple[tuple[DatasetGallery, ...], str]:
    """Draw the galleries; return them, and the reason if there are none."""
    if sources is None:
        return (), NO_WORK_FOLDER
    if not sources.pictures:
        return (), NOT_WANTED
    drawn = draw_gallery(runs, sources.work, out, sources.pictures, sources.predict)
    return drawn, "" if drawn else NOT_THERE
