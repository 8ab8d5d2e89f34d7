"""Stages, methods and refiners. A stage is one step of the data flow; its fields are its hyper-parameters.

    images + tags → localise → SCORES → refine → MASKS → segment → CHECKPOINT → predict → MASKS → RECORDS

Every stage writes one folder in the store (benchmark/pipeline/store.py) and never runs twice with the same
inputs. A method and a refiner are plain lists of stages; benchmark/pipeline/pipeline.py runs them.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from seedbed.benchmark.parallel import map_in_order
from seedbed.benchmark.pipeline.hparams import values
from seedbed.benchmark.progress import progress_bar
from seedbed.benchmark.validation import validate
from seedbed.datasets.base import Dataset, Split


class Kind(Enum):
    """The kind of a stage's result. The value is the word that users see."""

    CHECKPOINT = "checkpoint"
    """A trained network (benchmark/training/checkpoint.py)."""
    TAGS = "tags"
    """Image-level labels of `weak` that replace the data set's own (for example sub-categories)."""
    SUPERPIXELS = "superpixels"
    """Palette PNGs of `weak`: the superpixel number of every pixel, 0..254 (methods/icd/superpixels.py)."""
    CONFIDENT_LABELS = "confident labels"
    """The pixels of `weak` with a confident label, which a refiner learns from (methods/refine/psa/, irn/)."""
    SCORES = "scores"
    """Localisation maps of one split (benchmark/evaluation/maps.py)."""
    THRESHOLD = "threshold"
    """The background threshold for SCORES (benchmark/evaluation/threshold.py)."""
    MASKS = "masks"
    """A folder of palette PNGs of one split, labels 0..C and 255."""
    RECORDS = "records"
    """Measured numbers of one split (benchmark/evaluation/records.py)."""


ALWAYS_ON_WEAK = (Kind.CHECKPOINT, Kind.TAGS, Kind.SUPERPIXELS, Kind.CONFIDENT_LABELS)
"""Kinds that are always made from `weak`, whatever the requested split."""


@dataclass(frozen=True)
class Meta:
    """Data set and run properties that a method can use to build its stages."""

    classes: int
    """Number of foreground classes."""
    long_side: int
    """Longer side in pixels of the images that networks see: the data set's median, or `size`."""
    backbone: str
    weights: str = "none"
    """Initialisation: `none`, `imagenet`, or `sha256:…` of a state-dict file."""
    size: int = 0
    """The user's `--size`: networks see images resized to this longer side in pixels; 0: original size."""

    def scaled(self, pixels: int, multiple: int = 8) -> int:
        """Return a size for VOC's 500-pixel images, scaled down to this data set's image size.

        Sizes are never scaled up. Scaled sizes are rounded to a multiple of `multiple` pixels.
        """
        factor = self.long_side / 500
        if factor >= 1:
            return pixels
        return max(multiple, round(pixels * factor / multiple) * multiple)


Precision = Literal["fp32", "bf16"]
"""float32, or bfloat16 by autocast (benchmark/training/precision.py)."""

OnEpoch = Callable[[str, Sequence[Mapping[str, float]]], None]
"""Called with a training stage's name and the mean losses of its epochs; it can raise to stop the training."""


OnStage = Callable[["Stage", Split, str], None]
"""Called when a stage starts to compute on a split, with its key in the store."""


def ignore_epochs(_: str, __: Sequence[Mapping[str, float]]) -> None:
    """Never stop a training."""


def ignore_stages(_: Stage, __: Split, ___: str) -> None:
    """Note nothing."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where and how things run. Nothing here changes a result."""

    device: str = "cpu"
    workers: int = 0
    """Number of worker processes, besides the main one."""
    weights_files: Mapping[str, Path] = field(default_factory=dict)
    """Paths of the state-dict files, by their `sha256:…` initialisation."""
    on_epoch: OnEpoch = ignore_epochs
    on_stage: OnStage = ignore_stages


