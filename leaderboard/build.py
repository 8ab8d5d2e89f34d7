"""From an experiment tracker to the published leaderboard: collect, snapshot, tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leaderboard.collect import collect
from leaderboard.latex import latex
from leaderboard.site import page
from leaderboard.snapshot import read_snapshot, write_snapshot
from leaderboard.standing import board_of
from leaderboard.tables import comma_separated, markdown

SNAPSHOT = "results.parquet"
FORMATS = {
    "leaderboard.md": markdown,
    "leaderboard.html": page,
    "leaderboard.tex": latex,
    "leaderboard.csv": comma_separated,
}


def build(tracking_uri: str, sweep: str, out: Path) -> list[Path]:
    """Write snapshot and tables of one sweep; return their paths, the snapshot first.

    Raises ConfigError for an unknown sweep, DataError for runs that contradict each other.
    """
    return write_leaderboard(collect(tracking_uri, sweep), out)


def write_leaderboard(snapshot: Any, out: Path) -> list[Path]:
    """Write snapshot and tables of a snapshot, given as table or as path; return their paths.

    The tables are made from the written file, so that nothing is in them that the snapshot does not hold: the same
    snapshot gives the same bytes. Raises DataError for a file that is not a snapshot.
    """
    table = read_snapshot(snapshot) if isinstance(snapshot, Path) else snapshot
    out.mkdir(parents=True, exist_ok=True)
    write_snapshot(out / SNAPSHOT, table)
    board = board_of(read_snapshot(out / SNAPSHOT))
    for name, text in FORMATS.items():
        temporary = out / f"{name}.tmp"
        temporary.write_text(text(board), "utf-8", newline="\n")
        temporary.replace(out / name)
    return [out / SNAPSHOT, *(out / name for name in FORMATS)]
