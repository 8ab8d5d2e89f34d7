"""Statistics, ranks, marks and remarks of the leaderboard, by hand-computed cases."""

from __future__ import annotations

import csv
import errno
import io
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from seedbed.benchmark.errors import DataError
from seedbed.benchmark.evaluation.bootstrap import ranks_of
from seedbed.leaderboard.analysis.pairwise import GroupAnalysis
from seedbed.leaderboard.analysis.ranking import Board, Group, Row, board_of
from seedbed.leaderboard.analysis.result import Analysis
from seedbed.leaderboard.analysis.summary import Summary, highest, paired_gain, summarise
from seedbed.leaderboard.build import FORMATS, write_leaderboard
from seedbed.leaderboard.data.expected import ExpectedTrials
from seedbed.leaderboard.data.snapshot import Run, read_snapshot, runs_of, schema_of, table_of, write_snapshot
from seedbed.leaderboard.site import pages
from seedbed.leaderboard.site.content import Content
from seedbed.leaderboard.tables import columns, compact, latex, markdown
from seedbed.leaderboard.tables import csv as comma_separated
from seedbed.leaderboard.tables.table import unrounded

DEFAULT = Run(
    sweep="s",
    key="",
    method="cam",
    refiner="none",
    dataset="chimera",
    conditions={
        "supervision": "I",
        "backbone": "tiny",
        "initialisation": "none",
        "segmentation_backbone": "",
        "segmentation_initialisation": "",
        "precision": "",
        "crf_preset": "none",
        "multi_scale": "1.0",
        "segmentation": "deeplab",
        "selection": "tuned",
        "tuning_masks": "40",
    },
    phase="confirm",
    settings="default",
    number="",
    seed=0,
    status="complete",
    reason="",
    device="cpu",
    hardware="processor",
    code="abc",
    dirty="false",
    data_digest="d1",
    trials=2,
    metrics={},
)
NAMES = ("method", "refiner", "dataset", "supervision", "backbone", "phase", "settings", "number", "seed")


def make(val: float | None = None, **changes) -> Run:
    """Return a confirm run with this mIoU on val, its key made of its fields.

    What is no field of a run is one of its conditions.
    """
    changes.setdefault("metrics", {} if val is None else {"val/mIoU": val})
    own = {name: value for name, value in changes.items() if name in vars(DEFAULT)}
    conditions = {**DEFAULT.conditions} | {name: value for name, value in changes.items() if name not in own}
    run = replace(DEFAULT, conditions=conditions, **own)
    return replace(run, key=run.key or "/".join(str(vars(run).get(n, conditions.get(n))) for n in NAMES))


def line(*values: float, **changes) -> list[Run]:
    """Return one run a value, with the seeds 0, 1, 2 …"""
    return [make(value, seed=seed, **changes) for seed, value in enumerate(values)]


def board(*runs: Run) -> Board:
    """Return the board of runs, by way of the snapshot's table."""
    return board_of(runs_of(table_of(runs)))


def overview(shown: Board) -> str:
    """Return the first page of a board."""
    nothing = tuple(GroupAnalysis({}, (), {}) for _ in shown.groups)
    return pages.overview(Content(shown, (), Analysis(nothing, (), (), ())))


def only_group(*runs: Run) -> Group:
    """Return the one group of runs."""
    (group,) = board(*runs).groups
    return group


def only_row(*runs: Run) -> Row:
    """Return the one row of runs."""
    (row,) = only_group(*runs).rows
    return row


def row_of(group: Group, method: str, settings: str = "default") -> Row:
    """Return the row of a method."""
    (row,) = [row for row in group.rows if (row.method, row.settings) == (method, settings)]
    return row


# Statistics


def test_mean_and_deviation_are_those_by_hand():
    # Deviations −1, 0, 1: the sum of squares is 2, over n−1 = 2.
    assert summarise([0.1, 0.2, 0.3]) == Summary(pytest.approx(0.2), pytest.approx(0.1), 3)
    assert summarise([0.2, 0.4]).std == pytest.approx(math.sqrt(0.02))


def test_one_value_has_no_deviation():
    assert summarise([0.5]) == Summary(0.5, None, 1)
    assert columns.percent(summarise([0.5])) == "50.00"


def test_the_gain_is_paired_by_seed():
    # The differences are 0.1, 0.3 and 0.2, whatever the spread of the numbers themselves.
    gain = paired_gain({0: 0.1, 1: 0.5, 2: 0.9}, {2: 1.1, 1: 0.8, 0: 0.2})
    assert gain == Summary(pytest.approx(0.2), pytest.approx(0.1), 3)


