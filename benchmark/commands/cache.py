"""`seedbed cache`: what the artifact store holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmark.commands.shared import WORK, Work, print_table, work_folder
from benchmark.errors import ConfigError

app = typer.Typer(help="What the artifact store holds.", no_args_is_help=True)


@app.command("ls")
def list_cache(work: Work = WORK) -> None:
    """List the finished stages: key, stage, split, seed, seconds, size."""
    rows = []
    for entry in work_folder(work).store.entries():
        identity = entry.record["identity"]
        size = f"{entry.record['bytes'] / 1e6:.1f} MB"
        cells = [entry.key[:12], entry.stage, identity["split"], identity["seed"], f"{entry.seconds:.1f} s", size]
        rows.append(["" if cell is None else str(cell) for cell in cells])
    print_table(["key", "stage", "split", "seed", "time", "size"], rows)


@app.command("show")
def show_cache(key: Annotated[str, typer.Argument(help="The beginning of a key.")], work: Work = WORK) -> None:
    """Print what made an entry."""
    for entry in _matching(work, key):
        print(json.dumps(dict(entry.record), indent=1))


@app.command("rm")
def remove_cache(
    keys: Annotated[list[str], typer.Argument(help="Beginnings of keys, or names of stages.")], work: Work = WORK
) -> None:
    """Remove entries. What needs them again computes them again."""
    store = work_folder(work).store
    for key in keys:
        for entry in _matching(work, key):
            store.remove(entry.key)
            print(f"removed {entry.key[:12]} {entry.stage}")


@app.command("gc")
def collect_cache(
    older_than: Annotated[float, typer.Option(min=0, help="Days since the entry was last used.")],
    work: Work = WORK,
) -> None:
    """Remove entries that were not used for so many days, and left-overs of killed stages that old."""
    removed, leftovers = work_folder(work).store.collect_garbage(older_than)
    print(f"removed {removed} entries and {leftovers} left-overs")


def _matching(work: Path, key: str) -> list[Any]:
    found = [e for e in work_folder(work).store.entries() if e.key.startswith(key) or e.stage == key]
    if not found:
        raise ConfigError(f"no entry whose key begins with, or whose stage is, {key!r} (see `seedbed cache ls`)")
    return found
