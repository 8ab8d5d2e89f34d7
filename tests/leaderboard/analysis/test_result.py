"""What the leaderboard says beyond its table, on boards with known answers."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from seedbed.leaderboard.analysis.ranking import Board, board_of
from seedbed.leaderboard.analysis.result import Analysis, analyse
from seedbed.leaderboard.data.per_image import ImageStatistics, RunImages
from seedbed.leaderboard.data.snapshot import Run, runs_of, table_of
from seedbed.leaderboard.figures import pareto as cost
from seedbed.leaderboard.figures.budget import expected_best
from seedbed.leaderboard.figures.importance import importance
from seedbed.leaderboard.figures.style import stems
from seedbed.leaderboard.tables import csv as comma_separated
from seedbed.leaderboard.tables import latex, markdown
from seedbed.leaderboard.tables.pairwise import comparisons
from tests.helpers.board_with_images import confirmed, images_of, searched, statistics

Rows = Sequence[Sequence[tuple[Run, RunImages]]]


def analysed(rows: Rows, *search: Run, images: ImageStatistics | None = None) -> tuple[Board, Analysis]:
    """Return the board and the analysis of some rows, with the statistics of all their images."""
    runs = runs_of(table_of([*(run for row in rows for run, _ in row), *search]))
    board = board_of(runs)
    return board, analyse(board, runs, images or statistics(*rows), resamples=400)


CLEAR = [confirmed(0.8), confirmed(0.7, refiner="crf", hours=3.0), confirmed(0.6, method="sc_cam", hours=0.5)]
EQUAL = [*CLEAR[:2], confirmed(0.7001, method="sc_cam", hours=0.5)]
"""The second and the third come from one distribution, but for a hundredth of a point."""


@pytest.fixture(scope="module")
def clear():
    return analysed(CLEAR, *searched([0.3, 0.4, 0.35, 0.5, 0.6]), *searched([0.3, 0.4], refiner="crf"))


@pytest.fixture(scope="module")
def equal():
    return analysed(EQUAL)


# Comparisons


def test_a_clear_order_is_told_apart_and_has_ranks_without_doubt(clear):
    board, analysis = clear
    (group,) = analysis.groups
    assert [row.method + row.refiner for row in board.groups[0].rows] == ["camnone", "camcrf", "sc_camnone"]
    assert dict(group.rank_intervals) == {0: (1, 1), 1: (2, 2), 2: (3, 3)}
    assert [(c.first, c.second, c.together) for c in group.comparisons] == [
        (0, 1, False),
        (0, 2, False),
        (1, 2, False),
    ]
    assert any("is told apart from every other row" in sentence for sentence in analysis.sentences)
    assert "0 of 3 pairs of ranked rows cannot be told apart" in analysis.sentences[1]


def test_rows_of_one_distribution_are_not_told_apart(equal):
    _, analysis = equal
    (group,) = analysis.groups
    assert [(c.first, c.second) for c in group.comparisons if c.together] == [(1, 2)]
    assert (group.rank_intervals[1], group.rank_intervals[2]) == ((2, 3), (2, 3))
    assert "1 of 3 pairs" in analysis.sentences[1]


def test_rows_with_the_same_numbers_have_the_same_interval_and_rank():
    twice = [confirmed(0.7), confirmed(0.7, refiner="crf"), confirmed(0.8, method="sc_cam")]
    _, analysis = analysed(twice)
    (group,) = analysis.groups
    assert group.intervals[1] == group.intervals[2] != group.intervals[0]
    assert group.rank_intervals[1] == group.rank_intervals[2] == (2, 2)


def test_differences_are_those_of_the_recorded_numbers_and_intervals_hold_them(clear):
    board, analysis = clear
    rows = board.groups[0].rows
    for index, row in enumerate(rows):
        low, high = analysis.groups[0].intervals[index]
        assert low < row.values["val_mIoU"].mean < high
    for pair in analysis.groups[0].comparisons:
        means = [rows[i].values["val_mIoU"].mean for i in (pair.first, pair.second)]
        assert pair.difference == pytest.approx(means[0] - means[1], abs=1e-12)
        assert pair.image_low < pair.difference < pair.image_high
        # Seeds can only add to what images leave open.
        assert pair.seed_low < pair.image_low
        assert pair.seed_high > pair.image_high
        assert pair.image_p == 2 / 401


def test_the_leader_names_whom_it_cannot_be_told_apart_from():
    _, analysis = analysed([confirmed(0.8), confirmed(0.8001, method="esol"), confirmed(0.6, method="sc_cam")])
    assert re.search(
        r"which is ranked first, cannot be told apart from: (cam|esol) \+ none", analysis.sentences[0]
    )
    assert "sc_cam" not in analysis.sentences[0]


def test_pairs_are_over_the_seeds_that_both_have():
    _, analysis = analysed([confirmed(0.8, seeds=(0, 1, 2)), confirmed(0.7, seeds=(2, 3, 4), method="b")])
    (pair,) = analysis.groups[0].comparisons
    values = [
        {run.seed: run.metrics["val/mIoU"] for run, _ in row}
        for row in (confirmed(0.8), confirmed(0.7, seeds=(2, 3, 4), method="b"))
    ]
    assert pair.difference == pytest.approx(values[0][2] - values[1][2], abs=1e-12)
    assert (pair.seed_low, pair.seed_high, pair.seed_p) == (None, None, None)
    assert not pair.together
    _, analysis = analysed([confirmed(0.8, seeds=(0, 1, 2)), confirmed(0.7, seeds=(3, 4, 5), method="b")])
    assert analysis.groups[0].comparisons == ()


# Rows without statistics


def test_a_row_without_statistics_is_told_and_has_no_interval(clear):
    whole = statistics(*CLEAR)
    key = CLEAR[1][0][0].key
    images = ImageStatistics({k: v for k, v in whole.runs.items() if k != key}, {key: "the disk ate it"})
    board, analysis = analysed(CLEAR, images=images)
    assert analysis.images_without == ("cam + crf, default: the disk ate it",)
    (group,) = analysis.groups
    assert sorted(group.intervals) == [0, 2]
    assert [(c.first, c.second) for c in group.comparisons] == [(0, 2)]
    # A rank among some of the rows would not be the rank.
    assert dict(group.rank_intervals) == {}
    assert analysis.average_ranks == ()
    assert any("per-image statistics are missing: cam + crf, default" in s for s in analysis.sentences)
    assert "the disk ate it" in markdown.leaderboard(board, analysis)


def test_statistics_that_contradict_the_record_or_are_of_other_images_are_not_used():
    rows = [list(row) for row in CLEAR]
    run, images = rows[0][0]
    rows[0][0] = (run, RunImages.of(images.ids, images.counts + np.array([[[1, 0, 0], [1, 0, 0], [1, 0, 0]]])))
    run, images = rows[1][0]
    rows[1][0] = (run, RunImages.of(("another", *images.ids[1:]), images.counts))
    _, analysis = analysed(rows)
    assert re.search(r"its images give val mIoU 0\.\d{6}, and 0\.\d+ was recorded", analysis.images_without[0])
    assert analysis.images_without[1] == "cam + crf, default: its images are not those of the other rows"


def test_without_any_statistics_the_rest_is_still_said():
    runs = runs_of(table_of([run for row in CLEAR for run, _ in row]))
    board = board_of(runs)
    analysis = analyse(board, runs, None)
    assert analysis.groups[0].comparisons == ()
    assert any("so no rows are compared" in sentence for sentence in analysis.sentences)
    assert any("Pareto front" in sentence for sentence in analysis.sentences)


def test_an_empty_board_has_an_empty_analysis():
    board, analysis = analysed([])
    assert analysis == Analysis((), (), (), ())
    assert "Nothing has been measured yet" in markdown.leaderboard(board, analysis)


# Average ranks


def test_the_average_rank_over_two_data_sets():
    """a is first and second, b second and first, c third in both; d is in one data set alone."""
    skills = {"x": {"a": 0.9, "b": 0.8, "c": 0.6, "d": 0.7}, "y": {"b": 0.9, "a": 0.8, "c": 0.6}}
    rows = [
        confirmed(skill, method=method, dataset=dataset)
        for dataset, methods in skills.items()
        for method, skill in methods.items()
    ]
    _, analysis = analysed(rows)
    ranks = {rank.method: (rank.mean, rank.low, rank.high, rank.datasets) for rank in analysis.average_ranks}
    assert ranks == {"a": (1.5, 1.5, 1.5, 2), "b": (1.5, 1.5, 1.5, 2), "c": (3.0, 3.0, 3.0, 2)}
    assert analysis.sentences[-1] == "Average ranks are among rows at default settings over the data sets x, y."


def test_data_sets_of_other_classes_are_averaged_and_compared_with_their_classes():
    chosen = "2 of 20 classes: cat, dog"
    rows = [
        confirmed(skill, method=method, dataset=dataset, classes=classes)
        for dataset, classes in (("x", ""), ("y", chosen))
        for method, skill in (("a", 0.9), ("b", 0.7))
    ]
    board, analysis = analysed(rows)
    assert [(rank.method, rank.mean, rank.datasets) for rank in analysis.average_ranks] == [
        ("a", 1, 2),
        ("b", 2, 2),
    ]
    assert analysis.sentences[-1].endswith(f"over the data sets x, y ({chosen}).")
    compared = list(csv.DictReader(io.StringIO(comparisons(board, analysis))))
    assert [(row["dataset"], row["classes"]) for row in compared] == [("x", ""), ("y", chosen)]


def test_one_data_set_gives_its_ranks_with_their_doubt(equal):
    _, analysis = equal
    first, *others = analysis.average_ranks
    assert (first.mean, first.low, first.high, first.datasets) == (1, 1, 1, 1)
    assert [(rank.low, rank.high) for rank in others] == [(2, 3), (2, 3)]


def test_other_conditions_are_not_averaged():
    rows = [confirmed(0.8), confirmed(0.7, method="b"), confirmed(0.9, method="c", dataset="y", backbone="vgg16")]
    _, analysis = analysed(rows)
    assert [rank.method for rank in analysis.average_ranks] == ["cam", "b"]


# Cost


def test_the_pareto_front_is_that_by_hand(clear):
    board, analysis = clear
    ((device, points),) = cost.points_by_device(board.groups[0]).items()
    assert device == "CPU"
    # The second row costs 3 h and is worse than the first, which costs 1 h.
    assert [(point.row.method, point.row.refiner, point.hours) for point in cost.front(points)] == [
        ("sc_cam", "none", 0.5),
        ("cam", "none", 1.0),
    ]
    (sentence,) = [sentence for sentence in analysis.sentences if "Pareto" in sentence]
    assert "sc_cam + none, default (30.0 min," in sentence
    assert "crf" not in sentence


def test_equal_points_are_both_on_the_front_and_hours_of_other_devices_on_no_common_axis():
    rows = [confirmed(0.8), confirmed(0.8, method="b"), confirmed(0.7, method="c", device="cuda")]
    board, analysis = analysed(rows)
    devices = cost.points_by_device(board.groups[0])
    assert {device: [p.row.method for p in cost.front(points)] for device, points in devices.items()} == {
        "CPU": ["b", "cam"],
        "GPU": ["c"],
    }
    names = [figure.name for figure in analysis.figures if figure.name.startswith("pareto")]
    assert names == ["pareto-chimera", "pareto-chimera-2"]


# Budget and importance


def test_the_expected_best_of_three_trials_by_hand():
    assert expected_best([3, 1, 2]) == [pytest.approx(2), pytest.approx(8 / 3), pytest.approx(3)]
    assert expected_best([5.0]) == [5.0]
    assert expected_best([1.0] * 4) == pytest.approx([1.0] * 4)


def test_the_expected_best_is_the_formula_of_its_docstring_to_the_last_bit():
    values = np.random.default_rng(0).random(60).tolist()
    ordered, total = sorted(values), len(values)
    slow = [
        math.fsum(value * (math.comb(i, n - 1) / math.comb(total, n)) for i, value in enumerate(ordered))
        for n in range(1, total + 1)
    ]
    assert expected_best(values) == slow


def figure_of(analysis: Analysis, name: str):
    """Return a figure's numbers by row."""
    (figure,) = [figure for figure in analysis.figures if figure.name == name]
    return figure, list(csv.DictReader(io.StringIO(figure.csv)))


