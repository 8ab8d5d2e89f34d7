"""Values of settings: text and YAML are the same, wrong types are refused, and every problem is named."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypedDict

import pytest

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.validation import read, typed, validate, value_of


class Extras(TypedDict, total=False):
    sugar: int
    label: str | None


@dataclass(frozen=True, kw_only=True)
class Part:
    size: float = field(default=1.0, metadata={"low": 0, "high": 2})
    on: bool = False


@dataclass(frozen=True, kw_only=True)
class Whole:
    name: str
    count: int = field(default=1, metadata={"low": 1})
    rate: float | None = None
    kernel: Literal[3, 1] = 3
    colours: tuple[Literal["red", "blue"], ...] = ("red",)
    scales: tuple[float, ...] = ()
    side: Literal["auto"] | int | float = 0
    pair: tuple[str, str] = ("a", "b")
    parts: Mapping[str, Part] = field(default_factory=dict)
    extras: Extras = field(default_factory=Extras)

    def __post_init__(self) -> None:
        validate(self)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("count", "3", 3),
        ("rate", "5e-2", 0.05),
        ("rate", ".5", 0.5),
        ("rate", "1", 1),
        ("rate", "none", None),
        ("kernel", "1", 1),
        ("colours", "red, blue", ["red", "blue"]),
        ("colours", "blue", ["blue"]),
        ("scales", "0.5,1", [0.5, 1]),
        ("scales", "2", 2),
        ("side", "2", 2),
        ("side", "2.0", 2.0),
        ("side", "auto", "auto"),
        ("parts", {"x": {"size": "2", "on": "true"}}, {"x": {"size": 2, "on": True}}),
        ("extras", {"sugar": "1", "label": "none"}, {"sugar": 1, "label": "none"}),
    ],
)
def test_text_is_the_same_as_the_value_that_it_stands_for(key, text, value):
    from_text, from_value = (read(Whole, {"name": "w", key: given}, "thing") for given in (text, value))
    # Cache keys tell 1 from 1.0.
    assert repr(from_text) == repr(from_value) == repr(Whole(name="w", **{key: value}))


def test_a_table_becomes_dataclasses_and_none_an_empty_one():
    whole = read(Whole, {"name": "w", "parts": {1: {"size": 2}, "b": Part()}, "extras": None}, "thing")
    assert whole.parts == {"1": Part(size=2.0), "b": Part()}
    assert whole.extras == {}
    # `weights: none` is a word, not the absence of one.
    assert read(Whole, {"name": "w", "extras": {"label": "none"}}, "thing").extras == {"label": "none"}
    assert read(Whole, {"name": "w", "parts": None}, "thing") == Whole(name="w")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 1.0}, "count = 1.0: expected whole number"),
        ({"count": True}, "count = True: expected whole number"),
        ({"count": 0}, "count = 0: at least 1"),
        ({"rate": "abc"}, "rate = 'abc': expected number or none"),
        ({"rate": True}, "rate = True: expected number or none"),
        ({"rate": float("nan")}, "rate = nan: outside -inf … inf"),
        ({"kernel": True}, "kernel = 'True': expected one of 3, 1"),
        ({"kernel": 2}, "kernel = '2': expected one of 3, 1"),
        ({"colours": ["green"]}, "colours = 'green': expected one of 'red', 'blue'"),
        ({"side": "car"}, "side = 'car': expected one of 'auto' or whole number or number"),
        ({"scales": None}, "scales = None: expected number"),
        ({"pair": ["a"]}, "pair = ['a']: expected 2 values"),
        ({"pair": ["a", "b", "c"]}, "pair = ['a', 'b', 'c']: expected 2 values"),
        ({"pair": ["a", False]}, "pair = False: expected text; put it in quotes"),
        ({"parts": {"x y": {"on": "yes"}}}, "parts.'x y'.on = 'yes': expected true or false"),
        ({"parts": {"x": {"on": 1}}}, "parts.x.on = 1: expected true or false"),
        ({"parts": {"x": {"size": 3}}}, "parts.x.size = 3: outside 0 … 2"),
        ({"parts": {"x": 3}}, "parts.x: expected a table. Valid: size, on"),
        ({"parts": 3}, "parts: expected a table"),
        ({"parts": {"x": {"sise": 3}}}, "unknown key of parts.x 'sise'. Did you mean 'size'? Valid: on, size"),
        ({"extras": {"suger": 3}}, "unknown key of extras 'suger'. Did you mean 'sugar'? Valid: label, sugar"),
        ({"nam": 3}, "unknown key 'nam'. Did you mean 'name'?"),
        ({1: 3}, "unknown key '1'."),
    ],
)
def test_a_problem_is_one_line_with_key_value_and_what_is_valid(changes, message):
    with pytest.raises(ConfigError) as caught:
        read(Whole, {"name": "w", **changes}, "thing")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_all_problems_are_listed():
    with pytest.raises(ConfigError) as caught:
        read(Whole, {"count": "many", "parts": {"x": {"sise": 1}}, "rat": 1}, "thing")
    head, *problems = str(caught.value).split("\n  ")
    assert head == "4 problems"
    assert [problem.split(".")[0].split(":")[0] for problem in problems] == [
        "a thing needs name",
        "count = 'many'",
        "unknown key of parts",
        "unknown key 'rat'",
    ]


def test_what_is_no_table_is_refused():
    with pytest.raises(ConfigError, match=r"^thing: expected a table\. Valid: name, count"):
        read(Whole, [1], "thing")


def test_some_fields_are_checked_under_the_name_of_their_owner():
    assert typed(Whole, {"rate": "2"}, "Owner") == {"rate": 2.0}
    with pytest.raises(ConfigError, match=r"^Owner\.rate = 'x': expected number or none$"):
        typed(Whole, {"rate": "x"}, "Owner")
    with pytest.raises(ConfigError, match="count = 0: at least 1"):
        Whole(name="w", count=0)


@pytest.mark.parametrize(
    ("text", "value"), [("0.05", 0.05), (" 3 ", 3), ("True", True), ("none", None), ("sgd", "sgd")]
)
def test_the_value_of_a_text(text, value):
    assert repr(value_of(text)) == repr(value)


def test_help_does_not_import_pydantic():
    program = "import sys, seedbed.benchmark.cli.main; print('pydantic' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown == "False\n"
