"""Plug-ins: files that define a method, a refiner, a backbone or a data set, and how they are found.

Files in the checkout are found automatically. Code outside it is

    given       `--plugin FILE` or `--plugin FOLDER`, or in the variable SEEDBED_PLUGINS, separated as in PATH
    installed   a distribution's entry point in the group `seedbed.plugins`, which names a module

and is treated the same. A file `mine.py` that defines METHOD is imported as `seedbed.methods.mine`, as if it were
in the checkout; a method of several files is a folder with `__init__.py`. Installed modules keep their names.

Files are parsed, not imported, so listing plug-ins costs milliseconds although methods import torch. The variable
carries plug-ins to worker processes.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from seedbed.benchmark.errors import ConfigError, SeedbedError
from seedbed.benchmark.paths import expanded

PACKAGES = {
    "METHOD": "seedbed.methods",
    "REFINER": "seedbed.methods.refine",
    "BACKBONE": "seedbed.methods.backbones",
    "BACKBONE_COLLECTION": "seedbed.methods.backbones",
    "DATASET": "seedbed.datasets",
}
"""The package of each kind of plug-in, by the constant that its file defines at the top level."""
VARIABLE = "SEEDBED_PLUGINS"
ENTRY_POINTS = "seedbed.plugins"
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Plugin:
    """A file that defines one of the constants in `PACKAGES`."""

    constant: str
    module: str
    """The name that it is imported under."""
    path: Path
    """The file; of a folder, its `__init__.py`."""
    description: str
    """The docstring."""

    @property
    def name(self) -> str:
        """The last part of the module's name."""
        return self.module.rpartition(".")[2]

    @property
    def place(self) -> Path:
        """The file, or the folder of a package."""
        return self.path.parent if self.path.name == "__init__.py" else self.path

    @property
    def own(self) -> bool:
        """Whether it is imported as part of `seedbed`, unlike an installed module."""
        return self.module == f"{PACKAGES[self.constant]}.{self.name}"

    def __str__(self) -> str:
        """Return the text that `add` accepts to find it again."""
        return str(self.place) if self.own else self.module


def plugins(constant: str) -> dict[str, Plugin]:
    """Return all plug-ins that define a constant, by name, sorted.

    Raises ConfigError if two of one package have the same name, and SeedbedError if a file is not valid Python.
    """
    found: dict[str, Plugin] = {}
    beside = [other for other, package in PACKAGES.items() if package == PACKAGES[constant]]
    own = [plugin for other in beside for plugin in _in_checkout(other)]
    outside = [plugin for plugin in (*given(), *installed()) if plugin.constant in beside]
    for plugin in (*own, *outside):
        other = found.setdefault(plugin.name, plugin)
        if other.module != plugin.module or (other.own and not other.path.samefile(plugin.path)):
            raise ConfigError(
                f"{plugin.place}: its name {plugin.name!r} is used by {other.place}; rename the file and the "
                f"`name` of its {plugin.constant}"
            )
    return {name: plugin for name, plugin in sorted(found.items()) if plugin.constant == constant}


def given() -> tuple[Plugin, ...]:
    """Return the plug-ins that were added in this process or given in the variable SEEDBED_PLUGINS."""
    return _given(os.environ.get(VARIABLE, ""))


def add(place: str | Path) -> Plugin:
    """Add a plug-in for this process and the processes that it starts.

    Args:
        place: A Python file, a folder with `__init__.py`, or the name of an importable module.

    Raises:
        ConfigError: There is no such file, it defines no plug-in or several, or its name is taken.
        SeedbedError: The file is not valid Python.
    """
    plugin, before = _read(str(place)), os.environ.get(VARIABLE, "")
    os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys([*map(str, given()), str(plugin)]))
    try:
        plugins(plugin.constant)
    except ConfigError:
        os.environ[VARIABLE] = before
        _given.cache_clear()  # The file may be changed and added again.
        raise
    return plugin