def test_the_curves_of_the_searches_are_in_the_figure(clear):
    figure, rows = figure_of(clear[1], "budget-chimera")
    crf = [row for row in rows if row["refiner"] == "crf"]
    assert [float(row["expected_best"]) for row in crf] == [pytest.approx(0.35), pytest.approx(0.4)]
    assert {row["default"] for row in crf} == {"0.3"}
    assert len(rows) == 5 + 2
    assert (figure.methods, figure.dataset) == (("cam",), "chimera")
    assert "are not independent" in figure.caption


def test_trials_without_a_score_are_counted_in_the_caption():
    search = searched([0.3, 0.4, 0.5])
    search[1] = replace(search[1], status="pruned")
    _, analysis = analysed(CLEAR[:1], *search)
    figure, rows = figure_of(analysis, "budget-chimera")
    assert len(rows) == 2
    assert "1 trial without a score" in figure.caption


def test_the_parameter_that_decides_is_the_important_one():
    generator = np.random.default_rng(5)
    found = importance(searched([float(score) for score in generator.uniform(0, 1, 40)]))
    assert list(found) == ["TrainCam.lr", "Crf.weight"]
    assert sum(found.values()) == pytest.approx(1)
    assert found["TrainCam.lr"] > 0.8
    assert found == importance(searched([float(s) for s in np.random.default_rng(5).uniform(0, 1, 40)]))