@pytest.mark.parametrize(("before", "after"), [({0: 0.1}, {1: 0.2}), ({0: 0.1, 1: 0.1}, {0: 0.2}), ({}, {})])
def test_other_seeds_have_no_gain(before, after):
    assert paired_gain(before, after) is None


def test_the_highest_of_a_column_is_marked_and_ties_are():
    three = {0: Summary(0.5, 0.03, 3), 1: Summary(0.4999, 0.03, 3), 2: Summary(0.4, 0.2, 3)}
    assert highest(three) == {0}
    assert highest(three | {3: Summary(0.5, 0.0, 3)}) == {0, 3}


def test_a_column_of_one_row_marks_nothing():
    assert highest({3: Summary(0.5, 0.01, 3)}) == set()
    assert highest({}) == set()


def test_equal_means_share_a_rank():
    assert ranks_of([0.3, 0.5, 0.3, 0.1]).tolist() == [2, 1, 2, 4]
    assert ranks_of([]).tolist() == []


# Snapshot


def test_a_snapshot_holds_runs_with_and_without_metrics(tmp_path):
    runs = [
        make(seed=0, metrics={"val/mIoU": 0.5, "val/IoU_cat": None, "stage/0123456789ab": 2.5}),
        make(seed=1, status="failed", reason="broke"),
        make(seed=2, tuning_masks="", metrics={"val/mIoU": math.nan}),
    ]
    write_snapshot(tmp_path / "results.parquet", table_of(runs))
    table = read_snapshot(tmp_path / "results.parquet")
    assert runs_of(table) == [*runs[:2], replace(runs[2], metrics={"val/mIoU": None})]
    assert table.num_rows == 5
    assert table.schema.equals(schema_of())


def test_the_order_of_runs_does_not_matter(tmp_path):
    runs = [*line(0.1, 0.2), *line(0.3, 0.4, method="b"), make(0.1, phase="search", number="10")]
    runs.append(make(0.1, phase="search", number="9"))
    for name, ordered in (("a", runs), ("b", runs[::-1])):
        write_snapshot(tmp_path / name, table_of(ordered))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert [run.number for run in runs_of(table_of(runs)) if run.number] == ["9", "10"]


def test_a_file_that_is_no_snapshot_or_of_another_version_is_refused(tmp_path):
    path = tmp_path / "results.parquet"
    with pytest.raises(DataError, match="not a snapshot"):
        read_snapshot(path)
    path.write_text("text")
    with pytest.raises(DataError, match="not a snapshot"):
        read_snapshot(path)
    pq.write_table(table_of([]).replace_schema_metadata({"seedbed.results": "99"}), path)
    with pytest.raises(DataError, match="version '99'"):
        read_snapshot(path)
    pq.write_table(pa.table({"a": [1]}, metadata={"seedbed.results": "1"}), path)
    with pytest.raises(DataError, match="other columns"):
        read_snapshot(path)


def test_a_snapshot_of_version_1_is_read(tmp_path):
    """It has no columns for the segmentation network, which was always the method's."""
    runs = line(0.1, 0.2, 0.3)
    old = table_of(runs).drop_columns(
        ["segmentation_backbone", "segmentation_initialisation", "precision", "recipe"]
    )
    pq.write_table(old.replace_schema_metadata({"seedbed.results": "1"}), tmp_path / "old.parquet")
    table = read_snapshot(tmp_path / "old.parquet")
    assert table.schema.equals(schema_of(), check_metadata=True)
    assert runs_of(table) == runs
    write_leaderboard(tmp_path / "old.parquet", tmp_path / "out")
    assert runs_of(read_snapshot(tmp_path / "out" / "results.parquet")) == runs


def test_a_snapshot_of_version_2_is_read(tmp_path):
    """It does not know what was drawn, and no commands."""
    runs = line(0.1, 0.2, 0.3)
    old = table_of(runs).drop_columns(["parameters", "space", "command", "precision", "recipe"])
    pq.write_table(old.replace_schema_metadata({"seedbed.results": "2"}), tmp_path / "old.parquet")
    table = read_snapshot(tmp_path / "old.parquet")
    assert table.schema.equals(schema_of(), check_metadata=True)
    assert runs_of(table) == runs
    pq.write_table(old.replace_schema_metadata({"seedbed.results": "5"}), tmp_path / "new.parquet")
    with pytest.raises(DataError, match="other columns than version 5"):
        read_snapshot(tmp_path / "new.parquet")


