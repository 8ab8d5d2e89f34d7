"""Reads values into the typed fields of a dataclass with pydantic, and reports each problem in one line.

Text from the command line and values from a YAML file mean the same: `"0.05"` and 0.05, `"true"` and True,
`"none"` and None, `"0.5,1"` and [0.5, 1]. Otherwise types are strict: a boolean is not a number, and 1.0 is not a
whole number. The bounds of a number are `low` and `high` in the metadata of its field.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import types
import typing
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, TypeVar, Union, cast

from seedbed.benchmark.errors import ConfigError, joined, unknown_name

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

T = TypeVar("T")
UNIONS = (Union, types.UnionType)


def read(kind: type[T], content: object, noun: str) -> T:
    """Return a table as the dataclass `kind`, including nested dataclasses.

    Raises ConfigError, which lists all unknown and missing keys, wrong types, and numbers out of bounds. `noun`
    names the whole table in messages.
    """
    return cast(T, _read(_adapter(cast(Hashable, kind)), kind, content, (), noun))


def typed(kind: type[object], given: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Return some fields of the dataclass `kind` by name, converted to their types.

    Raises ConfigError for unknown names, wrong types, and numbers out of bounds; messages name `where.field`.
    """
    return _read(
        _adapter(_fields(cast(Hashable, kind), whole=False)), kind, given, (where,) if where else (), where
    )


def validate(holder: Any, where: str = "") -> None:
    """Check and convert every field of a dataclass, even a frozen one. Raises ConfigError as `typed` does."""
    given = {field.name: getattr(holder, field.name) for field in dataclasses.fields(holder)}
    for name, value in typed(type(holder), given, where).items():
        object.__setattr__(holder, name, value)


def value_of(text: Any) -> Any:
    """Return the value that a text stands for, or the text itself if it is a word; other values unchanged."""
    if not isinstance(text, str):
        return text
    text = text.strip()
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return text


def items_of(content: Any, kind: Any = object) -> Sequence[Any]:
    """Return the items, of type `kind`, of a list or of a text with commas; a single value is a list of one."""
    if isinstance(content, str) and kind is not str:
        return [part for part in map(str.strip, content.split(",")) if part]
    return content if isinstance(content, list | tuple) else [content]