def test_of_a_poor_search_nothing_is_said_with_the_reason():
    assert importance(searched([0.1, 0.2, 0.3])) == "3 complete trials, and 4 are needed"
    assert importance(searched([0.5] * 6)) == "all trials have the same score"
    unknown = [replace(run, parameters="", space="") for run in searched([0.1, 0.2, 0.3, 0.4])]
    assert importance(unknown) == "the parameters were not recorded"
    nothing = [replace(run, parameters="{}", space="{}") for run in searched([0.1, 0.2, 0.3, 0.4])]
    assert importance(nothing) == "no parameter was searched"
    alone = [
        replace(run, parameters=json.dumps({**json.loads(run.parameters), "Crf.weight": 1.0}))
        for run in searched([0.1, 0.2, 0.3, 0.4])
    ]
    assert importance(alone) == "TrainCam.lr alone varied"


def test_a_default_outside_the_space_is_left_out():
    search = searched([0.1, 0.2, 0.3, 0.4])
    search[0] = replace(search[0], parameters="{}", space="{}")
    assert importance(search) == "3 complete trials, and 4 are needed"


def test_a_search_that_says_nothing_has_no_bars_but_its_reason(clear):
    figure, rows = figure_of(clear[1], "importance-chimera-cam")
    assert "crf: nothing, 2 complete trials, and 4 are needed" in figure.caption
    assert [row["nothing_because"] for row in rows if row["refiner"] == "crf"] == [
        "2 complete trials, and 4 are needed"
    ]
    assert sum(float(row["importance"]) for row in rows if row["refiner"] == "none") == pytest.approx(1)


