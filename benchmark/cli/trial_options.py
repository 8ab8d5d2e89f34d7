"""Adds the options of a trial to a command, as benchmark/trials/options.py declares them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from dataclasses import Field, fields
from typing import Annotated, Any, get_type_hints

import typer

from seedbed.benchmark.cli.options import parse_settings, split_words
from seedbed.benchmark.trials.options import TrialOptions

LISTS = ("--selections", "--maps-on", "--set")
"""Options of a trial that take several words."""


def trial_options(*, without: Collection[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add the options, except those in `without`, where the command has its parameter `options`.

    The command gets the options that the user gave, by name; their values are checked by `TrialOptions`.
    """
    declared = [one for one in fields(TrialOptions) if one.name not in without]

    def add(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def with_options(**given: Any) -> None:
            options = {one.name: _value(one, given.pop(one.name)) for one in declared}
            command(**given, options={name: value for name, value in options.items() if value is not None})

        signature, hints = inspect.signature(command), get_type_hints(command, include_extras=True)
        parameters = []
        for name, parameter in signature.parameters.items():
            if name == "options":
                parameters += [_parameter(one) for one in declared]
            else:
                kind = inspect.Parameter.KEYWORD_ONLY
                parameters.append(parameter.replace(annotation=hints[name], kind=kind))
        with_options.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=parameters, return_annotation=None
        )
        with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return with_options

    return add


def _parameter(declared: Field[Any]) -> inspect.Parameter:
    """Return an option as typer reads it. None stands for an option that is not given."""
    hint = get_type_hints(TrialOptions)[declared.name]
    name = "--" + declared.name.replace("_", "-")
    shown, help_text = declared.metadata["shown"], declared.metadata["help"]
    if declared.name == "settings":
        kind: Any = list[str] | None
        info = typer.Option("--set", metavar="STAGE.FIELD=VALUE", help=help_text, show_default=shown)
    elif hint is bool:
        kind = bool | None
        words = f"{name}/--no-{name[2:]}" if declared.default else name
        default = name[2:] if declared.default else "off"
        info = typer.Option(words, help=help_text, show_default=default)
    elif isinstance(declared.default, tuple):
        kind = list[str] | None
        info = typer.Option(help=help_text, show_default=" ".join(declared.default))
    else:
        kind = hint | None
        info = typer.Option(help=help_text, show_default=shown or str(declared.default))
    return inspect.Parameter(
        declared.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, info]
    )


def _value(declared: Field[Any], given: Any) -> Any:
    if given is None or given == []:
        return None
    if declared.name == "settings":
        return parse_settings(given)
    if isinstance(declared.default, tuple):
        return tuple(word for text in given for word in split_words(text))
    return given
