"""References without a network: what their masks are, and what is measured of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.pipeline.stage import Machine
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.trials.conditions import conditions_of
from seedbed.benchmark.trials.plan import plan_trial
from seedbed.benchmark.trials.references import BackgroundMasks, WholeImageMasks
from seedbed.benchmark.trials.run import run_trial
from seedbed.benchmark.trials.trial import Trial
from seedbed.datasets.base import IGNORE_INDEX, Split
from seedbed.datasets.io.images import decode_mask


@dataclass(frozen=True)
class View:
    """The tags of some images."""

    tagged: dict[str, tuple[int, ...]]

    @property
    def ids(self) -> list[str]:
        return [*self.tagged]

    def tags(self, image_id: str) -> tuple[int, ...]:
        return self.tagged[image_id]


class Data:
    """A data set whose training images have the classes 1, 2, 3 once, twice and twice."""

    def split(self, split: Split) -> View:
        assert split is Split.WEAK
        return View({"a": (1,), "b": (2, 3), "c": (2,), "d": (3,)})


def test_of_several_tags_the_most_frequent_of_the_training_images_fills_the_image():
    view = View({"rare": (1, 3), "equal": (2, 3), "one": (1,), "unseen": (4,), "untagged": ()})
    labels = WholeImageMasks().labels(Data(), view)
    assert labels == {"rare": 3, "equal": 2, "one": 1, "unseen": 4, "untagged": 0}
    assert {*BackgroundMasks().labels(Data(), view).values()} == {0}


def miou(data, split, predicted) -> float:
    """Return the mIoU of masks with one label per image, counted pixel by pixel."""
    pixels: Counter[tuple[int, int]] = Counter()
    view = data.split(split)
    for image_id in view.ids:
        labels, counts = np.unique(view.mask(image_id), return_counts=True)
        for label, count in zip(labels.tolist(), counts.tolist(), strict=True):
            if label != IGNORE_INDEX:
                pixels[label, predicted(view, image_id)] += count
    ious = []
    for label in {label for pair in pixels for label in pair}:
        union = sum(count for pair, count in pixels.items() if label in pair)
        ious.append(pixels[label, label] / union)
    return float(np.mean(ious))


def records_of(result) -> dict[str, float]:
    return {record.name: record.value for record in result.records}


def test_background_is_measured_as_pseudo_masks_and_on_val(chimera, tmp_path):
    work = WorkFolder(tmp_path)
    result = run_trial(Trial(dataset="chimera", supervision="background"), chimera, work, Machine())
    found = records_of(result)
    assert found["val/mIoU"] == pytest.approx(miou(chimera, "val", lambda *_: 0))
    assert found["pseudo_mask.train/mIoU"] == pytest.approx(miou(chimera, "train", lambda *_: 0))
    assert result.run.startswith("background-chimera")
    stages = Counter(entry.stage for entry in result.executed)
    assert stages == {"BackgroundMasks": 2, "MeasureMasks": 2}
    # No seed and no backbone changes it.
    other = Trial(dataset="chimera", supervision="background", seed=7, backbone="squeezenet", weights="none")
    assert run_trial(other, chimera, work, Machine()).executed == []
    without = run_trial(replace(other, segment=False), chimera, work, Machine())
    assert "val/mIoU" not in records_of(without)


def test_whole_images_are_measured_as_pseudo_masks_alone(chimera, tmp_path):
    work = WorkFolder(tmp_path)
    trial = Trial(dataset="chimera", supervision="whole_image")
    result = run_trial(trial, chimera, work, Machine())
    weak = chimera.split("weak")
    often = Counter(tag for image_id in weak.ids for tag in weak.tags(image_id))

    def label(view, image_id):
        return min(view.tags(image_id), key=lambda tag: (-often[tag], tag))

    found = records_of(result)
    assert found["pseudo_mask.train/mIoU"] == pytest.approx(miou(chimera, "train", label))
    assert not any(name.startswith("val/") for name in found)
    plan = plan_trial(trial, chimera, work, Machine())
    plan.measure()
    view = chimera.split("train")
    for image_id in view.ids:
        mask = decode_mask(plan.artifacts["masks"] / f"{image_id}.png")
        assert mask.shape == view.size(image_id)
        assert np.unique(mask).tolist() == [label(view, image_id)]


@pytest.mark.parametrize(
    ("supervision", "expected"),
    [
        ("full", ("F", "fully_supervised")),
        ("background", ("none", "background")),
        ("whole_image", ("I", "whole_image")),
    ],
)
def test_a_reference_is_a_condition_and_has_chosen_nothing(chimera, tmp_path, supervision, expected):
    trial = Trial(dataset="chimera", supervision=supervision)
    found = conditions_of(plan_trial(trial, chimera, WorkFolder(tmp_path), Machine()))
    assert (found["supervision"], found["reference"]) == expected
    assert found["tuning_masks"] == 0
    method = conditions_of(plan_trial(Trial(dataset="chimera"), chimera, WorkFolder(tmp_path), Machine()))
    assert "reference" not in method
    assert method["tuning_masks"] == len(chimera.ids(Split.TUNE))


def test_masks_of_one_label_have_no_settings(chimera, tmp_path):
    trial = Trial(dataset="chimera", supervision="background", settings={"TrainSupervised.epochs": 1})
    with pytest.raises(ConfigError, match="TrainSupervised"):
        plan_trial(trial, chimera, WorkFolder(tmp_path), Machine())
