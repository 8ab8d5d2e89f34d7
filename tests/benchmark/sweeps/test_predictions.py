"""Predictions of a finished trial's network on a few images of `train`."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.sweeps.predictions import predict_train
from seedbed.benchmark.sweeps.worker import run_sweep_trial
from seedbed.datasets.io.images import decode_mask, write_mask
from tests.helpers.sweeping import scheduler_of, small


@pytest.fixture(scope="module")
def once(chimera_root, tmp_path_factory):
    """Return a work folder, and where in it a finished trial is."""
    work = WorkFolder(tmp_path_factory.mktemp("once"))
    scheduler = scheduler_of(small(chimera_root, refiners=["none"], trials=0, seeds=[0]), work.root)
    spec = scheduler.next_trial()
    assert run_sweep_trial(spec, work, "cpu", 0).status == "complete"
    return work, scheduler.folder(spec).relative_to(work.root)


@pytest.fixture
def finished(once, tmp_path):
    """Return a work folder of the test's own, and the folder of a finished trial in it."""
    work, trial = once
    shutil.copytree(work.root, tmp_path / "work")
    return WorkFolder(tmp_path / "work"), tmp_path / "work" / trial


def refuse() -> str:
    """Stand for a device that must not be asked for."""
    raise AssertionError("something was predicted")


def test_what_is_predicted_is_the_networks_and_is_kept(finished, chimera):
    work, trial = finished
    ids = chimera.split("val").ids[:2]
    # Any ids can be asked for, and of those of `val` the trial has made masks itself.
    made = work.store.path(json.loads((trial / "config.json").read_text())["artifacts"]["predictions"])
    folder = predict_train(work, trial, ids, lambda: "cpu")
    for image_id in ids:
        assert (decode_mask(folder / f"{image_id}.png") == decode_mask(made / f"{image_id}.png")).all()
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{image_id}.png" for image_id in ids)
    write_mask(folder / f"{ids[0]}.png", np.full((64, 64), 7, np.uint8))
    again = predict_train(work, trial, ids, refuse)
    assert set(np.unique(decode_mask(again / f"{ids[0]}.png"))) == {7}


def test_with_another_version_of_the_prediction_nothing_is_predicted(finished, chimera, caplog):
    work, trial = finished
    config = json.loads((trial / "config.json").read_text())
    config["stages"][-1]["version"] += 1
    (trial / "config.json").write_text(json.dumps(config))
    assert predict_train(work, trial, chimera.split("train").ids[:1], refuse) is None
    assert f"{trial}: no predictions of train: PredictMasks was version" in caplog.text


def test_without_a_network_nothing_is_predicted(finished, chimera):
    work, trial = finished
    config = json.loads((trial / "config.json").read_text())
    ids = chimera.split("train").ids[:1]
    shutil.rmtree(work.store.path(config["artifacts"].pop("network")))
    assert predict_train(work, trial, ids, refuse) is None
    (trial / "config.json").write_text(json.dumps(config))
    assert predict_train(work, trial, ids, refuse) is None
