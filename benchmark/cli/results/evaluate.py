"""`seedbed evaluate`: score saved maps or masks of any code."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from seedbed.benchmark.cli.options import (
    WORK,
    Maps,
    Masks,
    Plugins,
    Quiet,
    Root,
    Work,
    Workers,
    print_records,
    processes,
    work_folder,
)
from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.progress import progress_bar

logger = logging.getLogger(__name__)


def evaluate(
    dataset: Annotated[str, typer.Option(help="Data set of the maps or masks.")],
    run: Annotated[
        str | None,
        typer.Argument(
            help="Run of this work folder, as run:ID or ID.", show_default="none: give a run, --maps or --masks"
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Split: tune, train or val.")] = "val",
    root: Root = None,
    maps: Maps = None,
    masks: Masks = None,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Fixed background threshold for maps.")] = 0.15,
    signed: Annotated[
        bool,
        typer.Option("--signed", help="Also report the numbers of ICD's Table 2, for maps with negative scores."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for records and per-image statistics.", show_default="not written"),
    ] = None,
    workers: Workers = None,
    plugin: Plugins = None,
    work: Work = WORK,
    quiet: Quiet = False,
) -> None:
    """Score maps or masks from any code against the true masks."""
    from seedbed.benchmark.evaluation.formats import open_maps, open_masks
    from seedbed.benchmark.evaluation.metrics import thresholds_with
    from seedbed.benchmark.evaluation.records import records_of_map_scores, records_of_mask_scores, write_records
    from seedbed.benchmark.evaluation.scoring import MapScores, MaskScores, score_maps, score_masks
    from seedbed.benchmark.trials.run import artifact_of

    if sum(x is not None for x in (run, maps, masks)) != 1:
        raise ConfigError("give one of --maps DIR, --masks DIR or run:ID")
    folder = work_folder(work)
    if run is not None:
        name, found = artifact_of(folder, run.removeprefix("run:"), split)
        maps, masks = (found, None) if name == "scores" else (None, found)
    data = folder.open(dataset, root)
    view = data.split(split)
    per_image = None
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        per_image = out / "per_image.parquet"
    with progress_bar("evaluating", len(view)) as bar:
        options: dict[str, Any] = {
            "processes": processes(workers),
            "per_image": per_image,
            "progress": lambda done, _: bar.show(done),
        }
        scores: MapScores | MaskScores
        if maps is not None:
            scores = score_maps(
                open_maps(maps), view, thresholds=thresholds_with(threshold), signed=signed, **options
            )
            records = records_of_map_scores(scores, data.classes, "seed", split, threshold, None)
        else:
            assert masks is not None
            scores = score_masks(open_masks(masks), view, **options)
            # As in the protocol: what a network predicts is measured on `val` alone.
            level = "segmentation" if split == "val" else "pseudo_mask"
            records = records_of_mask_scores(scores, data.classes, level, split, "none")
    if out is not None:
        write_records(out / "records.parquet", records)
    print_records(records, by_class=True)
    for warning in scores.plausibility.warnings():
        logger.warning(warning)
    what = f"maps in {maps}" if maps is not None else f"masks in {masks}"
    where = "--out DIR saves the records" if out is None else f"records and per-image statistics in {out}"
    chosen = f" ({data.class_choice}; other classes are not counted)" if data.class_choice else ""
    print(f"\nscored {scores.images} images of {split} of {data.display_name}{chosen}: {what}; {where}")