def test_a_snapshot_of_version_3_is_read(tmp_path):
    """It does not tell the precision."""
    runs = line(0.1, 0.2, 0.3)
    old = table_of(runs).drop_columns(["precision", "recipe"])
    pq.write_table(old.replace_schema_metadata({"seedbed.results": "3"}), tmp_path / "old.parquet")
    assert runs_of(read_snapshot(tmp_path / "old.parquet")) == runs


def test_missing_trials_are_those_of_the_plan_without_a_run():
    cell = {"method": DEFAULT.method, "refiner": DEFAULT.refiner, "dataset": DEFAULT.dataset}
    cell |= {name: DEFAULT.conditions[name] for name in ("supervision", "backbone")}
    cell |= {"initialisation": "none", "crf_preset": "irn", "tuning_masks": 40}
    entries = {"version": 1, "name": "s", "seeds": [0, 1], "cells": [cell]}
    missing = ExpectedTrials.parse(entries | {"trials": 2}).missing([make(0.5, seed=1)])
    assert [(run.settings, run.seed, run.status) for run in missing] == [
        ("default", 0, "missing"),
        ("best", 0, "missing"),
        ("best", 1, "missing"),
    ]
    assert {run.conditions["crf_preset"] for run in missing} == {"irn"}
    assert {run.cell for run in missing} == {make().cell}
    own = {"segmentation_backbone": "resnet101", "segmentation_initialisation": "coco"}
    missing = ExpectedTrials.parse(entries | {"trials": 0, "cells": [cell | own]}).missing([])
    assert {(run.scope.segmentation_backbone, run.scope.segmentation_initialisation) for run in missing} == {
        ("resnet101", "coco")
    }
    assert len(ExpectedTrials.parse(entries | {"trials": 0}).missing([])) == 2
    with pytest.raises(DataError, match="version 2"):
        ExpectedTrials.parse(entries | {"trials": 2, "version": 2})
    with pytest.raises(DataError, match="no entry 'trials'"):
        ExpectedTrials.parse(entries)


# Rows


def test_rows_are_ranked_within_their_group_and_the_best_is_marked():
    group = only_group(*line(0.40, 0.41, 0.42), *line(0.50, 0.51, 0.52, method="b"))
    assert [(row.rank, row.method) for row in group.rows] == [(1, "b"), (2, "cam")]
    assert row_of(group, "b").marked == {"val_mIoU"}
    assert row_of(group, "cam").marked == set()
    assert columns.MEASURED["val_mIoU"].text(row_of(group, "b")) == "51.00 ± 1.00"


def test_supervision_backbone_and_initialisation_part_groups():
    runs = [
        *line(0.4, 0.5, 0.6),
        *line(0.4, 0.5, 0.6, supervision="I+S"),
        *line(0.4, 0.5, 0.6, backbone="vgg16"),
        *[replace(run, key=f"{run.key}i") for run in line(0.4, 0.5, 0.6, initialisation="imagenet")],
    ]
    groups = board(*runs).groups
    assert len(groups) == 4
    assert all(row.rank == 1 and not row.marked for group in groups for row in group.rows)


def test_rows_of_different_precision_are_not_ranked_together():
    runs = [*line(0.4, 0.5, 0.6, precision="fp32"), *line(0.5, 0.6, 0.7, precision="bf16", method="b")]
    shown = board(*runs)
    assert [[row.rank for row in group.rows] for group in shown.groups] == [[1], [1]]
    assert [columns.group_title(group).rpartition(" · ")[2] for group in shown.groups] == [
        "precision bf16",
        "precision fp32",
    ]
    assert overview(shown).count("<span>precision</span> bf16") == 1


def test_a_choice_of_classes_is_a_group_of_its_own_and_stated_on_every_table(tmp_path: Path):
    chosen = "2 of 20 classes: cat, cow"
    runs = [
        *line(0.4, 0.5, 0.6),
        *line(0.5, 0.6, 0.7, classes=chosen),
        *line(0.1, 0.2, 0.3, method="b", classes=chosen),
    ]
    snapshot = table_of(runs)
    assert "classes" in snapshot.column_names
    shown = board_of(runs_of(snapshot))
    assert [[row.rank for row in group.rows] for group in shown.groups] == [[1], [1, 2]]
    whole, subset = (columns.group_title(group) for group in shown.groups)
    assert subset == whole.replace("chimera", f"chimera ({chosen})", 1)
    # It is in the heading, so there is no column of it.
    assert "classes" not in shown.groups[1].rows[0].conditions
    rows = list(csv.DictReader(io.StringIO(comma_separated.leaderboard(shown))))
    assert [row["classes"] for row in rows] == ["", chosen, chosen]
    assert f"<span>classes</span> <bdi>{chosen}</bdi>" in overview(shown)
    write_leaderboard(snapshot, tmp_path)
    for name in ("leaderboard.md", "leaderboard.tex", "leaderboard.csv"):
        assert chosen in (tmp_path / name).read_text("utf-8"), name
    assert chosen in compact.leaderboard(shown)


