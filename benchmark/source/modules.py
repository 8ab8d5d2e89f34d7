"""The project's modules, parsed and not imported, and what a name in one of them stands for.

The project is `seedbed`, the packages of plug-ins (benchmark/plugins.py), and the user's own modules: those
outside the standard library and `site-packages`.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import itertools
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from seedbed.benchmark.plugins import ROOT, file_below, module_file, packages_of_plugins, plugin_file
from seedbed.benchmark.source.syntax import dotted_name, is_text, note_import

PROJECT = "seedbed"
_Conditional = tuple[ast.stmt, tuple[ast.stmt, ...]]


@dataclass
class Module:
    """A parsed file of the project."""

    name: str
    package: str
    bindings: dict[str, list[ast.stmt]] = field(default_factory=lambda: defaultdict(list))
    """The statements at the top level that make or change each name."""
    imports: dict[str, str] = field(default_factory=dict)
    """What each imported name stands for."""
    stars: list[str] = field(default_factory=list)
    effects: list[ast.stmt] = field(default_factory=list)
    """Statements that run when the module is imported and bind no name of it."""


@functools.cache
def module_of(name: str) -> Module | None:
    """Parse a module of the project; None for others and for broken files."""
    path = location_of(name)
    if path is None:
        return None
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None
    module = Module(name, name if path.name == "__init__.py" else name.rpartition(".")[0])
    for statement, conditions in _top_level(tree.body):
        if isinstance(statement, ast.Import | ast.ImportFrom):
            note_import(statement, module.package, module.imports, module.stars)
            continue
        for bound in (names := _bound(statement, module)):
            module.bindings[bound] += [*conditions, statement]
        if _is_registered(statement, module):
            # Its decorator may put it where other code finds it without its name.
            module.effects += [ast.Expr(ast.Name(name, ast.Load())) for name in sorted(names)]
        if not names and not is_text(statement) and not isinstance(statement, ast.Pass):
            module.effects.append(statement)
    return module


@functools.cache
def location_of(name: str) -> Path | None:
    """Return the file of a module of the project, None for libraries and for names that are no modules."""
    top, *rest = name.split(".")
    if top in sys.stdlib_module_names or not top.isidentifier():
        return None
    if top == PROJECT:
        return (file_below([ROOT], rest) or plugin_file(name)) if rest else None
    path = module_file(name)
    return None if path is None or (_of_library(path) and top not in packages_of_plugins()) else path


def files_beside(module: Module, names: Iterable[str]) -> list[str]:
    """Return the names, with digests, of the data files in a module's folder that its code names."""
    path = location_of(module.name)
    found = []
    for name in sorted(names):
        suffix = Path(name).suffix
        if path is None or not suffix or suffix == ".py" or len(name) > 200 or not name.isprintable():
            continue
        with contextlib.suppress(OSError):
            found.append(f"{name}={hashlib.sha256((path.parent / name).read_bytes()).hexdigest()}")
    return found


def _of_library(path: Path) -> bool:
    installed = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return bool({"site-packages", "dist-packages"} & {*path.parts}) or any(map(path.is_relative_to, installed))


def split_name(name: str, seen: frozenset[str] = frozenset()) -> tuple[Module | None, str]:
    """Return the module of the project in which a qualified name lies, and the rest of the name.

    What a module only imports is followed to where it is defined; `seen` are names that led here.
    """
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        head, rest = ".".join(parts[:length]), parts[length:]
        if location_of(head) is None:
            continue
        module = module_of(head)
        if module is None or not rest or rest[0] in module.bindings:
            return module, ".".join(rest)
        if name in seen:
            break
        imported = module.imports.get(rest[0])
        for source in [imported] if imported else [f"{star}.{rest[0]}" for star in module.stars]:
            inner, found = split_name(".".join([source, *rest[1:]]), seen | {name})
            if imported or inner is not None:
                return inner, found
        break
    return None, name


def resolve(module: Module, imports: Mapping[str, str], dotted: str) -> str:
    """Return what a name in a module stands for: qualified, or as it is if it is built in or local."""
    first, _, rest = dotted.partition(".")
    if first in imports:
        return f"{imports[first]}.{rest}" if rest else imports[first]
    if first in module.bindings:
        # What follows is an attribute, which counts as a mention.
        return f"{module.name}.{first}"
    for star in module.stars:
        inner, found = split_name(f"{star}.{first}")
        if inner is not None:
            return f"{inner.name}.{found}"
    return dotted


def _top_level(body: list[ast.stmt], conditions: tuple[ast.stmt, ...] = ()) -> Iterator[_Conditional]:
    """Yield the statements of a module with the conditions that they are under.

    Those inside `if`, `try` and `with` are yielded one by one.
    """
    for statement in body:
        if not isinstance(statement, ast.If | ast.Try | ast.With):
            yield statement, conditions
            continue
        inner = conditions
        if isinstance(statement, ast.If):
            inner += (ast.Expr(statement.test),)
        elif isinstance(statement, ast.With):
            inner += tuple(ast.Expr(item.context_expr) for item in statement.items)
        for part in ("body", "orelse", "finalbody"):
            yield from _top_level(getattr(statement, part, []), inner)
        for handler in getattr(statement, "handlers", []):
            yield from _top_level(handler.body, inner)


def _is_registered(statement: ast.stmt, module: Module) -> bool:
    """Return whether a function or class has a decorator of the project."""
    for decorator in getattr(statement, "decorator_list", ()):
        called = decorator.func if isinstance(decorator, ast.Call) else decorator
        first = (dotted_name(called) or "").partition(".")[0]
        top = module.imports.get(first, "").partition(".")[0]
        if first in module.bindings or (top and location_of(top) is not None):
            return True
    return False


def _bound(statement: ast.stmt, module: Module) -> set[str]:
    """Return the names of a module that a statement makes or changes."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        changed = (node.names for node in ast.walk(statement) if isinstance(node, ast.Global))
        return {statement.name, *itertools.chain(*changed)}
    names = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store):
            names.add((dotted_name(node) or "").partition(".")[0])
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        names.add((dotted_name(statement.value.func) or "").partition(".")[0])
        names = {name for name in names if name in module.bindings}
    return {name for name in names if name and name not in module.imports}
