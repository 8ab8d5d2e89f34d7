"""`seedbed weights`: convert pretrained weights of other frameworks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seedbed.benchmark.errors import ConfigError

app = typer.Typer(help="Convert pretrained weights of other frameworks.", no_args_is_help=True)


@app.command("convert")
def convert_weights(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="Published `.params` file of ResNet-38.")],
    out: Annotated[Path, typer.Option(dir_okay=False, help="State-dict file to write.")],
) -> None:
    """Convert the published MXNet weights of ResNet-38 for `--backbone resnet38 --weights OUT`."""
    from seedbed.benchmark.training.checkpoint import save_tensors
    from seedbed.benchmark.training.mxnet_params import read_params
    from seedbed.methods.backbones.resnet38 import from_mxnet

    if not out.parent.is_dir():
        raise ConfigError(f"{out.parent}: no such folder")
    state = from_mxnet(read_params(source), str(source))
    save_tensors(out, state)
    print(f"{len(state)} tensors in {out}; use them with --backbone resnet38 --weights {out}")