# Figures


def test_figures_are_svg_in_the_pages_colour_and_the_same_bytes_again(clear):
    _, analysis = clear
    again = analysed(CLEAR, *searched([0.3, 0.4, 0.35, 0.5, 0.6]), *searched([0.3, 0.4], refiner="crf"))[1]
    assert analysis == again
    identifiers: list[str] = []
    for figure in analysis.figures:
        root = ElementTree.fromstring(figure.svg)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "currentColor" in figure.svg
        assert "#010203" not in figure.svg
        for word in ("<style", "<metadata", "<script", "clip"):
            assert word not in figure.svg
        assert re.fullmatch(r"[a-z0-9_-]+", figure.name)
        identifiers += [element.get("id", "") for element in root.iter() if element.get("id")]
        # Nothing is loaded from anywhere.
        assert not re.search(r"https?:|url\(|src=", figure.svg.replace('xmlns="http://www.w3.org/2000/svg"', ""))
        for reference in re.findall(r'href="#([^"]+)', figure.svg):
            assert f'id="{reference}"' in figure.svg
    assert len(identifiers) == len(set(identifiers)), "several figures stand on one page"


def test_names_that_users_give_are_shown_as_they_are():
    evil = 'a<b>&"$x_1$'
    long = "a method with a name that is longer than any picture is wide, by far"
    _, analysis = analysed(
        [confirmed(0.8, method=evil, dataset="D & <C>"), confirmed(0.7, method=long, dataset="D & <C>")]
    )
    for figure in analysis.figures:
        ElementTree.fromstring(figure.svg)
    intervals = next(figure for figure in analysis.figures if figure.name == "intervals-d-c")
    assert 'a&lt;b&gt;&amp;"$x_1$ + none' in intervals.svg
    assert "a method with a name that is longer than an…" in intervals.svg
    assert long in intervals.csv


