"""`seedbed ui` and `seedbed sync`: MLflow."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from seedbed.benchmark.cli.options import WORK, Quiet, Work, work_folder
from seedbed.benchmark.errors import ConfigError

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

    from seedbed.benchmark.tracking.store import database_of, default_uri, relocate_artifacts

    folder = work_folder(work.resolve())
    uri = default_uri(folder)
    if not database_of(folder).is_file():
        raise ConfigError(f"{work}: no MLflow store yet; a sweep makes one: seedbed sweep --help")
    relocate_artifacts(database_of(folder))
    _check_free(host, port)
    print(f"http://{host}:{port}/  (Ctrl-C stops it)", flush=True)
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
