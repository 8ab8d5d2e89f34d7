"""A study: one table of a paper, declared in `tables/NAME.yaml` as a grid of settings and measures.

    title       what the table is about               backbone               the paper's; --backbone overrides it
    table       its id in reported.yaml               segmentation_backbone  the same for the second network
    maps_on     splits on which maps are measured     notes                  what a reader should know
    base        options of all cells                  claims                 the paper's: one cell above another
    rows        by the paper's labels, options of a row
    columns     by the paper's columns, options of a column; or `classes`: one column per class, and the mean

A cell has the options of `base`, overridden by those of its column, then of its row: method, refiner, settings,
segment, segmentation_backbone, measure (a record's name), missing (why there is no number), and words, which
replace {word} in `measure` and `refiner`. Rows that the study omits are shown as reported. Cells that differ only
in `measure` are one trial.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

from seedbed.benchmark.errors import ConfigError, unknown_name
from seedbed.benchmark.evaluation.records import RecordName
from seedbed.benchmark.paths import expanded
from seedbed.benchmark.studies.reported import ReportedPaper, ReportedTable, table
from seedbed.benchmark.sweeps.settings import Variant
from seedbed.benchmark.trials.options import Settings
from seedbed.benchmark.validation import read

FOLDER = Path(__file__).parent / "tables"
CLASSES = "classes"
VARYING = ("method", "refiner", "settings", "segment", "segmentation_backbone")


@dataclass(frozen=True)
class Spot:
    """One cell of the table: a trial and one of its records, or why there is none."""

    variant: str
    """The trial's name among the study's variants; empty if there is none."""
    measure: str
    missing: str = ""


@dataclass(frozen=True)
class Claim:
    """A claim of the paper: the number of one cell, (row, column), is higher than that of another."""

    text: str
    higher: tuple[str, str]
    lower: tuple[str, str]


class CellOptions(TypedDict, total=False):
    """Options of a cell; `base`, a row and a column each give some of them."""

    method: str
    refiner: str
    settings: Settings
    segment: bool
    segmentation_backbone: str | None
    measure: str
    missing: str
    words: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class StudyFile:
    """The content of a study's file."""

    title: str
    table: str
    base: CellOptions
    rows: Mapping[str, CellOptions]
    columns: Mapping[str, CellOptions]
    backbone: str | None = None
    segmentation_backbone: str | None = None
    maps_on: tuple[Literal["train", "val"], ...] = ("train",)
    claims: tuple[Claim, ...] = ()
    notes: tuple[str, ...] = ()


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
    """Whether the columns are classes; then those of the data set replace the paper's."""
    varied: frozenset[str] = field(default_factory=frozenset)
    """The settings, `Stage.field`, that the table is about."""

    @property
    def selections(self) -> tuple[str, ...]:
        """Return the threshold selections of the pseudo-masks that the cells measure."""
        names = [RecordName.parse(spot.measure) for spot in self.spots.values()]
        found = {name.selection for name in names if name is not None and name.level == "pseudo_mask"} - {"none"}
        return tuple(sorted(found)) or ("tuned",)


def study_names() -> list[str]:
    """Return the names of all studies."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_study(name: str) -> Study:
    """Read a study by its name, or a YAML file. Raises ConfigError for an unknown study or key."""
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
    if isinstance(content, Mapping):
        # A key whose lines are all commented out.
        content = {key: value for key, value in content.items() if value is not None}
    by_class = isinstance(content, Mapping) and content.get("columns") == CLASSES
    file = read(StudyFile, {**content, "columns": {}} if by_class else content, "study")
    paper, reported = table(file.table)
    rows, columns = file.rows, dict.fromkeys(reported.columns, CellOptions()) if by_class else file.columns
    for what, labels, known in (
        ("row", rows, [row.label for row in reported.rows]),
        ("column", columns, reported.columns),
    ):
        if not labels:
            raise ConfigError(f"{what}s: expected a table of options by label")
        for label in labels:
            if label not in known:
                raise unknown_name(f"{what} of {reported.id}", label, known)
    spots: dict[tuple[str, str], Spot] = {}
    variants: dict[str, Variant] = {}
    for row in (r.label for r in reported.rows if r.label in rows):
        for column in (c for c in reported.columns if c in columns):
            label = row if by_class else f"{row}, {column}"
            spots[row, column] = _spot(label, _merged(file.base, columns[column], rows[row]), variants)
    for claim in file.claims:
        for place in (claim.higher, claim.lower):
            if place not in spots:
                raise ConfigError(f"claim {claim.text!r}: {list(place)} is not a [row, column] of the table")
    return Study(
        name=name,
        title=file.title,
        paper=paper,
        table=reported,
        rows=tuple(dict.fromkeys(row for row, _ in spots)),
        columns=tuple(c for c in reported.columns if c in columns),
        spots=spots,
        variants=variants,
        claims=file.claims,
        notes=file.notes,
        maps_on=file.maps_on or ("train",),
        backbone=file.backbone,
        segmentation_backbone=file.segmentation_backbone,
        by_class=by_class,
        varied=frozenset(
            key for layer in (*columns.values(), *rows.values()) for key in layer.get("settings", {})
        ),
    )


def measure_of(study: Study, spot: Spot, column: str) -> str:
    """Return the name of a cell's record; if the columns are classes, that of the column's class."""
    if not study.by_class:
        return spot.measure
    name = RecordName.parse(spot.measure)
    return spot.measure if name is None or column == "mIoU" else str(name.of("IoU", column))


def _spot(label: str, options: Mapping[str, Any], variants: dict[str, Variant]) -> Spot:
    """Return the cell with these options, and add its trial to `variants` if it is new."""
    if options.get("missing"):
        return Spot("", "", options["missing"])
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
