"""Hyper-parameters: `hp(default, space)` declares default, bounds, search space and source on one line.

lr: float = hp(0.1, FloatDistribution(1e-3, 1.0, log=True), source="docs/methods.md, CAM")
epochs: int = hp(15, low=1, source="PSA code")
optimiser: Literal["sgd", "adamw"] = hp("sgd", source="PSA code")
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, cast

from seedbed.benchmark.errors import ConfigError, unknown_name

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
    """The condition of a row of the leaderboard that the setting is; empty: none (trials/conditions.py)."""


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
        low: Lowest valid value; by default that of `space`. A `Literal` type needs no bounds.
        high: Highest valid value; by default that of `space`.
        on_request: Search the field only on request, not by `--tune all`.
        when: (field, value): the parameter has an effect only if that other field has that value.
        source: Where the default comes from: paper, equation, table, or the authors' code.
        report_as: Name of the condition that MLflow and the leaderboard show for this setting.
    """
    low = getattr(space, "low", None) if low is None else low
    high = getattr(space, "high", None) if high is None else high
    declaration = HyperParameter(space, low, high, on_request, when, source, report_as)
    return field(default=default, metadata={"hp": declaration})


def declared(stage: type[object]) -> dict[str, HyperParameter]:
    """Return the hyper-parameters of a stage or method class by field name, in the order of declaration."""
    return {f.name: f.metadata["hp"] for f in dataclasses.fields(cast(Any, stage)) if "hp" in f.metadata}


def when(stage: type[object], name: str) -> tuple[str, Any] | None:
    """Return the field and the value that give the field `name` its effect; None if it always has one."""
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


def validate(stage: Any) -> None:
    """Check every hyper-parameter of a stage or method against its type and bounds.

    Whole numbers given for floats become floats.

    Raises ConfigError that names stage, field, value and what is valid.
    """
    for name in hints(type(stage)):
        object.__setattr__(stage, name, checked(type(stage), name, getattr(stage, name)))


def checked(stage: type[object], name: str, value: Any) -> Any:
    """Return a value as the type of the field `name` of a stage or method class.

    Raises ConfigError for an unknown field, a wrong type, and a value that is out of bounds.
    """
    if name not in hints(stage):
        raise unknown_name(f"setting of {stage.__name__}", name, hints(stage))
    where = f"{stage.__name__}.{name}"
    value = conform(where, value, hints(stage)[name])
    for number in value if isinstance(value, tuple) else (value,):
        _check_bounds(where, number, declared(stage)[name])
    return value


def parse(stage: type[object], name: str, text: str) -> Any:
    """Return the value of a field from its text on the command line. `validate` checks bounds.

    Tuples are written with commas (`0.5,1.0,1.5`), None as `none`. Raises ConfigError if the text is invalid.
    """
    return _parse(f"{stage.__name__}.{name}", text.strip(), hints(stage)[name])


def override(stages: Sequence[Configured], settings: Mapping[str, Any]) -> list[Configured]:
    """Return the stages (or methods) with `{"Stage.field": value}` applied to every one of that class.

    Strings are parsed; bounds are checked. Raises ConfigError for an unknown stage or field and names the
    valid ones.
    """
    known = {type(stage).__name__: type(stage) for stage in stages}
    changes: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        stage_name, _, field_name = key.partition(".")
        if stage_name not in known:
            raise unknown_name("stage", stage_name, known)
        if field_name not in (valid := hints(known[stage_name])):
            raise unknown_name(f"setting of {stage_name}", field_name, valid)
        parsed = parse(known[stage_name], field_name, value) if isinstance(value, str) else value
        changes.setdefault(stage_name, {})[field_name] = parsed
    replaced = [dataclasses.replace(cast(Any, s), **changes.get(type(s).__name__, {})) for s in stages]
    for stage in replaced:
        validate(stage)
    return replaced


def describe(hint: Any) -> str:
    """Return a type as a user reads it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin is tuple:
        return f"comma-separated {describe(arguments[0])}s"
    if origin in (Union, types.UnionType):
        return " or ".join("none" if a is type(None) else describe(a) for a in arguments)
    return {int: "whole number", float: "number", str: "text", bool: "true or false"}[hint]


def conform(where: str, value: Any, hint: Any) -> Any:
    """Return a value as the type `hint` (whole numbers become floats, lists tuples), or raise ConfigError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return conform(where, value, next(a for a in arguments if a is not type(None)))
    if origin is tuple and isinstance(value, list | tuple):
        if arguments[-1] is not ... and len(arguments) != len(value):
            raise ConfigError(f"{where} = {value!r}: expected {len(arguments)} values")
        return tuple(conform(where, v, arguments[0]) for v in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin is Literal:
        fits = value in arguments and not isinstance(value, bool)
    elif isinstance(hint, type):
        fits = isinstance(value, hint) and not (hint is int and isinstance(value, bool))
    else:
        fits = False
    if not fits:
        # YAML reads `no` as false and `2012` as a number.
        quotes = "; in YAML, put it in quotes" if hint is str and not isinstance(value, str) else ""
        raise ConfigError(f"{where} = {value!r}: expected {describe(hint)}{quotes}")
    return value


def _check_bounds(where: str, value: Any, parameter: HyperParameter) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    low = -math.inf if parameter.low is None else parameter.low
    high = math.inf if parameter.high is None else parameter.high
    if not math.isfinite(value) or not low <= value <= high:
        raise ConfigError(f"{where} = {value!r}: outside {low} … {high}")


def _parse(where: str, text: str, hint: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        if text.lower() == "none":
            return None
        return _parse(where, text, next(a for a in arguments if a is not type(None)))
    if origin is tuple:
        return tuple(_parse(where, part.strip(), arguments[0]) for part in text.split(",") if part.strip())
    if origin is Literal:
        by_text = {str(a): a for a in arguments}
        if text in by_text:
            return by_text[text]
    elif hint is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
    elif hint is str:
        return text
    else:
        try:
            return hint(text)
        except ValueError:
            pass
    raise ConfigError(f"{where} = {text!r}: expected {describe(hint)}")
