"""The work folder, and `seedbed.toml`, which maps the names of data sets to where they lie.

    seedbed-work/store/     the artifact store          seedbed-work/runs/     one folder a run
    seedbed-work/data/      generated data sets         seedbed-work/digests/  content digests of data files
    seedbed-work/sweeps/    one folder a sweep          seedbed-work/mlflow/   MLflow's SQLite file and artifacts

`seedbed.toml`, in the current folder, is optional:

    [datasets]
    voc2012 = "/data/VOCdevkit/VOC2012"

    [datasets.chimera-coco]      # a name of your own
    dataset = "chimera"          # which loader
    root = "/data/chimera-coco"  # further keys are options of the loader
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmark.errors import ConfigError, unknown_name
from benchmark.progress import Reporter
from benchmark.registry import DATASETS
from benchmark.store import Store
from datasets.base import Dataset

FOLDERS_AND_FILES = ("masks", "saliency", "tags")
"""The loaders' options that are paths."""
CONFIGURATION = Path("seedbed.toml")
DEMO_IMAGES, DEMO_SIZE, DEMO_SEED = 600, 96, 0
"""The Chimera that is generated where no root is given."""
CHIMERAS: dict[str, Literal["voc", "coco"]] = {"chimera-voc": "voc", "chimera-coco": "coco"}
"""The generated data sets that need no root, with their layouts."""


@dataclass(frozen=True)
class Place:
    """A data set by name, and all that any process on any node needs to open it."""

    name: str
    loader: str
    root: str
    """An absolute path."""
    options: Mapping[str, Any]
    """Of the loader; those that are paths are absolute."""

    def open(self) -> Dataset:
        """Open the data set. Raises ConfigError for unknown options, DataError without a data set."""
        data: Dataset = DATASETS.load(self.loader).open(Path(self.root), **self.options)
        return data


@dataclass(frozen=True)
class WorkFolder:
    """Everything that Seedbed writes is below `root`."""

    root: Path

    @property
    def store(self) -> Store:
        return Store(self.root / "store")

    @property
    def sweeps(self) -> Path:
        return self.root / "sweeps"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    def digest(self, data: Dataset, reporter: Reporter) -> str:
        """Return the data set's content digest; digests of unchanged files are read from the work folder."""
        folder = self.root / "digests"
        folder.mkdir(parents=True, exist_ok=True)
        place = hashlib.sha256(str(data.root.resolve()).encode()).hexdigest()[:12]
        with reporter.bar(f"reading {data.name}", 1) as bar:
            return data.digest(folder / f"{data.name}-{place}.json", bar.at)

    def locate(
        self, name: str, root: Path | None, reporter: Reporter, given: Mapping[str, Any] | None = None
    ) -> Place:
        """Return where the data set `name` lies: a loader's name, or one that `seedbed.toml` defines.

        `root` and the loader's options in `given` win over `seedbed.toml`; Chimera without a root is generated in
        the work folder. Raises ConfigError for an unknown name and where no root is known.
        """
        configured = _configured(CONFIGURATION)
        known = {*DATASETS.names(), *CHIMERAS, *configured}
        if name not in known:
            raise unknown_name("data set", name, known)
        options = {**configured.get(name, {}), **(given or {})}
        loader = options.pop("dataset", "chimera" if name in CHIMERAS and name not in configured else name)
        DATASETS.load(loader)
        place = root or (Path(options.pop("root")) if "root" in options else None)
        options.pop("root", None)
        if place is None and loader == "chimera":
            place = self._demo_chimera(CHIMERAS.get(name, "voc"), reporter)
        if place is None:
            raise ConfigError(f'where is {name}? Give --root DIR, or a line in {CONFIGURATION}: {name} = "DIR"')
        if not place.is_dir():
            raise ConfigError(f"{place}: no such folder (the root of {name})")
        options |= {key: str(Path(options[key]).resolve()) for key in FOLDERS_AND_FILES if key in options}
        return Place(name, loader, str(place.resolve()), options)

    def open(
        self, name: str, root: Path | None, reporter: Reporter, given: Mapping[str, Any] | None = None
    ) -> Dataset:
        """Locate and open a data set, and tell the user what it reads. Raises ConfigError, DataError."""
        data = self.locate(name, root, reporter, given).open()
        reporter.say(f"{data.name}: tags from {data.tag_source}; masks from {data.mask_source}")
        for notice in data.notices:
            reporter.say(f"note: {notice}")
        return data

    def _demo_chimera(self, layout: Literal["voc", "coco"], reporter: Reporter) -> Path:
        from datasets.chimera import generate

        folder = self.root / "data" / f"chimera-{layout}"
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            reporter.say(f"generating {DEMO_IMAGES} Chimera images in {folder}")
            generate(folder, layout=layout, images=DEMO_IMAGES, size=DEMO_SIZE, seed=DEMO_SEED)
        return folder


def _configured(path: Path) -> Mapping[str, dict[str, Any]]:
    if not path.exists():
        return {}
    try:
        content = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}") from None
    for key in content:
        if key != "datasets":
            raise ConfigError(f"{path}: unknown table {key!r}. Valid: datasets")
    entries = {}
    for name, value in content.get("datasets", {}).items():
        if not isinstance(value, str | dict):
            raise ConfigError(f"{path}: datasets.{name}: expected a folder or a table")
        entries[name] = {"root": value} if isinstance(value, str) else value
    return entries