def test_a_board_of_whole_data_sets_has_no_column_of_classes():
    snapshot = table_of(line(0.4, 0.5, 0.6))
    assert "classes" not in snapshot.column_names
    header = comma_separated.leaderboard(board_of(runs_of(snapshot))).partition("\n")[0]
    assert "classes" not in header.split(",")


def test_the_segmentation_networks_backbone_and_initialisation_part_groups_and_are_told():
    """Of one method with one backbone: the same network, another one, that from COCO, and that from a file."""
    networks = [
        {"segmentation_backbone": "tiny", "segmentation_initialisation": "none"},
        {"segmentation_backbone": "resnet101", "segmentation_initialisation": "imagenet"},
        {
            "segmentation_backbone": "resnet101",
            "segmentation_initialisation": "coco",
            "supervision": "I+COCO masks",
        },
        {"segmentation_backbone": "resnet101", "segmentation_initialisation": "sha256:" + "ab" * 32},
    ]
    runs = [
        replace(run, key=f"{run.key}{number}")
        for number, network in enumerate(networks)
        for run in line(0.4, 0.5, 0.6, **network)
    ]
    shown = board(*runs)
    assert all(row.rank == 1 and not row.marked for group in shown.groups for row in group.rows)
    own = " · segmentation backbone resnet101 · segmentation initialisation "
    titles = [
        "chimera · supervision I · backbone tiny · initialisation none" + own + "imagenet",
        "chimera · supervision I · backbone tiny · initialisation none" + own + "sha256:abababababab",
        "chimera · supervision I · backbone tiny · initialisation none",
        "chimera · supervision I+COCO masks · backbone tiny · initialisation none" + own + "coco",
    ]
    assert [columns.group_title(group) for group in shown.groups] == titles
    page, text = overview(shown), compact.leaderboard(shown)
    assert page.count("<span>segmentation backbone</span> resnet101") == 3
    assert page.count("<span>segmentation initialisation</span> coco") == 1
    assert max(map(len, text.splitlines())) <= 120
    assert " ".join(text.split()).count("segmentation initialisation coco") == 1
    flat = list(csv.DictReader(io.StringIO(comma_separated.leaderboard(shown))))
    assert [row["segmentation_initialisation"][:6] for row in flat] == ["imagen", "sha256", "none", "coco"]


def test_a_run_that_does_not_tell_its_segmentation_network_has_the_methods():
    told = {"segmentation_backbone": "tiny", "segmentation_initialisation": "none"}
    group = only_group(*line(0.4, 0.5, 0.6), *line(0.5, 0.6, 0.7, method="b", **told))
    assert [row.method for row in group.rows] == ["b", "cam"]
    assert columns.segmentation(group) == []


def test_pseudo_masks_rank_where_no_row_has_a_network():
    def masks(value, name="mIoU_tuned"):
        return {f"pseudo_mask.train/{name}": value}

    runs = [make(seed=seed, metrics=masks(0.3 + seed / 100)) for seed in range(3)]
    runs += [make(seed=seed, method="b", metrics=masks(0.5, "mIoU")) for seed in range(3)]
    group = only_group(*runs)
    assert group.measure.name == "pseudo_mask_mIoU"
    assert [row.method for row in group.rows] == ["b", "cam"]
    assert {row.ranked_on for row in group.rows} == {"train"}
    assert columns.MEASURED["val_mIoU"].text(group.rows[0]) == "–"

    mixed = only_group(*runs, *line(0.1, 0.1, 0.1, method="c"))
    assert [(row.method, row.rank) for row in mixed.rows] == [("c", 1), ("b", None), ("cam", None)]
    assert row_of(mixed, "b").bars == ("no val mIoU of its network",)


