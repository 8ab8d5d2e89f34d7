"""Makes VOC's `train_aug` from the official SBD release: SegmentationClassAug/ and train_aug.txt.

Hariharan et al., "Semantic Contours from Inverse Detectors", ICCV 2011. The release holds `dataset/cls/ID.mat`
and the lists `dataset/train.txt` and `dataset/val.txt` (other splits than VOC's).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seedbed.benchmark.errors import DataError
from seedbed.benchmark.files import atomic, write_text
from seedbed.datasets.base import Progress
from seedbed.datasets.io.images import decode_mask, write_mask
from seedbed.datasets.voc2012 import AUGMENTED, LISTS, UNFINISHED, find_root, read_list


def merge_sbd(sbd: Path, voc_root: Path, progress: Progress | None = None) -> int:
    """Write the masks and the list of `train_aug`: SBD's images and VOC's `train`, less VOC's `val`.

    VOC's own mask is used if there is one, else SBD's. Returns the number of images (10,582 for the
    official releases). Masks that are there already are kept, so an interrupted call is gone on with. Raises
    DataError if a file is missing or broken, or another train_aug.txt is there.
    """
    root, dataset = find_root(voc_root), _find_dataset(sbd)
    train, val = (_ids(root / LISTS / f"{name}.txt") for name in ("train", "val"))
    ids = sorted({*_ids(dataset / "train.txt"), *_ids(dataset / "val.txt"), *train} - {*val})
    listed = root / LISTS / "train_aug.txt"
    if listed.exists() and sorted(read_list(listed)) != ids:
        raise DataError(f"{listed}: is another list than SBD and VOC give; move it away to have it made anew")
    folder = root / AUGMENTED
    folder.mkdir(exist_ok=True)
    # Without a list, the masks in the folder are the list: half of them must not pass for all.
    (folder / UNFINISHED).touch()
    for done, image_id in enumerate(ids, start=1):
        target = folder / f"{image_id}.png"
        if not target.exists():
            official = root / "SegmentationClass" / f"{image_id}.png"
            mask = (
                decode_mask(official) if official.exists() else read_sbd_mask(dataset / "cls" / f"{image_id}.mat")
            )
            with atomic(target, flush=False) as temporary:
                write_mask(temporary, mask)
        if progress is not None:
            progress(done, len(ids))
    write_text(listed, "".join(f"{image_id}\n" for image_id in ids))
    (folder / UNFINISHED).unlink()
    return len(ids)


def read_sbd_mask(path: Path) -> NDArray[np.uint8]:
    """Return the class labels uint8 (H, W) of an SBD .mat file. Raises DataError if it is missing or broken."""
    from scipy.io import loadmat

    if not path.exists():
        raise DataError(f"{path}: no such file; fetch SBD's benchmark.tgz")
    try:
        mask = np.asarray(loadmat(path)["GTcls"][0]["Segmentation"][0])
    except Exception as error:  # scipy raises many kinds for a broken file
        raise DataError(f"{path}: not a readable SBD file ({error}); fetch it again") from None
    if mask.ndim != 2 or mask.min() < 0 or mask.max() > 255:
        raise DataError(f"{path}: expected labels (H, W) in 0..255, found {mask.shape}; fetch it again")
    return mask.astype(np.uint8)


def _find_dataset(sbd: Path) -> Path:
    for place in (sbd, sbd / "dataset", sbd / "benchmark_RELEASE" / "dataset"):
        if (place / "cls").is_dir():
            return place
    raise DataError(f"{sbd}: no SBD release here (no folder dataset/cls)")


def _ids(path: Path) -> tuple[str, ...]:
    if not path.exists():
        raise DataError(f"{path}: no such list; fetch it with the official release")
    return read_list(path)
