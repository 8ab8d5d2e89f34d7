"""Chimera: a small generated world in which weak supervision is hard (datasets/chimera/world.py).

It is written to disk in VOC's layout or in COCO's, so that the loaders of the real data sets read it. The same
arguments give the same bytes in every file. Nothing is downloaded.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from seedbed.benchmark.errors import ConfigError, DataError
from seedbed.datasets.base import Dataset, Progress, Split, existing_folder, refuse_options
from seedbed.datasets.chimera.world import CLASSES, Scene, draw_scene, saliency
from seedbed.datasets.coco2014 import CocoDataset
from seedbed.datasets.coco2014.masks import FOLDERS, rasterise
from seedbed.datasets.io.images import palette, write_mask
from seedbed.datasets.voc2012 import LISTS, VocDataset

Layout = Literal["voc", "coco"]
VERSION = 1
"""Increase it whenever the same arguments give other bytes."""
WEAK, VAL = 0.7, 0.2
"""Shares of the images; the rest is `test` (in COCO's layout, which has none, it is added to `weak`)."""
TRAIN = 0.6
"""Share of `weak` that is `train` (VOC's layout; in COCO's the two are the same)."""
CROWD_EVERY = 10
"""In COCO's layout the last beast of every tenth image is a crowd."""
SMALLEST = 20, 48
"""The fewest images and the smallest side for which every split has images and every beast is visible."""
DESCRIPTION = "chimera.json"


def generate(
    out: Path,
    layout: Layout = "voc",
    images: int = 400,
    size: int = 96,
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Write `images` scenes of `size` pixels square to the new folder `out`.

    The folder appears when everything is written. Returns at once if `out` already holds the same Chimera.
    Raises ConfigError if the numbers are too small, DataError if `out` holds something else.
    """
    if images < SMALLEST[0] or size < SMALLEST[1]:
        raise ConfigError(f"Chimera needs at least {SMALLEST[0]} images of at least {SMALLEST[1]} pixels")
    description = {
        "layout": layout,
        "classes": list(CLASSES),
        "images": images,
        "size": size,
        "seed": seed,
        "version": VERSION,
    }
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if out.is_dir() and _description(out, missing={}) == description:
            return
        raise DataError(f"{out}: holds something other than this Chimera; give another folder, or remove it")
    temporary = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        writer = {"voc": _write_voc, "coco": _write_coco}[layout]
        writer(temporary, images, size, seed, progress)
        (temporary / DESCRIPTION).write_text(json.dumps(description, indent=1))
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def contact_sheet(dataset: Dataset, path: Path, count: int = 24) -> None:
    """Write a PNG of `count` images spread over `train`, each beside its mask in VOC's colours."""
    view = dataset.split(Split.TRAIN)
    ids = view.ids[:: max(1, len(view) // count)][:count]
    colours = np.frombuffer(palette(), np.uint8).reshape(256, 3)
    pairs = [np.hstack((view.image(i), colours[view.mask(i)])) for i in ids]
    height, width = (max(pair.shape[axis] for pair in pairs) + 4 for axis in (0, 1))
    columns = 4
    sheet = np.full((-(-len(pairs) // columns) * height, columns * width, 3), 255, np.uint8)
    for number, pair in enumerate(pairs):
        top, left = number // columns * height, number % columns * width
        sheet[top : top + pair.shape[0], left : left + pair.shape[1]] = pair
    Image.fromarray(sheet).save(path)


def split_sizes(images: int) -> tuple[int, int, int]:
    """Return the numbers of images of `weak`, `val` and `test`."""
    weak, val = round(WEAK * images), round(VAL * images)
    return weak, val, images - weak - val


def _write_voc(root: Path, images: int, size: int, seed: int, progress: Progress | None) -> None:
    ids = [f"2012_{index:06d}" for index in range(images)]
    weak, val, _ = split_sizes(images)
    train = round(TRAIN * weak)
    lists = {
        "train_aug": ids[:weak],
        "train": ids[:train],
        "val": ids[weak : weak + val],
        "trainval": [*ids[:train], *ids[weak : weak + val]],
        "test": ids[weak + val :],
    }
    folders = ("JPEGImages", "SegmentationClass", "SegmentationClassAug", "Annotations", "Saliency", LISTS)
    for folder in folders:
        (root / folder).mkdir(parents=True)
    for name, listed in lists.items():
        (root / LISTS / f"{name}.txt").write_text("".join(f"{image_id}\n" for image_id in listed))
    official, augmented, test = set(lists["trainval"]), set(lists["train_aug"]), set(lists["test"])
    for index, image_id in enumerate(ids):
        scene = draw_scene(seed, index, size)
        _write_image(root / "JPEGImages" / f"{image_id}.jpg", scene.image)
        _write_saliency(root / "Saliency" / f"{image_id}.png", scene, seed, index)
        if image_id in official:
            write_mask(root / "SegmentationClass" / f"{image_id}.png", scene.mask)
        if image_id in augmented:
            write_mask(root / "SegmentationClassAug" / f"{image_id}.png", scene.mask)
        if image_id not in test:
            (root / "Annotations" / f"{image_id}.xml").write_text(_xml(image_id, scene))
        if progress is not None:
            progress(index + 1, images)


def _write_coco(root: Path, images: int, size: int, seed: int, progress: Progress | None) -> None:
    weak, _, test = split_sizes(images)
    ranges = dict(zip(FOLDERS, (range(weak + test), range(weak + test, images)), strict=True))
    # COCO's category ids have gaps; the labels must not depend on them.
    categories = [{"id": 3 * n + 2, "name": name, "supercategory": "beast"} for n, name in enumerate(CLASSES)]
    (root / "annotations").mkdir()
    (root / "Saliency").mkdir()
    for folder, indices in ranges.items():
        (root / folder).mkdir()
        entries, annotations = [], []
        for index in indices:
            stem = f"COCO_{folder}_{index:012d}"
            scene = draw_scene(seed, index, size)
            _write_image(root / folder / f"{stem}.jpg", scene.image)
            _write_saliency(root / "Saliency" / f"{stem}.png", scene, seed, index)
            entries.append({"id": index, "file_name": f"{stem}.jpg", "height": size, "width": size})
            for number, label in enumerate(scene.labels):
                crowd = index % CROWD_EVERY == CROWD_EVERY - 1 and number == len(scene.labels) - 1
                visible = scene.instances == number + 1
                annotations.append(
                    {
                        "id": 10 * index + number,
                        "image_id": index,
                        "category_id": categories[label - 1]["id"],
                        "iscrowd": int(crowd),
                        "area": int(visible.sum()),
                        "bbox": _box(visible),
                        "segmentation": _segmentation(
                            visible, 2 if crowd else (index // len(CLASSES) + number) % 3
                        ),
                    }
                )
            if progress is not None:
                progress(index + 1, images)
        content = {"images": entries, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{folder}.json").write_text(json.dumps(content))
    rasterise(root)


def _write_image(path: Path, image: NDArray[np.uint8]) -> None:
    Image.fromarray(image).save(path, quality=95)


def _write_saliency(path: Path, scene: Scene, seed: int, index: int) -> None:
    # The third number keeps this stream of random numbers apart from the scene's.
    Image.fromarray(saliency(np.random.default_rng((seed, index, 1)), scene)).save(path)


def _xml(image_id: str, scene: Scene) -> str:
    height, width = scene.instances.shape
    objects = "".join(
        f"\t<object>\n\t\t<name>{escape(CLASSES[label - 1])}</name>\n\t\t<difficult>0</difficult>\n\t\t<bndbox>"
        f"<xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{left + wide}</xmax><ymax>{top + high}</ymax>"
        "</bndbox>\n\t</object>\n"
        for number, label in enumerate(scene.labels)
        for left, top, wide, high in [_box(scene.instances == number + 1)]
    )
    return (
        f"<annotation>\n\t<filename>{image_id}.jpg</filename>\n\t<segmented>1</segmented>\n"
        f"\t<size><width>{width}</width><height>{height}</height><depth>3</depth></size>\n{objects}</annotation>\n"
    )


def _box(visible: NDArray[np.bool_]) -> list[int]:
    """Return [left, top, width, height] of a bool (H, W) mask in pixels, as COCO."""
    rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
    top, left = int(rows[0]), int(columns[0])
    return [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]


def _segmentation(visible: NDArray[np.bool_], form: int) -> Any:
    """Return a mask bool (H, W) in one of COCO's forms: 0 polygons, 1 compressed RLE, 2 uncompressed RLE."""
    if form == 0:
        return _polygons(visible)
    if form == 1:
        from pycocotools.mask import encode

        coded = encode(np.asfortranarray(visible.astype(np.uint8)))
        return {"size": [int(n) for n in coded["size"]], "counts": coded["counts"].decode("ascii")}
    flat = visible.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat, prepend=False))
    counts = np.diff(np.concatenate(([0], changes, [flat.size])))
    return {"size": list(visible.shape), "counts": counts.tolist()}


def _polygons(visible: NDArray[np.bool_]) -> list[list[float]]:
    """Return the outer outlines of a mask as lists x, y, x, y, … in pixels from the image's corner."""
    from skimage.measure import find_contours

    polygons = []
    for contour in find_contours(np.pad(visible, 1).astype(np.float64), 0.5):
        y, x = (contour - 0.5).T
        # Holes run the other way round and cannot be said in polygons.
        if len(contour) >= 4 and float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])) > 0:
            polygons.append([round(float(v), 2) for point in zip(x, y, strict=True) for v in point])
    return polygons


def _description(root: Path, missing: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    path = root / DESCRIPTION
    try:
        content: Mapping[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        if missing is not None:
            return missing
        raise DataError(f"{path}: no such file; make the data set with `seedbed data generate chimera`") from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); generate the data set again") from None
    return content


class _Chimera:
    name = "chimera"
    official_counts: Mapping[Split, int] | None = None

    def open(self, root: Path, *, saliency: Path | str | None = None, **unknown: object) -> Dataset:
        """Open a generated Chimera of either layout. `saliency` replaces its own saliency maps."""
        refuse_options(unknown, self.name, self.open)
        description = _description(root)
        layout, classes = description.get("layout"), tuple(description.get("classes", ()))
        maps = existing_folder(saliency or root / "Saliency", "the saliency maps")
        if layout == "voc":
            return VocDataset(root, "chimera-voc", classes, maps)
        if layout == "coco":
            return CocoDataset(root, "chimera-coco", saliency=maps)
        raise DataError(f"{root / DESCRIPTION}: unknown layout {layout!r}; generate the data set again")


DATASET = _Chimera()
