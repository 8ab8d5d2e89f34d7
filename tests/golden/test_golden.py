"""A stage's result moves only with its version (tests/golden/numbers.py)."""

from __future__ import annotations

import json

import pytest

from tests.golden import numbers as golden


@pytest.fixture(scope="module")
def measured():
    return golden.measure_alone()


@pytest.mark.slow
def test_no_number_moves_without_its_version(measured):
    recorded = json.loads(golden.RECORDED.read_text())
    assert set(measured) == set(recorded), "stages came or went: run `python -m tests.golden`"
    moved = [
        f"{name}: {recorded[name]['number']:.6g} → {now['number']:.6g}, still version {now['version']}"
        for name, now in measured.items()
        if now["version"] == recorded[name]["version"]
        and now["number"] != pytest.approx(recorded[name]["number"], rel=5e-3)
    ]
    assert not moved, "raise these stages' versions, then run `python -m tests.golden`:\n" + "\n".join(moved)


def test_a_raised_version_is_recorded(measured):
    recorded = json.loads(golden.RECORDED.read_text())
    stale = [name for name, now in measured.items() if now["version"] != recorded[name]["version"]]
    assert not stale, f"run `python -m tests.golden`: {stale}"
