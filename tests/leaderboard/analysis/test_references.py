"""References on a board: apart from ranks and comparisons, and the share of the fully supervised bound by hand."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from seedbed.leaderboard.analysis.ranking import Board
from seedbed.leaderboard.analysis.result import Analysis, GroupAnalysis, analyse
from seedbed.leaderboard.analysis.summary import Summary
from seedbed.leaderboard.data.collect import _refuse_contradictions
from seedbed.leaderboard.data.expected import ExpectedTrials
from seedbed.leaderboard.data.per_image import ImageStatistics
from seedbed.leaderboard.data.snapshot import Run, runs_of, table_of
from seedbed.leaderboard.site import pages
from seedbed.leaderboard.site.content import Content
from seedbed.leaderboard.tables import compact, latex, markdown
from seedbed.leaderboard.tables import csv as comma_separated
from seedbed.leaderboard.tables.columns import group_table
from seedbed.leaderboard.tables.pairwise import comparisons
from tests.helpers.board_with_images import confirmed
from tests.leaderboard.tables.test_leaderboard import board, line, make, only_group, row_of


def reference(name: str, *values: float, metric: str = "val/mIoU", **changes) -> list[Run]:
    """Return one run of a reference per value, with the seeds 0, 1, 2 …"""
    supervision = {"fully_supervised": "F", "background": "none", "whole_image": "I"}[name]
    shared = {"method": name, "refiner": "", "reference": name, "supervision": supervision, "tuning_masks": "0"}
    return [
        make(seed=seed, **{"metrics": {metric: value}, **shared, **changes}) for seed, value in enumerate(values)
    ]


def with_references() -> list[Run]:
    """Return two methods, and every reference."""
    background = {"val/mIoU": 0.12, "pseudo_mask.train/mIoU": 0.10}
    return [
        *line(0.30, 0.40, 0.50, method="cam"),
        *line(0.20, 0.25, 0.30, method="rrm"),
        *reference("fully_supervised", 0.70, 0.80, 0.90),
        *reference("background", 0.12, metrics=background),
        *reference("whole_image", 0.15, metric="pseudo_mask.train/mIoU"),
    ]


def test_references_come_last_and_have_no_rank_no_mark_and_no_bar():
    group = only_group(*with_references())
    assert [(row.name, row.rank) for row in group.rows] == [("cam + none, default", 1), ("rrm + none, default", 2)]
    assert [row.name for row in group.references] == ["fully supervised", "background only", "tags + whole image"]
    assert [row.settings for row in group.references] == ["reference"] * 3
    for row in group.references:
        assert (row.rank, row.marked, row.bars, row.notes, row.gain) == (None, frozenset(), (), (), None)
    bound, background, whole = group.references
    assert bound.values["val_mIoU"] == Summary(pytest.approx(0.80), pytest.approx(0.10), 3)
    assert background.values["val_mIoU"] == Summary(0.12, None, 1)
    assert whole.values["val_mIoU"] == "–"
    # The highest number of the column is the best method's, although the bound is higher.
    assert row_of(group, "cam").marked == {"val_mIoU"}


def test_the_share_is_the_mean_by_that_of_the_bound_with_the_same_seeds():
    group = only_group(*with_references())
    assert row_of(group, "cam").share == pytest.approx(0.40 / 0.80)
    assert row_of(group, "rrm").share == pytest.approx(0.25 / 0.80)
    bound, background, whole = group.references
    assert bound.share == 1
    # Constant masks have one seed for all: all seeds of the bound count.
    assert background.share == pytest.approx(0.12 / 0.80)
    assert whole.share is None
    # Two seeds of three: the bound with these two, 0.70 and 0.80.
    fewer = only_group(*line(0.30, 0.40, method="cam"), *reference("fully_supervised", 0.70, 0.80, 0.90))
    assert row_of(fewer, "cam").share == pytest.approx(0.35 / 0.75)


@pytest.mark.parametrize(
    "bound",
    [
        [],
        reference("fully_supervised", 0.7, 0.8),
        reference("fully_supervised", 0.0, 0.0, 0.0),
        # Another sweep may have trained another network.
        reference("fully_supervised", 0.7, 0.8, 0.9, sweep="other"),
        reference("fully_supervised", 0.7, 0.8, 0.9, dataset="other"),
        [
            *reference("fully_supervised", 0.7, 0.8),
            *(replace(run, seed=2, status="failed", metrics={}) for run in reference("fully_supervised", 0.9)),
        ],
    ],
)
def test_without_a_bound_for_each_seed_there_is_no_share(bound):
    group = only_group(*line(0.30, 0.40, 0.50, method="cam"), *bound)
    assert row_of(group, "cam").share is None
    assert "| – |" in markdown.leaderboard(board(*line(0.30, 0.40, 0.50, method="cam"), *bound))


def test_a_row_without_a_network_or_with_a_missing_seed_has_no_share():
    bound = reference("fully_supervised", 0.7, 0.8, 0.9)
    masks = [make(method="cam", seed=s, metrics={"pseudo_mask.train/mIoU_tuned": 0.5}) for s in range(3)]
    assert row_of(only_group(*masks, *bound), "cam").share is None
    failed = replace(make(0.5, method="cam", seed=2), status="failed", metrics={})
    assert row_of(only_group(*line(0.3, 0.4, method="cam"), failed, *bound), "cam").share is None


def test_each_group_has_the_bound_of_its_own_segmentation_network():
    other = {"segmentation_backbone": "resnet50", "segmentation_initialisation": "imagenet"}
    shown = board(
        *line(0.3, 0.3, 0.3, method="cam"),
        *line(0.3, 0.3, 0.3, method="icd", supervision="I+S"),
        *line(0.3, 0.3, 0.3, method="cam", sweep="b", **other),
        *reference("fully_supervised", 0.6, 0.6, 0.6),
        *reference("fully_supervised", 0.9, 0.9, 0.9, sweep="b", **other),
        *reference("background", 0.1),
    )
    found = {
        (group.scope.supervision, group.scope.segmentation_backbone): (
            [row.values["val_mIoU"].mean for row in group.references],
            group.rows[0].share,
        )
        for group in shown.groups
    }
    assert found == {
        ("I", "tiny"): ([pytest.approx(0.6), 0.1], pytest.approx(0.5)),
        ("I+S", "tiny"): ([pytest.approx(0.6), 0.1], pytest.approx(0.5)),
        ("I", "resnet50"): ([pytest.approx(0.9), 0.1], pytest.approx(1 / 3)),
    }


def test_sweeps_that_measured_the_same_reference_share_its_row():
    def staged(runs, prefix):
        return [replace(run, metrics={**run.metrics, f"stage/{prefix}{run.seed}": 1.0}) for run in runs]

    methods = [*line(0.3, 0.3, 0.3, method="cam"), *line(0.2, 0.2, 0.2, method="rrm", sweep="t")]
    bound = reference("fully_supervised", 0.6, 0.6, 0.6)
    same = [replace(run, sweep="t", key=f"t{run.key}") for run in bound]
    runs = [*methods, *staged(bound, "a"), *staged(same, "a")]
    _refuse_contradictions(runs)
    (row,) = only_group(*runs).references
    assert row.values["val_mIoU"] == Summary(pytest.approx(0.6), 0, 3)
    assert [row.share for row in only_group(*runs).rows] == [pytest.approx(1 / 2), pytest.approx(1 / 3)]
    # Networks that were trained in another way are not one number, and each sweep's rows have their own.
    longer = [replace(run, metrics={"val/mIoU": 0.8}) for run in same]
    runs = [*methods, *staged(bound, "a"), *staged(longer, "b")]
    group = only_group(*runs)
    assert group.references[0].values["val_mIoU"] == "a seed ran twice"
    assert group.references[0].notes == ("seeds 0, 1, 2 ran more than once",)
    assert [row.share for row in group.rows] == [pytest.approx(1 / 2), pytest.approx(1 / 4)]


def test_a_reference_that_is_missing_or_failed_says_so():
    cell = {"method": "cam", "refiner": "none", "dataset": "chimera", "supervision": "I", "backbone": "tiny"}
    cell |= {"initialisation": "none"}
    bound = {
        **cell,
        "method": "fully_supervised",
        "refiner": "",
        "supervision": "F",
        "reference": "fully_supervised",
    }
    constant = {**bound, "method": "background", "supervision": "none", "reference": "background"}
    plan = {"version": 1, "name": "s", "trials": 2, "seeds": [0, 1, 2]}
    cells = [cell, {**bound, "seeds": [0, 1, 2]}, {**constant, "seeds": [0]}]
    expected = ExpectedTrials.parse({**plan, "cells": cells})
    assert "seeds" not in expected.conditions
    missing = expected.missing(line(0.3, 0.4, 0.5))
    assert [(run.method, run.settings, run.seed) for run in missing] == [
        *(("cam", "best", seed) for seed in (0, 1, 2)),
        *(("fully_supervised", "default", seed) for seed in (0, 1, 2)),
        ("background", "default", 0),
    ]
    shown = board(*line(0.3, 0.4, 0.5), *missing)
    (group,) = shown.groups
    assert group.references[0].values["val_mIoU"] == "missing (3 of 3)"
    assert "fully supervised: seeds 0, 1, 2 missing: no run was recorded" in compact.leaderboard(shown)
    assert "not ranked: seeds 0, 1, 2 missing" in compact.leaderboard(shown)  # of cam's best settings


def test_references_are_in_no_comparison_and_no_average_rank():
    of_bound = {"method": "fully_supervised", "refiner": "", "supervision": "F", "reference": "fully_supervised"}
    of_background = {**of_bound, "method": "background", "supervision": "none", "reference": "background"}
    measured = [
        *confirmed(0.6, method="cam"),
        *confirmed(0.4, method="rrm"),
        *confirmed(0.9, **of_bound),
        *confirmed(0.1, seeds=[0], **of_background),
    ]
    runs, images = [run for run, _ in measured], ImageStatistics({run.key: images for run, images in measured})
    shown = board(*runs)
    analysis = analyse(shown, runs_of(table_of(runs)), images, resamples=50)
    (own,) = analysis.groups
    assert [row.method for row in shown.groups[0].references] == ["fully_supervised", "background"]
    assert [(pair.first, pair.second) for pair in own.comparisons] == [(0, 1)]
    assert {*own.intervals} == {*own.rank_intervals} == {0, 1}
    assert {(rank.method, rank.refiner) for rank in analysis.average_ranks} == {("cam", "none"), ("rrm", "none")}
    texts = [comparisons(shown, analysis), *analysis.sentences, *(figure.csv for figure in analysis.figures)]
    assert "rrm" in texts[0]
    assert not any(word in text for word in ("fully", "background only", "reference") for text in texts)


# Tables


@pytest.fixture(scope="module")
def shown() -> Board:
    return board(*with_references())


def test_every_table_has_them_at_its_end(shown):
    table = group_table(shown.groups[0])
    assert table.apart == 3
    share = table.titles.index("Share")
    assert table.titles[share - 1 : share + 2] == ["val mIoU", "Share", "Gain"]
    assert [row[:4] for row in table.rows][-3:] == [
        ("–", "fully supervised", "–", "reference"),
        ("–", "background only", "–", "reference"),
        ("–", "tags + whole image", "–", "reference"),
    ]
    assert [row[share] for row in table.rows] == ["50.0", "31.2", "100.0", "15.0", "–"]


def test_markdown_sets_them_in_italics(shown):
    rows = [line for line in markdown.leaderboard(shown).splitlines() if line.startswith("| ")]
    assert rows[2].startswith("| 1 | cam | none | default | ")
    assert rows[4].startswith("| *–* | *fully supervised* | *–* | *reference* | ")
    assert "| *80.00 ± 10.00* | *100.0* |" in rows[4]


def test_latex_has_a_rule_before_them(shown):
    lines = latex.leaderboard(shown).splitlines()
    (first,) = [n for n, text in enumerate(lines) if text.startswith("-- & fully supervised & -- & reference &")]
    assert lines[first - 1] == "\\midrule"
    assert lines[first - 2].startswith("2 & rrm &")
    assert "& 80.00 $\\pm$ 10.00 & 100.0 &" in lines[first]
    without = latex.leaderboard(board(*line(0.3, 0.4, 0.5)))
    assert without.count("\\midrule") == 1


def test_the_terminal_has_a_line_before_them(shown):
    lines = compact.leaderboard(shown).splitlines()
    (first,) = [n for n, text in enumerate(lines) if "fully supervised" in text]
    assert {*lines[first - 1]} == {"-"}
    assert " ".join(lines[first].split()) == "– fully supervised – reference – – 80.00 ± 10.00 100.0 – –"
    assert max(map(len, lines[: first + 3])) <= 120


def test_csv_has_the_share_unrounded(shown):
    header, *rows = [text.split(",") for text in comma_separated.leaderboard(shown).splitlines()]
    place = {name: header.index(name) for name in ("method", "refiner", "settings", "rank", "share_of_bound")}
    found = [tuple(row[place[name]] for name in place) for row in rows]
    assert found[1] == ("rrm", "none", "default", "2", str(0.25 / 0.8))
    assert [row[:4] for row in found[2:]] == [
        ("fully_supervised", "", "reference", ""),
        ("background", "", "reference", ""),
        ("whole_image", "", "reference", ""),
    ]
    assert found[-1][4] == ""


def test_pages_have_them_in_a_body_of_their_own_and_say_how_to_repeat_them(shown):
    runs = tuple(replace(run, command=f"seedbed run --seed {run.seed}") for run in with_references())
    nothing = tuple(GroupAnalysis({}, (), {}) for _ in shown.groups)
    found = dict(pages.pages(Content(shown, runs, Analysis(nothing, (), (), ()))))
    # The main table and that of all columns; `site.js` sorts and filters the first body of a table alone.
    first = re.findall(
        r"<tbody>(.*?)</tbody>\s*<tbody class=\"references\">(.*?)</tbody>", found["index.html"], re.S
    )
    assert [[re.findall(r'data-method="(\w+)"', body) for body in bodies] for bodies in first] == [
        [["cam", "rrm"], ["fully_supervised", "background", "whole_image"]]
    ] * 2
    assert '<a href="references/fully_supervised.html"><bdi>fully supervised</bdi></a>' in found["index.html"]
    page = found["references/fully_supervised.html"]
    assert "the upper bound" in page
    assert [f"<span>{seed}</span>" in page for seed in range(4)] == [True, True, True, False]
    assert "references/whole_image.html" in found
    assert "methods/cam.html" in found
    assert "methods/background.html" not in found
    assert "fully" not in found["methods/cam.html"].replace("fully supervised bound", "")
