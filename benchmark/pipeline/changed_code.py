"""Finds stored results that other code computed although no `version` was raised.

Each entry of the store keeps the definitions that its stage and the stages before it depended on
(benchmark/source/closure.py). Entries without them are used without a check, and so are entries from
versions that did not import the packages as `seedbed.…`, because nearly every definition has moved since.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from seedbed.benchmark.environment import code_version
from seedbed.benchmark.pipeline.registry import BACKBONES
from seedbed.benchmark.pipeline.store import Entry, Store
from seedbed.benchmark.source.closure import closure, differences

if TYPE_CHECKING:
    from seedbed.benchmark.pipeline.pipeline import Step
    from seedbed.datasets.base import Dataset

OPTION = "--accept-changed-code"
EARLIER_PACKAGES = ("benchmark.", "methods.", "datasets.")
"""Prefixes of the names of definitions before the packages were imported as `seedbed.…`."""


@dataclass(frozen=True)
class Change:
    """A stored result that today's code might not give."""

    step: Step
    entry: Entry
    names: tuple[str, ...]
    """The definitions that changed, for example `methods.mine.loss`."""
    source: Mapping[str, Any]
    """Today's code, as `source_of` returns it."""


def source_of(step: Step, data: Dataset) -> dict[str, Any]:
    """Return the definitions that a step and all steps before it depend on, as plain JSON values.

    The definitions are empty if the stage's class is not in a file of the project.
    """
    roots = sorted(_roots(step, data))
    definitions = closure(roots)
    return {"roots": roots, "definitions": dict(definitions) if _name(type(step.stage)) in definitions else {}}


def changed_names(entry: Entry, definitions: Mapping[str, str] | None = None) -> list[str]:
    """Return the names of the definitions that changed since an entry was made or last accepted.

    `definitions` are today's; by default those that the entry's own roots depend on.
    """
    sources = (entry.record.get("source"), *entry.record.get("accepted", ()))
    known = [source for source in sources if source and not _earlier(source["definitions"])]
    if not known or not known[0]["definitions"]:
        return []
    today = closure(known[-1]["roots"]) if definitions is None else definitions
    found = [differences(source["definitions"], today) for source in known]
    return [] if [] in found else found[-1]


def _earlier(definitions: Iterable[str]) -> bool:
    return any(name.startswith(EARLIER_PACKAGES) for name in definitions)


def changes_of(steps: Iterable[Step], data: Dataset, store: Store) -> list[Change]:
    """Return the steps that are in the store and whose code has changed, in the order of `steps`."""
    changes = []
    for step in steps:
        # Read now, so that later records are of the code that this process has imported.
        source = source_of(step, data)
        entry = store.get(step.key)
        if entry is not None and (names := changed_names(entry, source["definitions"])):
            changes.append(Change(step, entry, tuple(names), source))
    return changes


def with_earlier_code(
    source: dict[str, Any], inputs: Mapping[Any, Entry], steps: Mapping[Any, Step], data: Dataset
) -> dict[str, Any]:
    """Return the source to record for a result; a changed input keeps the code that made it."""
    definitions = dict(source["definitions"])
    for kind, entry in inputs.items():
        if changed_names(entry, source_of(steps[kind], data)["definitions"]):
            definitions |= entry.record["source"]["definitions"]
    return {**source, "definitions": definitions}


def describe(changes: list[Change]) -> str:
    """Return what changed, and the stages it affects, in one line that ends in an unfinished sentence."""
    stages: dict[str, list[str]] = {}
    keys = {name: {c.step.key for c in changes if name in c.names} for c in changes for name in c.names}
    for change in changes:
        for name in change.names:
            # Later stages have the same change: only the first stages must be named.
            if not any(needed.key in keys[name] for needed in change.step.inputs.values()):
                stages.setdefault(name, []).append(type(change.step.stage).__name__)
    about = {name: tuple(dict.fromkeys(found)) for name, found in stages.items()}
    groups = {found: [name for name in about if about[name] == found] for found in about.values()}
    listed = "; ".join(f"{_listed(names)} (in {', '.join(found)})" for found, names in groups.items())
    first = ", ".join(dict.fromkeys(stage for found in groups for stage in found))
    return (
        f"code has changed since {len({c.step.key for c in changes})} stored results were computed, and no "
        f"`version` was raised: {listed}. If it changes results, raise `version` of {first}; if not"
    )


def accept(changes: Iterable[Change], store: Store) -> None:
    """Record in the entries that today's code gives the same results."""
    for change in changes:
        store.accept(change.entry, {**change.source, "code": code_version(), "time": time.time()})


def _listed(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _roots(step: Step, data: Dataset) -> set[str]:
    roots = {_name(type(step.stage)), _name(type(data))}
    for field, value in step.stage.settings().items():
        # Backbones are found by name when a stage runs (benchmark/pipeline/registry.py).
        named = (field == "backbone" or field.endswith("_backbone")) and isinstance(value, str)
        if named and (plugin := BACKBONES.find(value)) is not None:
            roots.add(f"{plugin.module}.{plugin.constant}")
    for needed in step.inputs.values():
        roots |= _roots(needed, data)
    return roots


def _name(kind: type[Any]) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
