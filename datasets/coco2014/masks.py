"""Draws the masks of a COCO data set once, into a folder of palette PNGs.

manifest.json                the annotations and rules that the masks are of, and what was left out
labels.json                  class names, and the labels of each image by its stem
visible.json                 by stem, the labels that stay visible if the annotations are drawn in the file's order
{train,val}2014/STEM.png     the masks
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from seedbed.benchmark.errors import ConfigError, DataError, joined
from seedbed.benchmark.files import atomic, write_text
from seedbed.benchmark.parallel import map_in_order
from seedbed.datasets.base import Progress
from seedbed.datasets.coco2014.annotations import (
    Annotations,
    CocoImage,
    annotations_path,
    find_image,
    read_annotations,
    read_json,
    refuse_shared_stems,
)
from seedbed.datasets.coco2014.outlines import NO_OUTLINE, TINY, Crowd, Drawing, draw_mask
from seedbed.datasets.io.digest import file_digest
from seedbed.datasets.io.images import image_size, write_mask

FOLDERS = ("train2014", "val2014")
MASKS = "SegmentationMasks"
VISIBLE = "visible.json"
VERSION = 1
"""Increase it whenever the same annotations give other masks."""
NAMED = 10
"""Maximum number of images with annotations that cannot be drawn, after which drawing stops; all are named."""


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
    ones; masks of others are replaced. `left_out` tells what is not in them. Raises DataError if the annotations
    are broken (`read_annotations`, `draw_mask`), if two images share a name, if an image that is there has
    another size than the annotations say, and if `masks` holds files that were not made here.
    """
    _check_rule(crowd)
    masks = masks or root / MASKS
    manifest = {"rules": _rules(crowd), "annotations": {f: _stamp(annotations_path(root, f)) for f in FOLDERS}}
    parts = {folder: read_annotations(annotations_path(root, folder), folder) for folder in FOLDERS}
    train, val = parts.values()
    if train.classes != val.classes:
        raise DataError(f"{val.path}: its categories are not those of {train.path.name}")
    refuse_shared_stems(root, {folder: part.names for folder, part in parts.items()})
    held = _read_manifest(masks)
    # Earlier versions drew fewer forms of outlines, and did not say what they left out.
    if held is None or not _same(held, manifest) or "left_out" not in held:
        _clear(masks)
        held = {}
    visible = visible_labels(masks)
    # Masks without visible labels are drawn again and counted anew.
    ledger = _Ledger(parts, held.get("left_out", {}) if visible else {}, visible)
    unfinished = {**manifest, "complete": False, "left_out": ledger.content}
    _write_json(masks / "manifest.json", unfinished)
    try:
        count = _draw_all(root, masks, parts, crowd, ledger, processes, progress)
    finally:
        _write_json(masks / VISIBLE, ledger.visible)
        _write_json(masks / "manifest.json", unfinished)
    ledger.refuse_empty()
    labels = {"classes": train.classes, "images": {folder: part.tags for folder, part in parts.items()}}
    _write_json(masks / "labels.json", labels)
    files = {folder: _unusual_names(part) for folder, part in parts.items()}
    complete = {"complete": True, "masks": count, "left_out": ledger.content, "files": files}
    _write_json(masks / "manifest.json", {**manifest, **complete, "category_ids": val.category_ids})
    return count


def left_out(masks: Path) -> Iterator[tuple[str, str]]:
    """Yield (JSON's name, sentence) for each kind of annotation that is not in finished masks as it should be."""
    for folder, found in (_read_manifest(masks) or {}).get("left_out", {}).items():
        for reason, (count, first) in found["reasons"].items():
            text = f"{count} of {found['annotations']} annotations {reason} (the first: annotation {first})"
            yield annotations_path(Path(), folder).name, text


def visible_labels(masks: Path) -> dict[str, dict[str, list[int]]]:
    """Return by folder and stem the labels that stay visible (`Drawing.visible`), of the masks drawn so far.

    Nothing, if the file is missing or broken: an earlier version made the masks.
    """
    try:
        return read_json(masks / VISIBLE)
    except DataError:
        return {}


def require_current(root: Path, masks: Path, crowd: Crowd) -> Mapping[str, Any]:
    """Return the manifest of finished masks. Raises DataError, with the command to run, if there are none."""
    _check_rule(crowd)
    command = f"seedbed data prepare coco2014 --root {root}"
    command += "" if masks == root / MASKS else f" --masks {masks}"
    command += "" if crowd == "ignore" else f" --crowd {crowd}"
    held = _read_manifest(masks)
    if held is None or not held.get("complete"):
        raise DataError(f"{masks}: the masks are not made yet; run: {command}")
    annotations = {folder: _stamp(annotations_path(root, folder)) for folder in FOLDERS}
    if not _same(held, {"rules": _rules(crowd), "annotations": annotations}):
        raise DataError(f"{masks}: the masks are of other annotations or rules; run: {command}")
    return {"command": command, **held}


