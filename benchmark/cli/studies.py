"""`seedbed studies` and `seedbed study`: the papers' own tables."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from seedbed.benchmark.cli.options import (
    WORK,
    AcceptChangedCode,
    Address,
    CpusPerTrial,
    DatasetName,
    GpusPerTrial,
    Plugins,
    Quiet,
    Root,
    Work,
    print_table,
    work_folder,
)
from seedbed.benchmark.cli.sweep import INCOMPLETE, print_forecast, print_result
from seedbed.benchmark.cli.trial_options import trial_options
from seedbed.benchmark.trials.options import DECIDED, words_of


def studies() -> None:
    """List the studies: tables of papers that you can run again."""
    from seedbed.benchmark.studies.study import read_study, study_names

    rows = []
    for name in study_names():
        study = read_study(name)
        where = study.table.number if study.table.number.startswith("Figure") else f"Table {study.table.number}"
        rows.append([name, study.paper.title, where, str(len(study.variants)), study.title])
    print_table(["study", "paper", "where", "trials per seed", "what it compares"], rows)
    print("\nseedbed study NAME --dataset voc2012 --root DIR runs one; --dry-run says what it would cost")


@trial_options(without=DECIDED)
def study(
    *,
    name: Annotated[str, typer.Argument(help="Study (see `seedbed studies`), or a YAML file of your own.")],
    dataset: DatasetName = "chimera",
    root: Root = None,
    seeds: Annotated[
        list[int] | None, typer.Option(help="Random seeds, one trial per seed.", show_default="0 1 2")
    ] = None,
    sweep_name: Annotated[
        str, typer.Option("--name", help="Name of the sweep.", show_default="study and data set")
    ] = "",
    options: dict[str, Any],
    cpus_per_trial: CpusPerTrial = None,
    gpus_per_trial: GpusPerTrial = None,
    address: Address = None,
    plugin: Plugins = None,
    accept_changed_code: AcceptChangedCode = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print trials, shared stages and cost.")] = False,
    work: Work = WORK,
    quiet: Quiet = False,
) -> None:
    """Run or continue a study, and print its numbers beside the paper's.

    Exit code: 0 if all trials finished, 3 if some failed, 1 if the study was refused or stopped.
    """
    from seedbed.benchmark.pipeline.dry_run_folder import DryRunFolder
    from seedbed.benchmark.studies.result import study_of, write_result
    from seedbed.benchmark.studies.run import StudyRequest, result_of, run_study, sweep_of
    from seedbed.benchmark.studies.study import read_study
    from seedbed.benchmark.tracking.uploader import MlflowUploader
    from seedbed.leaderboard.tables.study import as_text, write_tables

    folder, chosen = work_folder(work.resolve()), read_study(name)
    machines = {"cpus_per_trial": cpus_per_trial, "gpus_per_trial": gpus_per_trial, "address": address}
    request = StudyRequest(
        dataset=dataset,
        root=root,
        seeds=tuple(seeds or (0, 1, 2)),
        name=sweep_name,
        where={key: value for key, value in machines.items() if value is not None},
        **options,
    )
    settings = sweep_of(chosen, request, DryRunFolder(folder.root, folder.location) if dry_run else folder)
    if dry_run:
        if chosen.variants:
            print_forecast(settings, folder, accept_changed_code)
        else:
            print(f"{chosen.name}: nothing to run")
        return
    uploader = MlflowUploader(settings.tracking_uri, folder)
    ran = run_study(settings, folder, [uploader], accept_changed_code) if chosen.variants else None
    classes = folder.locate(dataset, root).open().classes
    result = result_of(chosen, settings, folder, command_of(name, request), classes)
    out = folder.root / "studies" / chosen.name / (sweep_name or settings.name.removeprefix(f"{chosen.name}-"))
    write_result(out, result)
    write_tables(out, study_of(result))
    print(as_text(study_of(result)))
    print(f"the same as JSON, Markdown, LaTeX and CSV: {out}")
    if ran is not None and not ran.whole:
        print()
        print_result(ran, uploader.left, work)
        raise typer.Exit(INCOMPLETE)


def command_of(name: str, request: Any) -> str:
    """Return what repeats the study, without the folders of this machine."""
    words = ["seedbed", "study", Path(name).name, "--dataset", request.dataset]
    words += ["--root", "DIR"] if request.root else []
    words += ["--name", request.name] if request.name else []
    words += ["--seeds", *map(str, request.seeds)]
    words += words_of(request, {})
    return shlex.join(words)