@dataclass(frozen=True)
class Context(Machine):
    """How a stage runs: the machine, and what the stage needs to know of the trial.

    Only `seed`, `split` and `precision` may change its result.
    """

    seed: int
    split: Split
    """The split that SCORES, MASKS and RECORDS are made for; training stages get `weak`."""
    scratch: Path
    """A folder that survives a kill of this stage and is removed when the stage is done."""
    precision: Precision = "fp32"
    """Precision of the stage's networks."""

    def for_each_image(self, task: Callable[[str], object], ids: Sequence[str], label: str) -> None:
        """Call `task`, importable by name, with each id in `workers` processes, and show the progress."""
        with progress_bar(label, len(ids)) as bar:
            for _ in map_in_order(task, ids, self.workers):
                bar.advance()


@dataclass(frozen=True, kw_only=True)
class Stage(ABC):
    """One cached step. Subclasses are frozen keyword-only dataclasses whose fields are declared with `hp`."""

    version: ClassVar[int]
    """Increase it whenever the result changes for the same fields."""
    consumes: ClassVar[tuple[Kind, ...]] = ()
    produces: ClassVar[Kind]
    seeded: ClassVar[bool] = True
    """False if the stage draws no random numbers; then all seeds share its result."""

    def __post_init__(self) -> None:
        validate(self, type(self).__name__)

    @property
    def on(self) -> Split | None:
        """The split that the stage always works on; None if it works on the requested split."""
        return Split.WEAK if self.produces in ALWAYS_ON_WEAK else None

    @property
    def runs_network(self) -> bool:
        """Whether the stage trains or runs a network, so that its result depends on the precision."""
        return Kind.CHECKPOINT in (self.produces, *self.consumes)

    @abstractmethod
    def run(self, data: Dataset, inputs: Mapping[Kind, Path], out: Path, ctx: Context) -> None:
        """Compute the result and write it to `out`.

        Args:
            data: The data set.
            inputs: For each consumed kind, the folder of the nearest earlier result.
            out: An empty folder for the result.
            ctx: How to run.
        """

    def settings(self) -> dict[str, Any]:
        """Return the fields by name, as plain JSON values."""
        return values(self)

    def identity(
        self,
        seed: int,
        data_digest: str,
        split: Split,
        inputs: Mapping[Kind, str],
        precision: Precision = "fp32",
    ) -> dict[str, Any]:
        """Return everything that decides the result, as plain JSON values. Its sha256 is the cache key."""
        lower = {"precision": precision} if precision != "fp32" and self.runs_network else {}
        return lower | {
            "stage": type(self).__name__,
            "version": self.version,
            "settings": self.settings(),
            "seed": seed if self.seeded else None,
            "data": data_digest,
            "split": str(split),
            "inputs": {kind.value: key for kind, key in sorted(inputs.items(), key=lambda i: i[0].value)},
        }


def cache_key(identity: Mapping[str, Any]) -> str:
    """Return the sha256 (hex) of a stage's identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, allow_nan=False).encode()).hexdigest()


class Method(ABC):
    """A weakly-supervised localisation method: the object `METHOD` of a file in `methods/`.

    A method is a frozen dataclass. Its fields declared with `hp` decide which stages it has; set them like
    those of a stage: `--set ScCam.rounds=2`.
    """

    name: str
    paper: str
    one_step: bool
    """True if `localise` ends in MASKS predicted by the method's own network; then there is no refiner."""
    fixed_threshold: float
    """The paper's constant background threshold for its maps, in [0, 1]."""

    @property
    def supervision(self) -> Literal["I", "I+S"]:
        """`I`: image-level tags. `I+S`: tags and saliency maps, if the field `saliency` of the method is true."""
        return "I+S" if getattr(self, "saliency", False) else "I"

    @abstractmethod
    def localise(self, meta: Meta) -> list[Stage]:
        """Return the stages from images and tags to SCORES (and on to MASKS, if `one_step`)."""

    def on_masks(self, meta: Meta) -> list[Stage]:
        """Return stages on the pseudo-masks after the refiner, from MASKS to MASKS; none if `one_step`."""
        return []

    def measurements(self, meta: Meta) -> list[Stage]:
        """Return stages that write RECORDS, and pictures `*.png`, about the results of `localise` on `train`.

        They are for the method's own tables; the measurements that all methods share are always added.
        """
        return []


class Refiner(Protocol):
    """From SCORES to pseudo-masks: the object `REFINER` of a file in `methods/refine/`."""

    name: str
    paper: str

    def refine(self, meta: Meta, fixed_threshold: float) -> list[Stage]:
        """Return the stages from SCORES to MASKS."""
        ...
