"""Seedbed: a benchmark suite for weakly-supervised semantic segmentation.

This module is the Python interface. It imports nothing heavy; each function imports what it needs.

    import seedbed

    data = seedbed.open_dataset("voc2012", root="VOCdevkit/VOC2012")
    result = seedbed.run(data, method="cam", refiner="crf", seed=0)
    seedbed.records_table(result.records)
    seedbed.load_sweep("demo")

The packages are `seedbed.benchmark`, `seedbed.methods`, `seedbed.datasets` and `seedbed.leaderboard`, so that they
do not collide with other distributions: Hugging Face has a package named `datasets`. In a checkout they lie beside
this file; in an installation this file is the `__init__.py` of the package that holds them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from seedbed.benchmark.evaluation.records import Record
    from seedbed.benchmark.trials.run import Result
    from seedbed.benchmark.trials.trial import Chain
    from seedbed.datasets.base import Dataset

__all__ = [
    "add_plugin",
    "build_leaderboard",
    "build_stages",
    "list_backbones",
    "list_datasets",
    "list_methods",
    "list_refiners",
    "load_run",
    "load_study",
    "load_sweep",
    "open_dataset",
    "records_table",
    "run",
    "score_maps",
    "score_masks",
]
__path__ = [str(Path(__file__).resolve().parent)]
WORK = "seedbed-work"
"""The default work folder, in the current folder."""


def add_plugin(place: str | PathLike[str]) -> str:
    """Add a method, refiner, backbone or data set of your own, and return its name.

    It is there for this process and those that it starts, as with the option `--plugin` of the commands.

    Args:
        place: A Python file, a folder with `__init__.py`, or the name of an importable module.

    Raises:
        ConfigError: There is no such file, it defines no plug-in or several, or its name is taken.
        SeedbedError: The file is not Python.
    """
    from seedbed.benchmark.plugins import add

    return add(str(place)).name


def list_methods() -> tuple[str, ...]:
    """Return the names of all methods, sorted."""
    from seedbed.benchmark.pipeline.registry import METHODS

    return METHODS.names()


def list_refiners() -> tuple[str, ...]:
    """Return the names of all refiners, sorted."""
    from seedbed.benchmark.pipeline.registry import REFINERS

    return REFINERS.names()


def list_backbones() -> tuple[str, ...]:
    """Return the names of all backbones, sorted. The models of timm, `timm:NAME`, are backbones too."""
    from seedbed.benchmark.pipeline.registry import BACKBONES

    return BACKBONES.names()


def list_datasets() -> tuple[str, ...]:
    """Return the names of all data set loaders, sorted."""
    from seedbed.benchmark.pipeline.registry import DATASETS

    return DATASETS.names()


def open_dataset(
    name: str, root: str | PathLike[str] | None = None, work: str | PathLike[str] = WORK, **options: Any
) -> Dataset:
    """Open a data set.

    Args:
        name: A loader's name (`list_datasets`), or a name that `seedbed.toml` in the current folder defines.
        root: The data set's folder. None: as `seedbed.toml` says; `chimera` is generated in `work`.
        work: The work folder.
        options: Options of the loader, for example `tags` or `saliency` (docs/data.md).

    Raises:
        ConfigError: The name or an option is unknown, or no root is known.
        DataError: There is no such data set in the folder, or its lists or tags are broken.
    """
    from seedbed.benchmark.pipeline.work_folder import WorkFolder

    given = {key: str(value) if isinstance(value, PathLike) else value for key, value in options.items()}
    place = WorkFolder(Path(work)).locate(name, None if root is None else Path(root), given)
    return place.open()


def build_stages(data: Dataset, method: str = "cam", refiner: str = "none", **options: Any) -> Chain:
    """Return the stages of a trial with their settings, without running them.

    Args:
        data: The data set; its image size and number of classes decide some defaults.
        method: A method's name (`list_methods`).
        refiner: A refiner's name (`list_refiners`).
        options: Other fields of `Trial`: `backbone`, `weights`, `supervision`, `settings`, …

    Raises:
        ConfigError: A name or a setting is unknown, or the combination is impossible.
    """
    from seedbed.benchmark.pipeline.stage import Machine
    from seedbed.benchmark.trials.trial import Trial, build_chain, resolve

    trial = Trial(dataset=data.name, method=method, refiner=refiner, **options)
    trial, meta, _ = resolve(trial, data, Machine())
    return build_chain(trial, meta)


def run(
    data: Dataset,
    method: str = "cam",
    refiner: str = "none",
    seed: int = 0,
    *,
    work: str | PathLike[str] = WORK,
    device: str = "auto",
    workers: int | None = None,
    quiet: bool = True,
    **options: Any,
) -> Result:
    """Run one trial, from images to the mIoU of a segmentation network.

    Everything that the work folder's store already has is reused. The same trial gives the same numbers as
    `seedbed run`, and the same run id.

    Args:
        data: The data set.
        method: A method's name.
        refiner: A refiner's name.
        seed: The random seed.
        work: The work folder.
        device: `cpu`, `cuda`, or `auto`.
        workers: Worker processes. None: the number of cores, at most 8.
        quiet: Whether to print only warnings.
        options: Other fields of `Trial`: `backbone`, `settings={"TrainCam.epochs": 3}`, `segment`, …

    Raises:
        ConfigError: A name or a setting is unknown, or the combination is impossible.
        DataError: The data set cannot be used for this trial.
    """
    from seedbed.benchmark.cli.options import chosen_device, processes
    from seedbed.benchmark.pipeline.configuration import read_configuration
    from seedbed.benchmark.pipeline.stage import Machine
    from seedbed.benchmark.pipeline.work_folder import WorkFolder
    from seedbed.benchmark.progress import log_to_console
    from seedbed.benchmark.trials.run import run_trial
    from seedbed.benchmark.trials.trial import Trial

    trial = Trial(dataset=data.name, method=method, refiner=refiner, seed=seed, **options)
    machine = Machine(device=chosen_device(device), workers=processes(workers))
    with log_to_console(quiet):
        return run_trial(trial, data, WorkFolder(Path(work), read_configuration().store), machine)


def records_table(records: Iterable[Record]) -> pd.DataFrame:
    """Return records as a table, one row per record.

    The columns are `name`, for example `seed.train/mIoU_tuned`, and the fields of `Record`: `level`, `split`,
    `metric`, `selection`, `label`, `value`, `count`. Values are fractions; a value that does not exist is NaN.
    """
    from dataclasses import asdict

    import pandas as pd

    return pd.DataFrame([{"name": record.name, **asdict(record)} for record in records])


def load_run(run_id: str, work: str | PathLike[str] = WORK) -> pd.DataFrame:
    """Return the records of a finished `seedbed run` as a table (`records_table`).

    Raises:
        ConfigError: There is no such run; the newest ones are named.
    """
    from seedbed.benchmark.evaluation.records import read_records
    from seedbed.benchmark.pipeline.configuration import read_configuration
    from seedbed.benchmark.pipeline.work_folder import WorkFolder
    from seedbed.benchmark.trials.run import read_run

    folder = WorkFolder(Path(work), read_configuration().store)
    read_run(folder, run_id)
    return records_table(read_records(folder.runs / run_id / "records.parquet"))


def load_sweep(
    name: str | Sequence[str], work: str | PathLike[str] = WORK, tracking_uri: str | None = None
) -> pd.DataFrame:
    """Return the results of one sweep or several as a table, one row per trial and metric.

    The columns are those of the leaderboard's snapshot: `method`, `refiner`, `dataset`, the conditions, `phase`,
    `settings`, `seed`, `status`, `metric`, `value`, … (`seedbed.leaderboard.data.snapshot` explains each).

    Args:
        name: The sweep's name, or several.
        work: The work folder.
        tracking_uri: Where MLflow recorded it. None: as the sweep says, else in the work folder.

    Raises:
        ConfigError: There is no such sweep.
        DataError: Runs contradict each other.
    """
    from seedbed.benchmark.pipeline.work_folder import WorkFolder
    from seedbed.benchmark.tracking.sync import uri_of
    from seedbed.leaderboard.data.collect import collect

    names = [name] if isinstance(name, str) else list(name)
    return collect(tracking_uri or uri_of(WorkFolder(Path(work)), names[0]), names).to_pandas()


def load_study(name: str, dataset: str, work: str | PathLike[str] = WORK) -> pd.DataFrame:
    """Return the result of a study as a table, one row per cell of the paper's table.

    The columns are `row`, `column`, `ours`, `std`, `low`, `high`, `seeds`, `paper`, `difference` and `missing`;
    numbers are in the paper's unit.

    Args:
        name: A study's name, for example `svm_t1`.
        dataset: The name of the data set that it ran on.
        work: The work folder.

    Raises:
        DataError: The study has not been run on this data set, or its file is damaged.
    """
    from dataclasses import asdict

    import pandas as pd

    from seedbed.benchmark.studies.result import FILE, read_study_result

    study = read_study_result(Path(work) / "studies" / name / dataset / FILE)
    return pd.DataFrame(
        [
            {"row": row.label, "column": column, **asdict(cell)}
            for row in study.rows
            for column, cell in zip(study.columns, row.cells, strict=True)
        ]
    )


def score_maps(
    folder: str | PathLike[str], data: Dataset, split: str = "train", threshold: float = 0.15, workers: int = 1
) -> pd.DataFrame:
    """Score localisation maps: a folder of IRN's or PSA's `.npy` files, or maps that Seedbed wrote.

    Args:
        folder: The folder with one file per image, `ID.npy`.
        data: The data set that they are about.
        split: `tune`, `train` or `val`.
        threshold: The fixed background threshold in [0, 1].
        workers: Worker processes.

    Returns:
        The records (`records_table`): mIoU at each selection, IoU per class, soft overlap, average precision.

    Raises:
        DataError: A file is missing or broken, or has another size or other classes than the data set.
    """
    from seedbed.benchmark.evaluation import scoring
    from seedbed.benchmark.evaluation.formats import open_maps
    from seedbed.benchmark.evaluation.metrics import thresholds_with
    from seedbed.benchmark.evaluation.records import records_of_map_scores

    view = data.split(split)
    scores = scoring.score_maps(
        open_maps(Path(folder)), view, thresholds=thresholds_with(threshold), processes=workers
    )
    return records_table(records_of_map_scores(scores, data.classes, "seed", split, threshold, None))


def score_masks(folder: str | PathLike[str], data: Dataset, split: str = "val", workers: int = 1) -> pd.DataFrame:
    """Score masks: a folder of palette or grey PNGs, `ID.png`.

    Args:
        folder: The folder with one file per image.
        data: The data set that they are about.
        split: `tune`, `train` or `val`.
        workers: Worker processes.

    Returns:
        The records (`records_table`): mIoU, and IoU, precision, recall and F per class.

    Raises:
        DataError: A file is missing or broken, or has another size or other classes than the data set.
    """
    from seedbed.benchmark.evaluation import scoring
    from seedbed.benchmark.evaluation.formats import open_masks
    from seedbed.benchmark.evaluation.records import records_of_mask_scores

    scores = scoring.score_masks(open_masks(Path(folder)), data.split(split), processes=workers)
    return records_table(records_of_mask_scores(scores, data.classes, "segmentation", split, "none"))


def build_leaderboard(
    sweep: str | Sequence[str],
    out: str | PathLike[str],
    work: str | PathLike[str] = WORK,
    tracking_uri: str | None = None,
    results: Sequence[str | PathLike[str]] = (),
) -> Path:
    """Build the leaderboard of one sweep or several: a site, and each table as Markdown, LaTeX and CSV.

    `seedbed leaderboard` also draws a gallery of images.

    Args:
        sweep: The sweep's name, or several.
        out: The folder to write to.
        work: The work folder.
        tracking_uri: Where MLflow recorded them. None: as the first sweep says, else in the work folder.
        results: Folders of leaderboards that were built before, perhaps by others; their runs join.

    Returns:
        The page to open.

    Raises:
        ConfigError: There is no such sweep.
        DataError: Runs contradict each other.
    """
    from seedbed.benchmark.pipeline.work_folder import WorkFolder
    from seedbed.benchmark.tracking.sync import uri_of
    from seedbed.leaderboard.build import INDEX, build

    names = [sweep] if isinstance(sweep, str) else list(sweep)
    uri = tracking_uri or uri_of(WorkFolder(Path(work)), names[0])
    build(uri, names, Path(out), published=[Path(folder) for folder in results])
    return Path(out) / INDEX


def _find_plugins() -> None:
    from seedbed.benchmark.plugins import install_finder

    install_finder()


_find_plugins()
