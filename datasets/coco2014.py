"""MS COCO 2014 with its 80 things classes; masks are rasterised once from the annotations.

Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014. Layout (`seedbed data prepare coco` makes the
part in brackets):

    train2014/STEM.jpg  val2014/STEM.jpg    annotations/instances_{train,val}2014.json
    (SegmentationMasks/{train,val}2014/STEM.png, manifest.json, labels.json)

Rules of rasterising: labels 1..C go by ascending category id; an object is drawn over all larger ones (by the area
of its mask in pixels; of two equal ones the higher annotation id is on top); pixels of a crowd that no single
object covers become 255, or stay background with `crowd="background"`. Objects without a polygon of three points
are not drawn. Tags are the categories of all annotations of an image, crowds included.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmark.errors import ConfigError, DataError
from benchmark.parallel import map_in_order
from datasets.base import (
    IGNORE_INDEX,
    Dataset,
    Problem,
    Progress,
    Split,
    existing_folder,
    refuse_options,
    tune_ids,
)
from datasets.digest import file_digest
from datasets.files import atomic, write_mask
from datasets.voc2012 import count_notices

FOLDERS = ("train2014", "val2014")
MASKS = "SegmentationMasks"
VERSION = 1
"""Raised whenever the same annotations give other masks."""
Crowd = Literal["ignore", "background"]


class CocoDataset(Dataset):
    """A data set in the layout of COCO 2014: `weak` and `train` are train2014, `val` is val2014, no `test`.

    Classes, ids and tags are read from the `labels.json` of `rasterise`; COCO's own JSON takes many seconds.
    Raises DataError where the masks were not made, or of other annotations or by other rules.
    """

    tag_source = "annotations/instances_*.json, crowds included"

    def __init__(
        self,
        root: Path,
        name: str,
        saliency: Path | None = None,
        masks: Path | None = None,
        crowd: Crowd = "ignore",
        official_counts: Mapping[Split, int] | None = None,
    ) -> None:
        self.root, self.name = root, name
        self._masks, self._saliency = masks or root / MASKS, saliency
        _require_current(root, self._masks, crowd)
        content = _read_json(self._masks / "labels.json")
        self.classes = tuple(content["classes"])
        self._images: dict[str, dict[str, list[int]]] = content["images"]
        self.mask_source = f"{self._masks.name}/ rasterised from the annotations, crowds: {crowd}"
        self.notices = tuple(count_notices(self, official_counts))

    def ids(self, split: Split) -> tuple[str, ...]:
        if split is Split.TUNE:
            return self._tune
        if split is Split.TEST:
            return ()
        return tuple(self._images[FOLDERS[split is Split.VAL]])

    def image_path(self, image_id: str) -> Path:
        return self.root / self._folder(image_id) / f"{image_id}.jpg"

    def mask_path(self, image_id: str) -> Path:
        return self._masks / self._folder(image_id) / f"{image_id}.png"

    def tags(self, image_id: str) -> tuple[int, ...]:
        return tuple(self._images[self._folder(image_id)][image_id])

    def saliency_path(self, image_id: str) -> Path | None:
        return None if self._saliency is None else self._saliency / f"{image_id}.png"

    def label_files(self) -> tuple[Path, ...]:
        return (*(annotations_path(self.root, folder) for folder in FOLDERS), self._masks / "labels.json")

    def layout_problems(self) -> Iterator[Problem]:
        yield from ()  # annotations were checked when the masks were made

    def list_file(self, split: Split) -> Path:
        return annotations_path(self.root, FOLDERS[split is Split.VAL])

    @cached_property
    def _tune(self) -> tuple[str, ...]:
        return tune_ids(self.ids(Split.TRAIN))

    def _folder(self, image_id: str) -> str:
        for folder in FOLDERS:
            if image_id in self._images[folder]:
                return folder
        raise DataError(f"{self.root}: {self.name} has no image {image_id!r}")


def annotations_path(root: Path, folder: str) -> Path:
    """Return the annotations of `train2014` or `val2014`."""
    return root / "annotations" / f"instances_{folder}.json"


def rasterise(
    root: Path,
    masks: Path | None = None,
    *,
    crowd: Crowd = "ignore",
    processes: int = 1,
    progress: Progress | None = None,
) -> int:
    """Write the masks of all images as palette PNGs below `masks` (default ROOT/SegmentationMasks).

    Returns the number of masks. A call that finds masks of the same annotations and rules draws only the missing
    ones; masks of others are replaced. Raises DataError where an annotation is broken, and where `masks` holds
    files that were not made here.
    """
    if crowd not in ("ignore", "background"):
        raise ConfigError(f"unknown rule for crowds {crowd!r}. Valid: background, ignore")
    masks = masks or root / MASKS
    manifest = {"rules": _rules(crowd), "annotations": {f: _stamp(annotations_path(root, f)) for f in FOLDERS}}
    if not _same(_read_manifest(masks), manifest):
        _clear(masks)
    _write_json(masks / "manifest.json", {**manifest, "complete": False})
    annotations = [_read_annotations(annotations_path(root, folder), folder) for folder in FOLDERS]
    classes = annotations[0].classes
    if annotations[1].classes != classes:
        raise DataError(f"{annotations[1].path}: its categories are not those of {annotations[0].path.name}")
    jobs = [job for part in annotations for job in part.jobs(masks, crowd)]
    open_jobs = [job for job in jobs if not job.target.exists()]
    for folder in FOLDERS:
        (masks / folder).mkdir(parents=True, exist_ok=True)
    done = len(jobs) - len(open_jobs)
    for _ in map_in_order(_write, open_jobs, processes):
        done += 1
        if progress is not None:
            progress(done, len(jobs))
    tags = {folder: part.tags for folder, part in zip(FOLDERS, annotations, strict=True)}
    _write_json(masks / "labels.json", {"classes": classes, "images": tags})
    _write_json(masks / "manifest.json", {**manifest, "complete": True, "masks": len(jobs)})
    return len(jobs)


@dataclass(frozen=True)
class Instance:
    """One annotation of an image."""

    annotation: int
    label: int
    crowd: bool
    segmentation: Any
    """Polygons [[x, y, …], …], or RLE {"size": [H, W], "counts": list or str}."""


def draw_mask(height: int, width: int, instances: list[Instance], crowd: Crowd, source: Path) -> NDArray[np.uint8]:
    """Return labels uint8 (H, W) of an image's instances by the rules above. DataError names `source`."""
    shapes = [(instance, _decode(instance, height, width, source)) for instance in instances]
    mask = np.zeros((height, width), np.uint8)
    single = [(i, shape) for i, shape in shapes if not i.crowd]
    for instance, shape in sorted(single, key=lambda s: (-int(s[1].sum()), s[0].annotation)):
        mask[shape] = instance.label
    if crowd == "ignore":
        for instance, shape in shapes:
            if instance.crowd:
                mask[shape & (mask == 0)] = IGNORE_INDEX
    return mask


