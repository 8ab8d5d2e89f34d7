"""Every study at a toy scale on Chimera: it runs, and each cell of its table has a number or a reason."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from seedbed.benchmark.cli.studies import command_of
from seedbed.benchmark.evaluation.per_image import ratios_of
from seedbed.benchmark.files import write_text
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.studies.result import study_of
from seedbed.benchmark.studies.run import StudyRequest, measured, result_of, sweep_of
from seedbed.benchmark.studies.study import Study, measure_of, read_study, study_names
from seedbed.benchmark.sweeps.plan import plan_sweep
from seedbed.benchmark.sweeps.settings import SweepSettings
from seedbed.benchmark.sweeps.trial_files import SPEC
from seedbed.benchmark.sweeps.worker import run_sweep_trial
from seedbed.datasets.chimera import generate
from seedbed.leaderboard.tables.study import FORMATS, as_text
from tests.helpers.cluster import OneProcess
from tests.helpers.command_line import seedbed

TOY = {
    "TrainCam.epochs": 1,
    "TrainSplittingMerging.epochs": 1,
    "TrainIcd.epochs": 1,
    "TrainRrm.epochs": 1,
    "TrainEsolClassifier.epochs": 1,
    "Expand.epochs": 1,
    "Shrink.epochs": 1,
    "TrainMixupCam.epochs": 1,
    "TrainSeam.epochs": 1,
    "TrainSubcategories.epochs": 1,
    "TrainSegmentation.epochs": 1,
    "TrainPsa.epochs": 1,
    "TrainIrn.epochs": 1,
    "WalkPsa.steps": 8,
    "WalkIrn.steps": 8,
    "InferCam.scales": "1.0",
    "InferAdvCam.steps": 1,
    "PredictMasks.scales": "1.0",
    "ClusterSubcategories.restarts": 1,
}
TWO_SEEDS = ("svm_t1", "esol_t6")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Return the root of a Chimera of 24 images of 48 pixels, and a work folder."""
    folder = tmp_path_factory.mktemp("studies")
    generate(folder / "data", layout="voc", images=24, size=48, seed=3)
    return folder / "data", WorkFolder(folder / "work")


def run_here(study: Study, settings: SweepSettings, work: WorkFolder) -> SweepSettings:
    """Run the trials of a study in this process, with as short trainings as there are, and return its settings."""
    plan = plan_sweep(settings, work)
    known = {type(stage).__name__ for cell in plan.cells for stage in cell.default.chain.configured}
    toy = {key: value for key, value in TOY.items() if key.partition(".")[0] in known}
    settings = replace(settings, settings=toy)
    plan = plan_sweep(settings, work)
    for cell in plan.cells:
        for seed in settings.seeds:
            spec = plan.spec(cell, "confirm", "default", None, seed, {})
            folder = plan.folder / "trials" / spec.key
            folder.mkdir(parents=True)
            write_text(folder / SPEC, spec.to_json())
            run_sweep_trial(spec, work, "cpu", 0)
    return settings


@pytest.mark.parametrize("name", study_names())
def test_every_study_fills_its_table(name, world):
    root, work = world
    study = read_study(name)
    seeds = (0, 1) if name in TWO_SEEDS else (0,)
    request = StudyRequest(dataset="chimera-voc", root=root, seeds=seeds)
    settings = sweep_of(study, request, work)
    if study.variants:
        settings = run_here(study, settings, work)
    classes = work.locate("chimera-voc", root).open().classes
    result = result_of(study, settings, work, f"seedbed study {name}", classes)
    assert [row["label"] for row in result["rows"]] == [row.label for row in study.table.rows]
    for row in result["rows"]:
        for column, cell in zip(result["columns"], row["cells"], strict=True):
            place = (row["label"], "mIoU" if study.by_class else column)
            if place not in study.spots:
                assert cell["ours"] is None
                assert cell["missing"] == "reported only"
            elif study.spots[place].variant:
                check_cell(cell, f"{name}: {row['label']}, {column}", len(seeds), study.table.unit)
            else:
                assert cell["missing"] == study.spots[place].missing
    cells = {
        (row["label"], column): cell
        for row in result["rows"]
        for column, cell in zip(result["columns"], row["cells"], strict=True)
    }
    for claim, found in zip(study.claims, result["claims"], strict=True):
        numbers = [cells[place]["ours"] for place in (claim.higher, claim.lower)]
        assert (found["difference"] is None) == (None in numbers)
        if None not in numbers:
            assert found["difference"] == pytest.approx(numbers[0] - numbers[1])
        assert (found["low"] is None) == (found["p"] is None)
    check_ratios(study, settings, work, classes)
    for text in (*FORMATS.values(), as_text):
        assert study.name in text(study_of(result))


