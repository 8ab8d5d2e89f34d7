"""`seedbed data`: download, generate, prepare, check and count data sets."""

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
    one_of,
    print_table,
    processes,
    work_folder,
)
from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.progress import progress_bar

app = typer.Typer(help="Download, generate, prepare, check and count data sets.", no_args_is_help=True)


@app.command("download")
def download_data(
    name: Annotated[
        str,
        typer.Argument(
            help="voc2012: VOC and SBD, which has most masks of its training images; sbd: SBD alone; coco2014."
        ),
    ],
    root: Annotated[Path, typer.Option(help="Folder for the archives and what they contain.")],
    mirror: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Take the files from URL/FILE.", show_default="from their official addresses"
        ),
    ] = None,
    workers: Workers = None,
    work: Work = WORK,
    quiet: Quiet = False,
) -> None:
    """Download a data set, then prepare and check it. Continues where an earlier call stopped."""
    from seedbed.datasets.tools.downloads import ARCHIVES, VOC, download

    archives = download(one_of("data set", name, ARCHIVES), root, mirror)
    if archives:
        files = ", ".join(map(str, archives))
        print(f"note: everything is extracted; these archives are no longer needed: {files}")
    if name == "sbd" and not VOC.is_extracted(root):
        print(f"next, for VOC in another folder: seedbed data prepare voc2012 --root FOLDER --sbd {root}")
        return
    dataset = "coco2014" if name == "coco2014" else "voc2012"
    prepare_data(dataset, root, sbd=None if dataset == "coco2014" else root, workers=workers, quiet=quiet)
    check_data(dataset, root, workers=workers, work=work, quiet=quiet)


@app.command("generate")
def generate_data(
    name: Annotated[str, typer.Argument(help="chimera, the only data set that can be generated.")],
    out: Annotated[Path, typer.Option(help="New folder for the data set.")],
    layout: Annotated[str, typer.Option(help="Layout of the files: voc or coco.")] = "voc",
    images: Annotated[int, typer.Option(min=20, help="Number of images, all splits together.")] = 600,
    size: Annotated[int, typer.Option(min=48, help="Side of the square images, pixels.")] = 96,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Generate the Chimera data set. The same options give the same bytes."""
    from seedbed.benchmark.errors import unknown_name
    from seedbed.datasets.chimera import generate

    if name != "chimera":
        raise unknown_name("data set to generate", name, ["chimera"])
    with progress_bar("generating", images) as bar:
        generate(
            out,
            layout=one_of("--layout", layout, ("voc", "coco")),
            images=images,
            size=size,
            seed=seed,
            progress=lambda done, _: bar.show(done),
        )
    print(f"{images} images in {out}")


@app.command("prepare")
def prepare_data(
    name: Annotated[
        str,
        typer.Argument(help="voc2012: convert the masks of SBD; coco2014: draw the masks from the JSON files."),
    ],
    root: Annotated[Path, typer.Option(help="Folder of the data set.")],
    sbd: Annotated[
        Path | None,
        typer.Option(
            help="voc2012: folder of the official SBD release (with `dataset/cls`).",
            show_default="none: needed for voc2012",
        ),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(help="coco2014: new folder for the masks.", show_default="ROOT/SegmentationMasks"),
    ] = None,
    crowd: Annotated[
        str, typer.Option(help="coco2014: label of crowd regions, `ignore` (255) or `background`.")
    ] = "ignore",
    workers: Workers = None,
    quiet: Quiet = False,
) -> None:
    """Make the masks that a data set's download lacks."""
    from seedbed.datasets.coco2014.masks import MASKS, left_out, rasterise
    from seedbed.datasets.tools.sbd import merge_sbd

    kind = one_of("data set", name, ("voc2012", "coco2014"))
    with progress_bar("masks", 1) as bar:
        if kind == "voc2012":
            if sbd is None:
                raise ConfigError("give the official SBD release with --sbd DIR")
            count = merge_sbd(sbd, root, bar.at)
        else:
            rule = one_of("--crowd", crowd, ("ignore", "background"))
            count = rasterise(root, masks, crowd=rule, processes=processes(workers), progress=bar.at)
    print(f"{count} masks")
    if kind == "coco2014":
        for file, text in left_out(masks or root / MASKS):
            print(f"note: {file}: {text}")


@app.command("reduce")
def reduce_data(
    name: Annotated[str, typer.Argument(help="Data set in VOC's layout.")],
    out: Annotated[Path, typer.Option(help="Folder for the copy.")],
    size: Annotated[int, typer.Option(min=32, help="Maximum longer side of the images, pixels.")],
    root: Root = None,
    plugin: Plugins = None,
    work: Work = WORK,
    quiet: Quiet = False,
) -> None:
    """Copy a data set with smaller images and masks, for sweeps without a GPU.

    Numbers of a copy cannot be compared with those of the original.
    """
    from seedbed.datasets.tools.reduced import reduce

    data = work_folder(work).open(name, root)
    with progress_bar("reducing", 1) as bar:
        count = reduce(data, out, size, bar.at)
    print(f"{count} images in {out}")


@app.command("check")
def check_data(
    name: Annotated[str, typer.Argument(help="Data set.")],
    root: Root = None,
    workers: Workers = None,
    plugin: Plugins = None,
    work: Work = WORK,
    quiet: Quiet = False,
) -> None:
    """List every problem of a data set with its file. Exit code: 1 if there are errors."""
    from seedbed.datasets.tools.check import check

    data = work_folder(work).open(name, root)
    with progress_bar("checking", 1) as bar:
        problems = check(data, processes(workers), bar.at)
    for problem in problems:
        print(f"{problem.severity}: {problem.file}: {problem.message}")
    errors = sum(problem.severity == "error" for problem in problems)
    print(f"{errors} errors, {len(problems) - errors} warnings")
    if errors:
        raise typer.Exit(1)


@app.command("stats")
def count_data(
    name: Annotated[str, typer.Argument(help="Data set.")],
    root: Root = None,
    plugin: Plugins = None,
    work: Work = WORK,
) -> None:
    """Print images per split, class frequencies and image sizes."""
    from seedbed.datasets.tools.stats import statistics

    for table in statistics(work_folder(work).open(name, root)):
        print(f"\n{table.title}")
        print_table(table.header, table.rows)