class _Ledger:
    """Counts the annotations that are left out, by folder and reason, and keeps the first of each.

    It also keeps the visible labels of each image that was drawn.
    """

    def __init__(
        self,
        parts: Mapping[str, Annotations],
        held: Mapping[str, Any],
        visible: Mapping[str, Mapping[str, list[int]]],
    ) -> None:
        self.visible = {folder: dict(visible.get(folder, {})) for folder in parts}
        self._paths = {folder: part.path for folder, part in parts.items()}
        self.content: dict[str, dict[str, Any]] = {
            folder: {
                "annotations": sum(len(image.instances) for image in part.images),
                "reasons": dict(held.get(folder, {}).get("reasons", {})),
            }
            for folder, part in parts.items()
        }

    def add(self, job: _Job, drawing: Drawing) -> None:
        self.visible[job.folder][job.image.stem] = list(drawing.visible)
        reasons = self.content[job.folder]["reasons"]
        for annotation, reason in drawing.left_out:
            count, first = reasons.get(reason, (0, annotation))
            reasons[reason] = [count + 1, first]

    def refuse_empty(self) -> None:
        """Raise DataError if a folder has annotations, and none of them shows in a mask."""
        for folder, found in self.content.items():
            invisible = sum(found["reasons"].get(reason, (0,))[0] for reason in (NO_OUTLINE, TINY))
            if 0 < found["annotations"] <= invisible:
                raise DataError(
                    f"{self._paths[folder]}: none of its {invisible} annotations covers more than one pixel; "
                    "outlines (`segmentation`) are in pixels of the image"
                )


NO_PIXELS = np.empty((0, 0), np.uint8)


@dataclass(frozen=True)
class _Job:
    folder: str
    target: Path
    picture: Path
    image: CocoImage
    crowd: Crowd
    source: Path


def _draw_all(
    root: Path,
    masks: Path,
    parts: Mapping[str, Annotations],
    crowd: Crowd,
    ledger: _Ledger,
    processes: int,
    progress: Progress | None,
) -> int:
    """Draw the masks that are missing, or whose visible labels are. Return the number of all."""
    jobs = [
        _Job(
            folder,
            masks / folder / f"{image.stem}.png",
            find_image(root, folder, image.name),
            image,
            crowd,
            part.path,
        )
        for folder, part in parts.items()
        for image in part.images
    ]
    for folder in parts:
        (masks / folder).mkdir(parents=True, exist_ok=True)
    open_jobs = [j for j in jobs if j.image.stem not in ledger.visible[j.folder] or not j.target.exists()]
    done = len(jobs) - len(open_jobs)
    problems: list[str] = []
    for job, drawn in zip(open_jobs, map_in_order(_write, open_jobs, processes), strict=False):
        done += 1
        if isinstance(drawn, Drawing):
            ledger.add(job, drawn)
        else:
            problems.append(drawn)
            if len(problems) == NAMED:
                break
        if progress is not None:
            progress(done, len(jobs))
    if problems:
        raise DataError(joined("" if len(problems) == 1 else f"{root}: ", problems))
    return len(jobs)


def _write(job: _Job) -> Drawing | str:
    """Draw one mask. Return it without its pixels, or what is wrong."""
    image = job.image
    try:
        found = image_size(job.picture)
    except DataError:
        found = None  # `seedbed data check` tells of images that are missing or broken
    if found is not None and found != (image.height, image.width):
        sizes = f"{found[1]}x{found[0]} pixels, {job.source.name} says {image.width}x{image.height}"
        return f"{job.picture}: the image is {sizes}; correct its width and height there"
    try:
        drawing = draw_mask(image.height, image.width, image.instances, job.crowd, job.source)
    except DataError as error:
        return str(error)
    if not job.target.exists():
        with atomic(job.target, flush=False) as temporary:
            write_mask(temporary, drawing.mask)
    return replace(drawing, mask=NO_PIXELS)


def _unusual_names(part: Annotations) -> dict[str, str]:
    """Return by stem the names of the images that are not STEM.jpg."""
    return {stem: name for stem, name in part.names.items() if name != f"{stem}.jpg"}


def _check_rule(crowd: str) -> None:
    if crowd not in ("ignore", "background"):
        raise ConfigError(f"unknown rule for crowds {crowd!r}. Valid: background, ignore")


def _rules(crowd: Crowd) -> dict[str, Any]:
    return {"version": VERSION, "crowd": crowd, "overlap": "the smaller object is on top"}


def _stamp(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise DataError(f"{path}: no such file; fetch COCO's annotations_trainval2014.zip")
    return {"sha256": file_digest(path), "bytes": path.stat().st_size}


def _same(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(held.get(key) == wanted[key] for key in ("rules", "annotations"))


def _clear(masks: Path) -> None:
    """Remove the masks of an earlier manifest. Raises DataError if there are files and no manifest."""
    files = [path for folder in FOLDERS for path in (masks / folder).glob("*.png")]
    if files and not (masks / "manifest.json").exists():
        raise DataError(f"{masks}: holds masks that were not made here; give another folder with --masks")
    for path in files:
        path.unlink()
    (masks / VISIBLE).unlink(missing_ok=True)


def _read_manifest(masks: Path) -> dict[str, Any] | None:
    path = masks / "manifest.json"
    return read_json(path) if path.exists() else None


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content))
