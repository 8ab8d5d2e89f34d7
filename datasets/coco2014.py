"""MS COCO 2014: `annotations/instances_{train,val}2014.json`, `train2014/`, `val2014/`.

`weak` and `train` are train2014, `val` is val2014, there is no `test`. Classes are the JSON's categories in the
order of their ids, as labels 1..80. Tags are the categories of all annotations of an image, crowds included;
images without annotations stay, as background.

Masks are rasterised once from the JSON (`seedbed data prepare coco`): smaller objects lie on top of larger ones,
and crowd regions that no object covers are 255, or background where `crowd="background"`.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmark.errors import ConfigError, DataError
from benchmark.parallel import map_in_order
from datasets.base import IGNORE_INDEX, Dataset, Problem, Split, tune_ids
from datasets.files import write_mask

PARTS = ("train2014", "val2014")
OFFICIAL_COUNTS = {Split.WEAK: 82_783, Split.TRAIN: 82_783, Split.VAL: 40_504}
MASKS = "SegmentationMasks"
MANIFEST = "manifest.json"
RULES_VERSION = 1
"""Raised whenever the same JSON gives other masks."""
Crowd = Literal["ignore", "background"]


class CocoLayout(Dataset):
    """A data set in the COCO 2014 layout. Raises DataError where the JSON or the rasterised masks are missing."""

    def __init__(
        self,
        root: Path,
        name: str,
        official_counts: Mapping[Split, int] | None = None,
        masks: Path | None = None,
        crowd: Crowd = "ignore",
        saliency: Path | None = None,
    ) -> None:
        self.root, self.name, self._saliency = root, name, saliency
        self.masks = masks or root / MASKS
        self._contents = {part: read_json(_json_path(root, part)) for part in PARTS}
        self._categories = _categories(self._contents["train2014"])
        self.classes = tuple(name for _, name in sorted(self._categories.values()))
        self._sizes: dict[str, tuple[int, int]] = {}
        self._tags: dict[str, tuple[int, ...]] = {}
        parts = {}
        for part, content in self._contents.items():
            labels: dict[int, set[int]] = defaultdict(set)
            for annotation in content["annotations"]:
                labels[annotation["image_id"]].add(self._label(annotation["category_id"], part))
            for image in content["images"]:
                stem = Path(image["file_name"]).stem
                self._tags[stem] = tuple(sorted(labels[image["id"]]))
            parts[part] = tuple(Path(image["file_name"]).stem for image in content["images"])
        self._parts = {stem: part for part, stems in parts.items() for stem in stems}
        self._splits = {
            Split.WEAK: parts["train2014"],
            Split.TUNE: tune_ids(parts["train2014"]),
            Split.TRAIN: parts["train2014"],
            Split.VAL: parts["val2014"],
            Split.TEST: (),
        }
        self.tag_source = "annotations of the JSON, crowds included"
        self.mask_source = f"{self.masks}, rasterised from the JSON, crowds {crowd}"
        self._crowd: Crowd = crowd
        self.notices = tuple(
            f"{root}: not the official {name}: {split} has {len(self.ids(split)):,} of {count:,} images"
            for split, count in (official_counts or {}).items()
            if len(self.ids(split)) != count
        )
        check_manifest(root, self.masks, crowd)

    def _label(self, category: int, part: str) -> int:
        if category not in self._categories:
            raise DataError(f"{_json_path(self.root, part)}: annotations of the unknown category {category}")
        return self._categories[category][0]

    def ids(self, split: Split) -> tuple[str, ...]:
        return self._splits[split]

    def image_path(self, image_id: str) -> Path:
        return self.root / self._parts[image_id] / f"{image_id}.jpg"

    def mask_path(self, image_id: str) -> Path:
        return self.masks / self._parts[image_id] / f"{image_id}.png"

    def saliency_path(self, image_id: str) -> Path | None:
        return None if self._saliency is None else self._saliency / self._parts[image_id] / f"{image_id}.png"

    def tags(self, image_id: str) -> tuple[int, ...]:
        return self._tags[image_id]

    def label_files(self) -> tuple[Path, ...]:
        return tuple(_json_path(self.root, part) for part in PARTS)

    def layout_problems(self) -> Iterator[Problem]:
        for part, content in self._contents.items():
            path, seen = _json_path(self.root, part), set()
            known = {image["id"] for image in content["images"]}
            for image in content["images"]:
                if image["file_name"] in seen:
                    yield Problem("error", path, f"the image {image['file_name']} stands there twice")
                seen.add(image["file_name"])
            for annotation in content["annotations"]:
                if annotation["image_id"] not in known:
                    message = f"annotation {annotation['id']} is of the unknown image {annotation['image_id']}"
                    yield Problem("error", path, message)


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of an instances file. Raises DataError where it is missing or broken."""
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; --root must be the folder that holds annotations/") from None
    except ValueError as error:
        raise DataError(f"{path}: not readable as JSON ({error})") from None
    missing = {"images", "annotations", "categories"} - content.keys()
    if missing:
        raise DataError(f"{path}: has no {', '.join(sorted(missing))}")
    return content


