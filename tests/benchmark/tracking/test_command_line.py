"""The command that repeats a trial of a sweep gives that trial, by the command line's own parsing."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from seedbed.benchmark.cli.main import app
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.sweeps.trial_files import Outcome, write_outcome
from seedbed.benchmark.tracking.command_line import command_line
from seedbed.benchmark.tracking.run_content import search_tags
from tests.helpers.sweeping import run_to_its_end, scheduler_of, small


class Caught(Exception):  # noqa: N818
    """Stops a command where it would run its trial."""


def parsed(command, chimera_root, monkeypatch):
    """Return the trial that a command gives, with DIR filled in."""

    def catch(trial, *_):
        caught.append(trial)
        raise Caught

    caught = []
    monkeypatch.setattr("seedbed.benchmark.trials.run.run_trial", catch)
    words = [str(chimera_root) if word == "DIR" else word for word in shlex.split(command)]
    result = CliRunner().invoke(app, [*words[1:], "--quiet", "--device", "cpu"])
    assert isinstance(result.exception, Caught), result.output
    return caught[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"references": True},
        {
            "segment": False,
            "size": 48,
            "selections": ["tuned"],
            "maps_on": ["val"],
            "settings": {"TrainCam.epochs": 1},
        },
        {"segmentation_backbone": "tiny", "segmentation_weights": "none", "backbone": "tiny"},
        {"settings": {"TrainCam.epochs": 1, "InferCam.scales": "0.5,1.0", "SelectThreshold.tuned": 0.125}},
    ],
)
def test_the_command_gives_the_run_of_the_sweep(changes, chimera_root, tmp_path, monkeypatch):
    scheduler = scheduler_of(small(chimera_root, trials=3, refiners=["crf"], **changes), tmp_path)
    for spec in run_to_its_end(scheduler):
        folder, cell = scheduler.folder(spec), scheduler.cell_of(spec)
        command = search_tags(folder, spec)["command"]
        trial = parsed(command, chimera_root, monkeypatch)
        expected = spec.trial
        if spec.phase == "search":
            unsegmented = {"segmentation_backbone": None, "segmentation_weights": None}
            expected = replace(expected, measure_on="report", segment=False, **unsegmented)
        assert scheduler.plan.plan(cell, trial).run_id() == scheduler.plan.plan(cell, expected).run_id(), command
        assert tuple(trial.selections) == tuple(expected.selections)
        assert tuple(trial.maps_on) == tuple(expected.maps_on)
        assert (trial.seed, trial.size, trial.segment) == (expected.seed, expected.size, expected.segment)


def test_what_was_drawn_is_told_with_its_distributions(chimera_root, tmp_path):
    objectives = {0: 0.1, 1: 0.5, 2: 0.3}
    scheduler = scheduler_of(small(chimera_root, trials=3, refiners=["crf"], tune=["TrainCam.lr"]), tmp_path)
    specs = run_to_its_end(scheduler, objective=lambda spec: objectives.get(spec.number, 0.5))
    tags = {
        (spec.phase, spec.settings, spec.number, spec.trial.seed): search_tags(scheduler.folder(spec), spec)
        for spec in specs
    }
    of_first = tags["search", "default", 0, 1000]
    assert json.loads(of_first["parameters"]) == {"TrainCam.lr": 0.002}  # The default of `tiny`.
    assert json.loads(of_first["space"])["TrainCam.lr"]["name"] == "FloatDistribution"
    drawn = json.loads(tags["search", "suggested", 1, 1000]["parameters"])
    assert list(drawn) == ["TrainCam.lr"]
    assert drawn["TrainCam.lr"] != 0.002
    best = tags["confirm", "best", None, 0]
    assert json.loads(best["parameters"]) == drawn
    assert best["space"] == "{}"
    assert f"--set TrainCam.lr={drawn['TrainCam.lr']}" in best["command"]
    # The sweep's own settings are in the command, and were not drawn.
    default = tags["confirm", "default", None, 1]
    assert default["parameters"] == "{}"
    assert "--set TrainCam.epochs=1" in default["command"]
    assert "TrainCam.lr" not in default["command"]


def test_a_sweep_without_a_search_drew_nothing(chimera_root, tmp_path):
    scheduler = scheduler_of(small(chimera_root, trials=0, refiners=["none"]), tmp_path)
    spec = scheduler.next_trial()
    (scheduler.plan.folder / "studies.db").unlink()
    tags = search_tags(scheduler.folder(spec), spec)
    assert (tags["parameters"], tags["space"]) == ("{}", "{}")


def test_paths_of_the_user_are_not_in_the_command(chimera_root, tmp_path):
    scheduler = scheduler_of(small(chimera_root, refiners=["none"]), tmp_path)
    spec = scheduler.next_trial()
    weights = replace(
        spec,
        conditions={**spec.conditions, "initialisation": "sha256:" + "ab" * 32},
        trial=replace(spec.trial, weights="/home/a user/w.pth", segmentation_weights="/home/a user/w.pth"),
        dataset_spec=replace(spec.dataset_spec, options={"saliency": "/home/a user/maps"}),
        phase="confirm",
    )
    weights = replace(weights, trial=replace(weights.trial, measure_on="report", settings={"A.b": "it's; rm"}))
    command = command_line(weights, generated=False)
    assert "home" not in command
    assert "--root DIR --saliency DIR" in command
    assert "--weights FILE" in command
    assert "--segmentation-weights FILE" in command
    assert shlex.split(command)[-1] == "A.b=it's; rm"


def test_a_data_set_that_is_generated_needs_no_root(tmp_path, chimera_root):
    work = WorkFolder(tmp_path)
    place = work.root / "data" / "chimera-voc"
    place.parent.mkdir()
    place.symlink_to(chimera_root)
    scheduler = scheduler_of(small(place), tmp_path)
    spec = scheduler.next_trial()
    write_outcome(scheduler.folder(spec), Outcome(spec.key, "complete"))
    generated = replace(
        spec, dataset_spec=replace(spec.dataset_spec, root=str(work.root.resolve() / "data" / "chimera-voc"))
    )
    assert "--root" not in search_tags(scheduler.folder(spec), generated)["command"]
    assert "--root DIR" in search_tags(scheduler.folder(spec), spec)["command"]
