"""Downloads data sets from their official addresses, or from a mirror, and extracts what Seedbed needs.

The only table of addresses, sizes and checksums is here. Sizes are those that the servers report. The checksums of
VOC and SBD are torchvision's, those of COCO 2014 are widely published.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from seedbed.benchmark.errors import ConfigError, DataError, StoreError
from seedbed.datasets.tools.extract import extract, is_there, remove_unfinished
from seedbed.datasets.tools.fetch import fetch
from seedbed.datasets.voc2012 import find_root

GB = 1_000_000_000
ADDRESS = re.compile(r"https?://(\[[\da-fA-F:]+\]|[\w.-]+)(:\d+)?(/[^\s?#]*)?")
"""What a mirror may be."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Archive:
    """A file of an official release."""

    url: str
    size: int
    """Bytes."""
    md5: str
    """Hexadecimal."""
    targets: tuple[str, ...]
    """The files and folders in it that are extracted, to the same places below the root."""
    room: int
    """Bytes on the disk, rounded up, of what is extracted and of the masks that are then made of it."""
    find: Callable[[Path], Path] | None = None
    """Raises DataError if what the archive holds is not at a root; the default looks for the targets."""

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    def is_extracted(self, root: Path) -> bool:
        """Return whether a root has what is extracted, so that the archive is not needed."""
        if self.find is None:
            return all(is_there(root / target) for target in self.targets)
        try:
            self.find(root)
        except DataError:
            return False
        return True


VOC = Archive(
    "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
    size=1_999_639_040,
    md5="6cd6e144f989b92b3379bac3b3de84fd",
    targets=("VOCdevkit/VOC2012",),
    room=2_200_000_000,
    find=find_root,
)
SBD = Archive(
    "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
    size=1_419_539_633,
    md5="82b4d87ceb2ed10f6038a1cba92111cb",
    targets=tuple(f"benchmark_RELEASE/dataset/{name}" for name in ("train.txt", "val.txt", "cls")),
    room=200_000_000,
)
COCO = (
    Archive(
        "http://images.cocodataset.org/annotations/annotations_trainval2014.zip",
        size=252_872_794,
        md5="0a379cfc70b0e71301e0f377548639bd",
        targets=("annotations/instances_train2014.json", "annotations/instances_val2014.json"),
        room=1_300_000_000,
    ),
    Archive(
        "http://images.cocodataset.org/zips/val2014.zip",
        size=6_645_013_297,
        md5="a3d79f5ed8d289b7a7554ce06a5782b3",
        targets=("val2014",),
        room=6_900_000_000,
    ),
    Archive(
        "http://images.cocodataset.org/zips/train2014.zip",
        size=13_510_573_713,
        md5="0da8c0bd3d6becc4dcb32757491aca88",
        targets=("train2014",),
        room=13_900_000_000,
    ),
)
ARCHIVES: dict[str, tuple[Archive, ...]] = {"voc2012": (VOC, SBD), "sbd": (SBD,), "coco2014": COCO}
"""By the name that `seedbed data download` takes."""


def download(name: str, root: Path, mirror: str | None = None) -> list[Path]:
    """Download and extract what `root` lacks of a data set in `ARCHIVES`. Return the archives that lie there.

    A `mirror` replaces each official address up to the file's name. The archives stay in `root`. A call that was
    interrupted is continued by the next one, which fetches and extracts nothing a second time.

    Raises ConfigError if the mirror is no address, StoreError if there is too little free space, and DataError if
    another process downloads to `root`, and for what `fetch` and `extract` refuse.
    """
    if mirror is not None and not (mirror.isascii() and ADDRESS.fullmatch(mirror)):
        raise ConfigError(f"--mirror {mirror}: expected an address such as https://HOST/FOLDER")
    missing = []
    for archive in ARCHIVES[name]:
        if archive.is_extracted(root):
            logger.info(f"{', '.join(archive.targets)}: already in {root}")
        else:
            missing.append(archive)
    root.mkdir(parents=True, exist_ok=True)
    with _alone(root):
        for archive in missing:
            remove_unfinished(root / archive.name)
        _require_room(root, missing)
        for archive in missing:
            url = archive.url if mirror is None else f"{mirror.rstrip('/')}/{archive.name}"
            try:
                fetch(url, root / archive.name, archive.size, archive.md5)
                extract(root / archive.name, archive.targets)
            except OSError as error:
                # Errors of writing name no file.
                error.filename = error.filename or str(root)
                raise
            if not archive.is_extracted(root):
                places = ", ".join(str(root / target) for target in archive.targets)
                raise DataError(
                    f"{places}: was there before and is not complete; move it away, and run this again"
                )
    return [path for archive in ARCHIVES[name] if (path := root / archive.name).exists()]


def _require_room(root: Path, missing: Sequence[Archive]) -> None:
    """Raise StoreError if the disk of `root` has too little space for what is not there yet."""
    needed = 0
    for archive in missing:
        files = (root / archive.name, root / f"{archive.name}.part")
        held = sum(file.stat().st_size for file in files if file.exists())
        needed += max(0, archive.size - held) + archive.room
    free = shutil.disk_usage(root).free
    if free < needed:
        raise StoreError(
            f"{root}: {needed / GB:.1f} GB are needed, {free / GB:.1f} GB are free; nothing was downloaded. Free "
            "space there, or give another folder with --root"
        )


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Raise DataError if another process downloads to `root`."""
    lock = FileLock(root / ".download.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise DataError(f"{root}: another `seedbed data download` is writing there; wait for its end") from None
    try:
        yield
    finally:
        lock.release()
