"""Which source code a result depends on, found by static analysis: nothing is imported, no torch is needed.

`closure` starts at a stage's class, its data set's class and its backbone, and follows every name that their code
refers to: functions, classes, constants, base classes, annotations, imports inside functions. It stays inside the
project (benchmark/source/modules.py). Each definition has a digest of its syntax tree, which does not depend on
comments, docstrings, formatting, annotations in functions, or the text of errors (benchmark/source/syntax.py).

Classes are followed method by method. A method counts if the code mentions an attribute of its name, if its name
begins and ends with two underscores, or if a library calls it (`LIBRARY_CALLS`). Code that looks names up as texts
(`getattr` of a variable, `__subclasses__`) may reach every class of its module. Functions with a decorator of the
project may be reached by all code of their module. Data files that code names and that lie beside it count.

A new check of a data set's layout changes no training. Left out are `version` and fields declared by `hp`, which
are part of the cache key, and the modules in `WITHOUT_EFFECT`.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from seedbed.benchmark.source.modules import (
    PROJECT,
    Module,
    files_beside,
    location_of,
    module_of,
    resolve,
    split_name,
)
from seedbed.benchmark.source.syntax import Uses, dotted_name, form, methods_of, parts_of

WITHOUT_EFFECT = frozenset(
    {
        "seedbed.benchmark.environment",
        "seedbed.benchmark.errors",
        "seedbed.benchmark.files",
        "seedbed.benchmark.pipeline.hparams",
        "seedbed.benchmark.parallel",
        "seedbed.benchmark.plugins",
        "seedbed.benchmark.evaluation.pictures",
        "seedbed.benchmark.progress",
        "seedbed.benchmark.pipeline.registry",
        "seedbed.benchmark.pipeline.stage",
        "seedbed.benchmark.pipeline.store",
        "seedbed.datasets.io.digest",
    }
)
"""Modules that check, name, store, draw or report. What they pass to a stage is part of its cache key."""
MODULE_METHODS = frozenset(
    {"forward", "backward", "train", "eval", "state_dict", "load_state_dict", "setup_context"}
)
LIBRARY_CALLS: Mapping[str, frozenset[str]] = {
    "torch.nn.Module": MODULE_METHODS,
    "torch.nn.Sequential": MODULE_METHODS,
    "torch.utils.data.Dataset": frozenset(),
    "torch.utils.data.Sampler": frozenset(),
    "abc.ABC": frozenset(),
    "enum.Enum": frozenset(),
    "typing.Generic": frozenset(),
    "typing.NamedTuple": frozenset(),
    "typing.Protocol": frozenset(),
    "object": frozenset(),
}
"""Methods that a base class of a library calls. For a base class that is not listed, every method counts."""
Definitions = Mapping[str, str]
"""Digest of each definition by its qualified name, for example `seedbed.methods.cam.TrainCam.losses`."""


def closure(roots: Iterable[str]) -> Definitions:
    """Return the digests of all definitions that the definitions `roots` (qualified names) depend on.

    A root that is not found, such as a class made inside a function, has no entry. Each module is read once per
    process, so that a file edited while the process runs is described as the process imported it.
    """
    return _closure(frozenset(roots))


def differences(recorded: Definitions, today: Definitions) -> list[str]:
    """Return the names of the definitions that differ; one that only moved to another module does not.

    Changed definitions come alone; those that were added or are gone are named if none has changed.
    """

    def apart(some: Definitions, others: Definitions) -> list[str]:
        known = {(name.rpartition(".")[2], digest) for name, digest in others.items()}
        return [name for name, digest in some.items() if (name.rpartition(".")[2], digest) not in known]

    gone, added = apart(recorded, today), apart(today, recorded)
    return sorted({*gone} & {*added}) or sorted(added) or sorted(gone)


def forget() -> None:
    """Read every module again when it is next needed."""
    for cached in (_closure, _definition, module_of, location_of):
        cached.cache_clear()


@dataclass(frozen=True)
class _Definition:
    """A function, a constant, a class without its methods, a method, or what a module runs when imported."""

    name: str
    digest: str
    references: frozenset[str] = frozenset()
    """Qualified names of definitions in the project."""
    mentions: frozenset[str] = frozenset()
    """Names of attributes."""
    methods: Mapping[str, str] = field(default_factory=dict)
    """Of a class: the methods' qualified names by name."""
    called: frozenset[str] | None = frozenset()
    """Of a class: the methods that its base classes call; None: all of them."""