@pytest.mark.parametrize("status", ["failed", "missing", "unfinished", "pruned"])
def test_a_row_that_lacks_a_seed_has_no_mean_and_says_why(status):
    runs = line(0.9, 0.9)
    runs.append(make(seed=2, status=status, reason="of a reason"))
    group = only_group(*runs, *line(0.5, 0.5, 0.5, method="b"))
    row = row_of(group, "cam")
    assert (row.rank, row.status, row.marked) == (None, f"{status} (1 of 3)", set())
    assert row.values["val_mIoU"] == f"{status} (1 of 3)"
    assert row.bars == (f"seed 2 {status}: of a reason",)
    assert row_of(group, "b").rank == 1
    for text in (
        markdown.leaderboard,
        compact.leaderboard,
        comma_separated.leaderboard,
        latex.leaderboard,
        overview,
    ):
        shown = text(board(*runs, *line(0.5, 0.5, 0.5, method="b")))
        assert f"{status} (1 of 3)" in shown
        assert "of a reason" in shown
        assert "90.00" not in shown


def test_a_number_that_one_seed_lacks_is_not_averaged():
    runs = line(0.5, 0.5, 0.5)
    runs[1] = replace(runs[1], metrics={"val/mIoU": None})
    row = only_row(*runs)
    assert row.values["val_mIoU"] == "absent (1 of 3)"
    assert row.bars == ("val mIoU of its network absent (1 of 3)",)


def test_a_split_without_a_counted_pixel_is_said_and_is_no_number():
    metrics = {"pseudo_mask.train/classes_tuned": 0.0, "seed.train/threshold_tuned": 0.0, "val/classes": math.nan}
    runs = [make(seed=seed, metrics=metrics) for seed in range(3)]
    row = only_row(*runs)
    assert row.values["pseudo_mask_mIoU"] == "no counted pixel"
    assert row.values["val_mIoU"] == "–"
    assert row.bars == (
        "no train mIoU of its pseudo-masks: every pixel of the true masks of train is 255, so none is counted",
    )
    for text in (markdown.leaderboard, compact.leaderboard, latex.leaderboard, overview):
        assert "no counted pixel" in text(board(*runs))


def test_nan_and_infinity_are_on_no_page(tmp_path):
    odd = {"val/mIoU": math.nan, "seed.train/mIoU_tuned": math.inf, "val/IoU_cat": -math.inf, "stage/a": math.nan}
    runs = [*line(0.5, 0.6, 0.7), *(make(seed=seed, method="odd", metrics=odd) for seed in range(3))]
    for path in write_leaderboard(table_of(runs), tmp_path / "site").paths:
        if path.suffix != ".parquet" and path.parent.name != "static":
            assert not re.search(r"\b(nan|inf)\b", path.read_text("utf-8"), re.IGNORECASE), path


def test_fewer_than_three_seeds_are_not_ranked():
    assert only_row(*line(0.5, 0.6)).bars == ("2 seeds, and 3 are needed",)
    assert only_row(*line(0.5)).bars == ("1 seed, and 3 are needed",)
    assert columns.MEASURED["val_mIoU"].text(only_row(*line(0.5))) == "50.00"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"backbone": ""}, "its backbone was not recorded"),
        ({"supervision": ""}, "its supervision was not recorded"),
        ({"initialisation": ""}, "its initialisation was not recorded"),
        ({"crf_preset": ""}, "its CRF preset was not recorded"),
        ({"multi_scale": ""}, "its multi-scale was not recorded"),
        ({"selection": ""}, "its selection was not recorded"),
        ({"tuning_masks": ""}, "its number of masks used for tuning was not recorded"),
    ],
)
def test_a_field_of_the_protocol_that_is_missing_bars_from_a_rank(changes, words):
    row = only_row(*line(0.5, 0.5, 0.5, **changes))
    assert (row.rank, row.bars) == (None, (words,))


def test_seeds_with_other_conditions_are_not_one_number():
    runs = [make(0.5, crf_preset="irn"), *line(0.5, 0.5, 0.5)[1:]]
    assert only_row(*runs).bars == ("its seeds differ in CRF preset: irn, none",)


def test_a_seed_that_ran_twice_is_not_averaged():
    runs = [*line(0.5, 0.5, 0.5), make(0.9, key="again")]
    assert only_row(*runs).values["val_mIoU"] == "a seed ran twice"
    assert only_row(*runs).bars == ("seed 0 ran more than once",)


def test_other_contents_of_the_data_bar_the_whole_group():
    group = only_group(*line(0.5, 0.5, 0.5), *line(0.6, 0.6, 0.6, method="b", data_digest="d2"))
    assert {row.bars for row in group.rows} == {("the group mixes contents of the data (digests d1, d2)",)}


def test_versions_of_the_code_and_dirty_code_are_noted():
    runs = line(0.5, 0.5, 0.5)
    runs[0] = replace(runs[0], code="def", dirty="true")
    row = only_row(*runs)
    assert row.rank == 1
    assert row.notes == ("2 versions of the code: abc, def", "the code had changes that were not committed")


