"""`seedbed cache`: list, show and remove stored results."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from seedbed.benchmark.cli.options import WORK, Work, print_table, work_folder
from seedbed.benchmark.errors import ConfigError

if TYPE_CHECKING:
    from seedbed.benchmark.pipeline.store import Store

app = typer.Typer(help="List, show and remove stored results.", no_args_is_help=True)


@app.command("ls")
def list_cache(work: Work = WORK) -> None:
    """List finished stages: key, stage, split, seed, seconds, size, and whether their code has changed."""
    from seedbed.benchmark.pipeline.changed_code import changed_names

    rows, store = [], work_folder(work).store
    known = {entry.key: entry for entry in store.entries()}
    for key in store.all_keys():
        if (entry := known.get(key)) is None:
            rows.append([key[:12], "damaged", "", "", "", "", store.damage(key) or ""])
            continue
        identity = entry.record["identity"]
        size = f"{entry.record['bytes'] / 1e6:.1f} MB"
        names = changed_names(entry)
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        changed = f"changed: {', '.join(names[:2])}{more}" if names else ""
        cells = [
            key[:12],
            entry.stage,
            identity["split"],
            identity["seed"],
            f"{entry.seconds:.1f} s",
            size,
            changed,
        ]
        rows.append(["" if cell is None else str(cell) for cell in cells])
    print_table(["key", "stage", "split", "seed", "time", "size", "code"], rows)


@app.command("show")
def show_cache(key: Annotated[str, typer.Argument(help="First characters of a key.")], work: Work = WORK) -> None:
    """Print the stage, settings and inputs of a result."""
    from seedbed.benchmark.pipeline.store import damaged

    store = work_folder(work).store
    for found in _matching(store, key):
        if (entry := store.get(found)) is None:
            raise damaged(store.path(found), store.damage(found))
        print(json.dumps(dict(entry.record), indent=1))


@app.command("rm")
def remove_cache(
    keys: Annotated[list[str], typer.Argument(help="First characters of keys, or names of stages.")],
    work: Work = WORK,
) -> None:
    """Remove results, also damaged ones. They are recomputed when needed."""
    store = work_folder(work).store
    for key in keys:
        for found in _matching(store, key):
            entry = store.get(found)
            store.remove(found)
            print(f"removed {found[:12]} {'(damaged)' if entry is None else entry.stage}")


@app.command("gc")
def collect_cache(
    older_than: Annotated[float, typer.Option(min=0, help="Days since the last use.")],
    work: Work = WORK,
) -> None:
    """Remove results unused for some days, and leftovers of killed stages.

    With an object store, only this machine's copies and leftovers are removed.
    """
    removed, leftovers = work_folder(work).store.collect_garbage(older_than)
    print(f"removed {removed} entries and {leftovers} leftovers")


@app.command("push")
def push_cache(work: Work = WORK) -> None:
    """Upload results that only this machine has to the object store of seedbed.toml."""
    from seedbed.benchmark.pipeline.remote.cached_store import CachedStore

    store = work_folder(work).store
    if not isinstance(store, CachedStore):
        raise ConfigError("no object store: name one in seedbed.toml, in a table [store] with the key address")
    print(f"uploaded {store.push()} entries to {store.address}")


def _matching(store: Store, key: str) -> list[str]:
    """Return the keys that begin with `key`, and those of the entries of the stage `key`."""
    stages = {entry.key: entry.stage for entry in store.entries()}
    keys = [found for found in store.all_keys() if found.startswith(key) or stages.get(found) == key]
    if not keys:
        raise ConfigError(f"no entry whose key begins with, or whose stage is, {key!r} (see `seedbed cache ls`)")
    return keys