def add_all(places: Iterable[str]) -> tuple[str, ...]:
    """Add plug-ins except those whose names are already given, and return all given ones for a later process.

    Raises what `add` raises.
    """
    for place in places:
        plugin = _read(place)
        if (plugin.constant, plugin.name) not in {(other.constant, other.name) for other in given()}:
            add(place)
    return tuple(map(str, given()))


def as_text() -> str:
    """Return the given plug-ins as one text, for `give` in another process."""
    return os.environ.get(VARIABLE, "")


def give(text: str) -> None:
    """Take over the plug-ins of another process."""
    os.environ[VARIABLE] = text


def needs_file(constant: str, name: str) -> bool:
    """Return whether a plug-in is neither in the checkout nor installed, so that its file must be given."""
    return all((p.constant, p.name) != (constant, name) for p in (*_in_checkout(constant), *installed()))


@functools.cache
def installed() -> tuple[Plugin, ...]:
    """Return the plug-ins that installed distributions name in the entry points of `seedbed.plugins`.

    Raises ConfigError, naming the distribution, if a module is missing or defines no plug-in.
    """
    from importlib.metadata import entry_points

    found = []
    for entry in entry_points(group=ENTRY_POINTS):
        path = module_file(entry.module)
        if path is None:
            distribution = entry.dist.name if entry.dist else "a distribution"
            raise ConfigError(f"{distribution}: entry point {entry.name!r}: no such module: {entry.value}")
        found.append(_plugin(path, entry.module))
    return tuple(found)


def packages_of_plugins() -> frozenset[str]:
    """Return the top-level packages, other than `seedbed`, that contain plug-ins."""
    return frozenset(plugin.module.partition(".")[0] for plugin in (*given(), *installed()) if not plugin.own)


def copy_plugins(folder: Path) -> list[str]:
    """Copy the given plug-ins to a folder that other machines see, and return what `add` needs there.

    Data files beside a file are copied if it names them. Installed modules are returned by name.
    """
    copy = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(copy, ignore_errors=True)
    places = {plugin.module: str(plugin) for plugin in (*given(), *installed())}
    for plugin in given():
        if plugin.own:
            below = Path(*PACKAGES[plugin.constant].split(".")[1:], plugin.place.name)
            place = copy / below
            place.parent.mkdir(parents=True, exist_ok=True)
            if plugin.place.is_dir():
                shutil.copytree(plugin.place, place, ignore=shutil.ignore_patterns("__pycache__", ".*"))
            else:
                shutil.copy(plugin.path, place)
                source = plugin.path.read_text("utf-8")
                for beside in plugin.path.parent.iterdir():
                    if beside.name in source and beside.suffix != ".py" and beside.is_file():
                        shutil.copy(beside, place.parent)
            places[plugin.module] = str(folder / below)
    # The plug-ins of a resumed sweep may be the copies themselves.
    shutil.rmtree(folder, ignore_errors=True)
    if copy.exists():
        copy.rename(folder)
    return list(places.values())


def package_path(top: str) -> Path | None:
    """Return the folder of an installed top-level package, or the file of a module; None if not found."""
    path = module_file(top)
    return path.parent if path is not None and path.name == "__init__.py" else path


def module_file(name: str) -> Path | None:
    """Return the Python file of an importable module without importing it or its packages; None if not found."""
    top, *rest = name.split(".")
    try:
        specification = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if specification is None:
        return None
    if rest:
        return file_below(map(Path, specification.submodule_search_locations or ()), rest)
    origin = Path(specification.origin) if specification.has_location and specification.origin else None
    return origin if origin is not None and origin.suffix == ".py" else None


def file_below(places: Iterable[Path], parts: Sequence[str]) -> Path | None:
    """Return the file of a module or package `parts` below the first of the folders `places` that has it."""
    for place in places:
        for path in (place.joinpath(*parts, "__init__.py"), place.joinpath(*parts).with_suffix(".py")):
            if path.is_file():
                return path
    return None


