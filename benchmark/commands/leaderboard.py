"""`seedbed leaderboard`: the tables of a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmark.commands.shared import WORK, Work
from benchmark.commands.tracking import Uri


def leaderboard(
    sweep: Annotated[str, typer.Option(help="The sweep's name.")],
    out: Annotated[Path, typer.Option(help="The folder for the pages and tables.")],
    tracking_uri: Uri = None,
    work: Work = WORK,
) -> None:
    """Build the leaderboard of a sweep from what MLflow has: Markdown, HTML, LaTeX, CSV."""
    from benchmark.tracking import uri_of
    from benchmark.workfolder import WorkFolder
    from leaderboard.build import SNAPSHOT, build
    from leaderboard.snapshot import read_snapshot
    from leaderboard.standing import board_of
    from leaderboard.tables import terminal

    build(tracking_uri or uri_of(WorkFolder(work), sweep), sweep, out)
    print(terminal(board_of(read_snapshot(out / SNAPSHOT))))
    print(f"pages: {out / 'leaderboard.html'}")
