"""A study: one table of a paper, declared in `tables/NAME.yaml` as a grid of settings and a measure.

    title       what the table is about               backbone               the paper's; others by --backbone
    table       its id in reported.yaml               segmentation_backbone  the same of the second network
    maps_on     splits on which maps are measured     notes                  what a reader should know
    base        options of all cells                  claims                 the paper's: one cell above another
    rows        by the paper's labels, options of a row
    columns     by the paper's columns, options of a column; or `classes`: one column a class, and the mean

Options of a cell are those of `base`, of its column and of its row, the row's on top: method, refiner, settings,
segment, segmentation_backbone, measure (a record's name), missing (why there is no number), and words, which stand
in `measure` and `refiner` as {word}. Rows of the paper that the study leaves out are shown as reported. Cells with
the same options but `measure` are one trial.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from seedbed.benchmark.errors import ConfigError, unknown_name
from seedbed.benchmark.evaluation.records import RecordName
from seedbed.benchmark.paths import expanded
from seedbed.benchmark.pipeline.hparams import conform
from seedbed.benchmark.studies.reported import ReportedPaper, ReportedTable, table
from seedbed.benchmark.sweeps.settings import Variant
from seedbed.benchmark.trials.options import check_table

FOLDER = Path(__file__).parent / "tables"
CLASSES = "classes"
KEYS = (
    "title",
    "table",
    "maps_on",
    "backbone",
    "segmentation_backbone",
    "base",
    "rows",
    "columns",
    "claims",
    "notes",
)
OPTIONS: Mapping[str, Any] = {
    "method": str,
    "refiner": str,
    "settings": Mapping,
    "segment": bool,
    "segmentation_backbone": str | None,
    "measure": str,
    "missing": str,
    "words": Mapping,
}
"""The options of a cell, with their types."""
VARYING = ("method", "refiner", "settings", "segment", "segmentation_backbone")


@dataclass(frozen=True)
class Spot:
    """One cell of the table: a trial and one of its records, or why there is none."""

    variant: str
    """The trial's name among the study's variants; empty where there is none."""
    measure: str
    missing: str = ""


@dataclass(frozen=True)
class Claim:
    """What the paper says: the number of one cell, (row, column), is higher than that of another."""

    text: str
    higher: tuple[str, str]
    lower: tuple[str, str]


@dataclass(frozen=True)
class Study:
    """One table, ready to run."""

    name: str
    title: str
    paper: ReportedPaper
    table: ReportedTable
    rows: tuple[str, ...]
    """Labels of the rows that are measured, in the paper's order."""
    columns: tuple[str, ...]
    spots: Mapping[tuple[str, str], Spot]
    variants: Mapping[str, Variant]
    claims: tuple[Claim, ...] = ()
    notes: tuple[str, ...] = ()
    maps_on: tuple[Literal["train", "val"], ...] = ("train",)
    backbone: str | None = None
    segmentation_backbone: str | None = None
    by_class: bool = False
    """Whether the columns are classes: then a data set's own take their place."""
    varied: frozenset[str] = field(default_factory=frozenset)
    """The settings, `Stage.field`, that the table is about."""

    @property
    def selections(self) -> tuple[str, ...]:
        """Return how the thresholds of the pseudo-masks that the cells name are chosen."""
        names = [RecordName.parse(spot.measure) for spot in self.spots.values()]
        found = {name.selection for name in names if name is not None and name.level == "pseudo_mask"} - {"none"}
        return tuple(sorted(found)) or ("tuned",)


