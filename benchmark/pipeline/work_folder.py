"""The work folder, and where the data sets are.

seedbed-work/store/     the artifact store          seedbed-work/runs/     one folder per run
seedbed-work/data/      generated data sets         seedbed-work/digests/  content digests of data files
seedbed-work/sweeps/    one folder per sweep        seedbed-work/mlflow/   MLflow's SQLite file and artifacts
seedbed-work/submitted/ results from elsewhere
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from seedbed.benchmark.errors import ConfigError, DataError, unknown_name
from seedbed.benchmark.paths import expanded, slug
from seedbed.benchmark.pipeline.configuration import CONFIGURATION, PATH_OPTIONS, read_configuration
from seedbed.benchmark.pipeline.registry import DATASETS
from seedbed.benchmark.pipeline.remote.cached_store import CachedStore, StoreLocation
from seedbed.benchmark.pipeline.store import Store
from seedbed.benchmark.progress import progress_bar
from seedbed.datasets.base import CLASSES_OPTION, Dataset
from seedbed.datasets.subset import ClassSubset, split_name, subset_name

DEMO_IMAGES, DEMO_SIZE, DEMO_SEED = 600, 96, 0
"""The Chimera that is generated if no root is given."""
CHIMERAS: dict[str, Literal["voc", "coco"]] = {"chimera-voc": "voc", "chimera-coco": "coco"}
"""The generated data sets that need no root, with their layouts."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DatasetSpec:
    """A data set by name, and everything that a process on any node needs to open it."""

    name: str
    loader: str
    root: str
    """An absolute path."""
    options: Mapping[str, Any]
    """Options of the loader; paths are absolute."""

    def open(self) -> Dataset:
        """Open the data set. Raises ConfigError for unknown options, DataError without a data set."""
        options = dict(self.options)
        classes = options.pop(CLASSES_OPTION, None)
        data = self._whole(options)
        if classes is not None:
            data = ClassSubset(data, classes)
        if self.name not in DATASETS.names():
            data.own_name = self.name
        return data

    def _whole(self, options: Mapping[str, Any]) -> Dataset:
        """Open the data set with all of its classes."""
        data: Dataset = DATASETS.load(self.loader).open(Path(self.root), **options)
        return data

    def folders(self) -> tuple[str, ...]:
        """Return the folders and files that the data set is read from, for `paths.without_folders`."""
        return (self.root, *(str(self.options[key]) for key in PATH_OPTIONS if key in self.options))


