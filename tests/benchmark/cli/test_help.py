"""`--help` shows the default of every option, also of those that are filled in later."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from seedbed.benchmark.cli.main import app
from seedbed.benchmark.sweeps.settings import SweepSettings


def commands(command: Any, *names: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command that does something, with its words."""
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, *names, name)
    if names and not getattr(command, "no_args_is_help", False):
        yield names, command


COMMANDS = dict(commands(get_command(app)))


def help_of(words: tuple[str, ...]) -> str:
    """Return what `--help` prints, each parameter in a line of its own."""
    shown = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "400", "TERMINAL_WIDTH": "400"})
    assert shown.exit_code == 0
    return re.sub(r" +", " ", shown.output)


def line_of(parameter: Any, text: str) -> str:
    name = parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.metavar or parameter.name
    # A star is before what is required, and points after what may be repeated.
    (line,) = re.findall(rf"^[│|] (?:\* )?{re.escape(name)}(?:\.\.\.)? .*$", text, re.MULTILINE)
    return str(line)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_option_says_its_default_and_what_it_is_for(words):
    text = help_of(words)
    for parameter in COMMANDS[words].params:
        # A switch is off unless it is given.
        switch = parameter.default is False and not parameter.secondary_opts
        line = line_of(parameter, text)
        assert switch or parameter.required or "[default: " in line, line
        assert parameter.help, parameter.name


def test_the_defaults_of_a_sweep_are_those_of_its_settings():
    text = help_of(("sweep",))
    parameters = {parameter.name: parameter for parameter in COMMANDS["sweep",].params}
    for field in fields(SweepSettings):
        # A switch is off unless it is given.
        if field.name in parameters and isinstance(field.default, int | tuple) and field.default is not False:
            values = field.default if isinstance(field.default, tuple) else (field.default,)
            shown = field.name if field.default is True else " ".join(map(str, values))
            assert f"[default: ({shown}" in line_of(parameters[field.name], text), field.name
