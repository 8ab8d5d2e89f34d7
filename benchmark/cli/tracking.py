"""`seedbed ui`, `seedbed sync` and `seedbed watch`: MLflow, and the state of a sweep."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from seedbed.benchmark.cli.options import WORK, Quiet, Work, work_folder
from seedbed.benchmark.errors import ConfigError

if TYPE_CHECKING:
    from seedbed.benchmark.tracking.watch import View

WATCH_INTERVAL = 5.0
"""Seconds between two looks at a sweep's files."""
Uri = Annotated[
    str | None, typer.Option(help="URI of an MLflow server.", show_default="SQLite in the work folder")
]


def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 5000,
    host: Annotated[
        str, typer.Option(help="Address to listen on; the default accepts only this machine.")
    ] = "127.0.0.1",
    work: Work = WORK,
) -> None:
    """Open the MLflow UI of the work folder (stop it with Ctrl-C)."""
    import os

    from seedbed.benchmark.tracking.links import chart_links
    from seedbed.benchmark.tracking.store import database_of, default_uri, opening, relocate_artifacts

    folder = work_folder(work.resolve())
    uri = default_uri(folder)
    if not database_of(folder).is_file():
        raise ConfigError(f"{work}: no MLflow store yet; `seedbed run` and `seedbed sweep` make one")
    with opening(database_of(folder)):
        relocate_artifacts(database_of(folder))
    _check_free(host, port)
    address = f"http://{host}:{port}/"
    print(f"{address}  (Ctrl-C stops it)")
    for what, link in chart_links(address, database_of(folder)):
        print(f"charts of {what}: {link}")
    sys.stdout.flush()
    # The jobs judge answers of language models; their eight processes would start slower than the server itself.
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    arguments = ["server", "--backend-store-uri", uri, "--host", host, "--port", str(port), "--workers", "1"]
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", *arguments])


def _check_free(host: str, port: int) -> None:
    """Raise ConfigError if a server cannot listen at an address."""
    import socket

    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listening:
            # As servers do: a port that was left a moment ago is free.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((host, port))
    except OSError as error:
        raise ConfigError(
            f"cannot listen at {host}:{port} ({error.strerror or error}); choose another --port or --host"
        ) from None


def sync(
    tracking_uri: Uri = None,
    again: Annotated[
        bool,
        typer.Option("--all", help="Upload all trials again, for example to another server."),
    ] = False,
    work: Work = WORK,
    quiet: Quiet = False,
) -> None:
    """Upload trials that sweeps could not upload to MLflow, for example because the server was unreachable."""
    from seedbed.benchmark.tracking.sync import sync as upload

    uploaded, left = upload(work_folder(work.resolve()), tracking_uri, again)
    print(f"{uploaded} trials uploaded, {left} left")
    if left:
        raise typer.Exit(1)


def watch(
    name: Annotated[str, typer.Argument(help="Name of the sweep.")],
    work: Work = WORK,
) -> None:
    """Show how far a sweep is, from its files alone: also one that died, or runs on a cluster.

    On a terminal it is shown anew every few seconds until the sweep stops; Ctrl-C leaves the sweep alone.
    """
    from seedbed.benchmark.sweeps.settings import saved_settings
    from seedbed.benchmark.tracking.sweep_state import SweepState
    from seedbed.benchmark.tracking.watch import view_of

    folder = work_folder(work.resolve())
    saved_settings(folder.sweeps, name)
    state = SweepState(folder.sweeps / name)
    view = view_of(state)
    if view.driven and sys.stdout.isatty():
        from rich.live import Live
        from rich.text import Text

        with Live(auto_refresh=False) as display:
            while view.driven:
                display.update(Text("\n".join(_shown(view))), refresh=True)
                time.sleep(WATCH_INTERVAL)
                view = view_of(state)
    print("\n".join(_shown(view)))


def _shown(view: View) -> Iterator[str]:
    from seedbed.leaderboard.tables.terminal import aligned

    yield from (*view.summary, "", *aligned(view.cells))
    if view.running:
        yield from ("", "running:", *(f"  {line}" for line in aligned(view.running)))
    if view.failures:
        yield from ("", *view.failures)
