"""Which numbers are marked as the best: by the paired interval of the difference from the first row."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

from seedbed.leaderboard.analysis.marks import FIRST_ALONE, mark
from seedbed.leaderboard.analysis.ranking import Board, board_of
from seedbed.leaderboard.analysis.result import Analysis, analyse
from seedbed.leaderboard.analysis.summary import Summary
from seedbed.leaderboard.data.per_image import ImageStatistics
from seedbed.leaderboard.data.snapshot import runs_of, table_of
from seedbed.leaderboard.tables import compact, latex, markdown
from seedbed.leaderboard.tables import csv as comma_separated
from tests.helpers.board_with_images import confirmed, statistics

SAME = confirmed(0.8)
NEAR = confirmed(0.7999, method="near")
FAR = confirmed(0.5, method="far")


def marked(*rows, images: ImageStatistics | None = None) -> tuple[Board, Analysis]:
    """Return the marked board of rows of `confirmed`, and its analysis."""
    runs = runs_of(table_of([run for row in rows for run, _ in row]))
    board = board_of(runs)
    analysis = analyse(board, runs, statistics(*rows) if images is None else images, resamples=400)
    return mark(board, analysis.groups), analysis


def marks(board: Board, measure: str = "val_mIoU") -> dict[str, bool]:
    (group,) = board.groups
    return {row.method: measure in row.marked for row in group.rows}


def test_what_cannot_be_told_apart_from_the_first_is_marked():
    board, analysis = marked(SAME, NEAR, FAR)
    (group,) = board.groups
    assert [row.method for row in group.rows] == ["cam", "near", "far"]
    assert [(pair.second, pair.together) for pair in analysis.groups[0].comparisons if pair.first == 0] == [
        (1, True),
        (2, False),
    ]
    assert marks(board) == {"cam": True, "near": True, "far": False}
    assert group.caveat == ""


def test_the_spread_of_a_row_marks_nothing():
    """By √((s₁² + s₂²)/2) a row far below the first would be marked for its own spread over seeds."""
    noisy = [
        (replace(run, metrics={"val/mIoU": run.metrics["val/mIoU"] + shift}), images)
        for (run, images), shift in zip(FAR, (-0.3, 0.0, 0.3), strict=True)
    ]
    without = ImageStatistics({run.key: images for run, images in [*SAME, *NEAR]})
    board, _ = marked(SAME, NEAR, noisy, images=without)
    (group,) = board.groups
    number = group.rows[2].values["val_mIoU"]
    assert isinstance(number, Summary)
    assert number.std is not None
    assert number.std > 0.29
    assert marks(board) == {"cam": True, "near": True, "far": False}
    assert group.caveat == (
        "Not compared with the first row, so not marked (per-image statistics are missing: far + none, default)."
    )


def test_without_statistics_of_images_the_first_alone_is_marked_and_it_is_said_everywhere():
    for images in (ImageStatistics(), ImageStatistics({run.key: own for run, own in NEAR})):
        board, analysis = marked(SAME, NEAR, FAR, images=images)
        assert marks(board) == {"cam": True, "near": False, "far": False}
        assert board.groups[0].caveat == FIRST_ALONE
        for text in (
            markdown.leaderboard(board, analysis),
            latex.leaderboard(board, analysis),
            compact.leaderboard(board),
        ):
            assert FIRST_ALONE in text


def test_rows_without_a_random_seed_in_common_are_not_compared():
    board, _ = marked(SAME, NEAR, confirmed(0.7998, seeds=(7, 8, 9), method="others"))
    assert marks(board) == {"cam": True, "near": True, "others": False}
    assert board.groups[0].caveat == (
        "Not compared with the first row, so not marked (no random seed in common: others + none, default)."
    )


def test_in_other_columns_the_highest_alone_is_marked():
    rows = [
        [(replace(run, metrics={**run.metrics, "seed.train/mIoU_tuned": maps}), images) for run, images in row]
        for row, maps in ((SAME, 0.30), (NEAR, 0.301))
    ]
    board, _ = marked(*rows)
    assert marks(board) == {"cam": True, "near": True}
    assert marks(board, "maps_mIoU_tuned") == {"cam": False, "near": True}


def test_a_group_of_one_row_marks_nothing_and_lacks_nothing():
    board, _ = marked(SAME, images=ImageStatistics())
    assert marks(board) == {"cam": False}
    assert board.groups[0].caveat == ""


def test_a_row_without_a_rank_is_not_marked():
    board, _ = marked(SAME, NEAR, confirmed(0.9, seeds=(0, 1), method="few"))
    assert marks(board) == {"cam": True, "near": True, "few": False}


def test_the_csv_tells_the_marked_measures():
    board, analysis = marked(SAME, NEAR, FAR)
    flat = csv.DictReader(io.StringIO(comma_separated.leaderboard(board, analysis)))
    assert [row["marked"] for row in flat] == ["val_mIoU", "val_mIoU", ""]