def test_groups_of_one_data_set_have_figures_of_their_own():
    rows = [confirmed(0.8), confirmed(0.7, backbone="vgg16"), confirmed(0.6, dataset="Chimera!")]
    board, analysis = analysed(rows)
    assert stems(board.groups) == ["chimera", "chimera-2", "chimera-3"]
    names = [figure.name for figure in analysis.figures]
    assert len(names) == len(set(names))


def test_classes_and_intervals_are_in_the_csv_of_their_figures(clear):
    board, analysis = clear
    _, rows = figure_of(analysis, "classes-chimera")
    assert list(rows[0])[4:] == ["background", "cat", "dog"]
    assert float(rows[0]["cat"]) == board.groups[0].rows[0].classes["cat"]
    _, rows = figure_of(analysis, "intervals-chimera")
    assert float(rows[1]["low"]) == analysis.groups[0].intervals[1][0]


# Texts


def test_tables_have_intervals_where_an_analysis_is_given(clear):
    board, analysis = clear
    plain, text = markdown.leaderboard(board), markdown.leaderboard(board, analysis)
    assert "| # | Method" in plain
    assert "| # | # 95 % | Method" in text.replace("\\#", "#")
    low, high = analysis.groups[0].intervals[0]
    assert f"{100 * low:.2f} … {100 * high:.2f}" in text
    assert "## What can be told apart" in text
    assert "### Differences from cam + none, default, in points of val mIoU" in text
    assert "### Average rank over data sets" in text
    assert text.count("95% interval") == 0
    assert latex.leaderboard(board, analysis).isascii()
    assert r"val mIoU 95 \%" in latex.leaderboard(board, analysis)


def test_the_csv_gains_limits_and_keeps_what_it_had(clear):
    board, analysis = clear
    plain = list(csv.DictReader(io.StringIO(comma_separated.leaderboard(board))))
    flat = list(csv.DictReader(io.StringIO(comma_separated.leaderboard(board, analysis))))
    assert [{name: row[name] for name in plain[0]} for row in flat] == plain
    assert (flat[1]["rank_low"], flat[1]["rank_high"], flat[1]["interval_of"]) == ("2", "2", "val_mIoU")
    assert float(flat[1]["interval_low"]) == analysis.groups[0].intervals[1][0]


def test_every_comparison_is_in_the_csv(clear):
    board, analysis = clear
    rows = list(csv.DictReader(io.StringIO(comparisons(board, analysis))))
    assert [(row["first_refiner"], row["second_method"], row["together"]) for row in rows] == [
        ("none", "cam", "false"),
        ("none", "sc_cam", "false"),
        ("crf", "sc_cam", "false"),
    ]
    assert float(rows[0]["difference"]) == analysis.groups[0].comparisons[0].difference


def test_rows_with_one_seed_have_intervals_over_images_alone():
    board, analysis = analysed([confirmed(0.8, seeds=[0]), confirmed(0.7, seeds=[0], method="b")])
    (pair,) = analysis.groups[0].comparisons
    assert pair.seed_p is None
    assert not pair.together
    assert dict(analysis.groups[0].rank_intervals) == {}
    assert "| – | – |" in markdown.leaderboard(board, analysis)


def test_images_of_matches_the_confusion_it_came_from():
    """The fixture itself: truth and prediction of one image by hand."""
    counts = images_of([np.array([[5, 1], [2, 4]])]).counts
    assert counts.tolist() == [[[5, 4], [6, 6], [7, 5]]]
