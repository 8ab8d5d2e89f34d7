"""How methods train a backbone: by a recipe that names it, else by settings that are safe for any network."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

from seedbed.benchmark.errors import ConfigError, UntunedWarning
from seedbed.benchmark.pipeline.registry import BACKBONES

Recipe = TypeVar("Recipe")


def untuned(weights: str) -> dict[str, Any]:
    """Return settings of a training that are safe for a backbone without a recipe.

    At VGG-16's rates for SGD many networks learn to predict background only. AdamW moves pretrained layers by 1e-4
    and new ones by 1e-3; with `weights` "none" all layers are new.
    """
    rates = {"lr": 1e-3, "head_multiplier": 1.0} if weights == "none" else {"lr": 1e-4, "head_multiplier": 10.0}
    return {"optimiser": "adamw", **rates, "weight_decay": 1e-4, "biases": "as_weights"}


def recipe_of(recipes: Mapping[str, Recipe], backbone: str, otherwise: Recipe, stage: str) -> Recipe:
    """Return the recipe of a backbone, or `otherwise` with an UntunedWarning that names the stage."""
    if backbone in recipes:
        return recipes[backbone]
    warnings.warn(
        f"{stage} has no recipe for the backbone {backbone!r} and trains it by AdamW with safe, untuned settings; "
        f"change them with --set {stage}.lr=… (`seedbed methods show` lists all), or add a recipe to RECIPES",
        UntunedWarning,
        stacklevel=2,
    )
    return otherwise


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
