"""One trial, and its stages."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.pipeline.hparams import declared, override
from seedbed.benchmark.pipeline.registry import METHODS, REFINERS
from seedbed.benchmark.pipeline.stage import Machine, Meta, Method, Stage
from seedbed.benchmark.training.initialisation import method_weights, segmentation_weights
from seedbed.benchmark.trials.options import TrialOptions
from seedbed.benchmark.trials.references import BackgroundMasks, Supervision, WholeImageMasks
from seedbed.datasets.base import Dataset

SMALL_IMAGES = 128
"""Maximum longer image side, in pixels, of data sets whose default backbone is `tiny`."""


@dataclass(frozen=True, kw_only=True)
class Trial(TrialOptions):
    """What to run. Everything here is recorded; nothing else changes the numbers."""

    dataset: str
    method: str = "cam"
    refiner: str = "none"
    seed: int = 0
    supervision: Supervision = "weak"
    """`weak`: a method. Others are references, without one: `full` trains the segmentation network on the true
    masks, `background` and `whole_image` fill each image with one label (benchmark/trials/references.py)."""
    measure_on: Literal["report", "tune"] = "report"
    """`report`: all levels on `train` and `val`. `tune`: only the pseudo-masks on `tune`, for a search."""


@dataclass(frozen=True)
class Chain:
    """The stages of a trial, in their three parts."""

    localise: list[Stage]
    refine: list[Stage]
    """From SCORES to pseudo-masks: the stages of the refiner, then those of the method on masks."""
    segment: list[Stage]
    measurements: list[Stage] = field(default_factory=list)
    """The method's own measurements, beside the chain."""
    method: Method | None = None
    """The method with its settings applied; None for references."""

    @property
    def stages(self) -> list[Stage]:
        return [*self.localise, *self.refine, *self.segment]

    @property
    def configured(self) -> list[Method | Stage]:
        """The method and all stages, which have settings."""
        method = [self.method] if self.method is not None and declared(type(self.method)) else []
        return [*method, *self.stages, *self.measurements]


def build_chain(trial: Trial, meta: Meta) -> Chain:
    """Return the stages of a trial with its settings applied. Raises ConfigError for an impossible one."""
    from seedbed.methods.segmentation.stages import segmentation_stages

    if trial.supervision == "background":
        return Chain([], override([BackgroundMasks()], trial.settings), [])
    if trial.supervision == "whole_image":
        return Chain([], override([WholeImageMasks()], trial.settings), [])
    network = replace(
        meta,
        backbone=trial.segmentation_backbone or meta.backbone,
        weights=trial.segmentation_weights or meta.weights,
    )
    segment = segmentation_stages(network, trial.supervision) if trial.segment else []
    if trial.supervision == "full":
        return Chain([], [], override(segment, trial.settings))
    method: Method = METHODS.load(trial.method)
    name = type(method).__name__
    of_method = {key: value for key, value in trial.settings.items() if key.partition(".")[0] == name}
    (method,) = override([method], of_method)
    if method.one_step and trial.refiner != "none":
        raise ConfigError(f"the method {method.name!r} predicts its own masks; use the refiner 'none'")
    refine = [] if method.one_step else REFINERS.load(trial.refiner).refine(meta, method.fixed_threshold)
    refine += method.on_masks(meta)
    parts = [method.localise(meta), refine, segment, method.measurements(meta)]
    settings = {key: value for key, value in trial.settings.items() if key not in of_method}
    stages = iter(override([stage for part in parts for stage in part], settings))
    localise, refine, segment, measurements = ([next(stages) for _ in part] for part in parts)
    return Chain(localise, refine, segment, measurements, method)


def resolve(trial: Trial, data: Dataset, machine: Machine) -> tuple[Trial, Meta, Machine]:
    """Fill in the defaults that depend on the data set and the device, and the digests of weights files."""
    from seedbed.benchmark.training.precision import chosen

    backbone = trial.backbone or ("tiny" if data.long_side <= SMALL_IMAGES else "resnet50")
    weights, files = method_weights(trial.weights, backbone)
    segmentation_backbone = trial.segmentation_backbone or backbone
    network_weights, network_files = weights, files
    if trial.segmentation_weights is not None or segmentation_backbone != backbone:
        network_weights, network_files = segmentation_weights(trial.segmentation_weights, segmentation_backbone)
    if not trial.segment and (trial.segmentation_backbone or trial.segmentation_weights):
        raise ConfigError("--segmentation-backbone and --segmentation-weights need a segmentation network")
    if network_weights == "coco" and data.name == "coco2014":
        raise ConfigError(
            "--segmentation-weights coco: torchvision trained them on train2017, which has most images of COCO's "
            "val2014. Valid for coco2014: none, imagenet, or a state-dict file"
        )
    machine = replace(machine, weights_files={**machine.weights_files, **files, **network_files})
    trial = replace(
        trial,
        backbone=backbone,
        weights=weights,
        segmentation_backbone=segmentation_backbone,
        segmentation_weights=network_weights,
        precision=chosen(trial.precision, machine.device),
    )
    long_side = min(trial.size or data.long_side, data.long_side)
    return trial, Meta(len(data.classes), long_side, backbone, weights, trial.size), machine
