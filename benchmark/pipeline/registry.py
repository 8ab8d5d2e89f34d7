"""The plug-ins by name: methods, refiners, backbones and data sets (benchmark/plugins.py says where they lie).

    METHODS     METHOD      a method (benchmark/pipeline/stage.py: Method)
    REFINERS    REFINER     a refiner (benchmark/pipeline/stage.py: Refiner)
    BACKBONES   BACKBONE    a backbone (methods/backbones/base.py)
    DATASETS    DATASET     a data set (datasets/base.py)

A plug-in's name is the name of its file or folder. It is imported when it is asked for by name. A collection is a
plug-in with many members, which are not listed: BACKBONE_COLLECTION in `timm.py` has the backbones `timm:NAME`.
"""

from __future__ import annotations

import importlib
import traceback
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from seedbed.benchmark.errors import ConfigError, SeedbedError, unknown_name
from seedbed.benchmark.plugins import Plugin, plugins


@dataclass(frozen=True)
class Family:
    """One kind of plug-in."""

    what: str
    constant: str
    collection: str | None = None
    """The constant of a collection of them; None if there are no collections."""

    def names(self) -> tuple[str, ...]:
        """Return the names of all plug-ins, sorted, without members of collections."""
        return tuple(plugins(self.constant))

    def collections(self) -> tuple[str, ...]:
        """Return the form of the members' names in each collection, such as `timm:NAME`, sorted."""
        return tuple(f"{name}:NAME" for name in self._collections())

    def find(self, name: str) -> Plugin | None:
        """Return where a plug-in lies, or the collection of a member; None for an unknown name."""
        collection, colon, _ = name.partition(":")
        return self._collections().get(collection) if colon else plugins(self.constant).get(name)

    def plugin(self, name: str) -> Plugin:
        """Return what `find` returns. Raises ConfigError for an unknown name, with the closest match."""
        if (found := self.find(name)) is None:
            error = unknown_name(self.what, name, (*self.names(), *self.collections()))
            raise ConfigError(f"{error}; or give a file of your own by --plugin")
        return found

    def summary(self, name: str) -> str:
        """Return the first line of the plug-in file's docstring, without importing it."""
        return self.description(name).partition("\n")[0]

    def description(self, name: str) -> str:
        """Return the plug-in file's docstring, without importing it."""
        return self.plugin(name).description

    def module(self, name: str) -> ModuleType:
        """Import and return the module of a plug-in.

        Raises ConfigError for an unknown name, with the closest match, and SeedbedError if it cannot be imported.
        """
        plugin = self.plugin(name)
        try:
            return importlib.import_module(plugin.module)
        except SeedbedError:
            raise
        except Exception as error:
            raise SeedbedError(f"{plugin.path}: cannot be imported ({_place(error)})") from error

    def load(self, name: str) -> Any:
        """Import and return a plug-in or a member of a collection.

        Raises what `module` raises, and ConfigError for a member that the collection does not have.
        """
        plugin = self.plugin(name)
        loaded = getattr(self.module(name), plugin.constant)
        if loaded.name != plugin.name:
            raise SeedbedError(f"{plugin.path}: {plugin.constant}.name is {loaded.name!r}, not {plugin.name!r}")
        return loaded.member(name.partition(":")[2]) if plugin.constant == self.collection else loaded

    def _collections(self) -> dict[str, Plugin]:
        return plugins(self.collection) if self.collection else {}


METHODS = Family("method", "METHOD")
REFINERS = Family("refiner", "REFINER")
BACKBONES = Family("backbone", "BACKBONE", "BACKBONE_COLLECTION")
DATASETS = Family("data set", "DATASET")


def _place(error: Exception) -> str:
    """Return what went wrong in one line, with the file and line of the code that raised it."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<")]
    text = " ".join(str(error).split())
    return f"{frames[-1].filename}, line {frames[-1].lineno}: {type(error).__name__}: {text}"
