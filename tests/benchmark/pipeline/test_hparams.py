"""Hyper-parameters: declared once, typed, bounded, refused with the valid ones named."""

from __future__ import annotations

import dataclasses
from typing import Literal

import pytest
from optuna.distributions import FloatDistribution

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.pipeline.hparams import checked, declared, hp, override
from seedbed.benchmark.pipeline.stage import Kind, Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Brew(Stage):
    version = 1
    produces = Kind.CHECKPOINT

    heat: float = hp(0.1, FloatDistribution(0.01, 1.0, log=True), source="a cookbook")
    cups: int = hp(2, low=1, high=9)
    leaf: Literal["green", "black"] = hp("green")
    milk: bool = hp(False)
    scales: tuple[float, ...] = hp((1.0, 0.5), low=0.1, high=4)
    sugar: float | None = hp(None, low=0, high=10)

    def run(self, data, inputs, out, ctx):
        raise AssertionError("never run")


def test_bounds_are_those_of_the_search_space_unless_given():
    assert (declared(Brew)["heat"].low, declared(Brew)["heat"].high) == (0.01, 1.0)
    assert (declared(Brew)["cups"].low, declared(Brew)["cups"].high) == (1, 9)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("heat", "1e-1", 0.1),
        ("cups", "3", 3),
        ("leaf", "black", "black"),
        ("milk", "true", True),
        ("scales", "1.0,0.5, 2", (1.0, 0.5, 2.0)),
        ("sugar", "none", None),
        ("sugar", "2", 2.0),
    ],
)
def test_text_becomes_the_value_of_the_field(name, text, value):
    assert checked(Brew, name, text) == value
    assert getattr(override([Brew()], {f"Brew.{name}": text})[0], name) == value


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heat": 2.0}, "outside 0.01 … 1.0"),
        ({"heat": float("nan")}, "outside"),
        ({"heat": "warm"}, "expected number"),
        ({"cups": 2.5}, "expected whole number"),
        ({"cups": True}, "expected whole number"),
        ({"leaf": "red"}, "one of 'green', 'black'"),
        ({"scales": (1.0, 9.0)}, "outside 0.1 … 4"),
        ({"sugar": -1.0}, "outside 0 … 10"),
    ],
)
def test_impossible_values_are_refused_with_what_is_valid(settings, message):
    with pytest.raises(ConfigError, match=message):
        Brew(**settings)


def test_whole_numbers_become_floats_so_that_the_cache_key_is_the_same():
    assert repr(Brew(heat=1).heat) == "1.0"
    assert Brew(heat=1).settings() == Brew(heat=1.0).settings()


def test_unknown_stages_and_fields_are_named_with_the_closest_match():
    with pytest.raises(ConfigError, match=r"unknown stage 'Brw'. Did you mean 'Brew'\? Valid: Brew"):
        override([Brew()], {"Brw.heat": "1"})
    with pytest.raises(ConfigError, match=r"unknown setting of Brew 'head'. Did you mean 'heat'\?"):
        override([Brew()], {"Brew.head": "1"})
    with pytest.raises(ConfigError, match="unknown setting of Brew ''"):
        override([Brew()], {"Brew": "1"})
