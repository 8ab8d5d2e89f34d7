"""The `seedbed run` command that repeats a trial of a sweep, as a user would type it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from seedbed.benchmark.pipeline.registry import BACKBONES
from seedbed.benchmark.plugins import needs_file
from seedbed.benchmark.sweeps.trial_files import TrialSpec
from seedbed.benchmark.trials.options import TrialOptions, words_of


def command_line(spec: TrialSpec, generated: bool) -> str:
    """Return the command. `generated` says that the data set needs no root: it is made in the work folder.

    The user's own paths are not in it: folders are `DIR`; a plug-in is `FILE`, and so is a weights file, which the
    leaderboard names by its digest. The command of a search trial measures at all levels, the search's objective
    among them, and trains no segmentation network, as the search did not.
    """
    return shlex.join(["seedbed", "run", *_words(spec, generated)])


def _words(spec: TrialSpec, generated: bool) -> Iterator[str]:
    trial = spec.trial
    searching = trial.measure_on == "tune"
    if trial.supervision == "weak":
        yield from ("--method", trial.method, "--refiner", trial.refiner)
    else:
        yield from ("--supervision", trial.supervision)
    yield from ("--dataset", spec.dataset_spec.name)
    if not generated:
        yield from ("--root", "DIR")
    if "saliency" in spec.dataset_spec.options:
        yield from ("--saliency", "DIR")
    yield from ("--seed", str(trial.seed))
    backbones = {spec.conditions.get(key) for key in ("backbone", "segmentation_backbone")} - {None}
    used = [("METHOD", trial.method), ("REFINER", trial.refiner), ("DATASET", spec.dataset_spec.loader)]
    for backbone in map(str, backbones):
        plugin = BACKBONES.find(backbone)
        used.append(("BACKBONE", backbone) if plugin is None else (plugin.constant, plugin.name))
    for constant, name in used:
        if needs_file(constant, name):
            yield from ("--plugin", "FILE")
    # The command of another machine is to take the same backbone and weights, also if its defaults differ.
    values: dict[str, Any] = {
        declared.name: spec.conditions[declared.metadata["report_as"]]
        for declared in fields(TrialOptions)
        if declared.metadata.get("report_as") in spec.conditions
    }
    if searching:
        values |= {"segment": False} | {d.name: d.default for d in fields(TrialOptions) if d.metadata["network"]}
    yield from words_of(trial, values)
