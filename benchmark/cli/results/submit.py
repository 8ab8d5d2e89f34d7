"""`seedbed submit` and `seedbed import`: results from elsewhere on the leaderboard."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from seedbed.benchmark.cli.options import (
    WORK,
    DatasetName,
    Maps,
    Masks,
    Plugins,
    Quiet,
    Root,
    Work,
    Workers,
    one_of,
    processes,
    work_folder,
)
from seedbed.benchmark.cli.tracking import Uri
from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.progress import progress_bar

if TYPE_CHECKING:
    from seedbed.benchmark.pipeline.work_folder import WorkFolder
    from seedbed.leaderboard.data.result_file import Result

logger = logging.getLogger(__name__)


def submit(
    name: Annotated[str, typer.Option(help="Name of the method on the leaderboard.")],
    dataset: DatasetName,
    split: Annotated[str, typer.Option(help="Split: train for maps, train or val for masks.")],
    tuning_masks: Annotated[
        int,
        typer.Option(
            help="Number of true masks that were used to choose thresholds or settings; 0: none. Those with which "
            "Seedbed cuts maps are added."
        ),
    ],
    root: Root = None,
    maps: Maps = None,
    masks: Masks = None,
    seed: Annotated[int, typer.Option(help="Random seed of this training; submit each seed.")] = 0,
    refiner: Annotated[str, typer.Option(help="What refined the maps, in your words.")] = "none",
    supervision: Annotated[
        str, typer.Option(help="Supervision: I (image tags), I+S (saliency as well), or another text.")
    ] = "I",
    backbone: Annotated[str, typer.Option(help="Backbone of the networks.", show_default="not stated")] = "",
    initialisation: Annotated[
        str, typer.Option(help="Initial weights: imagenet, coco, none, …", show_default="not stated")
    ] = "",
    precision: Annotated[str, typer.Option(help="Numbers that networks compute with: fp32 or bf16.")] = "fp32",
    crf: Annotated[
        str, typer.Option(help="Settings of a dense CRF; none: without one.", show_default="not stated")
    ] = "",
    scales: Annotated[
        str, typer.Option(help="Scales of inference, 0.5,1,1.5; none: one.", show_default="not stated")
    ] = "",
    selection: Annotated[
        str, typer.Option(help="How the threshold of masks was chosen: none, fixed, tuned or oracle.")
    ] = "none",
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Fixed background threshold for maps.")] = 0.15,
    paper: Annotated[str, typer.Option(help="Paper, in words.", show_default="none")] = "",
    code: Annotated[str, typer.Option(help="Address of the code.", show_default="none")] = "",
    tracking_uri: Uri = None,
    workers: Workers = None,
    plugin: Plugins = None,
    work: Work = WORK,
    quiet: Quiet = False,
) -> None:
    """Score saved maps or masks of any code, and put them on the leaderboards of this work folder.

    A row is ranked with rows of the same conditions, so state all of them, with the names that Seedbed uses.
    Masks of train and val of one name, refiner and seed make one row, and so do several seeds.
    """
    from seedbed.benchmark.evaluation.formats import open_maps, open_masks
    from seedbed.benchmark.evaluation.records import Selection
    from seedbed.datasets.base import Split
    from seedbed.leaderboard.data.result_file import Result, file_of, read_result, write_result
    from seedbed.leaderboard.data.submission import Submission, added, images_of_maps, images_of_masks

    if (maps is None) == (masks is None):
        raise ConfigError("give one of --maps DIR and --masks DIR")
    one_of("--split", split, ("train",) if maps is not None else ("train", "val"))
    submission = Submission(
        name=name,
        refiner=refiner,
        seed=seed,
        supervision=supervision,
        backbone=backbone,
        initialisation=initialisation,
        precision=one_of("--precision", precision, ("fp32", "bf16")),
        crf=crf,
        scales=scales,
        selection=one_of("--selection", selection, get_args(Selection)),
        tuning_masks=tuning_masks,
        paper=paper,
        code=code,
    )
    folder = work_folder(work.resolve())
    data = folder.open(dataset, root)
    view = data.split(split)
    with progress_bar("scoring", len(view)) as bar:
        more: dict[str, Any] = {"processes": processes(workers), "progress": lambda done, _: bar.show(done)}
        if maps is not None:
            images = images_of_maps(open_maps(maps), data, threshold, **more)
        else:
            assert masks is not None
            images = images_of_masks(open_masks(masks), data, split, **more)
    cut_with = len(data.ids(Split.TUNE)) if maps is not None else 0
    run = submission.run(
        data, folder.digest(data), cut_with, _command(submission, dataset, split, maps, threshold)
    )
    path = file_of(folder.submitted, run)
    earlier = read_result(path) if path.exists() else None
    result = added(Result.of(run, data.classes, images), earlier)
    if earlier is not None and earlier.images.keys() & images.keys():
        logger.info(f"note: {path.name}: replaces what was submitted before")
    write_result(folder.submitted, result)
    _print(result)
    if unstated := _unstated(result):
        logger.info(f"note: the row has no rank without {', '.join(unstated)}")
    _record(folder, path, result, tracking_uri)
    print(f"recorded: {path}")


def import_(
    file: Annotated[Path, typer.Argument(help="NAME.seedbed.json, with NAME.parquet beside it.")],
    tracking_uri: Uri = None,
    work: Work = WORK,
    quiet: Quiet = False,
) -> None:
    """Check a result of somebody else, and put it on the leaderboards of this work folder.

    Its numbers are computed again from the counted pixels of each image.
    """
    from seedbed.leaderboard.data.result_file import read_result, write_result

    folder, result = work_folder(work.resolve()), read_result(file)
    path = write_result(folder.submitted, result)
    _print(result)
    _record(folder, path, result, tracking_uri)
    print(f"imported: {path}")


def _command(submission: Any, dataset: str, split: str, maps: Path | None, threshold: float) -> str:
    """Return the command, with `DIR` for the user's folders and without what has its default."""
    words = ["seedbed", "submit", "--name", submission.name.strip(), "--dataset", dataset, "--root", "DIR"]
    words += ["--split", split, "--maps" if maps is not None else "--masks", "DIR", "--seed", str(submission.seed)]
    words += ["--tuning-masks", str(submission.tuning_masks), "--refiner", submission.refiner]
    for option in ("supervision", "backbone", "initialisation", "precision", "crf", "scales", "paper", "code"):
        if value := getattr(submission, option):
            words += [f"--{option}", value]
    words += ["--threshold", f"{threshold:g}"] if maps is not None else ["--selection", submission.selection]
    return shlex.join(words)


