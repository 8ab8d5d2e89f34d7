"""Names of records: as text and back, and what the leaderboard and the search look for."""

from __future__ import annotations

import pytest

from seedbed.benchmark.evaluation.records import LABELLED, OBJECTIVE, RANKED, Record, RecordName, first_value

NAMES = {
    "seed.train/mIoU_tuned": RecordName("seed", "train", "mIoU", "tuned"),
    "val/mIoU": RecordName("segmentation", "val", "mIoU"),
    "val/IoU_traffic light": RecordName("segmentation", "val", "IoU", "none", "traffic light"),
    "pseudo_mask.train/IoU_big_cat_tuned": RecordName("pseudo_mask", "train", "IoU", "tuned", "big_cat"),
    "seed.train/msoft_overlap": RecordName("seed", "train", "msoft_overlap"),
    "seed.train/soft_overlap_cat": RecordName("seed", "train", "soft_overlap", "none", "cat"),
    "seed.train/threshold_oracle": RecordName("seed", "train", "threshold", "oracle"),
    "icd_cam.train/signed_recall_T=0.1_fixed": RecordName("icd_cam", "train", "signed_recall", "fixed", "T=0.1"),
    "icd_cam.val/seed_mIoU_defined_fixed": RecordName("icd_cam", "val", "seed_mIoU_defined", "fixed"),
    "streams_AB.val/msimilarity": RecordName("streams_AB", "val", "msimilarity"),
    "classification.val/AP_cat": RecordName("classification", "val", "AP", "none", "cat"),
}


@pytest.mark.parametrize("text", NAMES)
def test_a_name_is_written_and_read(text):
    assert RecordName.parse(text) == NAMES[text]
    assert str(NAMES[text]) == text


@pytest.mark.parametrize("metric", LABELLED)
@pytest.mark.parametrize("selection", ["none", "fixed", "tuned", "oracle"])
def test_every_metric_with_labels_is_read_again(metric, selection):
    for label in ("cat", "big_cat", "T=0.5"):
        name = RecordName("seed", "train", metric, selection, label)
        assert RecordName.parse(str(name)) == name


@pytest.mark.parametrize(
    "text", ["TrainCam/loss", "cost/hours", "system/cpu_utilization", "stage/abc", "epoch", "val/", ""]
)
def test_what_is_no_record_has_no_name(text):
    assert RecordName.parse(text) is None


def test_a_label_with_a_slash_has_an_underscore_in_the_name():
    assert Record("segmentation", "val", "IoU", "none", "cat/dog", 0.5, None).name == "val/IoU_cat_dog"


def test_other_metrics_of_the_same_place():
    name = RecordName("pseudo_mask", "train", "mIoU", "tuned")
    assert str(name.of("classes")) == "pseudo_mask.train/classes_tuned"
    assert str(name.of("IoU", "cat")) == "pseudo_mask.train/IoU_cat_tuned"
    assert str(name.of("IoU", "cat").of("mIoU")) == "pseudo_mask.train/mIoU_tuned"


def test_the_names_that_rank_and_are_searched_are_those_of_earlier_results():
    assert {title: [str(name) for name in names] for title, names in RANKED.items()} == {
        "val mIoU": ["val/mIoU"],
        "pseudo-mask mIoU": ["pseudo_mask.train/mIoU_tuned", "pseudo_mask.train/mIoU"],
    }
    tune = "pseudo_mask.tune/mIoU"
    assert [str(name) for name in OBJECTIVE] == [tune, f"{tune}_tuned", f"{tune}_fixed", f"{tune}_oracle"]


def test_the_first_name_that_has_a_value_counts():
    names = RANKED["pseudo-mask mIoU"]
    assert first_value(names, {"pseudo_mask.train/mIoU": 0.4, "val/mIoU": 0.6}) == 0.4
    assert first_value(names, {"pseudo_mask.train/mIoU": 0.4, "pseudo_mask.train/mIoU_tuned": 0.5}) == 0.5
    assert first_value(names, {"val/mIoU": 0.6}) is None
