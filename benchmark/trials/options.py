"""The options of a trial, each declared once.

`seedbed run`, `sweep` and `study` take them on the command line (benchmark/cli/trial_options.py), a sweep's YAML
file and the files of its trials have them as keys, and the command that repeats a trial has them. A new option
is one field here and the code that reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from seedbed.benchmark.training.initialisation import is_file
from seedbed.benchmark.validation import validate

Selection = Literal["fixed", "tuned", "oracle"]
SELECTIONS: tuple[Selection, ...] = ("fixed", "tuned", "oracle")

DECIDED = ("segment", "selections", "maps_on")
"""Options of a trial that a study's file sets."""


def _setting_table(content: Any) -> Any:
    """Return a table of `Stage.field: value`, or raise ValueError."""
    if content is not None and not isinstance(content, Mapping):
        raise ValueError("expected a table of `Stage.field: value`")
    for key, value in (content or {}).items():
        if isinstance(value, Mapping) and "." not in str(key):
            field_name = next(iter(value), "field")
            raise ValueError(f"{key} is a table; write {key}.{field_name}: value")
        if not isinstance(key, str) or not all(key.partition(".")):
            raise ValueError(f"{key!r} is no setting; write Stage.field: value")
    return content


Settings = Annotated[Mapping[str, Any], _setting_table]
"""Changed hyper-parameters, `Stage.field: value`."""


def option(
    default: Any,
    help: str,
    *,
    shown: str = "",
    low: float | None = None,
    report_as: str | None = None,
    file: bool = False,
    network: bool = False,
) -> Any:
    """Declare an option with its default and help text.

    Args:
        default: The default value.
        help: The text of `--help`.
        shown: The default in words, if it depends on other options.
        low: Lowest valid number.
        report_as: Name of the condition that MLflow and the leaderboard show (trials/conditions.py).
        file: The value may be the path of a weights file.
        network: The option is only about the segmentation network.
    """
    metadata: dict[str, Any] = {"help": help, "shown": shown, "low": low, "file": file, "network": network}
    if report_as is not None:
        metadata["report_as"] = report_as
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class TrialOptions:
    """The options that trials, sweeps and studies share.

    Raises ConfigError, naming the option, if a value has the wrong type or is below its bound.
    """

    backbone: str | None = option(
        None,
        "Backbone (see `seedbed methods`).",
        shown="tiny for images of at most 128 pixels, else resnet50",
        report_as="backbone",
    )
    weights: str | None = option(
        None,
        "Initial weights: none (random), imagenet, or a state-dict file.",
        shown="imagenet if the backbone has them, else none",
        report_as="initialisation",
        file=True,
    )
    segmentation_backbone: str | None = option(
        None, "Backbone of the segmentation network.", shown="that of --backbone", network=True
    )
    segmentation_weights: str | None = option(
        None,
        "Initial weights of the segmentation network: as --weights, or coco (trained on masks; marks the result).",
        shown="those of --weights; for another backbone the default of --weights",
        file=True,
        network=True,
    )
    size: int = option(
        0, "Resize images to this longer side, pixels; 0: original size. Metrics use the original size.", low=0
    )
    precision: Literal["auto", "fp32", "bf16"] = option(
        "auto",
        "Numbers that networks compute with: fp32, bf16, or auto.",
        shown="auto: bf16 on GPUs and CPUs built for it, else fp32",
        report_as="precision",
    )
    segment: bool = option(True, "Train a segmentation network on the pseudo-masks.")
    selections: tuple[Selection, ...] = option(
        SELECTIONS, "How the thresholds of the reported pseudo-masks are chosen."
    )
    maps_on: tuple[Literal["train", "val"], ...] = option(
        ("train",), "Splits on which maps and pseudo-masks are measured: train, val."
    )
    allow_val_in_training: bool = option(False, "Run even if training images are in val, and mark the result.")
    settings: Settings = option(  # noqa: RUF009
        {}, "Change a hyper-parameter: --set TrainCam.lr=0.05 (see `seedbed methods show`).", shown="none"
    )

    def __post_init__(self) -> None:
        validate(self)


def options_of(holder: TrialOptions) -> dict[str, Any]:
    """Return the options of a trial, sweep or study by name."""
    return {declared.name: getattr(holder, declared.name) for declared in fields(TrialOptions)}


def words_of(holder: TrialOptions, values: Mapping[str, Any]) -> list[str]:
    """Return the options that differ from their defaults as words of a command line.

    `values` override those of `holder`. A weights file is written as `FILE`.
    """
    words = []
    for declared in fields(TrialOptions):
        value = values.get(declared.name, getattr(holder, declared.name))
        name = "--" + declared.name.replace("_", "-")
        if declared.name == "settings":
            for key, setting in sorted(value.items()):
                words += ["--set", f"{key}={text_of(setting)}"]
        elif value == declared.default or value is None:
            continue
        elif isinstance(value, bool):
            words.append(name if value else f"--no-{name[2:]}")
        elif isinstance(value, tuple):
            words += [name, ",".join(value)]
        else:
            words += [name, "FILE" if declared.metadata["file"] and is_file(value) else str(value)]
    return words


def text_of(value: Any) -> str:
    """Return a setting as `--set` reads it."""
    if isinstance(value, list | tuple):
        return ",".join(map(text_of, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