@dataclass(frozen=True)
class _Job:
    target: Path
    height: int
    width: int
    instances: list[Instance]
    crowd: Crowd
    source: Path


def _write(job: _Job) -> None:
    mask = draw_mask(job.height, job.width, job.instances, job.crowd, job.source)
    with atomic(job.target, flush=False) as temporary:
        write_mask(temporary, mask)


def _decode(instance: Instance, height: int, width: int, source: Path) -> NDArray[np.bool_]:
    from pycocotools import mask as coco

    coded = instance.segmentation
    try:
        if isinstance(coded, list):
            # pycocotools would take four numbers for a box.
            polygons = [polygon for polygon in coded if len(polygon) >= 6]
            if not polygons:
                return np.zeros((height, width), bool)
            coded = coco.merge(coco.frPyObjects(polygons, height, width))
        elif list(coded["size"]) != [height, width]:
            raise ValueError(f"its RLE is of size {coded['size']}, the image {[height, width]}")
        elif isinstance(coded["counts"], list):
            if sum(coded["counts"]) != height * width or min(coded["counts"]) < 0:
                raise ValueError("its RLE does not fill the image")
            coded = coco.frPyObjects(coded, height, width)
        return np.asarray(coco.decode(coded), bool)
    except Exception as error:  # pycocotools raises plain Exceptions
        raise DataError(f"{source}: annotation {instance.annotation} cannot be drawn ({error})") from None


