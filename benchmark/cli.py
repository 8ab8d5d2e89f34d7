"""The `seedbed` command. Each command imports what it needs, so that `--help` answers at once."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmark.errors import ConfigError, SeedbedError
from benchmark.progress import Reporter

if TYPE_CHECKING:
    from benchmark.records import Record

app = typer.Typer(
    help="Seedbed: one protocol for weakly-supervised semantic segmentation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
methods_app = typer.Typer(help="The methods, and their hyper-parameters.", invoke_without_command=True)
data_app = typer.Typer(help="Generate, prepare, check and count data sets.", no_args_is_help=True)
cache_app = typer.Typer(help="What the artifact store holds.", no_args_is_help=True)
app.add_typer(methods_app, name="methods")
app.add_typer(data_app, name="data")
app.add_typer(cache_app, name="cache")

Work = Annotated[Path, typer.Option(help="Folder for everything that Seedbed writes.", envvar="SEEDBED_WORK")]
Root = Annotated[Path | None, typer.Option(help="Where the data set lies; else from seedbed.toml.")]
Workers = Annotated[
    int | None, typer.Option(help="Processes for loading, CRF and evaluation. Never changes a result.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only results.")]
WORK = Path("seedbed-work")


def main() -> None:
    """Run the command; errors that a user can mend are printed without a traceback, exit code 1."""
    # Threads that wait by spinning take the cores from whoever else works on the machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except SeedbedError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


@app.command()
def run(
    method: Annotated[str, typer.Option(help="A method (see `seedbed methods`).")] = "cam",
    dataset: Annotated[
        str, typer.Option(help="A data set: chimera, voc2012, coco2014, or one of seedbed.toml.")
    ] = "chimera",
    root: Root = None,
    refiner: Annotated[str, typer.Option(help="How seeds become pseudo-masks: none, crf.")] = "none",
    seed: Annotated[int, typer.Option(min=0, help="Seed of every random choice of the trial.")] = 0,
    supervision: Annotated[
        str, typer.Option(help="weak, or full: the upper bound trained on true masks.")
    ] = "weak",
    backbone: Annotated[
        str | None, typer.Option(help="A backbone. Default: tiny for small images, else resnet50.")
    ] = None,
    weights: Annotated[str | None, typer.Option(help="imagenet, none, or a state-dict file.")] = None,
    size: Annotated[
        int, typer.Option(min=0, help="Longer image side in pixels that networks see; 0: its own.")
    ] = 0,
    segment: Annotated[bool, typer.Option(help="Train a segmentation network on the pseudo-masks.")] = True,
    selections: Annotated[
        str, typer.Option(help="Thresholds at which pseudo-masks are reported.")
    ] = "fixed,tuned,oracle",
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Change a hyper-parameter: --set TrainCam.lr=0.05", metavar="STAGE.FIELD=VALUE"
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    workers: Workers = None,
    work: Work = WORK,
    quiet: Quiet = False,
) -> None:
    """Run one method on one data set, from images to a segmentation network's mIoU."""
    from benchmark.pipeline import Machine
    from benchmark.trial import SELECTIONS, Trial, run_trial

    reporter = Reporter(quiet)
    chosen = _words(selections)
    trial = Trial(
        dataset=dataset,
        method=_known_method(method),
        refiner=_known_refiner(refiner),
        seed=seed,
        supervision=_one_of("--supervision", supervision, ("weak", "full")),
        backbone=backbone,
        weights=weights,
        size=size,
        segment=segment or supervision == "full",
        selections=[_one_of("--selections", word, SELECTIONS) for word in chosen],
        settings=_settings(setting or []),
    )
    folder = _work(work)
    data = folder.open(dataset, root, reporter)
    machine = Machine(device=_device(device), workers=_processes(workers), reporter=reporter)
    result = run_trial(trial, data, folder, machine)
    _print_records(result.records)
    computed = f"{len(result.executed)} stages computed, {sum(e.seconds for e in result.executed):.0f} s"
    print(f"\nrun {result.run}  ({computed if result.executed else 'every stage was in the store'})")
    print(f"pictures: {result.folder / 'examples.png'}")