def describe(hint: Any) -> str:
    """Return a readable name of a type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin is tuple:
        return f"comma-separated {describe(arguments[0])}s"
    if origin in UNIONS:
        return " or ".join("none" if a is types.NoneType else describe(a) for a in arguments)
    if _is_table(hint):
        return f"a table. Valid: {', '.join(typing.get_type_hints(hint))}"
    if origin is Mapping:
        return "a table"
    return {int: "whole number", float: "number", str: "text", bool: "true or false"}.get(hint, str(hint))


def _is_table(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint) or typing.is_typeddict(hint)


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(_annotated(hint))


@functools.cache
def _fields(table: Any, whole: bool = True) -> Any:
    """Return a typed dictionary for pydantic, with all keys optional if not `whole`."""
    from pydantic import ConfigDict
    from typing_extensions import TypedDict

    hints = typing.get_type_hints(table, include_extras=True)
    if dataclasses.is_dataclass(table):
        keys = {}
        for field in dataclasses.fields(table):
            hint = _annotated(hints[field.name], field.metadata.get("low"), field.metadata.get("high"))
            required = whole and field.default is field.default_factory is dataclasses.MISSING
            keys[field.name] = hint if required else NotRequired[hint]
    else:
        keys = {name: NotRequired[_annotated(hint)] for name, hint in hints.items()}
    dictionary: Any = TypedDict
    fields = dictionary(table.__name__, keys)
    fields.__pydantic_config__ = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    return fields


def _annotated(hint: Any, low: float | None = None, high: float | None = None) -> Any:
    """Return a type with which pydantic also reads text, is strict otherwise, and checks number bounds."""
    from pydantic import AfterValidator, BeforeValidator, Strict, WrapValidator

    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if typing.is_typeddict(hint):
        return Annotated[_fields(hint), BeforeValidator(_filled)]
    if _is_table(hint):
        return Annotated[_fields(hint), WrapValidator(functools.partial(_construct, hint))]
    if hint is bool:
        return Annotated[bool, Strict(), BeforeValidator(value_of)]
    if hint in (int, float):
        bounds = AfterValidator(functools.partial(_within, low, high))
        return Annotated[hint, Strict(), bounds, BeforeValidator(value_of)]
    if origin is Annotated:
        return Annotated[_annotated(arguments[0], low, high), *map(BeforeValidator, arguments[1:])]
    if origin in UNIONS:
        members = [one if one is types.NoneType else _annotated(one, low, high) for one in arguments]
        union = functools.reduce(operator.or_, members)
        return union if str in arguments else Annotated[union, BeforeValidator(value_of)]
    if origin is tuple:
        items = tuple(one if one is ... else _annotated(one, low, high) for one in arguments)
        listed = BeforeValidator(functools.partial(items_of, kind=arguments[0]))
        return Annotated[types.GenericAlias(tuple, items), listed]
    if origin is Mapping:
        values = _annotated(arguments[1], low, high)
        return Annotated[types.GenericAlias(Mapping, (str, values)), BeforeValidator(_filled)]
    if origin is Literal and not all(isinstance(argument, str) for argument in arguments):
        by_text = {str(argument): argument for argument in arguments}
        return Annotated[hint, BeforeValidator(lambda value: by_text.get(str(value).strip(), str(value)))]
    return hint


def _construct(kind: Any, content: Any, read: Callable[[Any], dict[str, Any]]) -> Any:
    return content if isinstance(content, kind) else kind(**read(content))


def _filled(content: Any) -> Any:
    """Return a table with texts as keys; None (all lines commented out) is an empty table."""
    content = {} if content is None else content
    return {str(key): value for key, value in content.items()} if isinstance(content, Mapping) else content


def _within(low: float | None, high: float | None, number: float) -> float:
    least, most = -math.inf if low is None else low, math.inf if high is None else high
    if not least <= number <= most or abs(number) == math.inf:
        raise ValueError(f"at least {low:g}" if low is not None and high is None else f"outside {least} … {most}")
    return number


def _read(adapter: TypeAdapter[Any], kind: Any, content: Any, prefix: tuple[str, ...], noun: str) -> Any:
    from pydantic import ValidationError

    try:
        return adapter.validate_python(content)
    except ValidationError as error:
        lines = dict.fromkeys(_line(kind, one, prefix, noun) for one in error.errors(include_url=False))
        raise ConfigError(joined("", [*lines])) from None


def _line(kind: Any, error: ErrorDetails, prefix: tuple[str, ...], noun: str) -> str:
    """Return one problem: the keys that lead to it, its value, and what is expected."""
    of_table = error["type"] in ("extra_forbidden", "invalid_key", "missing")
    hint, path = _place(kind, error["loc"][:-1] if of_table else error["loc"], prefix)
    if error["type"] in ("extra_forbidden", "invalid_key"):
        what = f"key of {path}" if path else "key"
        return str(unknown_name(what, str(error["loc"][-1]), typing.get_type_hints(hint)))
    if _is_table(hint) or typing.get_origin(hint) is Mapping:
        if error["type"] == "missing":
            return f"{path or f'a {noun}'} needs {error['loc'][-1]}"
        found, quotes = path or noun, ""
    else:
        # YAML reads `no` as false and `2012` as a number; TOML has numbers, too.
        unquoted = str in (hint, *typing.get_args(hint)) and isinstance(error["input"], int | float)
        found, quotes = f"{path} = {error['input']!r}", "; put it in quotes" if unquoted else ""
    if error["type"] == "value_error":
        return f"{found}: {error['ctx']['error']}"
    if error["type"] in ("missing", "too_long"):
        return f"{found}: expected {len(typing.get_args(hint))} values"
    return f"{found}: expected {describe(hint)}{quotes}"


def _place(hint: Any, keys: Sequence[str | int], prefix: Sequence[str]) -> tuple[Any, str]:
    """Return the type at a place in a table, and the names that lead to it, joined by dots."""
    names = [*prefix]
    for key in keys:
        if typing.get_origin(hint) in UNIONS:
            # The next keys name a member of the union.
            break
        if isinstance(key, str):
            names.append(key)
        hint = (
            typing.get_type_hints(hint)[str(key)]
            if _is_table(hint)
            else typing.get_args(hint)[isinstance(key, str)]
        )
    return hint, ".".join(name if name.isidentifier() else repr(name) for name in names)