def _json_path(root: Path, part: str) -> Path:
    return root / "annotations" / f"instances_{part}.json"


def _categories(content: Mapping[str, Any]) -> dict[int, tuple[int, str]]:
    """Return label and name by category id; labels count from 1 in the order of the ids."""
    ordered = sorted((category["id"], category["name"]) for category in content["categories"])
    return {number: (label, name) for label, (number, name) in enumerate(ordered, start=1)}


def rasterise(
    root: Path,
    masks: Path | None = None,
    crowd: Crowd = "ignore",
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Draw the masks of both parts as palette PNGs below `masks` (default `ROOT/SegmentationMasks`).

    Masks that an interrupted call has drawn by the same rules from the same JSON are kept. Returns the number
    of masks. Raises DataError naming the JSON and the annotation where a segmentation cannot be read.
    """
    masks = masks or root / MASKS
    rules = _rules(root, crowd)
    begun = masks / "begun.json"
    if not begun.is_file() or json.loads(begun.read_text()) != rules:
        (masks / MANIFEST).unlink(missing_ok=True)
        for part in PARTS:
            for old in (masks / part).glob("*.png"):
                old.unlink()
        masks.mkdir(parents=True, exist_ok=True)
        begun.write_text(json.dumps(rules))
    tasks = []
    for part in PARTS:
        (masks / part).mkdir(exist_ok=True)
        path = _json_path(root, part)
        content = read_json(path)
        labels = {number: label for number, (label, _) in _categories(content).items()}
        by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for annotation in content["annotations"]:
            by_image[annotation["image_id"]].append(annotation)
        for image in content["images"]:
            out = masks / part / f"{Path(image['file_name']).stem}.png"
            size = (image["height"], image["width"])
            tasks.append(_Raster(path, out, size, by_image[image["id"]], labels, crowd))
    missing = [task for task in tasks if not task.out.is_file()]
    for done, _ in enumerate(map_in_order(draw_file, missing, processes), start=1):
        if progress is not None:
            progress(done, len(missing))
    (masks / MANIFEST).write_text(json.dumps({**rules, "count": len(tasks)}, indent=1))
    return len(tasks)


def check_manifest(root: Path, masks: Path, crowd: Crowd) -> None:
    """Raise DataError, with the command to run, where the masks are missing or were made by other rules."""
    command = f"run: seedbed data prepare coco --root {root}"
    if masks != root / MASKS:
        command += f" --masks {masks}"
    if crowd != "ignore":
        command += f" --crowd {crowd}"
    path = masks / MANIFEST
    if not path.is_file():
        raise DataError(f"{path}: the masks have not been rasterised; {command}")
    manifest = json.loads(path.read_text())
    if {key: manifest.get(key) for key in _rules(root, crowd)} != _rules(root, crowd):
        raise DataError(f"{path}: the masks were made from another JSON or by other rules; {command}")


def _rules(root: Path, crowd: str) -> dict[str, Any]:
    digests = {}
    for part in PARTS:
        path = _json_path(root, part)
        if not path.is_file():
            raise DataError(f"{path}: no such file; --root must be the folder that holds annotations/")
        with path.open("rb") as file:
            digests[part] = hashlib.file_digest(file, "sha256").hexdigest()
    return {"version": RULES_VERSION, "json": digests, "crowd": crowd, "overlap": "smaller objects on top"}


@dataclass(frozen=True)
class _Raster:
    source: Path
    out: Path
    size: tuple[int, int]
    annotations: list[dict[str, Any]] = field(repr=False)
    labels: Mapping[int, int] = field(repr=False)
    crowd: Crowd = "ignore"


def draw_file(task: _Raster) -> None:
    """Draw one mask and write it, by one rename."""
    try:
        mask = draw_mask(task.annotations, task.size, task.labels, task.crowd)
    except DataError as error:
        raise DataError(f"{task.source}: {error}") from None
    temporary = task.out.with_suffix(".tmp")
    write_mask(temporary, mask)
    temporary.replace(task.out)


def draw_mask(
    annotations: Sequence[Mapping[str, Any]], size: tuple[int, int], labels: Mapping[int, int], crowd: Crowd
) -> NDArray[np.uint8]:
    """Return labels uint8 (H, W): larger objects first, so that smaller ones lie on top (ties by annotation id).

    `labels` gives the label of a category id. Raises DataError where an annotation's segmentation is broken or
    its category unknown.
    """
    mask = np.zeros(size, np.uint8)
    if crowd == "ignore":
        for annotation in annotations:
            if annotation.get("iscrowd"):
                mask[decode_segmentation(annotation, size)] = IGNORE_INDEX
    objects = [(decode_segmentation(a, size), a) for a in annotations if not a.get("iscrowd")]
    for pixels, annotation in sorted(objects, key=lambda o: (-int(o[0].sum()), o[1]["id"])):
        if annotation["category_id"] not in labels:
            raise DataError(f"annotation {annotation['id']}: unknown category {annotation['category_id']}")
        mask[pixels] = labels[annotation["category_id"]]
    return mask


def decode_segmentation(annotation: Mapping[str, Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the pixels (H, W) of an annotation: polygons, uncompressed or compressed RLE."""
    from pycocotools import mask as coco_mask

    segmentation = annotation["segmentation"]
    try:
        if isinstance(segmentation, list):
            encoded = coco_mask.merge(coco_mask.frPyObjects(segmentation, *size))
        elif isinstance(segmentation["counts"], list):
            encoded = coco_mask.frPyObjects(segmentation, *size)
        else:
            encoded = {"size": segmentation["size"], "counts": segmentation["counts"].encode()}
        pixels = coco_mask.decode(encoded).astype(bool)
    except Exception as error:  # pycocotools raises whatever its parser meets
        raise DataError(f"annotation {annotation['id']}: unreadable segmentation ({error})") from None
    if pixels.shape != size:
        raise DataError(f"annotation {annotation['id']}: drawn for {pixels.shape}, its image is {size}")
    return pixels


@dataclass(frozen=True)
class Coco2014:
    """Opens COCO 2014."""

    name: str = "coco2014"
    official_counts: Mapping[Split, int] = field(default_factory=lambda: OFFICIAL_COUNTS)

    def open(
        self,
        root: Path,
        masks: Path | str | None = None,
        crowd: Crowd = "ignore",
        saliency: Path | str | None = None,
    ) -> Dataset:
        """Open the data set in `root`; `masks` is where `seedbed data prepare coco` wrote, if not the default."""
        if crowd not in ("ignore", "background"):
            raise ConfigError(f"crowd = {crowd!r}. Valid: ignore, background")
        return CocoLayout(
            root,
            self.name,
            self.official_counts,
            masks=None if masks is None else Path(masks),
            crowd=crowd,
            saliency=None if saliency is None else Path(saliency),
        )


DATASET = Coco2014()