def searched(best: tuple[float, ...] = (0.6, 0.8, 0.7)) -> list[Run]:
    """Return default, search of two trials (one of them pruned) and best of one cell."""
    search = [
        make(phase="search", number="0", metrics={"stage/a": 3600.0}),
        make(phase="search", settings="suggested", number="1", status="pruned", metrics={"stage/b": 1800.0}),
    ]
    confirm = line(0.5, 0.6, 0.7) + line(*best, settings="best")
    costs = {"default": {"stage/a": 3600.0}, "best": {"stage/b": 1800.0, "stage/c": 720.0}}
    return search + [replace(run, metrics={**run.metrics, **costs[run.settings]}) for run in confirm]


def test_best_gains_on_default_seed_by_seed():
    # 0.1, 0.2 and 0.0: mean 0.1, deviation 0.1.
    group = only_group(*searched())
    assert columns.gain(row_of(group, "cam", "best")) == "+10.00 ± 10.00"
    assert row_of(group, "cam", "best").gain_on == "val_mIoU"
    assert columns.gain(row_of(group, "cam", "default")) == "–"
    worse = row_of(only_group(*searched((0.4, 0.5, 0.6))), "cam", "best")
    assert columns.gain(worse) == "−10.00 ± 0.00"
    same = row_of(only_group(*searched((0.5, 0.6, 0.69999999))), "cam", "best")
    assert columns.gain(same).startswith("+0.00")


def test_there_is_no_gain_on_a_default_that_failed():
    runs = [replace(r, status="failed") if (r.settings, r.seed) == ("default", 1) else r for r in searched()]
    row = row_of(only_group(*runs), "cam", "best")
    assert (row.rank, row.gain) == (1, None)


def test_every_stage_costs_once_and_best_pays_for_its_search():
    group = only_group(*searched())
    # Search took a and b (1.5 h), best b again and c (0.2 h); default a.
    assert columns.time(row_of(group, "cam", "best")) == "1.7 CPU-h"
    assert columns.time(row_of(group, "cam", "default")) == "1.0 CPU-h"
    gpu = only_row(*[replace(run, device="cuda", metrics={"stage/a": 359.0}) for run in line(0.5, 0.5, 0.5)])
    assert columns.time(gpu) == "6.0 GPU-min"
    assert columns.time(only_row(*line(0.5, 0.5, 0.5))) == "–"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0.4 s"),
        (9.95, "10 s"),
        (59.4, "59 s"),
        (59.5, "1.0 min"),
        (252, "4.2 min"),
        (3596.9, "59.9 min"),
        (3597, "1.0 h"),
        (11160, "3.1 h"),
    ],
)
def test_a_duration_is_told_in_the_unit_that_fits(seconds, text):
    assert columns.duration(seconds) == text


def test_trials_are_counted_by_status():
    group = only_group(*searched())
    assert columns.trials(row_of(group, "cam", "best")) == "2 (1 complete, 1 pruned)"
    assert columns.trials(row_of(group, "cam", "default")) == "0"


def test_failures_of_the_search_and_a_budget_not_spent_are_noted():
    runs = [replace(run, trials=4) for run in searched()]
    runs[0] = replace(runs[0], status="failed", reason="broke")
    row = row_of(only_group(*runs), "cam", "best")
    assert row.rank is not None
    assert row.notes == ("2 of 4 planned search trials ran", "1 search trial failed: broke")


def twice(best: str = "a", **changes) -> list[Run]:
    """Return search, default and best of a cell; `best` are the keys of the best's stages."""
    runs = [replace(run, **changes) if run.settings == "best" else run for run in searched((0.5, 0.6, 0.7))]
    keys = {"best": best, "default": "a"}
    return [
        replace(run, metrics={**({"val/mIoU": run.metrics["val/mIoU"]}), f"stage/{keys[run.settings]}": 3600.0})
        if run.phase == "confirm"
        else run
        for run in runs
    ]


def test_default_and_best_with_the_same_settings_are_one_row():
    group = only_group(*twice(), *line(0.4, 0.4, 0.4, method="b"))
    assert [(row.rank, row.name) for row in group.rows] == [
        (1, "cam + none, default = best"),
        (2, "b + none, default"),
    ]
    row = group.rows[0]
    # The default settings need no search, whose trials are told nevertheless.
    assert (columns.time(row), columns.trials(row)) == ("1.0 CPU-h", "2 (1 complete, 1 pruned)")
    assert columns.gain(row) == "+0.00 ± 0.00"
    assert (row.at("default"), row.at("best")) == (True, True)


