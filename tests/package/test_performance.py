"""The table of `python -m tests.performance`; nothing is timed here."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.helpers import measurement
from tests.helpers.measurement import HEADER, Row, SkippedError, print_table
from tests.performance.__main__ import PARTS, rows_of

FOLDER = Path(measurement.__file__).parents[1] / "performance"


def test_a_row_compares_two_costs():
    row = Row("Loading", "ms", 4.0, "the code before", 10.0, goal=2.5)
    assert row.cells() == ["Loading", "ms", "4.00", "the code before", "10.0", "2.50", "≥ 2.5"]
    large = Row("Loading", "ms", 1234.5, "plain", 617.25)
    assert large.cells() == ["Loading", "ms", "1234", "plain", "617", "0.50", ""]


def test_the_table_has_the_rows_of_all_parts_and_says_what_is_left_out(capsys):
    def skipped():
        raise SkippedError("needs real photographs")
        yield

    print_table({"a": lambda: [Row("A", "s", 1.0, "b", 2.0)], "photographs": skipped})
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [*HEADER, "| A | s | 1.00 | b | 2.00 | 2.00 |  |"]
    assert lines[3:5] == ["", "Not measured: photographs (needs real photographs)."]
    assert "torch" in lines[5]


def test_photographs_are_named_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("SEEDBED_REAL_VOC", raising=False)
    with pytest.raises(SkippedError, match="SEEDBED_REAL_VOC"):
        measurement.photographs()
    monkeypatch.setenv("SEEDBED_REAL_VOC", str(tmp_path))
    assert measurement.photographs() == tmp_path


def test_tasks_take_turns_and_the_least_time_counts(monkeypatch):
    clock, called = [0.0], []
    cost = {"a": iter([9.0, 3.0, 1.0, 2.0]), "b": iter([9.0, 5.0, 4.0, 6.0])}
    monkeypatch.setattr(measurement.time, "process_time", lambda: clock[0])

    def task(name):
        called.append(name)
        clock[0] += next(cost[name])

    least = measurement.least_seconds({"a": lambda: task("a"), "b": lambda: task("b")})
    assert (least, called) == ({"a": 1.0, "b": 4.0}, ["a", "b"] * 4)


def test_every_script_of_the_folder_is_a_part():
    scripts = [path for path in FOLDER.glob("*.py") if not path.stem.startswith("_")]
    assert sorted(path.stem for path in scripts) == PARTS
    for path in scripts:
        functions = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
        assert "rows" in functions, path.name


def test_a_part_is_found_by_its_name():
    assert rows_of("threshold_curve").__module__ == "tests.performance.threshold_curve"
