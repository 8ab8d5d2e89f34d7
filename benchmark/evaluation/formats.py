"""Other people's results: IRN's and PSA's `.npy` dictionaries, and folders of PNG masks.

Their `.npy` files are pickles. They are read by an unpickler that accepts only numpy arrays and plain values
(datasets/io/npy.py).
"""

from __future__ import annotations

import bisect
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from seedbed.benchmark.errors import DataError
from seedbed.benchmark.evaluation.maps import FILE, ScoreMaps, opened
from seedbed.datasets.io.images import decode_mask
from seedbed.datasets.io.npy import load_npy


class MapSource(Protocol):
    """Localisation maps by image id. Must be picklable."""

    def read(self, image_id: str) -> ScoreMaps:
        """Return the maps of one image. Raises DataError if they are missing or broken."""
        ...


class MaskSource(Protocol):
    """Masks by image id. Must be picklable."""

    def read(self, image_id: str) -> NDArray[np.uint8]:
        """Return labels uint8 (H, W). Raises DataError if the mask is missing or broken."""
        ...


@dataclass(frozen=True)
class IrnMaps:
    """IRN's files `ID.npy`: a dictionary with `keys` (classes, counted from 0), `cam` and `high_res`."""

    folder: Path

    def read(self, image_id: str) -> ScoreMaps:
        """Return the full-size maps (`high_res`)."""
        path = self.folder / f"{image_id}.npy"
        content = _dictionary(path)
        if not {"keys", "high_res"} <= content.keys():
            raise DataError(f"{path}: not an IRN dictionary; expected keys and high_res, it has {_names(content)}")
        keys = np.asarray(content["keys"])
        if keys.size and keys.dtype.kind not in "iu":
            raise DataError(f"{path}: its keys are {keys.dtype}, expected whole numbers")
        return _maps(path, keys.astype(np.int64).reshape(-1), content["high_res"])


@dataclass(frozen=True)
class PsaMaps:
    """PSA's files `ID.npy`: a dictionary from class, counted from 0, to its full-size map."""

    folder: Path

    def read(self, image_id: str) -> ScoreMaps:
        """Return the maps."""
        path = self.folder / f"{image_id}.npy"
        content = _dictionary(path)
        if not all(isinstance(key, int | np.integer) for key in content):
            raise DataError(f"{path}: not a PSA dictionary; expected whole numbers, it has {_names(content)}")
        shapes = {np.shape(content[key]) for key in content}
        if len(shapes) > 1:
            raise DataError(f"{path}: its maps have different sizes: {sorted(shapes)}")
        keys = sorted(content)
        return _maps(path, np.array(keys, np.int64), [content[key] for key in keys])


@dataclass(frozen=True)
class PngMasks:
    """Masks `ID.png`, palette or 8-bit grey; 255 is read as background."""

    folder: Path

    def read(self, image_id: str) -> NDArray[np.uint8]:
        """Return the labels."""
        return decode_mask(_present(self.folder / f"{image_id}.png"))


def open_masks(folder: Path) -> PngMasks:
    """Return the masks in a folder. Raises DataError if it has no PNGs, or two of the same name."""
    _files(folder, ".png", "PNG masks ID.png")
    return PngMasks(folder)


def open_maps(folder: Path) -> MapSource:
    """Return the maps in a folder, whatever their format.

    Raises DataError if it has no maps, two files of the same name, or no file that can be read.
    """
    if (folder / FILE).is_file():
        return opened(folder)
    error = None
    for path in _files(folder, ".npy", f"localisation maps; expected {FILE}, or IRN's or PSA's ID.npy files"):
        try:
            return IrnMaps(folder) if "keys" in _dictionary(path) else PsaMaps(folder)
        except DataError as unreadable:  # scoring names it with all others
            error = error or unreadable
    assert error is not None
    raise error


def _files(folder: Path, suffix: str, what: str) -> list[Path]:
    """Return the files with a suffix, sorted. Raises DataError if there are none, or two of the same name."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    # macOS writes a file ._NAME next to NAME.
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() == suffix and not p.name.startswith("."))
    if not found:
        inside = sorted({p.parent.name for p in folder.glob(f"*/*{suffix}")})
        hint = f"; there are some in its folders {', '.join(inside[:5])}" if inside else ""
        raise DataError(f"{folder}: no {what}{hint}")
    seen: dict[str, Path] = {}
    for path in found:
        other = seen.setdefault(path.stem, path)
        if other != path:
            raise DataError(
                f"{folder}: both {other.name} and {path.name} may be the result of one image; remove one"
            )
    return found


def _present(path: Path) -> Path:
    """Return the path of a file. Raises DataError, with the most similar name, if it is not there."""
    if path.is_file():
        return path
    names = _listed(path.parent)
    place = bisect.bisect_left(names, path.stem)
    similar = place < len(names) and names[place].startswith(path.stem)
    raise DataError(f"{path}: no such file{f'; there is {names[place]}' if similar else ''}")


@functools.lru_cache(maxsize=2)
def _listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _dictionary(path: Path) -> dict[Any, Any]:
    content = load_npy(_present(path))
    if isinstance(content, np.ndarray) and content.dtype == object and content.ndim == 0:
        content = content.item()
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a {type(content).__name__}, expected a dictionary")
    return content


def _names(content: dict[Any, Any]) -> str:
    return ", ".join(map(repr, list(content)[:8])) or "nothing"


def _maps(path: Path, keys: NDArray[np.int64], values: Any) -> ScoreMaps:
    """Return maps (K, H, W) of classes counted from 0; if there are none, map and size may be missing."""
    if not len(keys) and np.ndim(values) != 3:
        return ScoreMaps(np.zeros(0, np.int16), np.zeros((0, 0, 0), np.float32), (0, 0))
    raw = np.asarray(values)
    if raw.dtype.kind not in "biuf":
        raise DataError(f"{path}: its maps are {raw.dtype}, expected numbers")
    scores = raw.astype(np.float32, copy=False)
    if scores.ndim != 3 or len(scores) != len(keys):
        raise DataError(f"{path}: {len(keys)} classes, but maps of shape {scores.shape}")
    if 0 in scores.shape[1:] and len(keys):
        raise DataError(f"{path}: its maps have no pixels: {scores.shape}")
    if not np.isfinite(scores).all():
        raise DataError(f"{path}: its maps are not finite")
    if len(set(keys.tolist())) < len(keys) or (keys < 0).any() or (keys > np.iinfo(np.int16).max - 1).any():
        raise DataError(f"{path}: classes {keys.tolist()}; they must differ, and are counted from 0")
    order = np.argsort(keys)
    height, width = scores.shape[1:]
    return ScoreMaps((keys[order] + 1).astype(np.int16), scores[order], (height, width))