def test_equal_numbers_at_other_settings_are_two_rows():
    names = [row.settings for row in only_group(*twice(best="c")).rows]
    assert names == ["default", "best"]


def test_runs_that_failed_are_judged_by_their_recorded_parameters():
    def names(parameters: str, of_first: str) -> list[str]:
        runs = twice(best="a", parameters=parameters)
        runs[0] = replace(runs[0], parameters=of_first)
        runs = [replace(run, status="failed", metrics={}) if run.phase == "confirm" else run for run in runs]
        return [row.settings for row in only_group(*runs).rows]

    assert names('{"TrainCam.lr": 0.1}', '{"TrainCam.lr": 0.1}') == ["default = best"]
    assert names("{}", '{"TrainCam.lr": 0.1}') == ["default = best"]
    assert names('{"TrainCam.lr": 0.2}', '{"TrainCam.lr": 0.1}') == ["default", "best"]
    assert names("", "") == ["default", "best"]


def test_of_equal_settings_a_complete_run_stands_for_a_failed_one():
    runs = [
        replace(run, status="failed", metrics={}) if (run.settings, run.seed) == ("default", 1) else run
        for run in twice()
    ]
    row = only_row(*runs)
    assert (row.rank, row.status, row.seeds) == (1, "complete", (0, 1, 2))
    assert columns.MEASURED["val_mIoU"].text(row) == "60.00 ± 10.00"


def test_one_row_stands_for_both_on_every_page(tmp_path):
    runs = [*twice(), *line(0.4, 0.4, 0.4, method="b")]
    for path in write_leaderboard(table_of(runs), tmp_path / "site").paths:
        if path.suffix in (".html", ".md", ".tex", ".csv"):
            text = path.read_text("utf-8")
            assert "cam + none, best" not in text, path
            assert "cam,none,best" not in text, path
    flat = list(csv.DictReader((tmp_path / "site/leaderboard.csv").open(encoding="utf-8")))
    assert [(row["method"], row["settings"]) for row in flat] == [("cam", "default = best"), ("b", "default")]
    page = (tmp_path / "site/methods/cam.html").read_text("utf-8")
    assert "Changed settings" not in page
    assert page.count('<section class="repeat"') == 1


def test_best_without_a_search_is_not_ranked():
    row = row_of(only_group(*[run for run in searched() if run.phase == "confirm"]), "cam", "best")
    assert row.bars == ("no search trial was recorded",)


def test_the_iou_of_a_class_is_its_mean_and_no_mean_where_a_seed_has_none():
    runs = [
        make(
            seed=seed,
            metrics={"val/mIoU": 0.5, "val/IoU_cat": value, "val/IoU_big_dog": 0.25, "val/recall_x": 1.0},
        )
        for seed, value in enumerate((0.2, 0.4, None))
    ]
    assert only_row(*runs).classes == {"big_dog": 0.25, "cat": None}
    selected = {"mIoU_tuned": 0.5, "IoU_cat_tuned": 0.3, "IoU_cat_fixed": 0.1, "IoU_dog_tuned": 0.6}
    metrics = {f"pseudo_mask.train/{name}": value for name, value in selected.items()}
    assert only_row(*[make(seed=seed, metrics=metrics) for seed in range(3)]).classes == {
        "cat": pytest.approx(0.3),
        "dog": pytest.approx(0.6),
    }


# Texts


def test_signs_are_escaped_in_every_format():
    reason = 'a|b <b>50%</b> x_y & $z {q} \\ # ~ ^ ± é 漢 "s"\nnext `c` *d*'
    runs = [*line(0.5, 0.5), make(seed=2, status="failed", reason=reason)]
    shown = board(*runs)
    assert r"a\|b \<b\>50%\</b\> x_y \& \$z {q} \\ \# \~ ^ ± é 漢" in markdown.leaderboard(shown)
    assert r"next \`c\` \*d\*" in markdown.leaderboard(shown)
    page = overview(shown)
    assert "a|b &lt;b&gt;50%&lt;/b&gt; x_y &amp; $z" in page
    assert "<b>50" not in page
    text = latex.leaderboard(shown)
    assert r"a\textbar{}b \textless{}b\textgreater{}50\%\textless{}/b\textgreater{} x\_y \& \$z \{q\}" in text
    assert r"\textbackslash{} \# \textasciitilde{} \textasciicircum{} $\pm$ e ? ''s'' next" in text
    assert text.isascii()
    (flat, *_) = csv.DictReader(io.StringIO(comma_separated.leaderboard(shown)))
    assert flat["not_ranked_because"] == f"seed 2 failed: {reason}"


