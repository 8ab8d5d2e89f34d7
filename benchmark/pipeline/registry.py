"""Finds the plug-ins: every file or folder of a package that defines the package's constant at its top level.

    methods/            METHOD      a method (benchmark/pipeline/stage.py: Method)
    methods/refine/     REFINER     a refiner (benchmark/pipeline/stage.py: Refiner)
    methods/backbones/  BACKBONE    a backbone (methods/backbones/base.py)
    datasets/           DATASET     a data set (datasets/base.py)

A plug-in is a file, `cam.py`, or a folder whose `__init__.py` defines the constant, `icd/`. Its name is the
name of the file or folder. Files are parsed, not imported, until one is asked for by name, so
listing names costs milliseconds although methods import torch.
"""

from __future__ import annotations

import ast
import functools
import importlib
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from seedbed.benchmark.errors import SeedbedError, unknown_name


@dataclass(frozen=True)
class Family:
    """One kind of plug-in."""

    what: str
    package: str
    constant: str

    def names(self) -> tuple[str, ...]:
        """Return the names of all plug-ins, sorted."""
        return tuple(_files(self.package, self.constant))

    def summary(self, name: str) -> str:
        """Return the first line of the plug-in file's docstring, without importing it."""
        return self.description(name).partition("\n")[0]

    def description(self, name: str) -> str:
        """Return the plug-in file's docstring, without importing it."""
        return _files(self.package, self.constant)[name]

    def module(self, name: str) -> ModuleType:
        """Import and return the module of a plug-in.

        Raises ConfigError for an unknown name, with the closest match, and SeedbedError if it cannot be imported.
        """
        if name not in self.names():
            raise unknown_name(self.what, name, self.names())
        try:
            return importlib.import_module(f"{self.package}.{name}")
        except SeedbedError:
            raise
        except Exception as error:
            raise SeedbedError(f"{self.package}/{name}.py: cannot be imported ({_place(error)})") from error

    def load(self, name: str) -> Any:
        """Import and return a plug-in. Raises what `module` raises."""
        plugin = getattr(self.module(name), self.constant)
        if plugin.name != name:
            raise SeedbedError(f"{self.package}/{name}.py: {self.constant}.name is {plugin.name!r}, not {name!r}")
        return plugin


METHODS = Family("method", "seedbed.methods", "METHOD")
REFINERS = Family("refiner", "seedbed.methods.refine", "REFINER")
BACKBONES = Family("backbone", "seedbed.methods.backbones", "BACKBONE")
DATASETS = Family("data set", "seedbed.datasets", "DATASET")


@functools.cache
def _files(package: str, constant: str) -> dict[str, str]:
    (folder,) = importlib.import_module(package).__path__
    found = {}
    for path in sorted([*Path(folder).glob("*.py"), *Path(folder).glob("*/__init__.py")]):
        source = path.read_text("utf-8")
        if constant not in source:
            continue
        try:
            tree = ast.parse(source)
        except SyntaxError as error:
            raise SeedbedError(f"{path}: line {error.lineno}: {error.msg}") from None
        if any(constant in _assigned(node) for node in tree.body):
            found[path.parent.name if path.name == "__init__.py" else path.stem] = ast.get_docstring(tree) or ""
    return found


def _place(error: Exception) -> str:
    """Return what went wrong in one line, with the file and line of the code that raised it."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<")]
    text = " ".join(str(error).split())
    return f"{frames[-1].filename}, line {frames[-1].lineno}: {type(error).__name__}: {text}"


def _assigned(node: ast.stmt) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]