@dataclass(frozen=True)
class WorkFolder:
    """Everything that Seedbed writes is below `root`."""

    root: Path
    location: StoreLocation | None = None
    """The object store of the artifact store; None: it is a folder alone."""

    @property
    def store(self) -> Store:
        folder = self.root / "store"
        return Store(folder) if self.location is None else _cached_store(folder, self.location)

    def resolved(self) -> WorkFolder:
        """Return the same work folder by its absolute path without links."""
        return replace(self, root=self.root.resolve())

    @property
    def sweeps(self) -> Path:
        return self.root / "sweeps"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def submitted(self) -> Path:
        return self.root / "submitted"

    def digest(self, data: Dataset) -> str:
        """Return the data set's content digest; digests of unchanged files are read from the work folder."""
        folder = self.root / "digests"
        folder.mkdir(parents=True, exist_ok=True)
        location = hashlib.sha256(str(data.root.resolve()).encode()).hexdigest()[:12]
        with progress_bar(f"reading {data.display_name}", 1) as bar:
            return data.digest(folder / f"{slug(data.name)}-{location}.json", bar.at)

    def locate(self, name: str, root: Path | None, given: Mapping[str, Any] | None = None) -> DatasetSpec:
        """Return the location of the data set `name`: a loader's name, or one that `seedbed.toml` defines.

        `NAME[CLASS,CLASS]` has only these classes, and so is the location named if `seedbed.toml` chooses them.

        `root` and the loader's options in `given` override `seedbed.toml`; Chimera without a root is generated in
        the work folder. Raises ConfigError if the name or the root is unknown.
        """
        spec = self._configured(name, given or {})
        if root is not None:
            spec = replace(spec, root=str(root))
        if not spec.root and spec.loader == "chimera":
            spec = replace(spec, root=str(self._demo_chimera(chimera_layout(name))))
        if not spec.root:
            raise ConfigError(f'where is {name}? Give --root DIR, or a line in {CONFIGURATION}: {name} = "DIR"')
        return _absolute(spec)

    def current(self, spec: DatasetSpec, digest: str) -> DatasetSpec:
        """Return the location of a data set that an earlier trial read from `spec`.

        If it is no longer there, `locate` finds it, without generating any. Raises ConfigError if it is not found,
        DataError if its content has another digest.
        """
        if Path(spec.root).is_dir():
            return spec
        now = self._configured(spec.name, {})
        if not now.root and now.loader == "chimera":
            now = replace(now, root=str(self._demo_folder(chimera_layout(spec.name))))
        if not now.root:
            raise ConfigError(f"{spec.root}: no such folder (the root of {spec.name})")
        now = _absolute(now)
        if self.digest(now.open()) != digest:
            raise DataError(f"{now.root}: not the content that {spec.name} had at {spec.root}")
        return now

    def _configured(self, name: str, given: Mapping[str, Any]) -> DatasetSpec:
        """Return a data set as defined by `seedbed.toml` and the `given` options; its root may be empty."""
        configured = read_configuration().datasets
        usual = {*DATASETS.names(), *CHIMERAS}
        known = {*usual, *configured}
        whole, classes = (name, None) if name in known else split_name(name)
        if whole not in known:
            raise unknown_name("data set", whole, known)
        options = {**configured.get(whole, {}), **given}
        if classes is not None:
            options[CLASSES_OPTION] = classes
        elif whole in usual and CLASSES_OPTION in options:
            name = subset_name(whole, options[CLASSES_OPTION])
        loader = options.pop("dataset", "chimera" if whole in CHIMERAS and whole not in configured else whole)
        if loader not in DATASETS.names():
            raise unknown_name(f"loader of {whole} (key `dataset` in {CONFIGURATION}):", loader, DATASETS.names())
        return DatasetSpec(name, loader, options.pop("root", ""), options)

    def open(self, name: str, root: Path | None, given: Mapping[str, Any] | None = None) -> Dataset:
        """Locate and open a data set, and print what it reads. Raises ConfigError, DataError."""
        data = self.locate(name, root, given).open()
        logger.info(f"{data.display_name}: tags from {data.tag_source}; masks from {data.mask_source}")
        for notice in data.notices:
            logger.info(f"note: {notice}")
        return data

    def _demo_folder(self, layout: Literal["voc", "coco"]) -> Path:
        return self.root / "data" / f"chimera-{layout}"

    def _demo_chimera(self, layout: Literal["voc", "coco"]) -> Path:
        from seedbed.datasets.chimera import generate

        folder = self._demo_folder(layout)
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            logger.info(f"generating {DEMO_IMAGES} Chimera images in {folder}")
            generate(folder, layout=layout, images=DEMO_IMAGES, size=DEMO_SIZE, seed=DEMO_SEED)
        return folder


@functools.lru_cache(maxsize=8)
def _cached_store(folder: Path, location: StoreLocation) -> CachedStore:
    """Open an object store once per process, so that its connections are kept."""
    return CachedStore(folder if location.cache is None else Path(location.cache), location.address)


def chimera_layout(name: str) -> Literal["voc", "coco"]:
    """Return the layout of a Chimera that is generated under a data set's name."""
    return CHIMERAS.get(split_name(name)[0], "voc")


def _absolute(spec: DatasetSpec) -> DatasetSpec:
    """Return a spec with absolute paths. Raises ConfigError if its root is not a folder."""
    root = expanded(spec.root)
    if not root.is_dir():
        problem = "not a folder" if root.exists() else "no such folder"
        raise ConfigError(
            f"{root}: {problem} (the root of {spec.name}); give its folder with --root DIR, in a sweep with "
            f"--datasets {spec.name}=DIR, or in {CONFIGURATION}"
        )
    paths = {key: str(expanded(spec.options[key]).resolve()) for key in PATH_OPTIONS if key in spec.options}
    return replace(spec, root=str(root.resolve()), options={**spec.options, **paths})
