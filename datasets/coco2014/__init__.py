"""MS COCO 2014 with its 80 things classes; masks are drawn once from the annotations.

Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014. Layout (`seedbed data prepare coco2014` makes
the part in brackets):

    train2014/STEM.jpg  val2014/STEM.jpg    annotations/instances_{train,val}2014.json
    (SegmentationMasks/{train,val}2014/STEM.png, manifest.json, labels.json, visible.json)

Labels 1..C go by ascending category id (annotations.py); outlines.py says how objects lie on each
other. Tags come from the annotations by one of two rules (`TagRule`), crowds included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from seedbed.benchmark.errors import DataError, unknown_name
from seedbed.datasets.base import Dataset, Problem, Split, existing_folder, refuse_options, tune_ids
from seedbed.datasets.classes import check_classes
from seedbed.datasets.coco2014.annotations import annotations_path, find_image, read_json, refuse_shared_stems
from seedbed.datasets.coco2014.masks import FOLDERS, MASKS, VISIBLE, left_out, require_current, visible_labels
from seedbed.datasets.coco2014.outlines import Crowd
from seedbed.datasets.voc2012 import count_notices

TagRule = Literal["visible", "annotated"]
"""Which classes an image is tagged with.

`visible`: those that stay visible if its annotations are drawn in the file's order, later ones on top, as in the
tags that authors publish (L2G). `annotated`: the categories of all its annotations.
"""
TAG_RULES: tuple[TagRule, ...] = get_args(TagRule)
TAG_SOURCE = "annotations/instances_*.json, crowds included"


class CocoDataset(Dataset):
    """A data set in the layout of COCO 2014: `weak` and `train` are train2014, `val` is val2014, no `test`.

    Classes, ids and tags are read from the `labels.json` of `rasterise`; COCO's own JSON takes many seconds.
    Raises DataError if the masks were not made, or of other annotations or by other rules, if two images share a
    name, and for class names that `check_classes` refuses.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        saliency: Path | None = None,
        masks: Path | None = None,
        crowd: Crowd = "ignore",
        official_counts: Mapping[Split, int] | None = None,
        tag_rule: TagRule = "annotated",
    ) -> None:
        if tag_rule not in TAG_RULES:
            raise unknown_name("tag_rule", str(tag_rule), TAG_RULES)
        self.root, self.name = root, name
        self._masks, self._saliency = masks or root / MASKS, saliency
        manifest = require_current(root, self._masks, crowd)
        self.category_ids = tuple(manifest.get("category_ids", ()))
        self._files: Mapping[str, Mapping[str, str]] = manifest.get("files", {})
        labels = self._masks / "labels.json"
        content = read_json(labels)
        try:
            self._images: dict[str, dict[str, list[int]]] = {f: content["images"][f] for f in FOLDERS}
            self.classes = check_classes(content["classes"], labels)
        except (KeyError, TypeError):
            raise DataError(f"{labels}: not the file that was made; run: {manifest['command']}") from None
        refuse_shared_stems(root, {f: {i: self._file(f, i) for i in self._images[f]} for f in FOLDERS})
        if manifest.get("masks") != sum(map(len, self._images.values())):
            # Earlier versions drew images of one name over each other.
            raise DataError(f"{labels}: does not have every image of the annotations; run: {manifest['command']}")
        self._tags = self._visible(manifest["command"]) if tag_rule == "visible" else self._images
        self.tag_source = f"{TAG_SOURCE}, {tag_rule} classes" if tag_rule == "visible" else TAG_SOURCE
        self.mask_source = f"{self._masks.name}/ rasterised from the annotations, crowds: {crowd}"
        self.notices = tuple(count_notices(self, official_counts))
        if "left_out" not in manifest:
            self.notices += (
                f"{self._masks}: an earlier version made the masks, and did not draw outlines given as points; "
                f"run: {manifest['command']}",
            )

    def ids(self, split: Split) -> tuple[str, ...]:
        if split is Split.TUNE:
            return self._tune
        if split is Split.TEST:
            return ()
        return tuple(self._images[FOLDERS[split is Split.VAL]])

    def image_path(self, image_id: str) -> Path:
        folder = self._folder(image_id)
        return find_image(self.root, folder, self._file(folder, image_id))

    def mask_path(self, image_id: str) -> Path:
        return self._masks / self._folder(image_id) / f"{image_id}.png"

    def tags(self, image_id: str) -> tuple[int, ...]:
        return tuple(self._tags[self._folder(image_id)][image_id])

    def saliency_path(self, image_id: str) -> Path | None:
        return None if self._saliency is None else self._saliency / f"{image_id}.png"

    def label_files(self) -> tuple[Path, ...]:
        return (*(annotations_path(self.root, folder) for folder in FOLDERS), self._masks / "labels.json")

    def layout_problems(self) -> Iterator[Problem]:
        for name, text in left_out(self._masks):
            yield Problem("warning", self.root / "annotations" / name, text)

    def list_file(self, split: Split) -> Path:
        return annotations_path(self.root, FOLDERS[split is Split.VAL])

    def _visible(self, command: str) -> dict[str, dict[str, list[int]]]:
        found = visible_labels(self._masks)
        if any(found.get(folder, {}).keys() != self._images[folder].keys() for folder in FOLDERS):
            raise DataError(
                f"{self._masks / VISIBLE}: does not have every image: an earlier version made the masks. Run: "
                f'{command} (it keeps the masks), or choose the option tag_rule = "annotated" in seedbed.toml'
            )
        return found

    @cached_property
    def _tune(self) -> tuple[str, ...]:
        return tune_ids(self.ids(Split.TRAIN))

    def _folder(self, image_id: str) -> str:
        for folder in FOLDERS:
            if image_id in self._images[folder]:
                return folder
        raise DataError(f"{self.root}: {self.name} has no image {image_id!r}")

    def _file(self, folder: str, image_id: str) -> str:
        return self._files.get(folder, {}).get(image_id, f"{image_id}.jpg")


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
        tag_rule: TagRule = "visible",
        **unknown: object,
    ) -> Dataset:
        """Open the official layout at `root`, with masks made by `rasterise`.

        `saliency` is a folder of grey maps STEM.png, `masks` the folder of the masks, `crowd` the rule by which
        they were made, `tag_rule` the rule of the tags.
        """
        refuse_options(unknown, self.name, self.open)
        return CocoDataset(
            root,
            self.name,
            existing_folder(saliency, "the saliency maps"),
            None if masks is None else Path(masks),
            crowd,
            self.official_counts,
            tag_rule,
        )


DATASET = _Coco2014()
