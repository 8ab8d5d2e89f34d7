"""`seedbed run`: one trial."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seedbed.benchmark.cli.options import (
    WORK,
    AcceptChangedCode,
    AllowVal,
    Quiet,
    Root,
    Work,
    Workers,
    chosen_device,
    known_method,
    known_refiner,
    one_of,
    parse_settings,
    print_records,
    processes,
    split_words,
    work_folder,
)
from seedbed.benchmark.progress import Reporter


def run(
    method: Annotated[str, typer.Option(help="A method (see `seedbed methods`).")] = "cam",
    dataset: Annotated[
        str, typer.Option(help="A data set: chimera, voc2012, coco2014, or one of seedbed.toml.")
    ] = "chimera",
    root: Root = None,
    saliency: Annotated[
        Path | None,
        typer.Option(
            help="Folder of grey saliency maps ID.png, for methods with an I+S variant (Method.saliency=true).",
            show_default="from seedbed.toml",
        ),
    ] = None,
    refiner: Annotated[
        str, typer.Option(help="How localisation maps become pseudo-masks (see `seedbed methods`).")
    ] = "none",
    seed: Annotated[int, typer.Option(min=0, help="Random seed: of every random choice of the trial.")] = 0,
    supervision: Annotated[
        str, typer.Option(help="weak, or full: the upper bound trained on true masks.")
    ] = "weak",
    backbone: Annotated[
        str | None,
        typer.Option(help="A backbone.", show_default="tiny for images of at most 128 pixels, else resnet50"),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="imagenet, none, or a state-dict file.", show_default="imagenet if the backbone has it, else none"
        ),
    ] = None,
    segmentation_backbone: Annotated[
        str | None, typer.Option(help="Of the segmentation network.", show_default="that of --backbone")
    ] = None,
    segmentation_weights: Annotated[
        str | None,
        typer.Option(
            help="Of the segmentation network; coco (trained on masks) marks the result.",
            show_default="those of --weights; with another backbone its own default",
        ),
    ] = None,
    size: Annotated[
        int, typer.Option(min=0, help="Longer image side in pixels that networks see; 0: its own.")
    ] = 0,
    segment: Annotated[bool, typer.Option(help="Train a segmentation network on the pseudo-masks.")] = True,
    selections: Annotated[
        str, typer.Option(help="Thresholds at which pseudo-masks are reported.")
    ] = "fixed,tuned,oracle",
    maps_on: Annotated[str, typer.Option(help="Splits on which maps and pseudo-masks are measured.")] = "train",
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change a hyper-parameter: --set TrainCam.lr=0.05",
            metavar="STAGE.FIELD=VALUE",
            show_default="none is changed",
        ),
    ] = None,
    accept_changed_code: AcceptChangedCode = False,
    allow_val_in_training: AllowVal = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    workers: Workers = None,
    work: Work = WORK,
    quiet: Quiet = False,
) -> None:
    """Run one method on one data set, from images to a segmentation network's mIoU."""
    from seedbed.benchmark.pipeline.pipeline import Machine
    from seedbed.benchmark.trials.run import run_trial
    from seedbed.benchmark.trials.trial import SELECTIONS, Trial

    reporter = Reporter(quiet)
    chosen = split_words(selections)
    trial = Trial(
        dataset=dataset,
        method=known_method(method),
        refiner=known_refiner(refiner),
        seed=seed,
        supervision=one_of("--supervision", supervision, ("weak", "full")),
        backbone=backbone,
        weights=weights,
        segmentation_backbone=segmentation_backbone,
        segmentation_weights=segmentation_weights,
        size=size,
        segment=segment or supervision == "full",
        selections=[one_of("--selections", word, SELECTIONS) for word in chosen],
        maps_on=[one_of("--maps-on", word, ("train", "val")) for word in split_words(maps_on)],
        settings=parse_settings(setting or []),
        allow_val_in_training=allow_val_in_training,
    )
    folder = work_folder(work)
    data = folder.open(dataset, root, reporter, {} if saliency is None else {"saliency": saliency})
    machine = Machine(device=chosen_device(device), workers=processes(workers), reporter=reporter)
    result = run_trial(trial, data, folder, machine, accept_changed_code)
    print_records(result.records)
    computed = f"{len(result.executed)} stages computed, {sum(e.seconds for e in result.executed):.0f} s"
    done = computed if result.executed else "every stage was in the store"
    if result.changes:
        done += f"; {len(result.changes)} results from the store were made by earlier code, see the warning"
    print(f"\nrun {result.run}  ({done})")
    print(f"pictures: {result.folder / 'examples.png'}")
