"""The `seedbed run` command that repeats a trial of a sweep, as a user would type it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from seedbed.benchmark.sweeps.trial_files import TrialSpec
from seedbed.benchmark.training.initialisation import is_file
from seedbed.benchmark.trials.trial import SELECTIONS


def command_line(spec: TrialSpec, generated: bool) -> str:
    """Return the command. `generated` says that the data set needs no root: it is made in the work folder.

    The user's own paths are not in it: folders are `DIR`, and a weights file, which the leaderboard names by its
    digest, is `FILE`. The command of a search trial measures at all levels, the search's objective among them, and
    trains no segmentation network, as the search did not.
    """
    return shlex.join(["seedbed", "run", *_words(spec, generated)])


def _words(spec: TrialSpec, generated: bool) -> Iterator[str]:
    trial = spec.trial
    searching = trial.measure_on == "tune"
    yield from ("--method", trial.method, "--refiner", trial.refiner, "--dataset", trial.dataset)
    if not generated:
        yield from ("--root", "DIR")
    if "saliency" in spec.dataset_spec.options:
        yield from ("--saliency", "DIR")
    yield from ("--seed", str(trial.seed))
    if trial.supervision != "weak":
        yield from ("--supervision", trial.supervision)
    yield from (
        "--backbone",
        str(spec.conditions["backbone"]),
        *_weights("--weights", str(spec.conditions["initialisation"])),
    )
    if trial.segmentation_backbone is not None and not searching:
        yield from ("--segmentation-backbone", trial.segmentation_backbone)
    if trial.segmentation_weights is not None and not searching:
        yield from _weights("--segmentation-weights", trial.segmentation_weights)
    if trial.size:
        yield from ("--size", str(trial.size))
    if searching or not trial.segment:
        yield "--no-segment"
    if tuple(trial.selections) != SELECTIONS:
        yield from ("--selections", ",".join(trial.selections))
    if tuple(trial.maps_on) != ("train",):
        yield from ("--maps-on", ",".join(trial.maps_on))
    if trial.allow_val_in_training:
        yield "--allow-val-in-training"
    for key, value in sorted(trial.settings.items()):
        yield from ("--set", f"{key}={_text(value)}")


def _weights(option: str, weights: str) -> tuple[str, str]:
    return option, "FILE" if is_file(weights) else weights


def _text(value: Any) -> str:
    """Return a setting as `seedbed.benchmark.pipeline.hparams.parse` reads it."""
    if isinstance(value, list | tuple):
        return ",".join(map(_text, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
