"""Chimera, the generated data set: written in the VOC or the COCO layout, read by the same loaders as they are.

`chimera.json` at the root says which layout, how many images, their size, and the seed. The world itself is in
chimera_world.py.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from benchmark.errors import ConfigError, DataError
from datasets.base import Dataset, Split
from datasets.chimera_world import CLASSES, Scene, draw_scene, saliency
from datasets.files import palette, write_mask
from datasets.voc2012 import VocDataset

VERSION = 1
"""Raised whenever the same arguments give other pixels."""
DESCRIPTION = "chimera.json"
Progress = Callable[[int, int], None]
Layout = Literal["voc", "coco"]


def split_sizes(images: int) -> dict[Split, int]:
    """Return the images of each split: 70 % weak (of them the first 60 % train), 20 % val, the rest test."""
    weak, val = round(0.7 * images), round(0.2 * images)
    return {Split.WEAK: weak, Split.TRAIN: round(0.6 * weak), Split.VAL: val, Split.TEST: images - weak - val}


def generate(
    out: Path, layout: Layout, images: int, size: int, seed: int, progress: Progress | None = None
) -> None:
    """Write a Chimera to the folder `out`; the same arguments give the same bytes in every file.

    `images` is the number in all splits together, `size` the side in pixels. `out` appears by one rename, so a
    killed generation leaves nothing half done. An `out` that holds this very Chimera is left as it is; raises
    ConfigError where it holds anything else.
    """
    description = {
        "layout": layout,
        "classes": list(CLASSES),
        "images": images,
        "size": size,
        "seed": seed,
        "version": VERSION,
    }
    if out.exists() and any(out.iterdir()):
        if (out / DESCRIPTION).is_file() and json.loads((out / DESCRIPTION).read_text()) == description:
            return
        raise ConfigError(f"{out}: is not empty and holds something else; choose another --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        writer = _VocWriter(temporary) if layout == "voc" else _CocoWriter(temporary)
        for index in range(images):
            scene = draw_scene(seed, index, size)
            writer.write(index, scene, saliency(scene, seed, index), _splits_of(index, images))
            if progress is not None:
                progress(index + 1, images)
        writer.finish()
        (temporary / DESCRIPTION).write_text(json.dumps(description, indent=1))
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _splits_of(index: int, images: int) -> list[Split]:
    sizes = split_sizes(images)
    if index < sizes[Split.WEAK]:
        return [Split.WEAK, Split.TRAIN] if index < sizes[Split.TRAIN] else [Split.WEAK]
    return [Split.VAL] if index < sizes[Split.WEAK] + sizes[Split.VAL] else [Split.TEST]


class _VocWriter:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.lists: dict[str, list[str]] = {name: [] for name in ("train", "train_aug", "val", "test", "trainval")}
        for name in ("JPEGImages", "SegmentationClass", "SegmentationClassAug", "Annotations", "Saliency"):
            (root / name).mkdir(parents=True)
        (root / "ImageSets" / "Segmentation").mkdir(parents=True)

    def write(self, index: int, scene: Scene, salient: np.ndarray, splits: list[Split]) -> None:
        image_id = f"chimera_{index:06d}"
        Image.fromarray(scene.image).save(self.root / "JPEGImages" / f"{image_id}.jpg", quality=95)
        Image.fromarray(salient).save(self.root / "Saliency" / f"{image_id}.png")
        names = {Split.WEAK: ["train_aug"], Split.TRAIN: ["train", "trainval"], Split.VAL: ["val", "trainval"]}
        for split in splits:
            for name in names.get(split, ["test"]):
                self.lists[name].append(image_id)
        if Split.TEST in splits:
            return
        official = Split.TRAIN in splits or Split.VAL in splits
        folder = "SegmentationClass" if official else "SegmentationClassAug"
        write_mask(self.root / folder / f"{image_id}.png", scene.mask)
        (self.root / "Annotations" / f"{image_id}.xml").write_text(_xml(image_id, scene))

    def finish(self) -> None:
        for name, ids in self.lists.items():
            (self.root / "ImageSets" / "Segmentation" / f"{name}.txt").write_text("".join(f"{i}\n" for i in ids))


def _xml(image_id: str, scene: Scene) -> str:
    height, width = scene.mask.shape
    objects = []
    for label, visible in scene.animals:
        rows, columns = np.nonzero(visible)
        box = {
            "xmin": columns.min() + 1,
            "ymin": rows.min() + 1,
            "xmax": columns.max() + 1,
            "ymax": rows.max() + 1,
        }
        edges = "".join(f"<{name}>{value}</{name}>" for name, value in box.items())
        objects.append(
            f"<object><name>{CLASSES[label - 1]}</name><difficult>0</difficult><bndbox>{edges}</bndbox></object>"
        )
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>{image_id}.jpg</filename>{size}{''.join(objects)}</annotation>\n"


class _CocoWriter:
    """Writes the JSON with polygons, both forms of RLE, and a crowd now and then, as COCO's has them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.content: dict[str, dict[str, list[dict[str, Any]]]] = {}
        categories = [
            {"id": 10 * (i + 1), "name": name, "supercategory": "animal"} for i, name in enumerate(CLASSES)
        ]
        for part in ("train2014", "val2014"):
            (root / part).mkdir(parents=True)
            (root / "Saliency" / part).mkdir(parents=True)
            self.content[part] = {"images": [], "annotations": [], "categories": categories}
        (root / "annotations").mkdir()

    def write(self, index: int, scene: Scene, salient: np.ndarray, splits: list[Split]) -> None:
        if Split.TEST in splits:
            return
        part = "val2014" if Split.VAL in splits else "train2014"
        stem = f"COCO_{part}_{index:012d}"
        height, width = scene.mask.shape
        Image.fromarray(scene.image).save(self.root / part / f"{stem}.jpg", quality=95)
        Image.fromarray(salient).save(self.root / "Saliency" / part / f"{stem}.png")
        content = self.content[part]
        content["images"].append({"id": index, "file_name": f"{stem}.jpg", "height": height, "width": width})
        for label, visible in scene.animals:
            number = len(content["annotations"])
            crowd = number % 40 == 39
            form = "counts" if crowd else ("polygon", "counts", "compressed")[number % 3]
            rows, columns = np.nonzero(visible)
            content["annotations"].append(
                {
                    "id": number,
                    "image_id": index,
                    "category_id": 10 * label,
                    "segmentation": _segmentation(visible, form),
                    "area": int(visible.sum()),
                    "bbox": [int(v) for v in (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)],
                    "iscrowd": int(crowd),
                }
            )

    def finish(self) -> None:
        from datasets.coco2014 import rasterise

        for part, content in self.content.items():
            (self.root / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
        rasterise(self.root)


def _segmentation(visible: np.ndarray, form: str) -> Any:
    if form == "polygon":
        from skimage.measure import find_contours

        contours = find_contours(np.pad(visible, 1).astype(float), 0.5)
        # Contours are (row, column) of pixel centres in the padded mask; COCO's points are (x, y) of corners.
        return [(c[:, ::-1] - 0.5).round(2).reshape(-1).tolist() for c in contours if len(c) >= 4]
    if form == "compressed":
        from pycocotools import mask as coco_mask

        encoded = coco_mask.encode(np.asfortranarray(visible.astype(np.uint8)))
        return {"size": list(encoded["size"]), "counts": encoded["counts"].decode()}
    flat = visible.astype(np.int8).ravel(order="F")
    changes = np.flatnonzero(np.diff(np.concatenate([[0], flat, [2]])))
    return {"size": list(visible.shape), "counts": np.diff(np.concatenate([[0], changes])).tolist()}


def contact_sheet(data: Dataset, path: Path, count: int = 24, columns: int = 8) -> None:
    """Write a PNG of `count` images of `train`, each above its mask in VOC's palette."""
    view = data.split(Split.TRAIN)
    colours = np.frombuffer(palette(), np.uint8).reshape(256, 3)
    cells = [np.concatenate([view.image(i), colours[view.mask(i)]]) for i in view.ids[:count]]
    rows = [np.concatenate(cells[start : start + columns], axis=1) for start in range(0, len(cells), columns)]
    Image.fromarray(np.concatenate([row for row in rows if row.shape == rows[0].shape])).save(path)


@dataclass(frozen=True)
class Chimera:
    """Opens a Chimera; it knows its layout by itself."""

    name: str = "chimera"
    official_counts: Mapping[Split, int] | None = None

    def open(self, root: Path, saliency: bool = False) -> Dataset:
        """Open the Chimera in `root`, with its saliency maps if asked to. Raises DataError where there is none."""
        try:
            description = json.loads((root / DESCRIPTION).read_text())
        except (OSError, ValueError):
            raise DataError(
                f"{root / DESCRIPTION}: missing or broken; make one: seedbed data generate chimera --out {root}"
            ) from None
        maps = root / "Saliency" if saliency else None
        if description["layout"] == "coco":
            from datasets.coco2014 import CocoLayout

            return CocoLayout(root, "chimera-coco", saliency=maps)
        return VocDataset(root, "chimera-voc", tuple(description["classes"]), saliency=maps)


DATASET = Chimera()
