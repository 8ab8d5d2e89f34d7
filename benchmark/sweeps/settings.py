"""The settings of a sweep: typed, validated, written to `sweep.yaml` in the sweep's folder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from seedbed.benchmark.errors import ConfigError, unknown_name
from seedbed.benchmark.paths import expanded
from seedbed.benchmark.plugins import add_all
from seedbed.benchmark.training.initialisation import is_file
from seedbed.benchmark.trials.options import Settings, TrialOptions
from seedbed.benchmark.trials.references import REFERENCES
from seedbed.benchmark.validation import items_of, read, value_of

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
"""A sweep's name is a folder's name; file systems refuse much longer ones."""
ALL = "all"
NETWORK = "TrainSegmentation."
WEIGHTS = tuple(one.name for one in fields(TrialOptions) if one.metadata["file"])
"""The settings that may be files."""


@dataclass(frozen=True)
class Cell:
    """One method with one refiner on one data set."""

    method: str
    refiner: str
    dataset: str
    variant: str = ""
    """Which of the sweep's variants; empty in a sweep without variants."""

    @property
    def reference(self) -> str:
        """The name of the reference that it is (REFERENCES); empty for a method, which always has a refiner."""
        return "" if self.refiner else self.method

    def __str__(self) -> str:
        return " × ".join(text for text in (self.method, self.refiner, self.dataset, self.variant) if text)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A cell that differs from others in more than method and refiner."""

    method: str
    refiner: str = "none"
    settings: Settings = field(default_factory=dict)
    segment: bool = False
    segmentation_backbone: str | None = None


def setting(default: Any, *, where: bool = False, low: float | None = None) -> Any:
    """Declare a setting; `where=True`: it changes no number of a method, as where the sweep runs."""
    return field(default=default, metadata={"where": where, "low": low})


@dataclass(frozen=True, kw_only=True)
class SweepSettings(TrialOptions):
    """The settings of a sweep; the names are the keys of a YAML file and the options of the command."""

    name: str
    datasets: tuple[str, ...]
    """`NAME` (found through seedbed.toml) or `NAME=ROOT`."""
    methods: tuple[str, ...] = (ALL,)
    refiners: tuple[str, ...] = (ALL,)
    trials: int = setting(8, low=0)
    """Search trials per cell; the first one has the papers' settings. 0: no search."""
    seeds: tuple[int, ...] = setting((0, 1, 2), low=0)
    """Random seeds of the confirming trials."""
    search_seed: int = setting(1000, low=0)
    """Seed of the sampler and of the search trials' training; never one of `seeds`."""
    tune: tuple[str, ...] = (ALL,)
    """What is searched: `all`, stages or parts of their names (`crf`, `threshold`), or `Stage.field`."""
    window: int = setting(4, low=1)
    """Maximum search trials of a cell at once: a suggestion sees all trials but the last `window − 1`."""
    early_stopping: bool = False
    """Stop search trials whose loss in the first training is above the median of earlier trials."""
    variants: Mapping[str, Variant] = field(default_factory=dict)
    """Cells by name that differ in more than method and refiner; they replace `methods` and `refiners`."""
    references: bool = setting(True, where=True)
    """Also measure the reference rows (benchmark/trials/references.py). They change no other number, so a resumed
    sweep can add them or leave them out. A sweep of variants has none."""
    gpus_per_trial: float | None = setting(None, where=True, low=0)
    """None: 1 if the cluster has GPUs, else 0."""
    cpus_per_trial: int = setting(1, where=True, low=1)
    workers: int = setting(0, where=True, low=0)
    """Processes per trial for loading, CRF and evaluation, besides its main one."""
    plugins: tuple[str, ...] = setting((), where=True)
    """Plug-ins (methods, refiners, backbones, data sets), as `benchmark.plugins.add` takes them."""
    address: str | None = setting(None, where=True)
    """A running Ray cluster: `auto`, or its address. None: Ray is started on this machine."""
    tracking_uri: str | None = setting(None, where=True)
    """An MLflow server. None: SQLite in the work folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_name(self.name)
        for what in ("datasets", "methods", "refiners", "seeds", "selections", "tune", "maps_on"):
            values = getattr(self, what)
            if not values:
                raise ConfigError(f"{what}: give at least one")
            if len(set(values)) < len(values):
                raise ConfigError(f"{what}: {', '.join(map(str, values))} contains a duplicate")
        names = self.dataset_names()
        if len(set(names)) < len(names) or "" in names:
            raise ConfigError(f"datasets: {', '.join(self.datasets)}: each needs its own name")
        for what in ("methods", "refiners"):
            if ALL in getattr(self, what) and len(getattr(self, what)) > 1:
                raise ConfigError(f"{what}: {ALL!r} cannot be combined with other names")
        if self.trials and self.search_seed in self.seeds:
            raise ConfigError(f"search_seed = {self.search_seed} is one of the seeds; choose a different one")
        if self.gpus_per_trial is not None and self.gpus_per_trial > 1 and self.gpus_per_trial % 1:
            raise ConfigError(f"gpus_per_trial = {self.gpus_per_trial:g}: at most 1, or a whole number")

    @property
    def device(self) -> str | None:
        """The device of the trials, `cpu` or `cuda`; None if it depends on a cluster."""
        if self.gpus_per_trial is not None:
            return "cuda" if self.gpus_per_trial else "cpu"
        if self.address is not None:
            return None
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    def resolved(self) -> SweepSettings:
        """Return the settings with `all` replaced by names, so that methods added later do not join the sweep.

        `precision="auto"` is replaced by that of this machine's devices, so that all trials have the same; it is
        fp32 if the device depends on a cluster.
        Adds the plug-ins to this process; those of the command line replace the sweep's of the same name. Raises
        ConfigError if a method or refiner is unknown, or a plug-in is missing.
        """
        from seedbed.benchmark.pipeline.registry import METHODS, REFINERS
        from seedbed.benchmark.training.precision import chosen

        plugins = add_all(self.plugins)
        for variant in self.variants.values():
            METHODS.plugin(variant.method)
            REFINERS.plugin(variant.refiner)
        methods = METHODS.names() if self.methods == (ALL,) else self.methods
        refiners = REFINERS.names() if self.refiners == (ALL,) else self.refiners
        for family, names in ((METHODS, methods), (REFINERS, refiners)):
            for name in names:
                if name not in family.names():
                    raise unknown_name(family.what, name, {*family.names(), ALL})
        unknown = self.precision == "auto" and self.device is None
        precision = "fp32" if unknown else chosen(self.precision, self.device or "cpu")
        return replace(self, methods=methods, refiners=refiners, plugins=plugins, precision=precision)

    def cells(self) -> list[Cell]:
        """Return all cells in a fixed order. A one-step method has no refiner: one cell per data set."""
        from seedbed.benchmark.pipeline.registry import METHODS

        if self.variants:
            named = self.variants.items()
            return [Cell(v.method, v.refiner, data, name) for data in self.dataset_names() for name, v in named]
        methods, refiners = self.resolved().methods, self.resolved().refiners
        cells = []
        for dataset in self.dataset_names():
            for method in methods:
                alone = METHODS.load(method).one_step
                cells += [Cell(method, refiner, dataset) for refiner in (("none",) if alone else refiners)]
        return cells

    def reference_cells(self) -> list[Cell]:
        """Return the cells of the references; the upper bound needs a segmentation network."""
        if self.variants or not self.references:
            return []
        names = [name for name, how in REFERENCES.items() if self.segment or how != "full"]
        return [Cell(name, "", dataset) for dataset in self.dataset_names() for name in names]

    def settings_of(self, cell: Cell) -> dict[str, Any]:
        """Return the changed hyper-parameters of a cell.

        `TrainSegmentation.*` also holds for the upper bound, which trains the same network as `TrainSupervised`.
        """
        own = self.variants[cell.variant].settings if cell.variant else {}
        if cell.reference:
            bound = {key.partition(".")[2]: v for key, v in self.settings.items() if key.startswith(NETWORK)}
            return {**{f"TrainSupervised.{name}": value for name, value in bound.items()}, **self.settings}
        return {**self.settings, **own}

    def dataset_names(self) -> list[str]:
        """Return the data sets' names without their roots."""
        return [text.partition("=")[0] for text in self.datasets]

    def root_of(self, dataset: str) -> Path | None:
        """Return the root given for a data set; None if seedbed.toml gives it."""
        roots = dict(text.partition("=")[::2] for text in self.datasets)
        return Path(roots[dataset]) if roots[dataset] else None

    def moved(self, texts: Iterable[str]) -> tuple[str, ...]:
        """Return `datasets` with new roots: `NAME=ROOT`, or `NAME` for the root in seedbed.toml.

        Raises ConfigError if a data set is not in the sweep.
        """
        new = {text.partition("=")[0]: _absolute(text) for text in texts}
        for name in new:
            if name not in self.dataset_names():
                raise unknown_name("data set of this sweep", name, self.dataset_names())
        return tuple(new.get(name, text) for name, text in zip(self.dataset_names(), self.datasets, strict=True))

    def differences(self, other: SweepSettings) -> list[str]:
        """Return the sorted names of the settings that differ and affect results."""
        mine, others = self._comparable(), other._comparable()
        return sorted(name for name in mine if mine[name] != others[name])

    def _comparable(self) -> dict[str, Any]:
        """Return the settings that affect results; `0.05` in a file equals `"0.05"` on the command line.

        Omits the paths of data sets and weights files: their digests are compared instead.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self) if not f.metadata.get("where")}
        weights = {key: "FILE" for key in WEIGHTS if is_file(getattr(self, key))}
        variants = {name: replace(one, settings=_values(one.settings)) for name, one in self.variants.items()}
        own = {"datasets": self.dataset_names(), "settings": _values(self.settings), "variants": variants}
        return values | weights | own

    def save(self, path: Path) -> None:
        """Write the settings as YAML, by one rename."""
        import yaml

        from seedbed.benchmark.files import write_text

        plain = {f.name: list(v) if isinstance(v := getattr(self, f.name), tuple) else v for f in fields(self)}
        plain["settings"] = dict(self.settings)
        plain["variants"] = {name: asdict(variant) for name, variant in self.variants.items()}
        write_text(path, yaml.safe_dump(plain, sort_keys=False))


def read_settings(
    path: Path, changes: Mapping[str, Any], defaults: Mapping[str, Any] = MappingProxyType({})
) -> SweepSettings:
    """Read a YAML file, with `changes` (from the command line) on top; `defaults` are for keys that it lacks.

    Raises ConfigError for a missing or broken file, and for an unknown key, naming the valid ones.
    """
    from seedbed.benchmark.yaml_file import read_yaml

    content = read_yaml(path)
    if not isinstance(content, dict):
        valid = ", ".join(sorted(f.name for f in fields(SweepSettings)))
        raise ConfigError(f"{path}: expected a table of settings, not {_kind(content)}. Valid: {valid}")
    try:
        return settings_of({**defaults, **content, **changes})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _kind(content: Any) -> str:
    return "an empty file" if content is None else f"a {type(content).__name__}"


def settings_of(content: Mapping[str, Any]) -> SweepSettings:
    """Return the settings given by a table. Raises ConfigError for unknown and missing keys, and wrong values.

    Relative paths are made absolute: workers run in a folder of Ray's, and a sweep may be resumed from anywhere.
    """
    settings = read(SweepSettings, content, "sweep")
    files = {key: file for key in WEIGHTS if is_file(file := getattr(settings, key))}
    paths: dict[str, Any] = {key: str(expanded(file).resolve()) for key, file in files.items()}
    return replace(settings, datasets=tuple(map(_absolute, settings.datasets)), **paths)


def check_name(name: str) -> None:
    """Raise ConfigError for a name that a sweep cannot have."""
    if not NAME.fullmatch(name):
        shown = repr(name if len(name) <= 40 else name[:40] + "…")
        raise ConfigError(
            f"name = {shown}: expected up to 200 letters, digits, points, dashes and underscores, "
            "the first a letter or a digit"
        )


def _values(settings: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the values of settings, or of their texts."""
    return {key: [value_of(item) for item in items_of(value)] for key, value in settings.items()}


