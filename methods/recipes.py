"""How methods train a backbone: by a recipe that names it, else by settings that are safe for any network."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

from benchmark.errors import ConfigError, UntunedWarning
from benchmark.registry import BACKBONES

Recipe = TypeVar("Recipe")

UNTUNED: Mapping[str, Any] = {
    "optimiser": "adamw",
    "lr": 1e-4,
    "head_multiplier": 10.0,
    "weight_decay": 1e-4,
    "biases": "as_weights",
}
"""For a backbone without a recipe. SGD at VGG-16's rates makes many other networks predict background only."""


def recipe_of(recipes: Mapping[str, Recipe], backbone: str, untuned: Recipe, stage: str) -> Recipe:
    """Return the recipe of a backbone; `untuned`, with an UntunedWarning that names the stage, if it has none."""
    if backbone in recipes:
        return recipes[backbone]
    warnings.warn(
        f"{stage} has no recipe for the backbone {backbone!r} and trains it by AdamW with safe, untuned settings; "
        f"change them with --set {stage}.lr=… (`seedbed methods show` lists all), or add a recipe to RECIPES",
        UntunedWarning,
        stacklevel=2,
    )
    return untuned


def stride_of(backbone: str, wanted: int) -> int:
    """Return the stride `wanted` if the backbone has it, else the backbone's first."""
    strides: tuple[int, ...] = BACKBONES.load(backbone).strides
    return wanted if wanted in strides else strides[0]


def check_stride(setting: str, backbone: str, stride: int) -> None:
    """Raise ConfigError, naming `setting`, for a stride that the backbone does not have."""
    strides: tuple[int, ...] = BACKBONES.load(backbone).strides
    if stride not in strides:
        valid = ", ".join(map(str, strides))
        raise ConfigError(f"{setting} = {stride}: backbone {backbone!r} has no stride {stride}. Valid: {valid}")