@dataclass(frozen=True)
class _Annotations:
    path: Path
    folder: str
    classes: list[str]
    images: dict[int, dict[str, Any]]
    instances: dict[int, list[Instance]]

    @property
    def tags(self) -> dict[str, list[int]]:
        """Labels by file stem, in the order of the file names."""
        return {stem: sorted({i.label for i in self.instances[n]}) for stem, n in self._stems()}

    def jobs(self, masks: Path, crowd: Crowd) -> Iterator[_Job]:
        for stem, number in self._stems():
            image = self.images[number]
            target = masks / self.folder / f"{stem}.png"
            yield _Job(target, image["height"], image["width"], self.instances[number], crowd, self.path)

    def _stems(self) -> list[tuple[str, int]]:
        return sorted((Path(image["file_name"]).stem, number) for number, image in self.images.items())


def _read_annotations(path: Path, folder: str) -> _Annotations:
    content = _read_json(path)
    try:
        categories = sorted(content["categories"], key=lambda c: int(c["id"]))
        labels = {category["id"]: label for label, category in enumerate(categories, start=1)}
        images = {image["id"]: image for image in content["images"]}
        instances: dict[int, list[Instance]] = {number: [] for number in images}
        for name, count in Counter(image["file_name"] for image in content["images"]).items():
            if count > 1:
                raise DataError(f"{path}: lists the image {name} {count} times")
        for a in content["annotations"]:
            for what, key, known in (("image", "image_id", images), ("category", "category_id", labels)):
                if a[key] not in known:
                    raise DataError(f"{path}: annotation {a['id']} is of an unknown {what} {a[key]}")
            instance = Instance(a["id"], labels[a["category_id"]], bool(a.get("iscrowd")), a["segmentation"])
            instances[a["image_id"]].append(instance)
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: not COCO annotations (at {error}); fetch it again") from None
    return _Annotations(path, folder, [c["name"] for c in categories], images, instances)


def _rules(crowd: Crowd) -> dict[str, Any]:
    return {"version": VERSION, "crowd": crowd, "overlap": "the smaller object is on top"}


def _stamp(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise DataError(f"{path}: no such file; fetch COCO's annotations_trainval2014.zip")
    return {"sha256": file_digest(path), "bytes": path.stat().st_size}


def _same(held: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> bool:
    return held is not None and all(held.get(key) == wanted[key] for key in ("rules", "annotations"))


def _require_current(root: Path, masks: Path, crowd: Crowd) -> None:
    if crowd not in ("ignore", "background"):
        raise ConfigError(f"unknown rule for crowds {crowd!r}. Valid: background, ignore")
    command = f"seedbed data prepare coco --root {root}"
    command += "" if masks == root / MASKS else f" --masks {masks}"
    command += "" if crowd == "ignore" else f" --crowd {crowd}"
    held = _read_manifest(masks)
    if held is None or not held.get("complete"):
        raise DataError(f"{masks}: the masks are not made yet; run: {command}")
    annotations = {folder: _stamp(annotations_path(root, folder)) for folder in FOLDERS}
    if not _same(held, {"rules": _rules(crowd), "annotations": annotations}):
        raise DataError(f"{masks}: the masks are of other annotations or rules; run: {command}")


def _clear(masks: Path) -> None:
    """Remove the masks of an earlier manifest. Raises DataError where there are files and no manifest."""
    files = [path for folder in FOLDERS for path in (masks / folder).glob("*.png")]
    if files and not (masks / "manifest.json").exists():
        raise DataError(f"{masks}: holds masks that were not made here; give another folder with --masks")
    for path in files:
        path.unlink()


def _read_manifest(masks: Path) -> Mapping[str, Any] | None:
    path = masks / "manifest.json"
    return _read_json(path) if path.exists() else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); fetch or make it again") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a JSON object; fetch or make it again")
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content))


class _Coco2014:
    name = "coco2014"
    official_counts: Mapping[Split, int] | None = {Split.TRAIN: 82783, Split.WEAK: 82783, Split.VAL: 40504}

    def open(
        self,
        root: Path,
        *,
        saliency: Path | str | None = None,
        masks: Path | str | None = None,
        crowd: Crowd = "ignore",
        **unknown: object,
    ) -> Dataset:
        """Open the official layout at `root`, with masks made by `rasterise`.

        `saliency` is a folder of grey maps STEM.png, `masks` the folder of the masks, `crowd` the rule by which
        they were made.
        """
        refuse_options(unknown, self.name, self.open)
        return CocoDataset(
            root,
            self.name,
            existing_folder(saliency, "the saliency maps"),
            None if masks is None else Path(masks),
            crowd,
            self.official_counts,
        )


DATASET = _Coco2014()