def check_cell(cell, place, seeds, unit):
    """Check that a cell has a number of every seed, or a reason that the toy world is to blame for."""
    if cell["ours"] is None:
        assert re.match(r"no record [\w.]+/IoU_", cell["missing"]) or "'tiny' has no fc6" in cell["missing"], place
        return
    assert math.isfinite(cell["ours"])
    assert cell["seeds"] == seeds
    assert 0 <= cell["ours"] <= {"%": 100, "fraction": 1, "hours": 1}[unit], place
    assert (cell["std"] is not None) == (cell["seeds"] > 1)
    if cell["low"] is not None:
        assert cell["low"] <= cell["high"]
    if cell["paper"] is not None:
        assert cell["difference"] == pytest.approx(cell["ours"] - cell["paper"])


def check_ratios(study, settings, work, classes):
    """Check that the parts by image give the very number that the trial recorded."""
    trials = measured(work, settings.name)
    found = 0
    for (_, column), spot in study.spots.items():
        if not spot.variant:
            continue
        trial, measure = trials[spot.variant, settings.seeds[0]], measure_of(study, spot, column)
        ratios = trial.ratios(measure, classes)
        if ratios is not None and measure in trial.values:
            assert ratios.value() == pytest.approx(trial.values[measure], abs=1e-12), measure
            found += 1
    without = ("pixel_AP", "signed_", "cost/")
    assert found or not study.variants or any(w in s.measure for s in study.spots.values() for w in without)


def test_a_record_without_parts_has_none(tmp_path):
    assert ratios_of(Path(tmp_path), "seed.train/mIoU_tuned", ("cat",), {}) is None


@pytest.mark.parametrize(("given", "told"), [("", ""), ("icd_t1-chimera-voc", ""), ("long", "long")])
def test_a_result_names_its_sweep_where_it_has_a_name_of_its_own(given, told, world, tmp_path):
    root, _ = world
    request = StudyRequest(dataset="chimera-voc", root=root, seeds=(0,), name=given)
    study, work = read_study("icd_t1"), WorkFolder(tmp_path)
    settings = sweep_of(study, request, work)
    result = result_of(study, settings, work, "", ())
    assert (result["sweep"], study_of(result).sweep) == (told, told)
    assert (f"--name {given}" in command_of("icd_t1", request)) == bool(given)


def test_the_command_runs_a_study_and_goes_on_with_it(world, tmp_path, monkeypatch):
    OneProcess(monkeypatch)
    root, _ = world
    words = ["study", "icd_t1", "--dataset", "chimera-voc", "--root", str(root), "--seeds", "0"]
    words += ["--set", "TrainIcd.epochs=1", "--work", str(tmp_path)]

    first = seedbed(tmp_path, *words).stdout
    assert "icd_t1: Average precision of the pixels by score" in first
    assert "ICD ranks pixels better than the CAM of the same network" in first
    folder = tmp_path / "studies" / "icd_t1" / "chimera-voc"
    assert {path.name for path in folder.iterdir()} == {"table.json", "table.md", "table.tex", "table.csv"}
    table = (folder / "table.json").read_bytes()
    command = json.loads(table)["command"]
    assert command.startswith("seedbed study icd_t1 --dataset chimera-voc --root DIR --seeds 0")
    seedbed(tmp_path, *words)
    assert (folder / "table.json").read_bytes() == table
    assert len(list(tmp_path.glob("sweeps/icd_t1-chimera-voc/trials/*/log.txt"))) == 1
