"""Options that commands share, the parsing of their values, and tables."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seedbed.benchmark import plugins
from seedbed.benchmark.errors import ConfigError

if TYPE_CHECKING:
    from seedbed.benchmark.evaluation.records import Record
    from seedbed.benchmark.pipeline.work_folder import WorkFolder

Work = Annotated[Path, typer.Option(help="Folder for everything that Seedbed writes.", envvar="SEEDBED_WORK")]
DatasetName = Annotated[
    str,
    typer.Option(
        help="Data set: chimera-voc or chimera-coco (generated), voc2012, coco2014, folder (your own), "
        "or a name from seedbed.toml; NAME[CLASS,CLASS]: only these classes."
    ),
]
Root = Annotated[
    Path | None,
    typer.Option(help="Folder of the data set.", show_default="from seedbed.toml; chimera is generated"),
]
Maps = Annotated[
    Path | None,
    typer.Option(help="Folder of localisation maps, ID.npy of Seedbed, IRN or PSA.", show_default="none"),
]
Masks = Annotated[Path | None, typer.Option(help="Folder of masks ID.png, palette or grey.", show_default="none")]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Number of worker processes; does not change results.",
        show_default="one per core, at most 8",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results only, no progress.")]


def _add_plugins(places: list[str] | None) -> list[str] | None:
    for place in places or ():
        plugins.add(place)
    return places


Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="FILE",
        help="A method, refiner, backbone or data set of your own; may be repeated.",
        show_default="those in SEEDBED_PLUGINS",
        callback=_add_plugins,
        is_eager=True,
    ),
]
CpusPerTrial = Annotated[int | None, typer.Option(help="CPU cores per trial.", show_default="1")]
GpusPerTrial = Annotated[
    float | None,
    typer.Option(help="GPUs per trial; 0.5: two trials share one.", show_default="1 if there are any, else 0"),
]
Address = Annotated[
    str | None,
    typer.Option(help="Address of a running Ray cluster, or auto.", show_default="Ray is started on this machine"),
]
AcceptChangedCode = Annotated[
    bool,
    typer.Option(
        "--accept-changed-code", help="Reuse results of earlier code, and record that they are still valid."
    ),
]
WORK = Path("seedbed-work")


def work_folder(root: Path) -> WorkFolder:
    """Return the work folder at `root`, with the object store of `seedbed.toml`.

    Raises ConfigError if it is a file or cannot be read, and if `seedbed.toml` is wrong.
    """
    from seedbed.benchmark.pipeline.configuration import read_configuration
    from seedbed.benchmark.pipeline.work_folder import WorkFolder

    try:
        if root.exists() and not root.is_dir():
            raise ConfigError(f"--work {root}: is a file, not a folder")
    except OSError as error:
        raise ConfigError(f"--work {root}: {error.strerror}") from None
    return WorkFolder(root, read_configuration().store)


def one_of(what: str, word: str, valid: Iterable[str]) -> Any:
    """Return a valid word, or raise ConfigError with the valid ones."""
    from seedbed.benchmark.errors import unknown_name

    if word not in valid:
        raise unknown_name(f"value for {what}:", word, valid)
    return word


def parse_settings(words: Sequence[str]) -> dict[str, str]:
    """Return `{"Stage.field": text}` of words `Stage.field=text`."""
    settings = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"--set {word}: expected STAGE.FIELD=VALUE")
        settings[name.strip()] = value
    return settings


def split_words(text: str) -> list[str]:
    """Return the words of a comma-separated text."""
    return [word.strip() for word in text.split(",") if word.strip()]


def chosen_device(name: str) -> str:
    """Return `cpu` or `cuda` for a name that may be `auto`. Raises ConfigError if there is no such device."""
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


def processes(workers: int | None) -> int:
    """Return the number of worker processes, by default the cores, at most 8."""
    return min(8, os.cpu_count() or 1) if workers is None else workers


def print_records(records: Sequence[Record], by_class: bool = False) -> None:
    """Print the records as a table: one row per level, split and metric, one column per selection."""
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for record in records:
        if record.label is not None and not by_class:
            continue
        # Of 6 classes an mIoU is the mean over 7 labels.
        name = "classes, with background" if record.metric == "classes" else record.metric
        metric = name if record.label is None else f"{name} {record.label}"
        cells = rows.setdefault((record.level, record.split, metric), {})
        cells[record.selection] = _shown(record)
    header = ["level", "split", "metric", "", "fixed", "tuned", "oracle"]
    body = [
        [level, split, metric, *(cells.get(s, "") for s in ("none", "fixed", "tuned", "oracle"))]
        for (level, split, metric), cells in rows.items()
    ]
    print_table(header, body)


def _shown(record: Record) -> str:
    if record.value is None:
        return "–"
    if record.metric == "threshold":
        return f"{record.value:.2f}"
    if record.metric.startswith(("classes", "images")):
        return f"{record.value:g}"
    return f"{100 * record.value:.2f}"


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print left-aligned columns, with nothing cut off."""
    from seedbed.leaderboard.tables.terminal import aligned

    for line in aligned([header, *rows] if header else rows):
        print(line)