@functools.lru_cache(maxsize=512)
def _closure(roots: frozenset[str]) -> Definitions:
    found: dict[str, str] = {}
    mentioned = {"run"}
    waiting: dict[str, list[str]] = defaultdict(list)
    pending = sorted(roots)
    while pending:
        name = pending.pop()
        if name in found or (definition := _definition(name)) is None:
            continue
        found[name] = definition.digest
        pending += definition.references
        for method, qualified in definition.methods.items():
            called = definition.called is None or method in definition.called or method in mentioned
            if called or (method.startswith("__") and method.endswith("__")):
                pending.append(qualified)
            else:
                waiting[method].append(qualified)
        for mention in definition.mentions - mentioned:
            mentioned.add(mention)
            pending += waiting.pop(mention, [])
    return dict(sorted(found.items()))


@functools.cache
def _definition(name: str) -> _Definition | None:
    """Return a definition by its qualified name, None if there is none in the project."""
    module, rest = split_name(name)
    if module is None or module.name in WITHOUT_EFFECT:
        return None
    head, _, method = rest.partition(".")
    if not head:
        return _describe(module, name, module.effects) if module.effects else None
    statements = module.bindings.get(head, [])
    owner = next((s for s in statements if isinstance(s, ast.ClassDef)), None)
    if method:
        found = [] if owner is None else [s for s in methods_of(owner) if s.name == method]
        return _describe(module, name, found) if found else None
    if not statements:
        return None
    own = _describe(module, name, statements)
    if owner is None:
        return own
    methods = {s.name: f"{name}.{s.name}" for s in methods_of(owner)}
    return _Definition(name, own.digest, own.references, own.mentions, methods, _called(module, owner))


def _called(module: Module, owner: ast.ClassDef) -> frozenset[str] | None:
    """Return the methods of a class that the libraries of its base classes call; None if they may call any."""
    names: frozenset[str] = frozenset()
    for base in owner.bases:
        target = resolve(module, module.imports, dotted_name(base) or "?")
        if target.rpartition(".")[0] in WITHOUT_EFFECT:
            continue
        inner, rest = split_name(target)
        if inner is not None:
            above = next((s for s in inner.bindings.get(rest, []) if isinstance(s, ast.ClassDef)), None)
            called = None if above is None else _called(inner, above)
        else:
            called = LIBRARY_CALLS.get(target)
        if called is None:
            return None
        names |= called
    return names


def _describe(module: Module, name: str, statements: Sequence[ast.stmt]) -> _Definition:
    uses = Uses(dict(module.imports), module.package)
    for statement in statements:
        for part in parts_of(statement):
            uses.visit(part)
    references, libraries = {module.name} if module.effects else set(), set()
    for dotted in uses.names:
        target = resolve(module, uses.imports, dotted)
        if target == dotted and dotted.partition(".")[0] not in uses.imports:
            continue  # Built in or local. Some module on the path may have the same name.
        inner, rest = split_name(target)
        if inner is not None:
            # A module used as a value may give anything that is in it.
            heads = [rest.partition(".")[0]] if rest else inner.bindings
            references |= {f"{inner.name}.{head}" for head in heads}
        elif target != dotted and target.partition(".")[0] != PROJECT:
            libraries.add(f"{dotted}={target}")
    if uses.by_text:
        # Any class beside it, and any method of these, may be meant.
        classes = [s for bound in module.bindings.values() for s in bound if isinstance(s, ast.ClassDef)]
        references |= {f"{module.name}.{owner.name}" for owner in classes}
        references |= {f"{module.name}.{owner.name}.{s.name}" for owner in classes for s in methods_of(owner)}
    files = files_beside(module, uses.texts)
    text = "\n".join([*(form(statement) for statement in statements), *sorted(libraries), *files])
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return _Definition(name, digest, frozenset(references - {name}), frozenset(uses.mentions))