@app.command()
def evaluate(
    dataset: Annotated[str, typer.Option(help="The data set that the results are about.")],
    run: Annotated[str | None, typer.Argument(help="A run of this work folder, run:ID.")] = None,
    split: Annotated[str, typer.Option(help="tune, train or val.")] = "val",
    root: Root = None,
    maps: Annotated[
        Path | None, typer.Option(help="Localisation maps: ours, or IRN's or PSA's .npy dictionaries.")
    ] = None,
    masks: Annotated[Path | None, typer.Option(help="A folder of PNG masks, palette or grey.")] = None,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="The fixed threshold for maps.")] = 0.15,
    signed: Annotated[
        bool, typer.Option("--signed", help="Also ICD's Table 2, for maps with negative scores.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Write the records and per-image statistics here.")] = None,
    workers: Workers = None,
    work: Work = WORK,
    quiet: Quiet = False,
) -> None:
    """Score saved maps or masks, ours or somebody else's, against the true masks."""
    from benchmark.evaluate import score_maps, score_masks
    from benchmark.foreign import PngMasks, open_maps
    from benchmark.metrics import thresholds_with
    from benchmark.records import records_of_map_scores, records_of_mask_scores, write_records
    from benchmark.trial import artifact_of

    if sum(x is not None for x in (run, maps, masks)) != 1:
        raise ConfigError("give one of --maps DIR, --masks DIR or run:ID")
    reporter, folder = Reporter(quiet), _work(work)
    if run is not None:
        name, found = artifact_of(folder, run.removeprefix("run:"), split)
        maps, masks = (found, None) if name == "scores" else (None, found)
    data = folder.open(dataset, root, reporter)
    view = data.split(split)
    per_image = None
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        per_image = out / "per_image.parquet"
    with reporter.bar("evaluating", len(view)) as bar:
        options: dict[str, Any] = {
            "processes": _processes(workers),
            "per_image": per_image,
            "progress": lambda done, _: bar.show(done),
        }
        if maps is not None:
            scores = score_maps(
                open_maps(maps), view, thresholds=thresholds_with(threshold), signed=signed, **options
            )
            records = records_of_map_scores(scores, data.classes, "seed", split, threshold, None)
        else:
            assert masks is not None
            records = records_of_mask_scores(
                score_masks(PngMasks(masks), view, **options), data.classes, "segmentation", split, "none"
            )
    if out is not None:
        write_records(out / "records.parquet", records)
    _print_records(records, by_class=True)


@methods_app.callback()
def list_methods(context: typer.Context) -> None:
    """List the methods with their first line of description."""
    from benchmark.registry import BACKBONES, METHODS, REFINERS

    if context.invoked_subcommand is None:
        for family in (METHODS, REFINERS, BACKBONES):
            print(f"{family.what}s")
            _print_table([], [[f"  {name}", family.summary(name)] for name in family.names()])


@methods_app.command("show")
def show_method(
    name: Annotated[str, typer.Argument(help="A method.")],
    refiner: str = "none",
    backbone: str = "resnet50",
    long_side: Annotated[int, typer.Option(help="Longer image side of the data set, pixels.")] = 500,
) -> None:
    """Show a method's stages with every hyper-parameter: value, type, bounds, search space, source."""
    from benchmark.hparams import declared, describe, hints
    from benchmark.registry import METHODS
    from benchmark.stage import Meta
    from benchmark.trial import Trial, build_chain

    method = METHODS.load(_known_method(name))
    meta = Meta(
        classes=20, long_side=long_side, backbone=backbone, weights="none" if backbone == "tiny" else "imagenet"
    )
    chain = build_chain(Trial(dataset="", method=name, refiner=refiner), meta)
    print(f"{method.name}: {METHODS.summary(name)}\npaper: {method.paper}\nsupervision: {method.supervision}")
    for stage in chain.stages:
        kinds = " + ".join(k.value for k in stage.consumes) or "images + tags"
        print(f"\n{type(stage).__name__}  ({kinds} → {stage.produces.value}, version {stage.version})")
        rows = []
        for field, parameter in declared(type(stage)).items():
            bounds = "" if parameter.low is None else f"{parameter.low:g} … {parameter.high:g}"
            space = "" if parameter.space is None else str(parameter.space).replace("Distribution", "")
            kind = describe(hints(type(stage))[field])
            value = stage.settings()[field]
            source = parameter.source
            if value != type(stage)().settings()[field] and not source.startswith("--"):
                source = f"recipe of {backbone}, in the file of the stage; elsewhere: {source}"
            rows.append([f"  {field}", json.dumps(value), kind, bounds, space, source])
        _print_table(["  setting", "default", "type", "bounds", "search space", "source"], rows)


