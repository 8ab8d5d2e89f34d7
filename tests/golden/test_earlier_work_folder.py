"""Work folders of earlier versions stay complete: the same trials need the same entries of the store.

`earlier_work_folder.json` lists a work folder from before the packages were imported as `seedbed.…`: a sweep of
CAM and ICD with `none`, `crf` and `psa`, and a study. It has each trial's file as it was written, and its keys.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from seedbed.benchmark.pipeline.stage import Machine
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.sweeps.trial_files import read_spec
from seedbed.benchmark.trials.plan import plan_trial
from seedbed.datasets.chimera import DATASET, generate

EARLIER = json.loads(Path(__file__).with_name("earlier_work_folder.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return the Chimera of that sweep; the digest of its files is taken from the list."""
    root = tmp_path_factory.mktemp("chimera") / "voc"
    generate(root, layout="voc", images=24, size=48)
    return DATASET.open(root)


def test_every_trial_of_an_earlier_sweep_needs_the_entries_that_are_there(data, tmp_path):
    work = WorkFolder(tmp_path / "seedbed-work")
    planned = set()
    for trial in EARLIER["trials"]:
        folder = tmp_path / "trials" / trial["folder"]
        folder.mkdir(parents=True)
        content = trial["job"] | {"place": trial["job"]["place"] | {"root": str(data.root)}}
        (folder / "job.json").write_text(json.dumps(content))
        spec = read_spec(folder)
        assert spec.digest == EARLIER["digest"]
        assert spec.key == trial["folder"]
        keys = plan_trial(spec.trial, data, work, Machine(workers=1), spec.digest).steps()
        assert set(keys) == {EARLIER["keys"][index] for index in trial["keys"]}, trial["folder"]
        planned |= set(keys)
    assert planned == set(EARLIER["keys"])
