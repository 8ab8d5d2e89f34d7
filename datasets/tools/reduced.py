"""Makes a copy of a data set in the layout of VOC with smaller images, for sweeps on machines without a GPU.

Everything is then measured on the small masks, so numbers of a copy are not those of the data set, and its digest
is another. The tags are those of the full images, even if an object is lost on the way.
"""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.files import atomic, write_text
from seedbed.datasets.base import Dataset, Progress, Split
from seedbed.datasets.io.images import decode_grey, decode_image, decode_mask, visible_files, write_mask
from seedbed.datasets.subset import ClassSubset
from seedbed.datasets.voc2012 import LISTS, TAG_FILE_NAMES, VocDataset

LIST_NAMES = {Split.TRAIN: "train", Split.WEAK: "train_aug", Split.VAL: "val", Split.TEST: "test"}


def reduce(data: Dataset, out: Path, long_side: int, progress: Progress | None = None) -> int:
    """Write `data` to `out` with images whose longer side is at most `long_side` pixels; return their number.

    Images are averaged down (Lanczos), masks and saliency take the nearest pixel. What is there already is kept,
    so it continues an interrupted call. Raises ConfigError for another layout than VOC's and if `out` holds
    another copy, DataError if a file of `data` is missing or broken.
    """
    if isinstance(data, ClassSubset):
        raise ConfigError(f"{data.display_name}: reduce the whole data set, and choose classes of the copy")
    if not isinstance(data, VocDataset):
        raise ConfigError(f"{data.display_name}: only data sets in the layout of VOC can be reduced")
    note = out / "reduced.txt"
    description = f"{data.name}, longer side at most {long_side} pixels, from data of digest {data.digest()}\n"
    if out.exists() and (not note.exists() or note.read_text("utf-8") != description):
        raise ConfigError(f"{out}: holds something other than this copy; give a folder that does not exist yet")
    write_text(note, description)
    lists = {split: data.ids(split) for split in LIST_NAMES if data.ids(split)}
    ids = list(dict.fromkeys(image_id for listed in lists.values() for image_id in listed))
    for done, image_id in enumerate(ids, start=1):
        _reduce_image(data, out, image_id, long_side)
        if progress is not None:
            progress(done, len(ids))
    hidden = {*data.ids(Split.TEST)}
    with atomic(out / TAG_FILE_NAMES[0]) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "classes"])
        for image_id in ids:
            if image_id not in hidden:
                names = (data.classes[label - 1] for label in data.tags(image_id))
                writer.writerow([image_id, " ".join(names)])
    # What tells a generated world from VOC.
    for name in visible_files(data.root, {".json"}):
        shutil.copyfile(data.root / name, out / name)
    # `train` last: an unfinished copy has an empty split, which is refused.
    for split, listed in reversed(lists.items()):
        write_text(out / LISTS / f"{LIST_NAMES[split]}.txt", "".join(f"{image_id}\n" for image_id in listed))
    return len(ids)


def _reduce_image(data: VocDataset, out: Path, image_id: str, long_side: int) -> None:
    target = out / "JPEGImages" / f"{image_id}.jpg"
    if target.exists():
        return
    image = decode_image(data.image_path(image_id))
    height, width = image.shape[:2]
    factor = min(1.0, long_side / max(height, width))
    size = max(1, round(width * factor)), max(1, round(height * factor))
    if (source := data.mask_path(image_id)).exists():
        small = np.asarray(Image.fromarray(decode_mask(source)).resize(size, Image.Resampling.NEAREST))
        with atomic(out / "SegmentationClass" / f"{image_id}.png", flush=False) as temporary:
            write_mask(temporary, small)
    saliency = data.saliency_path(image_id)
    if saliency is not None:
        grey = Image.fromarray(decode_grey(saliency))
        with atomic(out / "Saliency" / f"{image_id}.png", flush=False) as temporary:
            grey.resize(size, Image.Resampling.NEAREST).save(temporary, format="PNG")
    # Last, so that an image that is there has its mask too.
    with atomic(target, flush=False) as temporary:
        picture = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
        picture.save(temporary, format="JPEG", quality=95)
