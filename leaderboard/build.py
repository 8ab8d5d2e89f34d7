"""From an experiment tracker to the published leaderboard: collect, snapshot, tables, site."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.studies.reported import papers
from seedbed.benchmark.studies.result import read_studies
from seedbed.datasets.io.digest import file_digest
from seedbed.leaderboard.analysis.marks import mark
from seedbed.leaderboard.analysis.ranking import board_of
from seedbed.leaderboard.analysis.result import analyse
from seedbed.leaderboard.data.collect import SweepReader, collect, joined
from seedbed.leaderboard.data.per_image import (
    ImageStatistics,
    collect_images,
    read_images,
    with_published,
    write_images,
)
from seedbed.leaderboard.data.result_file import SUFFIX, Result, read_result, statistics_of, with_results
from seedbed.leaderboard.data.snapshot import Run, read_snapshot, runs_of, table_of, write_snapshot
from seedbed.leaderboard.inputs import inputs_digest
from seedbed.leaderboard.last_build import LastBuild
from seedbed.leaderboard.site.content import Content
from seedbed.leaderboard.site.gallery import DatasetGallery, Predict, draw_gallery
from seedbed.leaderboard.site.write import write_site
from seedbed.leaderboard.tables import compact, csv, latex, markdown
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

logger = logging.getLogger(__name__)


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

    table: str
    """The table for a terminal."""
    paths: list[Path]
    """All files, the snapshot first, then the overview."""


def build(
    tracking_uri: str,
    sweep: str | Sequence[str],
    out: Path,
    sources: Sources | None = None,
    published: Sequence[Path] = (),
) -> Leaderboard:
    """Write snapshot, tables and site of one or several sweeps, and of published results.

    `published` are folders of leaderboards that were built before, and files of single results
    (data/result_file.py). Results in the work folder join if they are of a data set of the sweeps.

    What an earlier build left in `out` stays if the runs, everything else that it was made from and the files
    themselves are unchanged.
    Raises ConfigError for an unknown sweep, DataError for runs that contradict each other, for a folder in
    `published` that has no snapshot and no statistics of images, and for a file that is not a whole result.
    """
    sweeps = [sweep] if isinstance(sweep, str) else list(sweep)
    store, last = SweepReader(tracking_uri), LastBuild.read(out)

    folders = [path for path in published if path.is_dir()]
    given = [path for path in published if path not in folders]
    own = sorted(sources.work.submitted.glob(f"*{SUFFIX}")) if sources else []

    def state_now() -> str | None:
        state, files = store.state(sweeps), [folder / name for folder in folders for name in (SNAPSHOT, IMAGES)]
        files += [file for path in (*given, *own) for file in (path, statistics_of(path))]
        return state and " ".join([state, *map(file_digest, files)])

    others = [(read_snapshot(folder / SNAPSHOT), read_images(folder / IMAGES)) for folder in folders]
    state = state_now()
    if last is None or state is None or last.store != state or last.inputs != _inputs(out, sources):
        with _unfinished(out) as folder:
            collected = joined([collect(tracking_uri, sweeps), *(table for table, _ in others)])
            results = _joining(collected, given, own)
            snapshot = joined([collected, table_of(result.run for result in results)])
            write_snapshot(folder / SNAPSHOT, snapshot)
            images = with_published(collect_images(tracking_uri, sweeps, collected), snapshot, others)
            write_images(folder / IMAGES, with_results(images, snapshot, results))
            inputs = _inputs(folder, sources)
            if last is None or last.inputs != inputs:
                table = _write(folder, sources)
                last = LastBuild(None, inputs, _move(folder, out), table)
        # If the store changed meanwhile, it is unknown which state was collected.
        last = replace(last, store=state if state_now() == state else None)
        last.write(out)
    else:
        logger.info(f"{out}: nothing has changed since it was built")
    return Leaderboard(last.table, [out / name for name in last.files])


def _joining(collected: pa.Table, given: Sequence[Path], own: Sequence[Path]) -> list[Result]:
    """Return the `given` results, and those of `own` that are of a collected data set, each run once."""
    runs = runs_of(collected)
    known, datasets = {run.key for run in runs}, {run.dataset for run in runs}
    found: dict[str, Result] = {}
    for path in (*given, *own):
        result = read_result(path)
        if result.run.key not in known and (path in given or result.run.dataset in datasets):
            found.setdefault(result.run.key, result)
    return list(found.values())


def write_leaderboard(
    snapshot: Any, out: Path, images: ImageStatistics | None = None, sources: Sources | None = None
) -> Leaderboard:
    """Write snapshot, tables and site of a snapshot, given as table or as path.

    Everything is made from the written snapshot, so the same snapshot gives the same bytes. If `snapshot` is a
    path, per-image statistics in the same folder are read, too. `out` changes only after everything is written.
    Raises DataError for a file that is not a snapshot.
    """
    if isinstance(snapshot, Path):
        images = read_images(snapshot.parent / IMAGES) if (snapshot.parent / IMAGES).is_file() else images
        snapshot = read_snapshot(snapshot)
    with _unfinished(out) as folder:
        write_snapshot(folder / SNAPSHOT, snapshot)
        if images is not None:
            write_images(folder / IMAGES, images)
        table = _write(folder, sources)
        return Leaderboard(table, [out / name for name in _move(folder, out)])


@contextmanager
def _unfinished(out: Path) -> Iterator[Path]:
    """Yield a temporary folder in `out`. Errors name a file, also those of a full disk, which do not."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryDirectory(prefix=".unfinished-", dir=out) as folder:
            yield Path(folder)
    except OSError as error:
        error.filename = error.filename or str(out)
        raise


def _move(folder: Path, out: Path) -> dict[str, str]:
    """Move all files into `out`; return the sha256 of each by its path, the snapshot first, then the overview."""
    first = [SNAPSHOT, INDEX, *FORMATS]
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = [*first, *(name for name in found if name not in first)]
    digests = {name: file_digest(folder / name) for name in names}
    # The overview comes last: a folder with it looks like a finished site.
    for name in sorted(names, key=lambda name: name == INDEX):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).replace(out / name)
    return digests


def _inputs(folder: Path, sources: Sources | None) -> str:
    work, pictures = (sources.work, sources.pictures) if sources else (None, 0)
    return inputs_digest(folder / SNAPSHOT, folder / IMAGES, work, pictures)


def _write(out: Path, sources: Sources | None) -> str:
    """Write tables and site beside the snapshot in `out`; return the table for a terminal."""
    images = read_images(out / IMAGES) if (out / IMAGES).is_file() else None
    runs = tuple(runs_of(read_snapshot(out / SNAPSHOT)))
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
    write_site(out, content)
    for name, text in FORMATS.items():
        (out / name).write_text(text(board, analysis), "utf-8", newline="\n")
    return compact.leaderboard(board)


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
