"""Plug-ins of a user, one of each kind, as short as they can be."""

from __future__ import annotations

METHOD = '''"""Squared: CAM with a squared loss."""

from dataclasses import dataclass

from seedbed.methods.cam import Cam, InferCam, TrainCam, classifier_settings, inference_settings


@dataclass(frozen=True, kw_only=True)
class TrainSquared(TrainCam):
    """Train with a squared loss."""

    version = 1

    def losses(self, network, batch):
        """Return the loss."""
        return {"squared": (network(batch["image"]).sigmoid() - batch["tags"]).square().mean()}


@dataclass(frozen=True)
class Squared(Cam):
    """CAM with a squared loss."""

    name: str = "squared"

    def localise(self, meta):
        """Return the stages."""
        return [TrainSquared(**classifier_settings(meta)), InferCam(**inference_settings(meta))]


METHOD = Squared()
'''
REFINER = '''"""Grown: masks of one label less background."""

from dataclasses import dataclass
from pathlib import Path

from seedbed.benchmark.evaluation.maps import opened
from seedbed.benchmark.evaluation.threshold import SelectThreshold, read_threshold, seed_mask
from seedbed.benchmark.pipeline.stage import Kind, Stage
from seedbed.datasets.io.images import write_mask


@dataclass(frozen=True, kw_only=True)
class GrownMasks(Stage):
    """Seeds at half the threshold."""

    version = 1
    consumes = (Kind.SCORES, Kind.THRESHOLD)
    produces = Kind.MASKS
    seeded = False

    def run(self, data, inputs, out, ctx):
        """Write one palette PNG per image."""
        task = Grow(inputs[Kind.SCORES], read_threshold(inputs[Kind.THRESHOLD]) / 2, out)
        ctx.for_each_image(task, data.split(ctx.split).ids, "GrownMasks")


@dataclass(frozen=True)
class Grow:
    """Sent to worker processes."""

    scores: Path
    threshold: float
    out: Path

    def __call__(self, image_id):
        write_mask(self.out / f"{image_id}.png", seed_mask(opened(self.scores).read(image_id), self.threshold))


@dataclass(frozen=True)
class Grown:
    """Half the threshold."""

    name: str = "grown"
    paper: str = "none"

    def refine(self, meta, fixed_threshold):
        """Return the stages."""
        return [SelectThreshold(value=fixed_threshold), GrownMasks()]


REFINER = Grown()
'''
BACKBONE = '''"""Small: the tiny network, with recipes of its own."""

from seedbed.methods.backbones.base import BackboneFamily
from seedbed.methods.backbones.tiny import RECIPES as TINY
from seedbed.methods.backbones.tiny import Tiny
from seedbed.methods.common.recipes import Recipe

RECIPES = {**TINY, "TrainCam": Recipe("here", optimiser="adamw", lr=3e-3, epochs=1, crop=448)}


class Small(Tiny):
    """The tiny network."""


BACKBONE = BackboneFamily(name="small", paper="none", build=Small, strides=(8, 16))
'''
DATASET = '''"""Renamed: Chimera in VOC's layout under another name."""

from seedbed.datasets.chimera import CLASSES
from seedbed.datasets.voc2012 import VocDataset


class RenamedData(VocDataset):
    """Images with sorted tags."""

    def tags(self, image_id):
        """Return the tags of an image."""
        return tuple(sorted(super().tags(image_id)))


class Renamed:
    """Opens a folder."""

    name = "renamed"
    official_counts = None

    def open(self, root):
        """Open the folder."""
        return RenamedData(root, self.name, CLASSES)


DATASET = Renamed()
'''
FILES = {"squared": METHOD, "grown": REFINER, "small": BACKBONE, "renamed": DATASET}
"""The files by their names."""
