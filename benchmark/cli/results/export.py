"""`seedbed export`: predictions for an evaluation server, and results for other groups."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seedbed.benchmark.cli.options import (
    WORK,
    Plugins,
    Quiet,
    Root,
    Work,
    Workers,
    chosen_device,
    processes,
    work_folder,
)

app = typer.Typer(help="Write results for others: an evaluation server, or another group.", no_args_is_help=True)


@app.command("voc-test")
def export_voc_test(
    run: Annotated[str, typer.Argument(help="Run of this work folder, as run:ID or ID.")],
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for results/VOC2012/… and results.tgz.")],
    dataset: Annotated[
        str | None, typer.Option(help="Data set whose test images are predicted.", show_default="the run's")
    ] = None,
    root: Root = None,
    device: Annotated[str, typer.Option(help="Device: cpu, cuda, or auto.")] = "auto",
    workers: Workers = None,
    plugin: Plugins = None,
    work: Work = WORK,
    quiet: Quiet = False,
) -> None:
    """Predict VOC's test images with a run's network, check the masks, and write the archive for the server."""
    from seedbed.benchmark.pipeline.stage import Machine
    from seedbed.benchmark.trials.run import read_run
    from seedbed.benchmark.trials.voc_server import MASKS, export_test_masks
    from seedbed.datasets.base import Split

    folder, name = work_folder(work), run.removeprefix("run:")
    data = folder.open(dataset or read_run(folder, name)["trial"]["dataset"], root)
    machine = Machine(device=chosen_device(device), workers=processes(workers))
    tar = export_test_masks(folder, name, data, out, machine)
    print(f"{len(data.ids(Split.TEST))} masks in {out / MASKS}")
    print(f"for the server: {tar}")


@app.command("result")
def export_result(
    run: Annotated[
        str,
        typer.Argument(help="Trial of this work folder that is no search trial: run:ID of MLflow, or its key."),
    ],
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for NAME.seedbed.json and NAME.parquet.")],
    work: Work = WORK,
    quiet: Quiet = False,
) -> None:
    """Write one result with its statistics of images, which `seedbed import` reads elsewhere."""
    from seedbed.leaderboard.data.exported import result_of
    from seedbed.leaderboard.data.result_file import statistics_of, write_result

    path = write_result(out, result_of(work_folder(work), run.removeprefix("run:")))
    print(f"{path}\n{statistics_of(path)}")
