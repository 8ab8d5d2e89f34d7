"""Hyper-parameters: `hp(default, space)` declares default, bounds, search space and source on one line.

lr: float = hp(0.1, FloatDistribution(1e-3, 1.0, log=True), source="docs/methods.md, CAM")
epochs: int = hp(15, low=1, source="PSA code")
optimiser: Literal["sgd", "adamw"] = hp("sgd", source="PSA code")
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

from seedbed.benchmark.errors import unknown_name
from seedbed.benchmark.validation import typed

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


Configured = TypeVar("Configured")


@dataclass(frozen=True)
class HyperParameter:
    """The declaration of a field, besides its name, type and default."""

    space: BaseDistribution | None
    """The Optuna distribution that a search draws from; None if the field is not searched."""
    low: float | None
    high: float | None
    on_request: bool
    """True if the field is searched only on request, not by `--tune all`."""
    when: tuple[str, Any] | None
    """(field, value): the parameter has an effect only if that other field has that value."""
    source: str
    """Where the default comes from: paper, equation, table, or `code` of the authors."""
    report_as: str
    """Name of the leaderboard condition that the setting defines; empty: none (trials/conditions.py)."""


def hp(
    default: Any,
    space: BaseDistribution | None = None,
    *,
    low: float | None = None,
    high: float | None = None,
    on_request: bool = False,
    when: tuple[str, Any] | None = None,
    source: str = "",
    report_as: str = "",
) -> Any:
    """Declare a hyper-parameter of a stage.

    Args:
        default: The default value.
        space: The Optuna distribution that a search draws from. None: not searched.
        low: Lowest valid value, by default that of `space`. A `Literal` type needs no bounds.
        high: Highest valid value, by default that of `space`.
        on_request: Search the field only on request, not by `--tune all`.
        when: (field, value): the parameter has an effect only if that other field has that value.
        source: Where the default comes from: paper, equation, table, or the authors' code.
        report_as: Name of the condition that MLflow and the leaderboard show for this setting.
    """
    low = getattr(space, "low", None) if low is None else low
    high = getattr(space, "high", None) if high is None else high
    declaration = HyperParameter(space, low, high, on_request, when, source, report_as)
    return field(default=default, metadata={"hp": declaration, "low": low, "high": high})


def declared(stage: type[object]) -> dict[str, HyperParameter]:
    """Return the hyper-parameters of a stage or method class by field name, in the order of declaration."""
    return {f.name: f.metadata["hp"] for f in dataclasses.fields(cast(Any, stage)) if "hp" in f.metadata}


def when(stage: type[object], name: str) -> tuple[str, Any] | None:
    """Return (field, value) that the field `name` needs to have an effect; None if it always has one."""
    return declared(stage)[name].when if name in declared(stage) else None


def values(stage: Any) -> dict[str, Any]:
    """Return the hyper-parameters of a stage or method by field name, as plain JSON values."""
    named = {name: getattr(stage, name) for name in declared(type(stage))}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in named.items()}


def hints(stage: type[object]) -> dict[str, Any]:
    """Return the resolved types of the hyper-parameters of a stage or method class."""
    return _hints(cast(Hashable, stage))


@functools.cache
def _hints(stage: Any) -> dict[str, Any]:
    all_hints = typing.get_type_hints(stage)
    return {name: all_hints[name] for name in declared(stage)}


def checked(stage: type[object], name: str, value: Any) -> Any:
    """Return a value or its text, converted to the type of the field `name` of a stage or method class.

    Raises ConfigError if the field is unknown, the type is wrong, or the value is out of bounds.
    """
    if name not in hints(stage):
        raise unknown_name(f"setting of {stage.__name__}", name, hints(stage))
    value = value.strip() if isinstance(value, str) else value
    return typed(stage, {name: value}, stage.__name__)[name]


def override(stages: Sequence[Configured], settings: Mapping[str, Any]) -> list[Configured]:
    """Return the stages (or methods) with `{"Stage.field": value}` applied to each one of that class.

    Values may be text from the command line. Raises ConfigError, with the valid names, for an unknown stage, and
    as `checked` does.
    """
    known = {type(stage).__name__: type(stage) for stage in stages}
    changes: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        stage_name, _, field_name = key.partition(".")
        if stage_name not in known:
            raise unknown_name("stage", stage_name, known)
        changes.setdefault(stage_name, {})[field_name] = checked(known[stage_name], field_name, value)
    return [dataclasses.replace(cast(Any, s), **changes.get(type(s).__name__, {})) for s in stages]
