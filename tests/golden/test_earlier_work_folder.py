"""Work folders of earlier versions keep what is computed as then: the same trials need the same entries.

`earlier_work_folder.json` lists a work folder from before the packages were imported as `seedbed.…`: a sweep of
CAM and ICD with `none`, `crf` and `psa`, and a study. It has each trial's file as it was written, and its keys.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from seedbed.benchmark.pipeline.hparams import values
from seedbed.benchmark.pipeline.pipeline import Step
from seedbed.benchmark.pipeline.stage import Machine
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.sweeps.trial_files import read_spec
from seedbed.benchmark.training.loop import TrainingStage
from seedbed.benchmark.trials.plan import plan_trial
from seedbed.datasets.chimera import DATASET, generate

VERSIONS_THEN = {
    "ComputeSuperpixels": 3,
    "InferCam": 2,
    "InferIcd": 3,
    "InferSplittingMerging": 2,
    "MeasureClassifier": 2,
    "MeasureIcd": 4,
    "MeasureStreams": 3,
    "PredictMasks": 2,
    "TrainCam": 2,
    "TrainIcd": 2,
    "TrainPsa": 2,
    "TrainSegmentation": 3,
    "TrainSplittingMerging": 2,
    "WalkPsa": 2,
}
"""The stages whose results have changed since, with their versions then."""
EARLIER = json.loads(Path(__file__).with_name("earlier_work_folder.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return the Chimera of that sweep; the digest of its files is taken from the list."""
    root = tmp_path_factory.mktemp("chimera") / "voc"
    generate(root, layout="voc", images=24, size=48)
    return DATASET.open(root)


def planned(data, folder: Path) -> list[dict[str, Step]]:
    """Return the steps of each trial by their keys; the list's job files are read from `folder`."""
    work, steps = WorkFolder(folder / "seedbed-work"), []
    for trial in EARLIER["trials"]:
        job = folder / "trials" / trial["folder"]
        job.mkdir(parents=True)
        content = trial["job"] | {"place": trial["job"]["place"] | {"root": str(data.root)}}
        (job / "job.json").write_text(json.dumps(content))
        spec = read_spec(job)
        assert spec.digest == EARLIER["digest"]
        assert spec.key == trial["folder"]
        steps.append(plan_trial(spec.trial, data, work, Machine(workers=1), spec.digest).steps())
    return steps


def test_with_the_versions_of_then_every_trial_needs_the_entries_that_are_there(data, tmp_path, monkeypatch):
    stages = {type(step.stage) for steps in planned(data, tmp_path / "today") for step in steps.values()}
    for stage in stages:
        monkeypatch.setattr(stage, "version", VERSIONS_THEN.get(stage.__name__, stage.version))
    # Training stages had a setting for GPUs, and no trial had a precision.
    monkeypatch.setattr(TrainingStage, "settings", lambda stage: values(stage) | {"precision": "bfloat16"})
    then = planned(data, tmp_path / "then")
    for trial, steps in zip(EARLIER["trials"], then, strict=True):
        assert set(steps) == {EARLIER["keys"][index] for index in trial["keys"]}, trial["folder"]
    assert set().union(*then) == set(EARLIER["keys"])


def test_only_stages_of_raised_versions_and_what_follows_from_them_are_computed_again(data, tmp_path):
    def again(step: Step) -> bool:
        return type(step.stage).__name__ in VERSIONS_THEN or any(map(again, step.inputs.values()))

    seen = set()
    for steps in planned(data, tmp_path):
        for key, step in steps.items():
            assert (key in EARLIER["keys"]) != again(step), step
            seen.add(type(step.stage).__name__)
    assert set(VERSIONS_THEN) <= seen
