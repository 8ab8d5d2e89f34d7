"""`seedbed sweep`: every cell of methods, refiners and data sets."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from seedbed.benchmark.cli.options import (
    WORK,
    AcceptChangedCode,
    Address,
    CpusPerTrial,
    GpusPerTrial,
    Plugins,
    Quiet,
    Work,
    print_table,
    work_folder,
)
from seedbed.benchmark.cli.trial_options import LISTS as TRIAL_LISTS
from seedbed.benchmark.cli.trial_options import trial_options
from seedbed.benchmark.errors import ConfigError

if TYPE_CHECKING:
    from seedbed.benchmark.pipeline.work_folder import WorkFolder
    from seedbed.benchmark.sweeps.progress import SweepResult
    from seedbed.benchmark.sweeps.settings import SweepSettings

INCOMPLETE = 3
"""Exit code of a sweep that came to its end although not all of its trials finished."""
LISTS = ("--sweep", "--methods", "--refiners", "--datasets", "--seeds", "--tune", *TRIAL_LISTS)


class SpacedLists(TyperCommand):
    """Lets one option take several words: `--seeds 0 1 2`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before each of its words, as click reads lists."""
        spread: list[str] = []
        current = None
        for word in args:
            if word.startswith("-") and not word.removeprefix("-").isdecimal():
                current = word if word in LISTS else None
                if current is None:
                    spread.append(word)
            elif current is not None:
                spread += [current, word]
            else:
                spread.append(word)
        return super().parse_args(ctx, spread)


@trial_options()
def sweep(
    *,
    file: Annotated[
        Path | None, typer.Argument(help="YAML file with these options as keys.", show_default="none")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="Name of the sweep and of its folder.", show_default="none: give it here or in the file"
        ),
    ] = None,
    methods: Annotated[
        list[str] | None, typer.Option(help="Methods (see `seedbed methods`), or all.", show_default="all")
    ] = None,
    refiners: Annotated[
        list[str] | None, typer.Option(help="Refiners (see `seedbed methods`), or all.", show_default="all")
    ] = None,
    datasets: Annotated[
        list[str] | None,
        typer.Option(help="Data sets: NAME, or NAME=ROOT.", show_default="none: give them here or in the file"),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(help="Search trials per cell (method, refiner, data set); 0: no search.", show_default="8"),
    ] = None,
    seeds: Annotated[
        list[int] | None,
        typer.Option(help="Random seeds of the confirming trials, one trial per seed.", show_default="0 1 2"),
    ] = None,
    tune: Annotated[
        list[str] | None,
        typer.Option(
            help="Settings to search: all, part of a name (crf, threshold), or STAGE.FIELD.", show_default="all"
        ),
    ] = None,
    search_seed: Annotated[
        int | None, typer.Option(help="Random seed of the search trials; not one of --seeds.", show_default="1000")
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(help="Maximum number of search trials of a cell that run at once.", show_default="4"),
    ] = None,
    early_stopping: Annotated[
        bool | None,
        typer.Option(
            "--early-stopping", help="Stop weak search trials during their first training.", show_default="off"
        ),
    ] = None,
    references: Annotated[
        bool | None,
        typer.Option(
            "--references/--no-references",
            help="Also measure the reference rows: fully supervised, background only, tags + whole image.",
            show_default="references; with --resume as the sweep began",
        ),
    ] = None,
    options: dict[str, Any],
    gpus_per_trial: GpusPerTrial = None,
    cpus_per_trial: CpusPerTrial = None,
    workers: Annotated[
        int | None, typer.Option(help="Worker processes per trial, besides its own process.", show_default="0")
    ] = None,
    address: Address = None,
    tracking_uri: Annotated[
        str | None, typer.Option(help="URI of an MLflow server.", show_default="SQLite in the work folder")
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            help="Continue the sweep of this name, and run failed confirming trials again.", show_default="none"
        ),
    ] = None,
    plugin: Plugins = None,
    accept_changed_code: AcceptChangedCode = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print cells, trials, shared stages and cost.")
    ] = False,
    work: Work = WORK,
    quiet: Quiet = False,
) -> None:
    """Run methods with refiners on data sets: search for the best settings, then confirm them.

    Exit code: 0 if all trials finished, 3 if some failed, 1 if the sweep was refused or stopped.
    """
    sweep_options: dict[str, Any] = {
        "name": name,
        "methods": methods,
        "refiners": refiners,
        "datasets": datasets,
        "trials": trials,
        "seeds": seeds,
        "tune": tune,
        "search_seed": search_seed,
        "window": window,
        "early_stopping": early_stopping,
        "references": references,
        "gpus_per_trial": gpus_per_trial,
        "cpus_per_trial": cpus_per_trial,
        "workers": workers,
        "address": address,
        "tracking_uri": tracking_uri,
    }
    given = {key: value for key, value in sweep_options.items() if value not in (None, [])} | options
    folder = work_folder(work.resolve())
    settings = _settings(folder, file, resume, given)
    if dry_run:
        print_forecast(settings, folder, accept_changed_code)
        return
    from seedbed.benchmark.sweeps.driver import run_sweep
    from seedbed.benchmark.tracking.uploader import MlflowUploader

    uploader = MlflowUploader(settings.tracking_uri, folder)
    result = run_sweep(
        settings,
        folder,
        [uploader],
        retry_failed=resume is not None,
        accept_changed_code=accept_changed_code,
    )
    print_result(result, uploader.left, work)
    if result.confirmed:
        print(f"next: seedbed leaderboard --sweep {settings.name} --out DIR{where_of(work)}")
    if not result.whole:
        raise typer.Exit(INCOMPLETE)


def where_of(work: Path) -> str:
    """Return the option that names the work folder in a command, empty for the usual one."""
    return "" if work == WORK else f" --work {shlex.quote(str(work))}"


def print_result(result: SweepResult, not_uploaded: int, work: Path) -> None:
    """Print how many trials finished and failed, why, and where everything is."""
    for line in result.lines(where_of(work)):
        print(line)
    print(f"records: {result.folder}")
    if not_uploaded:
        print(f"MLflow did not take {not_uploaded} trials; when it is back: seedbed sync{where_of(work)}")


def _settings(
    folder: WorkFolder, file: Path | None, resume: str | None, given: Mapping[str, Any]
) -> SweepSettings:
    from seedbed.benchmark.sweeps.settings import change, read_settings, settings_of

    if resume is not None:
        if file is not None:
            raise ConfigError(f"--resume {resume} reads the settings of that sweep; leave out {file}")
        from seedbed.benchmark.sweeps.settings import saved_settings

        return change(saved_settings(folder.sweeps, resume), given)
    return read_settings(file, given) if file is not None else settings_of(given)


def print_forecast(settings: SweepSettings, folder: WorkFolder, accept_changed_code: bool) -> None:
    """Print what a sweep would do and cost, and whether it would be refused."""
    from seedbed.benchmark.sweeps.dry_run import forecast

    found = forecast(settings, folder)
    rows: Sequence[Sequence[str]] = [
        [str(cell.cell), str(cell.searching), str(cell.confirming), ", ".join(cell.searched) or "nothing"]
        for cell in found.cells
    ]
    print_table(["cell", "search", "confirm", "searched"], rows)
    references = sum(cell.cell.reference != "" for cell in found.cells)
    listed = f"cells: {len(found.cells) - references}" + (f", references: {references}" if references else "")
    print(f"\ntrials: {found.trials}, {listed}\n")
    print_table(
        ["stage", "needed", "shared", "in the store", "to compute", "seconds each", "hours"],
        [
            [
                row.stage,
                str(row.needed),
                str(row.needed - row.distinct),
                str(row.stored),
                str(row.missing),
                "" if row.seconds is None else f"{row.seconds:.1f}{' (rough)' if row.rough else ''}",
                f"{row.hours:.2f}" if row.estimates or not row.missing else "not timed yet",
            ]
            for row in found.stages
        ],
    )
    unknown = [row.stage for row in found.stages if row.not_timed]
    if len(unknown) < len(found.stages):
        rough = any(row.rough for row in found.stages)
        hours = sum(row.hours for row in found.stages)
        print(
            f"\n{'rough ' if rough else ''}estimate: {hours:.2f} hours on {found.device}, one trial after another"
        )
        if rough:
            print("rough: scaled by pixels and images from data of another size")
    else:
        print("\nestimate: none")
    if found.device is None:
        print("not known: the cluster's machines; with --gpus-per-trial there is an estimate")
    elif unknown:
        print(
            f"not timed yet in this store, with this backbone on {found.device}, and not in the estimate: "
            f"{', '.join(unknown)}"
        )
    if found.not_generated:
        print(f"not known: the content of {', '.join(found.not_generated)}, which the sweep will generate")
    if settings.trials > 1:
        print("suggestions are not known before the search: random ones stand for them")
    if found.refusal and not accept_changed_code:
        print(f"\nthe sweep will be refused: {found.refusal}")
