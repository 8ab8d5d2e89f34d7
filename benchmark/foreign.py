"""Other people's results: IRN's and PSA's `.npy` dictionaries, and folders of PNG masks.

Their `.npy` files are pickles. They are read by an unpickler that admits numpy arrays and plain values only
(datasets/safe_npy.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmark.errors import DataError
from benchmark.maps import FILE, ScoreMaps, opened
from datasets.files import decode_mask
from datasets.safe_npy import load_npy


class MapSource(Protocol):
    """Localisation maps by image id. Must be picklable."""

    def read(self, image_id: str) -> ScoreMaps:
        """Return the maps of one image. Raises DataError where they are missing or broken."""
        ...


class MaskSource(Protocol):
    """Masks by image id. Must be picklable."""

    def read(self, image_id: str) -> NDArray[np.uint8]:
        """Return labels uint8 (H, W). Raises DataError where the mask is missing or broken."""
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
        keys = np.asarray(content["keys"]).astype(np.int64).reshape(-1)
        return _maps(path, keys, np.asarray(content["high_res"], np.float32))


@dataclass(frozen=True)
class PsaMaps:
    """PSA's files `ID.npy`: a dictionary from class, counted from 0, to its full-size map."""

    folder: Path

    def read(self, image_id: str) -> ScoreMaps:
        """Return the maps."""
        path = self.folder / f"{image_id}.npy"
        content = _dictionary(path)
        if not content or not all(isinstance(key, int | np.integer) for key in content):
            raise DataError(f"{path}: not a PSA dictionary; expected whole numbers, it has {_names(content)}")
        shapes = {np.shape(content[key]) for key in content}
        if len(shapes) != 1:
            raise DataError(f"{path}: its maps have different sizes: {sorted(shapes)}")
        keys = np.array(sorted(content), np.int64)
        return _maps(path, keys, np.stack([np.asarray(content[key], np.float32) for key in sorted(content)]))


@dataclass(frozen=True)
class PngMasks:
    """Masks `ID.png`, palette or 8-bit grey; 255 is read as background."""

    folder: Path

    def read(self, image_id: str) -> NDArray[np.uint8]:
        """Return the labels."""
        return decode_mask(self.folder / f"{image_id}.png")


def open_maps(folder: Path) -> MapSource:
    """Return the maps in a folder, whatever their format. Raises DataError for a folder without maps."""
    if (folder / FILE).is_file():
        return opened(folder)
    first = min(folder.glob("*.npy"), default=None)
    if first is None:
        raise DataError(f"{folder}: no localisation maps; expected {FILE}, or IRN's or PSA's ID.npy files")
    return IrnMaps(folder) if "keys" in _dictionary(first) else PsaMaps(folder)


def _dictionary(path: Path) -> dict[Any, Any]:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    content = load_npy(path)
    if isinstance(content, np.ndarray) and content.dtype == object and content.ndim == 0:
        content = content.item()
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a {type(content).__name__}, expected a dictionary")
    return content


def _names(content: dict[Any, Any]) -> str:
    return ", ".join(map(str, list(content)[:8])) or "nothing"


def _maps(path: Path, keys: NDArray[np.int64], scores: NDArray[np.float32]) -> ScoreMaps:
    if scores.ndim != 3 or len(scores) != len(keys):
        raise DataError(f"{path}: {len(keys)} classes, but maps of shape {scores.shape}")
    if not np.isfinite(scores).all():
        raise DataError(f"{path}: its maps are not finite")
    if len(set(keys.tolist())) < len(keys) or (keys < 0).any():
        raise DataError(f"{path}: classes {keys.tolist()}; they must differ, and are counted from 0")
    order = np.argsort(keys)
    height, width = scores.shape[1:]
    return ScoreMaps((keys[order] + 1).astype(np.int16), scores[order], (height, width))