def test_latex_takes_any_name_as_it_is():
    assert latex.escape("[a] *b* --set x---y – z") == r"{[}a] {*}b{*} -{}-set x-{}-{}-y -- z"
    assert latex.escape("a\x00b\x07c") == "a{}b?c"
    names = "a_b & 50% <b>bold</b> $x$ {y} #1 ~^\\ \"q\" 'p' | z [1] *"
    text = latex.leaderboard(board(*line(0.5, 0.6, 0.7, dataset=names, method=names, refiner=names)))
    for cell in re.split(r" & | \\\\", text):
        assert not re.search(r"(?<!\\)[%#&]|^[*\[]", cell.strip()), cell


def test_the_csv_has_unrounded_numbers():
    (flat,) = csv.DictReader(io.StringIO(comma_separated.leaderboard(board(*line(0.1, 0.2, 0.4)))))
    assert float(flat["val_mIoU_mean"]) == pytest.approx(0.7 / 3, abs=1e-15)
    assert float(flat["val_mIoU_std"]) == summarise([0.1, 0.2, 0.4]).std
    assert (flat["rank"], flat["random_seeds"], flat["pseudo_mask_mIoU_mean"]) == ("1", "0 1 2", "")


def test_values_without_a_column_are_an_error_and_values_that_are_missing_are_empty():
    assert unrounded(["a", "b"], [{"a": 1}, {"b": 0.1, "a": None}, [2, 3]]) == "a,b\n1,\n,0.1\n2,3\n"
    with pytest.raises(ValueError, match="no column for c, d"):
        unrounded(["a"], [{"a": 1, "d": 2}, {"c": 3}])


def test_the_csv_has_the_conditions_of_all_rows():
    shown = board(*line(0.1, 0.2, 0.4))
    (group,) = shown.groups
    (row,) = group.rows
    other = replace(row, conditions={**row.conditions, "colour_jitter": "false"})
    both = replace(shown, groups=(replace(group, rows=(row, other)),))
    first, second = csv.DictReader(io.StringIO(comma_separated.leaderboard(both)))
    assert (first["colour_jitter"], second["colour_jitter"]) == ("", "false")


def test_a_leaderboard_without_runs_says_so(tmp_path):
    for path in write_leaderboard(table_of([]), tmp_path / "new" / "folder").paths[1:4]:
        assert "Nothing has been measured yet." in path.read_text("utf-8")
    assert compact.leaderboard(board()) == "Nothing has been measured yet.\n"
    assert len((tmp_path / "new/folder/leaderboard.csv").read_text().splitlines()) == 1


def files(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_site_that_cannot_be_written_leaves_the_older_one_as_it_was(tmp_path, monkeypatch):
    write_leaderboard(table_of(line(0.5, 0.6, 0.7)), tmp_path / "site")
    before = files(tmp_path / "site")

    def full(*_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setitem(FORMATS, "leaderboard.csv", full)
    for folder in ("site", "new"):
        with pytest.raises(OSError, match=f"No space left on device: .*{folder}"):
            write_leaderboard(table_of(line(0.1, 0.2, 0.3)), tmp_path / folder)
    assert files(tmp_path / "site") == before
    assert files(tmp_path / "new") == {}


def test_a_sweep_in_which_all_is_missing_is_shown():
    runs = [make(seed=seed, status="missing", reason="no run was recorded") for seed in range(3)]
    assert "seeds 0, 1, 2 missing: no run was recorded" in compact.leaderboard(board(*runs))


def test_the_package_imports_neither_torch_nor_mlflow_nor_pandas():
    program = (
        "import pkgutil, importlib, sys, leaderboard\n"
        "for module in pkgutil.walk_packages(leaderboard.__path__, 'leaderboard.'):\n"
        "    importlib.import_module(module.name)\n"
        "print(sorted({'torch', 'mlflow', 'pandas'} & set(sys.modules)))"
    )
    checkout = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=checkout, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_weights_file_is_shown_by_the_first_digits_of_its_digest():
    group = only_group(*line(0.5, 0.5, 0.5))
    expected = {"sha256:" + "0123456789abcdef" * 4: "sha256:0123456789ab", "imagenet": "imagenet", "": "–"}
    for recorded, text in expected.items():
        scope = group.scope._replace(initialisation=recorded)
        assert columns.initialisation(replace(group, scope=scope)) == text
