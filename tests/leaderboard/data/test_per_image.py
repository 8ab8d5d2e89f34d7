"""Statistics of images: from the files of trials, to one small file, and back, and from a real MLflow store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seedbed.benchmark.errors import ConfigError, DataError
from seedbed.benchmark.evaluation.per_image import read_confusions
from seedbed.leaderboard.analysis.ranking import board_of
from seedbed.leaderboard.analysis.result import analyse
from seedbed.leaderboard.data.collect import collect, joined
from seedbed.leaderboard.data.per_image import (
    ImageStatistics,
    RunImages,
    collect_images,
    files_of,
    read_images,
    write_images,
)
from seedbed.leaderboard.data.snapshot import runs_of
from tests.helpers.board_with_images import confirmed, confusions, images_of, statistics
from tests.helpers.tracker import Tracker, cells_of, record
from tests.leaderboard.tables.test_leaderboard import make


def run_images(table: pa.Table, folder: Path) -> RunImages:
    """Return the statistics of the file that a trial leaves."""
    pq.write_table(table, folder / "images.parquet")
    cells = read_confusions(folder / "images.parquet")
    return RunImages.of(cells.ids, cells.counts())


def same(one: RunImages, other: RunImages) -> bool:
    """Say whether two runs have the same statistics; labels without pixels may be left away."""
    labels = max(one.counts.shape[2], other.counts.shape[2])
    padded = [np.pad(x.counts, ((0, 0), (0, 0), (0, labels - x.counts.shape[2]))) for x in (one, other)]
    return one.ids == other.ids and bool((padded[0] == padded[1]).all())


def test_the_counts_of_two_images_by_hand(tmp_path):
    table = pa.table(
        {
            "id": ["b", "b", "b", "a"],
            "truth": pa.array([0, 2, 2, 1], pa.uint8()),
            "predicted": pa.array([0, 0, 2, 1], pa.uint8()),
            "pixels": pa.array([5, 3, 4, 9]),
        }
    )
    images = run_images(table, tmp_path)
    assert images.ids == ("a", "b")
    assert images.counts.tolist() == [[[0, 9, 0], [0, 9, 0], [0, 9, 0]], [[5, 0, 4], [5, 0, 7], [8, 0, 4]]]


def test_the_files_of_trials_have_the_statistics(tmp_path):
    matrices = confusions(0.7, 3)
    assert same(run_images(cells_of(matrices), tmp_path), images_of(matrices))


def test_what_is_written_is_read_again(tmp_path):
    row, other = confirmed(0.8), confirmed(0.6, method="b")
    written = ImageStatistics(statistics(row, other).runs, {"key": "the reason"})
    write_images(tmp_path / "per_image.parquet", written)
    read = read_images(tmp_path / "per_image.parquet")
    assert read.without == written.without
    assert read.runs.keys() == written.runs.keys()
    assert all(same(read.runs[key], written.runs[key]) for key in written.runs)


def test_the_same_statistics_are_the_same_bytes_in_any_order(tmp_path):
    whole = statistics(confirmed(0.8), confirmed(0.6, method="b"))
    turned = ImageStatistics(dict(reversed(list(whole.runs.items()))))
    write_images(tmp_path / "a", whole)
    write_images(tmp_path / "b", turned)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_nothing_is_a_file_too(tmp_path):
    write_images(tmp_path / "a", ImageStatistics({}))
    assert read_images(tmp_path / "a") == ImageStatistics({})


def test_a_file_that_is_something_else_is_refused(tmp_path):
    with pytest.raises(DataError, match="not the statistics of images"):
        read_images(tmp_path / "missing")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a")
    with pytest.raises(DataError, match="of version None, this Seedbed reads b'1'"):
        read_images(tmp_path / "a")


def test_fifty_runs_of_four_hundred_images_are_a_small_file(tmp_path):
    runs = {f"{seed:016x}": images_of(confusions(0.7, seed, images=400)) for seed in range(50)}
    write_images(tmp_path / "a", ImageStatistics(runs))
    assert (tmp_path / "a").stat().st_size < 500_000


@pytest.mark.parametrize(
    ("metrics", "file"),
    [
        ({"val/mIoU": 0.5, "pseudo_mask.train/mIoU_tuned": 0.4}, "segmentation.val.parquet"),
        ({"pseudo_mask.train/mIoU_tuned": 0.4}, "pseudo_mask.train_tuned.parquet"),
        ({"pseudo_mask.train/mIoU": 0.4}, "pseudo_mask.train.parquet"),
    ],
)
def test_the_file_is_that_of_the_ranked_measure(metrics, file):
    assert [name for _, name in files_of([make(metrics=metrics)])] == [file]


def test_a_reference_has_a_file_of_its_own_number_whatever_ranks_the_methods():
    runs = [
        make(0.5),
        make(method="whole_image", reference="whole_image", metrics={"pseudo_mask.train/mIoU": 0.1}),
        make(
            method="background", reference="background", metrics={"pseudo_mask.train/mIoU": 0.1, "val/mIoU": 0.2}
        ),
    ]
    files = ["segmentation.val.parquet", "pseudo_mask.train.parquet", "segmentation.val.parquet"]
    assert [name for _, name in files_of(runs)] == files


def test_trials_that_have_no_ranked_number_need_no_file():
    others = [
        make(0.5),
        make(metrics={"pseudo_mask.train/mIoU": 0.4}, method="b"),
        make(0.5, status="failed", method="c"),
        make(0.5, phase="search", method="d", number="1"),
    ]
    assert [run.method for run, _ in files_of(others)] == ["cam"]


# MLflow


@pytest.fixture(scope="module")
def tracker(tmp_path_factory):
    """Return a store with two sweeps that belong together, and one that does not."""
    tracker = Tracker(tmp_path_factory.mktemp("mlflow"))
    record(tracker, "first", {0.8: confirmed(0.8), 0.6: confirmed(0.6, method="b")})
    record(tracker, "second", {0.7: confirmed(0.7, method="c")}, without=[1])
    record(tracker, "rival", {0.5: confirmed(0.5, method="b", seeds=[2])}, seeds=[2])
    return tracker


def test_two_sweeps_are_one_table_and_one_set_of_statistics(tracker, tmp_path):
    table = collect(tracker.uri, ["first", "second"])
    assert {run.sweep for run in runs_of(table)} == {"first", "second"}
    assert collect(tracker.uri, ["second", "first", "first"]).equals(table)
    images = collect_images(tracker.uri, ["first", "second"], table)
    assert len(images.runs) == 8
    assert images.without == {"second001": "MLflow does not have its artifact per_image/segmentation.val.parquet"}
    assert same(images.runs["first000"], images_of(confusions(0.8, 0)))
    write_images(tmp_path / "per_image.parquet", images)
    board = board_of(runs_of(table))
    assert board.sweep == "first, second"
    analysis = analyse(board, runs_of(table), read_images(tmp_path / "per_image.parquet"), resamples=100)
    assert [(pair.first, pair.second, pair.together) for pair in analysis.groups[0].comparisons] == [(0, 2, False)]
    assert analysis.images_without == (
        "c + none, default: MLflow does not have its artifact per_image/segmentation.val.parquet",
    )


def test_two_sweeps_with_the_same_cell_and_seed_are_refused(tracker):
    with pytest.raises(DataError, match=r"the sweeps 'first' and 'rival' both have b \+ none on chimera .*seed 2"):
        collect(tracker.uri, ["first", "rival"])
    assert len(runs_of(collect(tracker.uri, ["second", "rival"]))) == 4


@pytest.mark.parametrize(
    ("first", "second", "refused"),
    [
        ('{"TrainCam": "aa", "InferCam": "bb"}', '{"TrainCam": "aa", "InferCam": "cc"}', True),
        # One sweep has no segmentation network.
        ('{"TrainCam": "aa"}', '{"TrainCam": "aa", "TrainSegmentation": "bb"}', False),
        # A sweep of an earlier version did not record it.
        ("", '{"TrainCam": "aa"}', False),
    ],
)
def test_two_sweeps_with_other_settings_make_no_row_together(first, second, refused, tmp_path):
    tracker = Tracker(tmp_path)
    record(tracker, "first", {0.8: confirmed(0.8, seeds=[0, 1], recipe=first)}, seeds=[0, 1])
    record(tracker, "second", {0.7: confirmed(0.7, seeds=[2], recipe=second)}, seeds=[2])
    alone = [collect(tracker.uri, sweep) for sweep in ("first", "second")]
    for both in (lambda: collect(tracker.uri, ["first", "second"]), lambda: joined(alone)):
        if refused:
            with pytest.raises(DataError, match=r"'first' and 'second' have different settings of InferCam for"):
                both()
        else:
            assert len(runs_of(both())) == 3


def test_an_unknown_sweep_among_several_is_named(tracker):
    with pytest.raises(ConfigError, match="unknown sweep 'thrid'"):
        collect(tracker.uri, ["first", "thrid"])


def test_a_run_that_mlflow_forgot_is_told(tracker):
    table = collect(tracker.uri, "first")
    images = collect_images(tracker.uri, ["second"], table)
    assert set(images.without.values()) == {"MLflow no longer has the run"}
