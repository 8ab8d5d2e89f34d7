"""What a resumed sweep finds: data sets and weights files at other places, with the same content or not."""

from __future__ import annotations

import json

import pytest

from seedbed.benchmark.errors import DataError
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.sweeps.resume import describe, update_dataset_specs
from seedbed.benchmark.sweeps.settings import change
from seedbed.benchmark.sweeps.trial_files import read_spec
from tests.helpers.sweeping import scheduler_of, small


def test_trials_follow_data_that_has_moved_if_the_content_is_the_same(chimera_root, tmp_path):
    settings = small(chimera_root, refiners=["none"], trials=0)
    scheduler = scheduler_of(settings, tmp_path / "work")
    describe(scheduler.plan.folder, scheduler.plan)
    before = scheduler.folder(scheduler.next_trial())
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in chimera_root.iterdir():
        (copy / path.name).symlink_to(path)
    resumed = scheduler_of(change(settings, {"datasets": [f"chimera-voc={copy}"]}), tmp_path / "work")
    describe(resumed.plan.folder, resumed.plan)
    update_dataset_specs(resumed.plan.folder, resumed.plan)
    assert read_spec(before).dataset_spec.root == str(copy)
    assert read_spec(before).key == before.name
    assert WorkFolder(tmp_path / "work").current(read_spec(before).dataset_spec, "").root == str(copy)


@pytest.mark.parametrize(
    ("fact", "message"),
    [
        ("data_digest", r"chimera-voc: not the content .* digest is .*, then it was 000000000000"),
        ("initialisation", r"--weights: not the content .*--datasets NAME=ROOT, --weights FILE"),
    ],
)
def test_another_content_is_refused_with_both_digests(fact, message, chimera_root, tmp_path):
    scheduler = scheduler_of(small(chimera_root, refiners=["none"], trials=0), tmp_path)
    describe(scheduler.plan.folder, scheduler.plan)
    path = scheduler.plan.folder / "sweep.json"
    written = json.loads(path.read_text())
    written["cells"][0][fact] = "sha256:" + "0" * 64
    path.write_text(json.dumps(written))
    with pytest.raises(DataError, match=message):
        describe(scheduler.plan.folder, scheduler.plan)
    assert json.loads(path.read_text()) == written
