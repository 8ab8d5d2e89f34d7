"""PASCAL VOC 2012 segmentation, with the 10,582 `train_aug` images and masks of SBD.

Everingham et al., "The PASCAL Visual Object Classes Challenge", IJCV 2010; Hariharan et al., "Semantic Contours
from Inverse Detectors", ICCV 2011 (SBD). Layout (`seedbed data prepare voc2012` makes the parts in brackets):

    JPEGImages/ID.jpg                    Annotations/ID.xml
    SegmentationClass/ID.png            (SegmentationClassAug/ID.png)
    ImageSets/Segmentation/{train,val,test,(train_aug)}.txt
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from pathlib import Path

from seedbed.benchmark.errors import DataError
from seedbed.datasets.base import (
    TAGS_FROM_MASKS,
    Dataset,
    Problem,
    Split,
    existing_folder,
    refuse_options,
    tune_ids,
)
from seedbed.datasets.classes import check_classes
from seedbed.datasets.io.images import Folder, decode_mask, image_id, read_text, visible_files
from seedbed.datasets.io.tags import Tags, labels, mask_labels, tag_table, xml_names

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
IMAGES, AUGMENTED = "JPEGImages", "SegmentationClassAug"
UNFINISHED = ".unfinished"
"""A file in SegmentationClassAug/ while `seedbed data prepare voc2012` writes its masks."""
TRAIN_AUG_NAMES = ("train_aug", "trainaug")
TAG_FILE_NAMES = ("image_labels.csv", "cls_labels.npy")
LISTS = Path("ImageSets/Segmentation")
XML = "Annotations/*.xml"


class VocDataset(Dataset):
    """A data set in the layout of PASCAL VOC.

    `weak` is `train_aug.txt`; without that list all ids with a mask in SegmentationClassAug/ less `val`; without
    that folder `train`. Masks come from SegmentationClass/ if the file exists, else from SegmentationClassAug/.

    Tags come from one source: the file `tags` if it is given, else Annotations/, else a tag file in the root,
    else the masks.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        classes: tuple[str, ...],
        saliency: Path | None = None,
        tags: Path | None = None,
        official_counts: Mapping[Split, int] | None = None,
    ) -> None:
        self.root, self.name, self.classes = find_root(root), name, check_classes(classes, root)
        self._images = Folder(self.root / IMAGES, ".jpg", (".jpeg", ".png"))
        self._official = Folder(self.root / "SegmentationClass", ".png")
        self._augmented = Folder(self.root / AUGMENTED, ".png")
        self._annotations = Folder(self.root / "Annotations", ".xml")
        self._saliency = None if saliency is None else Folder(saliency, ".png")
        self._train, self._val = (self._read_list(split) or () for split in ("train", "val"))
        test = self._read_list("test") or ()
        self._test = test if any(self.image_path(i).exists() for i in test) else ()
        self._weak, self._weak_source = self._find_weak()
        self._tag_file, self._tags = self._find_tag_file(tags)
        self.tag_source = self._tag_file.name if self._tag_file else XML if self._has_xml else TAGS_FROM_MASKS
        self.mask_source = self._describe_masks()
        self.notices = tuple(count_notices(self, official_counts))

    def ids(self, split: Split) -> tuple[str, ...]:
        return {
            Split.WEAK: self._weak,
            Split.TUNE: self._tune,
            Split.TRAIN: self._train,
            Split.VAL: self._val,
            Split.TEST: self._test,
        }[split]

    def image_path(self, image_id: str) -> Path:
        return self._images.file(image_id)

    def mask_path(self, image_id: str) -> Path:
        official = self._official.file(image_id)
        return official if official.exists() else self._augmented.file(image_id)

    def tags(self, image_id: str) -> Tags:
        if image_id not in self._tags:
            if self._tag_file is not None:
                raise DataError(f"{self._tag_file}: has no row for the image {image_id}")
            self._tags[image_id] = self._xml_tags(image_id) if self._has_xml else self._mask_tags(image_id)
        return self._tags[image_id]

    def saliency_path(self, image_id: str) -> Path | None:
        return None if self._saliency is None else self._saliency.file(image_id)

    def label_files(self) -> tuple[Path, ...]:
        lists = [self.root / LISTS / f"{name}.txt" for name in ("train", "val", "test", *TRAIN_AUG_NAMES)]
        files = [path for path in lists if path.exists()]
        if self._tag_file is not None:
            files.append(self._tag_file)
        return tuple(files)

    def layout_problems(self) -> Iterator[Problem]:
        for name in ("train", "val"):
            path = self.root / LISTS / f"{name}.txt"
            if not path.exists():
                yield Problem("error", path, "no such list; fetch it with the official VOCdevkit")
        listed = {*self._weak, *self._train, *self._val, *self._test}
        yield from ambiguous_images(self._images, listed)
        if self._weak_source == self.list_file(Split.TRAIN):
            missing = self.root / LISTS / f"{TRAIN_AUG_NAMES[0]}.txt"
            yield Problem(
                "warning",
                missing,
                "no such list and no SegmentationClassAug/; `weak` is `train` (seedbed data prepare)",
            )

    def list_file(self, split: Split) -> Path:
        if split is Split.WEAK:
            return self._weak_source
        return self.root / LISTS / f"{'train' if split is Split.TUNE else split.value}.txt"

    @cached_property
    def _tune(self) -> tuple[str, ...]:
        return tune_ids(self._train)

    def _read_list(self, name: str) -> tuple[str, ...] | None:
        path = self.root / LISTS / f"{name}.txt"
        return read_list(path) if path.exists() else None

    def _find_weak(self) -> tuple[tuple[str, ...], Path]:
        for name in TRAIN_AUG_NAMES:
            listed = self._read_list(name)
            if listed is not None:
                return listed, self.root / LISTS / f"{name}.txt"
        folder = self._augmented.path
        if (folder / UNFINISHED).exists():
            raise DataError(f"{folder}: not all masks are written; run `seedbed data prepare voc2012` again")
        if folder.is_dir():
            held_out = {*self._val, *self._test}
            masked = sorted({Path(name).stem for name in visible_files(folder, {".png"})})
            return tuple(i for i in masked if i not in held_out), folder
        return self._train, self.list_file(Split.TRAIN)

    def _find_tag_file(self, given: Path | None) -> tuple[Path | None, dict[str, Tags]]:
        """Return the tag file and its tags; None if the tags come from XML files or masks."""
        found = [path for name in TAG_FILE_NAMES if (path := self.root / name).exists()]
        file = given or (None if self._has_xml else next(iter(found), None))
        return file, {} if file is None else tag_table(file, self.classes)

    @cached_property
    def _has_xml(self) -> bool:
        return bool(visible_files(self._annotations.path, {".xml"}))

    def _xml_tags(self, image_id: str) -> Tags:
        path = self._annotations.file(image_id)
        return labels(xml_names(path), self.classes, path)

    def _mask_tags(self, image_id: str) -> Tags:
        return mask_labels(decode_mask(self.mask_path(image_id)), len(self.classes))

    def _describe_masks(self) -> str:
        official, augmented = self._official.path.is_dir(), self._augmented.path.is_dir()
        if official and augmented:
            return "SegmentationClass/ where it has the image, else SegmentationClassAug/"
        return "SegmentationClass/" if official else "SegmentationClassAug/"


