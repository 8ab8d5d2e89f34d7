"""docs/adding-a-method.md, followed literally in a copy of the packages: the file and every command as printed."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from seedbed.benchmark.pipeline.registry import METHODS
from tests.docs.extending import CHECKOUT, changed_copy, commands, page, run_commands

PAGE = page("adding-a-method.md")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the packages, the toy as the page prints it, and no other method but CAM.

    The other methods are left out because recording their numbers takes minutes.
    """
    folder = changed_copy(PAGE, tmp_path_factory.mktemp("copy"))
    for name in set(METHODS.names()) - {"cam"}:
        plugin = folder / "methods" / name
        if plugin.is_dir():
            shutil.rmtree(plugin)
        else:
            plugin.with_suffix(".py").unlink()
    return folder


@pytest.fixture(scope="module")
def outputs(copy: Path) -> dict[str, str]:
    """Return what each command of the page printed, in order; the first that fails ends the test."""
    return run_commands(commands(PAGE), copy)


def printed_by(outputs: dict[str, str], words: str) -> str:
    """Return what the first command that has `words` printed."""
    return next(output for command, output in outputs.items() if words in command)


@pytest.mark.slow
def test_the_toy_is_listed_and_its_setting_is_shown_with_everything_declared(outputs):
    assert re.search(r"^  toy +Toy: CAM whose classifier", printed_by(outputs, "seedbed methods"), re.M)
    shown = printed_by(outputs, "methods show toy")
    row = re.search(r"^  gamma +2\.0 +number +0 … 10 +Float\(.*?\) +(.+)$", shown, re.M)
    assert row
    assert row[1].startswith("Lin et al.")


@pytest.mark.slow
def test_the_runs_print_results_and_the_setting_changes_them(outputs):
    runs = [output for command, output in outputs.items() if "run --method toy" in command]
    assert len(runs) == 2
    assert all(re.search(r"^seed +train +mIoU", output, re.M) for output in runs)
    assert runs[0].splitlines()[:12] != runs[1].splitlines()[:12]


@pytest.mark.slow
def test_the_toy_passes_the_contract(outputs):
    summary = printed_by(outputs, "-k toy").splitlines()[-1]
    assert int(re.search(r"(\d+) passed", summary)[1]) >= 7
    assert "failed" not in summary


@pytest.mark.slow
def test_the_toys_numbers_are_recorded_and_nothing_of_the_checkout_is_touched(outputs, copy):
    recorded = json.loads((copy / "tests/golden/golden.json").read_text())
    assert {"toy/none: 0 TrainToy", "toy/none: 1 InferCam"} <= set(recorded)
    assert "toy" not in METHODS.names()
    assert "toy" not in (CHECKOUT / "tests/golden/golden.json").read_text()


def test_gamma_zero_is_cams_loss_as_the_page_says(copy, monkeypatch):
    import torch

    from seedbed.methods.cam import CamNetwork, TrainCam

    specification = importlib.util.spec_from_file_location("toy", copy / "methods/toy.py")
    toy = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "toy", toy)
    specification.loader.exec_module(toy)
    torch.manual_seed(0)
    network = CamNetwork("tiny", 3, stride=8, dropout=0.0, pretrained=False)
    batch = {"image": torch.randn(2, 3, 32, 32), "tags": torch.eye(3)[:2]}
    (focal,) = toy.TrainToy(gamma=0.0).losses(network, batch).values()
    torch.testing.assert_close(focal, TrainCam().losses(network, batch)["classification"])