def plugin_file(module: str) -> Path | None:
    """Return the file of a module of a given plug-in, such as `seedbed.methods.mine`; None for other modules."""
    for plugin in given():
        if module == plugin.module:
            return plugin.path
        if module.startswith(f"{plugin.module}."):
            parts = module.removeprefix(f"{plugin.module}.").split(".")
            return file_below([plugin.place], parts) if plugin.place.is_dir() else None
    return None


class Finder:
    """Lets Python import given plug-ins as `seedbed.methods.NAME` and so on, also in worker processes."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the location of a module; None if it is not a plug-in."""
        if not name.startswith("seedbed.") or (file := plugin_file(name)) is None:
            return None
        folder = [str(file.parent)] if file.name == "__init__.py" else None
        return importlib.util.spec_from_file_location(name, file, submodule_search_locations=folder)


def install_finder() -> None:
    """Put `Finder` behind Python's own finders, so that no plug-in replaces a module of the project."""
    if Finder not in sys.meta_path:
        sys.meta_path.append(Finder)


@functools.lru_cache(maxsize=16)
def _given(text: str) -> tuple[Plugin, ...]:
    return tuple(_read(place) for place in text.split(os.pathsep) if place.strip())


@functools.cache
def _in_checkout(constant: str) -> tuple[Plugin, ...]:
    package = PACKAGES[constant]
    folder = ROOT.joinpath(*package.split(".")[1:])
    found = []
    for path in sorted([*folder.glob("*.py"), *folder.glob("*/__init__.py")]):
        constants, description = _parsed(path, (constant,))
        if constants:
            name = path.parent.name if path.name == "__init__.py" else path.stem
            found.append(Plugin(constant, f"{package}.{name}", path, description))
    return tuple(found)


def _read(text: str) -> Plugin:
    """Return the plug-in that a path or the name of a module stands for. Raises what `add` raises."""
    place = expanded(text.strip()).resolve()
    path = place / "__init__.py" if place.is_dir() else place
    if path.is_file():
        return _plugin(path)
    if all(map(str.isidentifier, text.split("."))) and (file := module_file(text)) is not None:
        return _plugin(file, text)
    if place.is_dir():
        raise ConfigError(f"{place}: a folder without __init__.py; give the plug-in's file")
    raise ConfigError(f"{place}: no such file (a plug-in)")


def _plugin(path: Path, module: str | None = None) -> Plugin:
    constants, description = _parsed(path, PACKAGES)
    if len(constants) != 1:
        found = "several" if constants else "none"
        raise ConfigError(
            f"{path}: a plug-in defines one of {', '.join(PACKAGES)} at the top level; this file defines {found}"
        )
    name = path.parent.name if path.name == "__init__.py" else path.stem
    if module is None and not name.isidentifier():
        raise ConfigError(f"{path}: {name!r} is not a Python name; rename it, for example {_identifier(name)}")
    return Plugin(constants[0], module or f"{PACKAGES[constants[0]]}.{name}", path, description)


def _identifier(name: str) -> str:
    plain = "".join(letter if letter.isalnum() else "_" for letter in name)
    return plain if plain.isidentifier() else f"_{plain}"


def _parsed(path: Path, constants: Iterable[str]) -> tuple[list[str], str]:
    """Return which of the constants a file defines at its top level, and its docstring."""
    try:
        source = path.read_text("utf-8")
        named = [constant for constant in constants if constant in source]
        tree = ast.parse(source) if named else ast.Module([], [])
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SeedbedError(f"{path}: not UTF-8") from None
    except SyntaxError as error:
        raise SeedbedError(f"{path}: line {error.lineno}: {error.msg}") from None
    defined = {name for node in tree.body for name in _assigned(node)}
    return [constant for constant in named if constant in defined], ast.get_docstring(tree) or ""


def _assigned(node: ast.stmt) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]
