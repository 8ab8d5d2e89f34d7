"""The `seedbed` command. `--help` imports nothing heavy."""

from __future__ import annotations

import functools
import os
import platform
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from seedbed.benchmark.cli import cache, data, methods, weights
from seedbed.benchmark.cli.results import export
from seedbed.benchmark.cli.results.evaluate import evaluate
from seedbed.benchmark.cli.results.leaderboard import leaderboard
from seedbed.benchmark.cli.results.submit import import_, submit
from seedbed.benchmark.cli.run import run
from seedbed.benchmark.cli.studies import studies, study
from seedbed.benchmark.cli.sweep import SpacedLists, sweep
from seedbed.benchmark.cli.tracking import sync, ui, watch
from seedbed.benchmark.environment import shorten_temporary_folder
from seedbed.benchmark.errors import (
    SeedbedError,
    StoreError,
    UntunedWarning,
    full_disk,
    out_of_memory,
    surroundings,
)
from seedbed.benchmark.output import safe_output
from seedbed.benchmark.paths import expanded
from seedbed.benchmark.progress import log_to_console

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"seedbed {version('seedbed')} (torch {version('torch')}, Python {platform.python_version()})")
        raise typer.Exit


@app.callback()
def seedbed(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Compare methods of weakly-supervised semantic segmentation under one protocol."""


app.command()(run)
app.command(cls=SpacedLists)(sweep)
app.command()(studies)
app.command(cls=SpacedLists)(study)
app.command(cls=SpacedLists)(leaderboard)
app.command()(ui)
app.command()(sync)
app.command()(watch)
app.command()(evaluate)
app.command()(submit)
app.command("import")(import_)
app.add_typer(export.app, name="export")
app.add_typer(methods.app, name="methods")
app.add_typer(data.app, name="data")
app.add_typer(weights.app, name="weights")
app.add_typer(cache.app, name="cache")


def _expand_paths(commands: typer.Typer) -> None:
    """Expand `~` and environment variables in all paths, also in `--root=~/data`, as most shells do not."""
    for command in commands.registered_commands:
        assert command.callback is not None
        command.callback = _expanding(command.callback)
    for group in commands.registered_groups:
        if group.typer_instance is not None:
            _expand_paths(group.typer_instance)


def _expanding(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(**options: Any) -> Any:
        options = {name: expanded(v) if isinstance(v, Path) else v for name, v in options.items()}
        try:
            with log_to_console(options.get("quiet", False)):
                return function(**options)
        except SeedbedError:
            raise
        except Exception as error:
            if (reason := full_disk(error)) is None:
                raise
            if sys.stdout is not None:
                sys.stdout.flush()  # Raises if it is the output that cannot be written.
            # Errors of writing name no file; the command knows its folder.
            places = (options.get(name) for name in ("out", "masks", "work"))
            place = getattr(error, "filename", None) or next(filter(None, places), Path.cwd())
            raise StoreError(
                f"{place}: cannot write ({reason}); free space there, or choose another folder, and repeat the "
                "command. Finished stages are kept."
            ) from error

    return call


_expand_paths(app)


def _print_own_warnings_as_notes() -> None:
    """Print Seedbed's warnings on one line, without the source location."""
    as_usual = warnings.formatwarning

    def formatted(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if issubclass(category, UntunedWarning):
            return f"note: {message}\n"
        return as_usual(message, category, filename, lineno, line)

    warnings.formatwarning = formatted


def main() -> None:
    """Run the command. Errors that a user can fix are printed without a traceback; exit code 1."""
    # Spinning threads would take cores from other processes.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _print_own_warnings_as_notes()
    with safe_output():
        try:
            shorten_temporary_folder()
            app()
        except SeedbedError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
        except BrokenPipeError:
            raise
        except OSError as error:
            # The user's surroundings: no permission, a full disk, a file in the place of a folder.
            print(f"error: {out_of_memory(error) or surroundings(error)}", file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            print("stopped; the same command continues from here", file=sys.stderr)
            sys.exit(130)
        except Exception as error:
            if (reason := out_of_memory(error)) is None:
                raise
            print(f"error: {reason}", file=sys.stderr)
            sys.exit(1)
