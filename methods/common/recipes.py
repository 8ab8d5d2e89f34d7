"""Settings of stages for a backbone: the recipes in its file, else settings that are safe for any network.

`RECIPES` in a backbone's file (methods/backbones/) maps the name of a stage to settings that replace its defaults.
A stage class also follows the recipes of its base classes; its own recipe overrides theirs.
"""

from __future__ import annotations

import warnings
from typing import Any

from seedbed.benchmark.errors import ConfigError, UntunedWarning
from seedbed.benchmark.pipeline.registry import BACKBONES
from seedbed.benchmark.pipeline.stage import Meta, Method, Stage


class Recipe:
    """Settings of one stage for one backbone."""

    def __init__(self, source: str, **settings: Any) -> None:
        """Sizes in pixels are for an image of 500 pixels. `source` is where the settings are published."""
        self.source, self.settings = source, settings


def recipes_of(stage: type[Stage | Method], backbone: str) -> list[Recipe]:
    """Return a backbone's recipes of a stage class and of its base classes, the most general first."""
    # Not a field of BACKBONE: a result depends on the settings that were used, not on all recipes.
    recipes: dict[str, Recipe] = getattr(BACKBONES.module(backbone), "RECIPES", {})
    return [recipes[kind.__name__] for kind in reversed(stage.__mro__) if kind.__name__ in recipes]


def recipe_of(stage: type[Stage], backbone: str) -> dict[str, Any]:
    """Return the settings of a stage from a backbone's recipes; empty if there is no recipe."""
    return {name: value for recipe in recipes_of(stage, backbone) for name, value in recipe.settings.items()}


def training_recipe(stage: type[Stage], meta: Meta, **otherwise: Any) -> dict[str, Any]:
    """Return the settings of a training stage from the recipes of `meta.backbone`.

    Without a recipe, returns `untuned` settings and `otherwise`, and issues an UntunedWarning.
    """
    if recipes_of(stage, meta.backbone):
        return recipe_of(stage, meta.backbone)
    name = stage.__name__
    warnings.warn(
        f"{name} has no recipe for the backbone {meta.backbone!r} and trains it by AdamW with safe, untuned "
        f"settings; change them with --set {name}.lr=… (`seedbed methods show` lists all), or add a recipe to "
        "RECIPES in the backbone's file",
        UntunedWarning,
        stacklevel=2,
    )
    return {**untuned(meta.weights), **otherwise}


def untuned(weights: str) -> dict[str, Any]:
    """Return training settings that are safe for a backbone without a recipe.

    At VGG-16's rates for SGD many networks learn to predict background only. AdamW moves pretrained layers by 1e-4
    and new ones by 1e-3; with `weights` "none" all layers are new.
    """
    rates = {"lr": 1e-3, "head_multiplier": 1.0} if weights == "none" else {"lr": 1e-4, "head_multiplier": 10.0}
    return {"optimiser": "adamw", **rates, "weight_decay": 1e-4, "biases": "as_weights"}


def recipes_for_few_images(lr: float, epochs: int, source: str) -> dict[str, Recipe]:
    """Return recipes that train a pretrained network on some hundred images by AdamW.

    Args:
        lr: Learning rate of pretrained layers. New ones have 20 times that, in a segmentation network 10 times.
        epochs: Number of epochs of a classifier.
        source: How the recipe of the CAM classifier was found. The others follow it.
    """
    guess = "as CAM's; nothing else was tried"
    adamw: dict[str, Any] = {"optimiser": "adamw", "lr": lr, "weight_decay": 1e-4, "biases": "as_weights"}
    classifier = {**adamw, "head_multiplier": 20.0, "epochs": epochs, "crop": 500}
    return {
        "TrainCam": Recipe(
            source,
            **classifier,
            stride=16,
            dropout=0.0,
            classifier_init="torch",
            jitter=False,
            long_side_low=360,
            long_side_high=720,
        ),
        "TrainRrm": Recipe(guess, **adamw, batch=16),
        "TrainIcd": Recipe(guess, **classifier, stride=16, batch=16),
        "TrainSplittingMerging": Recipe(guess, **classifier, side=571),
        "TrainPsa": Recipe(guess, **adamw, jitter=False),
        "TrainIrn": Recipe(guess, optimiser="adamw", lr=1e-3, batch=16),
        "TrainSegmentation": Recipe(
            "as CAM's; a class-balanced loss was worse on `tune` (docs/results/voc12_six); nothing else was tried",
            **adamw,
            head_multiplier=10.0,
            epochs=16,
            batch=16,
            stride=16,
            crop=500,
            pyramid=(1.0,),
            scale_low=0.7,
            scale_high=1.4,
        ),
    }


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
