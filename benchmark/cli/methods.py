"""`seedbed methods`: list methods, refiners and backbones, and show their settings."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from seedbed.benchmark.cli.options import Plugins, print_table

if TYPE_CHECKING:
    from seedbed.benchmark.pipeline.stage import Method, Stage

app = typer.Typer(help="List methods, refiners and backbones; show hyper-parameters.", invoke_without_command=True)


@app.callback()
def list_methods(context: typer.Context, plugin: Plugins = None) -> None:
    """List methods, refiners and backbones, each with a one-line description."""
    from seedbed.benchmark.pipeline.registry import BACKBONES, METHODS, REFINERS

    if context.invoked_subcommand is None:
        for family in (METHODS, REFINERS, BACKBONES):
            print(f"{family.what}s")
            names = (*family.names(), *family.collections())
            print_table([], [[f"  {name}", family.summary(name)] for name in names])


@app.command("show")
def show_method(
    name: Annotated[str, typer.Argument(help="Method.")],
    refiner: Annotated[str, typer.Option(help="Refiner.")] = "none",
    backbone: Annotated[str, typer.Option(help="Backbone.")] = "resnet50",
    long_side: Annotated[int, typer.Option(help="Longer image side of the data set, pixels.")] = 500,
    plugin: Plugins = None,
) -> None:
    """Show a method's stages with every hyper-parameter: default, type, bounds, search space, source."""
    from seedbed.benchmark.pipeline.hparams import declared, hints, values
    from seedbed.benchmark.pipeline.registry import BACKBONES, METHODS
    from seedbed.benchmark.pipeline.stage import Meta
    from seedbed.benchmark.trials.trial import Trial, build_chain
    from seedbed.benchmark.validation import describe
    from seedbed.methods.common.recipes import recipes_of

    method = METHODS.load(name)
    weights = "imagenet" if BACKBONES.load(backbone).imagenet else "none"
    meta = Meta(classes=20, long_side=long_side, backbone=backbone, weights=weights)
    chain = build_chain(Trial(dataset="", method=name, refiner=refiner), meta)
    print(f"{method.name}: {METHODS.summary(name)}\npaper: {method.paper}\nsupervision: {method.supervision}")
    for stage in chain.configured:
        print(f"\n{type(stage).__name__}  ({_what(stage)})")
        rows = []
        for field, parameter in declared(type(stage)).items():
            bounds = "" if parameter.low is None else f"{parameter.low:g} … {parameter.high:g}"
            space = "" if parameter.space is None else str(parameter.space).replace("Distribution", "")
            kind = describe(hints(type(stage))[field])
            value = values(stage)[field]
            source = parameter.source
            if value != values(type(stage)())[field] and not source.startswith("--"):
                own = [recipe.source for recipe in recipes_of(type(stage), backbone) if field in recipe.settings]
                source = f"{[*own, 'set by the method or the refiner'][0]}; elsewhere: {source}"
            rows.append([f"  {field}", json.dumps(value), kind, bounds, space, source])
        print_table(["  setting", "default", "type", "bounds", "search space", "source"], rows)


def _what(stage: Method | Stage) -> str:
    from seedbed.benchmark.pipeline.stage import Method

    if isinstance(stage, Method):
        return "which stages there are"
    kinds = " + ".join(k.value for k in stage.consumes) or "images + tags"
    return f"{kinds} → {stage.produces.value}, version {stage.version}"