def _print(result: Result) -> None:
    """Print the mIoU of each measurement, in percent, as `seedbed evaluate` does."""
    from seedbed.benchmark.cli.options import print_records
    from seedbed.benchmark.evaluation.records import Record, RecordName

    records = []
    for text, value in result.run.metrics.items():
        name = RecordName.parse(text)
        if name is not None and name.metric == "mIoU" and name.label is None:
            records.append(Record(**vars(name), value=value, count=None))
    print_records(records)


def _unstated(result: Result) -> list[str]:
    """Return the options that a rank needs and that were not given."""
    named = {"crf": "crf_preset", "scales": "multi_scale"}
    options = ("backbone", "initialisation", *named)
    return [f"--{option}" for option in options if not result.run.conditions[named.get(option, option)]]


def _record(folder: WorkFolder, path: Path, result: Result, uri: str | None) -> None:
    """Write the result as a run to MLflow."""
    from seedbed.benchmark.tracking.results import upload_result
    from seedbed.leaderboard.data.result_file import statistics_of

    run = result.run
    texts = ("method", "refiner", "dataset", "settings", "status", "data_digest", "code", "dirty", "command")
    tags = {"seedbed.sweep": run.sweep, **run.conditions, "seed": str(run.seed)}
    tags |= {name: getattr(run, name) for name in texts}
    metrics = {name: value for name, value in run.metrics.items() if value is not None}
    name = f"{run.method} × {run.refiner} × {run.dataset}: seed {run.seed}"
    upload_result(folder, uri, name, f"result:{run.key}", tags, metrics, [path, statistics_of(path)])