def find_root(root: Path) -> Path:
    """Return the VOC2012 folder at, or one or two levels below, `root`. Raises DataError if there is none."""
    for place in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
        if (place / LISTS).is_dir():
            return place
    raise DataError(f"{root}: no VOC data set here (no folder {LISTS}); give the folder VOCdevkit/VOC2012")


def read_list(path: Path) -> tuple[str, ...]:
    """Return the ids of a list: the first word of each line, of a path (DeepLab's lists) the file's stem.

    Blank lines are skipped; words may be separated by spaces, tabs, commas or semicolons, and end in a suffix such
    as `.jpg`. Raises DataError if the file cannot be read.
    """
    lines = (re.split(r"[\s,;]+", line.strip()) for line in read_text(path).splitlines())
    return tuple(image_id(words[0].strip("\"'")) for words in lines if words[0])


def ambiguous_images(images: Folder, listed: Collection[str]) -> Iterator[Problem]:
    """Yield the problems of `listed` ids with several files in a folder of images."""
    for names in images.doubles():
        if Path(names[0]).stem in listed:
            text = f"several images of one id: {', '.join(names)}; keep one of them"
            yield Problem("error", images.path / names[0], text)
    unread = [name for name in images.unread if Path(name).stem in listed]
    if unread:
        text = f"{len(unread)} images have another file of the same id beside the .jpg, this is the first; "
        yield Problem("warning", images.path / unread[0], f"{text}the .jpg is read")


def count_notices(data: Dataset, official: Mapping[Split, int] | None) -> Iterator[str]:
    """Yield one notice if the counts of splits differ from the official release."""
    found = {split: len(data.ids(split)) for split in official or ()}
    # The images of `test` are a separate download, so their absence needs no notice.
    other = [
        f"{split} has {found[split]} instead of {count}"
        for split, count in (official or {}).items()
        if found[split] != count and not (split is Split.TEST and found[split] == 0)
    ]
    if other:
        yield f"{data.name} at {data.root} is not the official release ({', '.join(other)} images)"


class _Voc2012:
    name = "voc2012"
    official_counts: Mapping[Split, int] | None = {
        Split.TRAIN: 1464,
        Split.WEAK: 10582,
        Split.VAL: 1449,
        Split.TEST: 1456,
    }

    def open(
        self, root: Path, *, saliency: Path | str | None = None, tags: Path | str | None = None, **unknown: object
    ) -> Dataset:
        """Open the official layout at `root` (VOC2012, VOCdevkit, or the folder that holds it).

        `saliency` is a folder of grey maps ID.png, `tags` a tag file (datasets/io/tags.py: tag_table).
        """
        refuse_options(unknown, self.name, self.open)
        return VocDataset(
            root,
            self.name,
            CLASSES,
            existing_folder(saliency, "the saliency maps"),
            None if tags is None else Path(tags),
            self.official_counts,
        )


DATASET = _Voc2012()
