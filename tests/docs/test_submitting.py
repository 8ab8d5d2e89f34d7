"""docs/submitting.md, followed literally: a sweep, a submission, a leaderboard with both, and an export."""

from __future__ import annotations

import re

import pytest

from tests.docs.extending import CHECKOUT, commands, page, run_commands


@pytest.mark.slow
def test_every_command_of_the_page_works(tmp_path):
    lines = [f"PYTHONPATH={CHECKOUT} {line}" for line in commands(page("submitting.md"))]
    _, _, submitted, board = run_commands(lines, tmp_path).values()
    assert re.search(r"^pseudo_mask +train +mIoU +100\.00$", submitted, re.M)
    assert re.search(r"^– +True masks +none +submitted .* 100\.00", board, re.M)
    assert re.search(r"^– +cam +none +default ", board, re.M)

    (trial, _) = sorted((tmp_path / "seedbed-work/sweeps/ours/trials").iterdir())
    own = re.findall(r"^(seedbed (?:export result|import) .*)$", page("submitting.md"), re.M)
    exported, imported = (f"PYTHONPATH={CHECKOUT} {line}" for line in own)
    run_commands([exported.replace("ID", trial.name)], tmp_path)
    (path,) = (tmp_path / "results").glob("*.seedbed.json")
    here = imported.replace("results/NAME.seedbed.json", str(path)) + " --work theirs"
    (printed,) = run_commands([here], tmp_path).values()
    assert re.search(r"^pseudo_mask +train +mIoU ", printed, re.M)
    assert len([*(tmp_path / "theirs/submitted").iterdir()]) == 2