@data_app.command("generate")
def generate_data(
    name: Annotated[str, typer.Argument(help="chimera")],
    out: Annotated[Path, typer.Option(help="A folder that does not exist yet.")],
    layout: Annotated[str, typer.Option(help="voc or coco.")] = "voc",
    images: Annotated[int, typer.Option(min=20, help="Images of all splits together.")] = 600,
    size: Annotated[int, typer.Option(min=48, help="Image side in pixels.")] = 96,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    quiet: Quiet = False,
) -> None:
    """Generate the Chimera data set on disk; the same arguments give the same bytes."""
    from benchmark.errors import unknown_name
    from datasets.chimera import generate

    if name != "chimera":
        raise unknown_name("data set to generate", name, ["chimera"])
    with Reporter(quiet).bar("generating", images) as bar:
        generate(
            out,
            layout=_one_of("--layout", layout, ("voc", "coco")),
            images=images,
            size=size,
            seed=seed,
            progress=lambda done, _: bar.show(done),
        )
    print(f"{images} images in {out}")


@data_app.command("prepare")
def prepare_data(
    name: Annotated[str, typer.Argument(help="voc: merge SBD masks; coco: rasterise the JSON's masks.")],
    root: Annotated[Path, typer.Option(help="Where the data set lies.")],
    sbd: Annotated[
        Path | None, typer.Option(help="voc: the official SBD release (the folder with `dataset/cls`).")
    ] = None,
    masks: Annotated[
        Path | None, typer.Option(help="coco: where the masks go; default ROOT/SegmentationMasks.")
    ] = None,
    crowd: Annotated[str, typer.Option(help="coco: crowds become `ignore` (255) or `background`.")] = "ignore",
    workers: Workers = None,
    quiet: Quiet = False,
) -> None:
    """Make the masks that a data set's download does not have."""
    from datasets.coco2014 import rasterise
    from datasets.sbd import merge_sbd

    kind = _one_of("data set", name, ("voc", "coco"))
    with Reporter(quiet).bar("masks", 1) as bar:

        def progress(done: int, total: int) -> None:
            bar.retotal(total)
            bar.show(done)

        if kind == "voc":
            if sbd is None:
                raise ConfigError("give the official SBD release with --sbd DIR")
            count = merge_sbd(sbd, root, progress)
        else:
            rule = _one_of("--crowd", crowd, ("ignore", "background"))
            count = rasterise(root, masks, crowd=rule, processes=_processes(workers), progress=progress)
    print(f"{count} masks")


@data_app.command("check")
def check_data(
    name: Annotated[str, typer.Argument(help="A data set.")],
    root: Root = None,
    workers: Workers = None,
    work: Work = WORK,
    quiet: Quiet = False,
) -> None:
    """List every problem of a data set, each with its file. Exits with 1 where there are errors."""
    from datasets.check import check

    reporter = Reporter(quiet)
    data = _work(work).open(name, root, reporter)
    with reporter.bar("checking", 1) as bar:

        def progress(done: int, total: int) -> None:
            bar.retotal(total)
            bar.show(done)

        problems = check(data, _processes(workers), progress)
    for problem in problems:
        print(f"{problem.severity}: {problem.file}: {problem.message}")
    errors = sum(problem.severity == "error" for problem in problems)
    print(f"{errors} errors, {len(problems) - errors} warnings")
    if errors:
        raise typer.Exit(1)


@data_app.command("stats")
def count_data(
    name: Annotated[str, typer.Argument(help="A data set.")],
    root: Root = None,
    work: Work = WORK,
) -> None:
    """Print counts a split, class frequencies and image sizes."""
    from datasets.stats import statistics

    for table in statistics(_work(work).open(name, root, Reporter(quiet=False))):
        print(f"\n{table.title}")
        _print_table(table.header, table.rows)