def _absolute(text: str) -> str:
    name, equals, root = text.partition("=")
    return f"{name}={expanded(root).resolve()}" if equals and root else text


def saved_settings(sweeps: Path, name: str) -> SweepSettings:
    """Return the settings of an earlier sweep. Raises ConfigError if it does not exist."""
    check_name(name)
    path = sweeps / name / "sweep.yaml"
    if not path.exists():
        known = sorted(p.parent.name for p in sweeps.glob("*/sweep.yaml"))
        raise ConfigError(f"{sweeps}: no sweep {name!r}. Valid: {', '.join(known) or '(none)'}")
    return read_saved(path)


def read_saved(path: Path) -> SweepSettings:
    """Read the `sweep.yaml` that a sweep wrote; a missing plug-in is replaced by the sweep's copy.

    Raises ConfigError, with a remedy, if the file is empty.
    """
    if path.is_file() and not path.read_bytes().strip(b"\0 \r\n"):
        raise ConfigError(
            f"{path}: empty, perhaps after a power loss. Remove it and run the sweep's full command again; "
            "finished trials are kept"
        )
    # A sweep from before there were references stays as it was.
    settings, copies = read_settings(path, {}, {"references": False}), path.parent / "plugins"
    found = [p if Path(p).exists() else next(copies.rglob(Path(p).name), p) for p in settings.plugins]
    return replace(settings, plugins=tuple(map(str, found)))


def change(settings: SweepSettings, changes: Mapping[str, Any]) -> SweepSettings:
    """Return the settings with changes of machines, references, and the paths of data sets and weights files.

    Raises ConfigError if a change would affect results. Moved files are checked by their digests when they are
    opened.
    """
    changes = dict(changes)
    moved: dict[str, Any] = {}
    if "datasets" in changes:
        moved["datasets"] = settings.moved(changes.pop("datasets"))
    for key in WEIGHTS:
        if is_file(changes.get(key)) and is_file(getattr(settings, key)):
            moved[key] = str(expanded(changes.pop(key)).resolve())
    settings = replace(settings, **moved)
    if "settings" in changes:
        changes["settings"] = {**settings.settings, **changes["settings"]}
    changed = settings_of({**{f.name: getattr(settings, f.name) for f in fields(settings)}, **changes})
    for name in settings.differences(changed):
        option = "--set" if name == "settings" else "--" + name.replace("_", "-")
        raise ConfigError(f"{option} cannot change when a sweep is resumed; start a new sweep under a new name")
    where = {f.name: getattr(changed, f.name) for f in fields(settings) if f.metadata.get("where")}
    return replace(settings, **where)
