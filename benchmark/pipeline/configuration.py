"""`seedbed.toml`, which maps names of data sets to folders and names an object store.

The file is optional, and in the current folder:

    [datasets]
    voc2012 = "/data/VOCdevkit/VOC2012"

    [datasets.chimera-coco]      # a name of your own
    dataset = "chimera"          # the loader
    root = "/data/chimera-coco"  # further keys are options of the loader; `classes` chooses some of its classes

    [store]                              # without this table the store is a folder alone
    address = "s3://bucket/folder"       # an object store that several machines share
    cache = "/scratch/seedbed-store"     # each machine's local copies; default: `store` in the work folder
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypedDict, get_type_hints

from seedbed.benchmark.errors import ConfigError, joined
from seedbed.benchmark.paths import expanded
from seedbed.benchmark.pipeline.remote.cached_store import StoreLocation
from seedbed.benchmark.validation import typed

CONFIGURATION = Path("seedbed.toml")
"""In the current folder."""
PATH_OPTIONS = ("masks", "saliency", "tags")
"""The loaders' options that are paths."""
BACKSLASHES = ". Write Windows paths in single quotes ('C:\\data') or with slashes"


@dataclass(frozen=True)
class Configuration:
    """What `seedbed.toml` says."""

    datasets: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """The keys of each data set by its name; `root` and `dataset` may be missing."""
    store: StoreLocation | None = None


def _not_empty(text: Any) -> Any:
    if isinstance(text, str) and not text.strip():
        raise ValueError("expected a text that is not empty")
    return text


def _names(value: Any) -> Any:
    if not (isinstance(value, list) and value and all(isinstance(name, str) and name.strip() for name in value)):
        raise ValueError("expected a list of class names")
    return value


Text = Annotated[str, _not_empty]


@dataclass(frozen=True)
class StoreTable:
    """The table [store]."""

    address: Text
    cache: Text | None = None


class DatasetTable(TypedDict, total=False):
    """The keys of a data set that every loader has; its loader checks the others."""

    root: Text
    dataset: Text
    masks: Text
    saliency: Text
    tags: Text
    classes: Annotated[list[str], _names]


class Tables(TypedDict, total=False):
    """The tables of the file."""

    datasets: Mapping[str, DatasetTable]
    store: StoreTable


def read_configuration(path: Path = CONFIGURATION) -> Configuration:
    """Return the content of `seedbed.toml`; without the file, no data set and no object store.

    Raises ConfigError, naming the file, if it cannot be read or a table has wrong keys or values.
    """
    content = _content(path)
    datasets = content.get("datasets", {})
    try:
        if isinstance(datasets, dict):
            _check_names(datasets)
            datasets = {name: {"root": it} if isinstance(it, str) else it for name, it in datasets.items()}
            content["datasets"] = {name: _of_every_loader(it) for name, it in datasets.items()}
        tables = typed(Tables, content)
        entries = {name: datasets[name] | dict(read) for name, read in tables["datasets"].items()}
        return Configuration(entries, _location(tables["store"]) if "store" in tables else None)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _content(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        # Windows editors write a byte order mark before the text.
        text = path.read_text("utf-8-sig")
        return tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8; save it with the encoding UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        hint = BACKSLASHES if "\\" in text else ""
        raise ConfigError(f"{path}: {error}{hint}") from None


def _check_names(datasets: Mapping[str, Any]) -> None:
    problems = [
        f"datasets.{name!r}: a name must be printable and without '=' or blanks at its ends"
        for name in datasets
        if not name.strip() or name != name.strip() or "=" in name or not name.isprintable()
    ]
    if problems:
        raise ConfigError(joined("", problems))


def _of_every_loader(entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    return {key: value for key, value in entry.items() if key in get_type_hints(DatasetTable)}


def _location(table: StoreTable) -> StoreLocation:
    if not re.match(r"[a-z][a-z0-9+.-]*://[^/@]*/?[^@]*$", table.address):
        # Messages and files name the address.
        raise ConfigError(
            "store.address: expected an address like s3://BUCKET/FOLDER, without credentials (S3's are in "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, in ~/.aws/credentials, or the machine's role)"
        )
    return StoreLocation(table.address, None if table.cache is None else str(expanded(table.cache).absolute()))