def study_names() -> list[str]:
    """Return the names of all studies."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_study(name: str) -> Study:
    """Read a study by its name, or a YAML file. Raises ConfigError for an unknown one and for a wrong key."""
    from seedbed.benchmark.yaml_file import read_yaml

    if name.endswith((".yaml", ".yml")):
        path = expanded(name)
    elif name in study_names():
        path = FOLDER / f"{name}.yaml"
    else:
        raise unknown_name("study", name, study_names())
    content = read_yaml(path)
    try:
        return _study(path.stem, content)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _study(name: str, content: Any) -> Study:
    content = _table(content, "study", KEYS)
    for key in ("title", "table", "base", "rows", "columns"):
        if key not in content:
            raise ConfigError(f"a study needs {key}")
    for key in ("title", "table"):
        conform(key, content[key], str)
    for key in ("backbone", "segmentation_backbone"):
        conform(key, content.get(key), str | None)
    paper, reported = table(content["table"])
    base = _options("base", content["base"])
    by_class = content["columns"] == CLASSES
    columns = {label: {} for label in reported.columns} if by_class else _grid("columns", content["columns"])
    rows = _grid("rows", content["rows"])
    for what, labels, known in (
        ("row", rows, [row.label for row in reported.rows]),
        ("column", columns, reported.columns),
    ):
        for label in labels:
            if label not in known:
                raise unknown_name(f"{what} of {reported.id}", label, known)
    spots: dict[tuple[str, str], Spot] = {}
    variants: dict[str, Variant] = {}
    for row in (r.label for r in reported.rows if r.label in rows):
        for column in (c for c in reported.columns if c in columns):
            label = row if by_class else f"{row}, {column}"
            spots[row, column] = _spot(label, _merged(base, columns[column], rows[row]), variants)
    claims = tuple(_claim(claim, spots) for claim in _list("claims", content, Any))
    return Study(
        name=name,
        title=content["title"],
        paper=paper,
        table=reported,
        rows=tuple(dict.fromkeys(row for row, _ in spots)),
        columns=tuple(c for c in reported.columns if c in columns),
        spots=spots,
        variants=variants,
        claims=claims,
        notes=_list("notes", content, str),
        maps_on=_list("maps_on", content, Literal["train", "val"]) or ("train",),
        backbone=content.get("backbone"),
        segmentation_backbone=content.get("segmentation_backbone"),
        by_class=by_class,
        varied=_varied([*columns.values(), *rows.values()]),
    )


def measure_of(study: Study, spot: Spot, column: str) -> str:
    """Return the name of the record of a cell; where the columns are classes, that of the column's class."""
    if not study.by_class:
        return spot.measure
    name = RecordName.parse(spot.measure)
    return spot.measure if name is None or column == "mIoU" else str(name.of("IoU", column))


def _spot(label: str, options: Mapping[str, Any], variants: dict[str, Variant]) -> Spot:
    """Return the cell of some options, and add its trial to `variants` where no cell had it before."""
    if options.get("missing"):
        return Spot("", "", str(options["missing"]))
    for key in ("method", "measure"):
        if key not in options:
            raise ConfigError(f"{label}: needs {key}, in `base`, its column or its row")
    options = {
        **options,
        **{key: _filled(label, options, key) for key in ("refiner", "measure") if key in options},
    }
    variant = Variant(**{key: options[key] for key in VARYING if key in options})
    name = next((known for known, other in variants.items() if other == variant), None)
    if name is None:
        name = label
        variants[name] = variant
    return Spot(name, options["measure"])


def _filled(label: str, options: Mapping[str, Any], key: str) -> str:
    try:
        return str(options[key]).format(**options.get("words", {}))
    except (KeyError, IndexError, ValueError) as error:
        raise ConfigError(f"{label}: {key} = {options[key]!r}: no word for {error}") from None


def _merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for layer in layers:
        settings |= layer.get("settings", {})
        merged |= layer
    return {**merged, "settings": settings}


def _varied(layers: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    return frozenset(key for layer in layers for key in layer.get("settings", {}))


def _grid(what: str, content: Any) -> dict[str, Mapping[str, Any]]:
    if not isinstance(content, Mapping) or not content:
        raise ConfigError(f"{what}: expected a table of options by label")
    return {str(label): _options(f"{what}: {label}", options or {}) for label, options in content.items()}


def _options(what: str, content: Any) -> Mapping[str, Any]:
    options = {
        k: v for k, v in _table(content, what, OPTIONS).items() if v is not None or k not in ("settings", "words")
    }
    for key, value in options.items():
        if key == "settings":
            check_table(f"{what}: settings", value)
        elif key == "words":
            if not isinstance(value, Mapping):
                raise ConfigError(f"{what}: words: expected a table of texts")
        else:
            conform(f"{what}: {key}", value, OPTIONS[key])
    return options


def _list(key: str, content: Mapping[str, Any], kind: Any) -> tuple[Any, ...]:
    """Return a list of a study; one word stands for a list of one."""
    value = content.get(key) or ()
    value = (value,) if isinstance(value, str) else value
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{key}: expected a list")
    return tuple(value if kind is Any else conform(key, value, tuple[kind, ...]))


def _claim(content: Any, spots: Mapping[tuple[str, str], Spot]) -> Claim:
    claim = _table(content, "claim", ("text", "higher", "lower"))
    places = []
    for key in ("higher", "lower"):
        place = claim.get(key)
        if not isinstance(place, list) or tuple(map(str, place)) not in spots:
            raise ConfigError(f"claim {claim.get('text')!r}: {key} = {place!r} is no [row, column] of the table")
        places.append((str(place[0]), str(place[1])))
    return Claim(str(claim.get("text", "")), *places)


def _table(content: Any, what: str, valid: Iterable[str]) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        raise ConfigError(f"{what}: expected a table. Valid keys: {', '.join(valid)}")
    for key in content:
        if key not in (*valid,):
            raise unknown_name(f"key of {what}", str(key), valid)
    return content