@cache_app.command("ls")
def list_cache(work: Work = WORK) -> None:
    """List the finished stages: key, stage, split, seed, seconds, size."""
    rows = []
    for entry in _work(work).store.entries():
        identity = entry.record["identity"]
        size = f"{entry.record['bytes'] / 1e6:.1f} MB"
        cells = [entry.key[:12], entry.stage, identity["split"], identity["seed"], f"{entry.seconds:.1f} s", size]
        rows.append(["" if cell is None else str(cell) for cell in cells])
    _print_table(["key", "stage", "split", "seed", "time", "size"], rows)


@cache_app.command("show")
def show_cache(key: Annotated[str, typer.Argument(help="The beginning of a key.")], work: Work = WORK) -> None:
    """Print what made an entry."""
    for entry in _matching(work, key):
        print(json.dumps(dict(entry.record), indent=1))


@cache_app.command("rm")
def remove_cache(
    keys: Annotated[list[str], typer.Argument(help="Beginnings of keys, or names of stages.")], work: Work = WORK
) -> None:
    """Remove entries. What needs them again computes them again."""
    store = _work(work).store
    for key in keys:
        for entry in _matching(work, key):
            store.remove(entry.key)
            print(f"removed {entry.key[:12]} {entry.stage}")


@cache_app.command("gc")
def collect_cache(
    older_than: Annotated[float, typer.Option(min=0, help="Days since the entry was last used.")],
    work: Work = WORK,
) -> None:
    """Remove entries that were not used for so many days, and left-overs of killed stages that old."""
    removed, leftovers = _work(work).store.collect_garbage(older_than)
    print(f"removed {removed} entries and {leftovers} left-overs")


def _matching(work: Path, key: str) -> list[Any]:
    found = [e for e in _work(work).store.entries() if e.key.startswith(key) or e.stage == key]
    if not found:
        raise ConfigError(f"no entry whose key begins with, or whose stage is, {key!r} (see `seedbed cache ls`)")
    return found


def _work(root: Path) -> Any:
    from benchmark.workfolder import WorkFolder

    return WorkFolder(root)


def _known_method(name: str) -> str:
    from benchmark.errors import unknown_name
    from benchmark.registry import METHODS

    if name not in METHODS.names():
        raise unknown_name("method", name, METHODS.names())
    return name


def _known_refiner(name: str) -> str:
    from benchmark.errors import unknown_name
    from benchmark.registry import REFINERS

    if name not in REFINERS.names():
        raise unknown_name("refiner", name, REFINERS.names())
    return name


def _one_of(what: str, word: str, valid: Iterable[str]) -> Any:
    from benchmark.errors import unknown_name

    if word not in valid:
        raise unknown_name(f"value for {what}:", word, valid)
    return word


def _settings(words: Sequence[str]) -> dict[str, str]:
    settings = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"--set {word}: expected STAGE.FIELD=VALUE")
        settings[name.strip()] = value
    return settings


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _device(name: str) -> str:
    if name == "cpu":
        return name
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return name


def _processes(workers: int | None) -> int:
    return min(8, os.cpu_count() or 1) if workers is None else workers


def _print_records(records: Sequence[Record], by_class: bool = False) -> None:
    """Print the records as a table: one row a level, split and metric, one column a selection."""
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for record in records:
        if record.label is not None and not by_class:
            continue
        metric = record.metric if record.label is None else f"{record.metric} {record.label}"
        cells = rows.setdefault((record.level, record.split, metric), {})
        cells[record.selection] = _shown(record)
    header = ["level", "split", "metric", "", "fixed", "tuned", "oracle"]
    body = [
        [level, split, metric, *(cells.get(s, "") for s in ("none", "fixed", "tuned", "oracle"))]
        for (level, split, metric), cells in rows.items()
    ]
    _print_table(header, body)


def _shown(record: Record) -> str:
    if record.value is None:
        return "–"
    if record.metric == "threshold":
        return f"{record.value:.2f}"
    if record.metric.startswith(("classes", "images")):
        return f"{record.value:g}"
    return f"{100 * record.value:.2f}"


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print left-aligned columns, with nothing cut off."""
    lines = [list(header), *map(list, rows)] if header else [list(row) for row in rows]
    widths = [max((len(line[c]) for line in lines), default=0) for c in range(max(map(len, lines), default=0))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
