"""`seedbed run`: one trial."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from seedbed.benchmark.cli.options import (
    WORK,
    AcceptChangedCode,
    DatasetName,
    Plugins,
    Quiet,
    Root,
    Work,
    Workers,
    chosen_device,
    one_of,
    print_records,
    processes,
    work_folder,
)
from seedbed.benchmark.cli.trial_options import trial_options

logger = logging.getLogger(__name__)


@trial_options()
def run(
    *,
    method: Annotated[str, typer.Option(help="Method (see `seedbed methods`).")] = "cam",
    dataset: DatasetName = "chimera",
    root: Root = None,
    saliency: Annotated[
        Path | None,
        typer.Option(
            help="Folder of saliency maps, grey ID.png, for methods with a setting `saliency`.",
            show_default="from seedbed.toml",
        ),
    ] = None,
    refiner: Annotated[
        str, typer.Option(help="Refiner from localisation maps to pseudo-masks (see `seedbed methods`).")
    ] = "none",
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the trial.")] = 0,
    supervision: Annotated[
        str,
        typer.Option(
            help="weak: a method, trained on image tags. References: full (true masks, the upper bound), "
            "background (nothing else), whole_image (each image filled with its tag)."
        ),
    ] = "weak",
    options: dict[str, Any],
    plugin: Plugins = None,
    accept_changed_code: AcceptChangedCode = False,
    track: Annotated[
        bool,
        typer.Option(
            "--track/--no-track", help="Log to MLflow in the work folder (`seedbed ui`).", envvar="SEEDBED_TRACK"
        ),
    ] = True,
    device: Annotated[str, typer.Option(help="Device: cpu, cuda, or auto.")] = "auto",
    workers: Workers = None,
    work: Work = WORK,
    quiet: Quiet = False,
) -> None:
    """Run one method on one data set, from images to the mIoU of a segmentation network."""
    from seedbed.benchmark.pipeline.registry import METHODS, REFINERS
    from seedbed.benchmark.pipeline.stage import Machine
    from seedbed.benchmark.tracking.single_run import RunRecorder
    from seedbed.benchmark.trials.references import Supervision
    from seedbed.benchmark.trials.run import run_trial, unrecorded
    from seedbed.benchmark.trials.trial import Trial

    if supervision == "full":
        options["segment"] = True
    trial = Trial(
        dataset=dataset,
        method=METHODS.plugin(method).name,
        refiner=REFINERS.plugin(refiner).name,
        seed=seed,
        supervision=one_of("--supervision", supervision, get_args(Supervision)),
        **options,
    )
    folder = work_folder(work)
    given = {} if saliency is None else {"saliency": saliency}
    data = folder.open(dataset, root, given)
    machine = Machine(device=chosen_device(device), workers=processes(workers))
    recorder = RunRecorder(trial, folder.locate(dataset, root, given), folder) if track else None
    record = unrecorded if recorder is None else recorder.record
    result = run_trial(trial, data, folder, machine, accept_changed_code, record)
    print_records(result.records)
    computed = f"{len(result.executed)} stages computed, {sum(e.seconds for e in result.executed):.0f} s"
    done = computed if result.executed else "every stage was in the store"
    if result.changes:
        done += f"; {len(result.changes)} results from the store were made by earlier code, see the warning"
    print(f"\nrun {result.run}  ({done})")
    print(f"pictures: {result.folder / 'examples.png'}", flush=True)
    if recorder is not None and not recorder.wait():
        logger.info("note: MLflow did not take the run; its records are kept, and `seedbed sync` uploads them")
