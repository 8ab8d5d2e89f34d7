"""docs/extending.md, followed literally in copies of the packages: every change as printed."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from tests.docs.extending import (
    CHECKOUT,
    changed_copy,
    changes,
    commands,
    new_files,
    page,
    run,
    run_commands,
    section,
)

METRIC = """
import json
from pathlib import Path
import numpy as np
from seedbed.benchmark.evaluation.records import read_records
from seedbed.benchmark.evaluation.stages import MeasureMasks
from seedbed.benchmark.pipeline.stage import Context, Kind
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.files import write_text
from seedbed.benchmark.tracking.sync import sync
from seedbed.benchmark.tracking.store import default_uri
from seedbed.datasets.base import Split
from seedbed.datasets.chimera import DATASET, generate
from seedbed.datasets.io.images import write_mask
from seedbed.leaderboard.build import build
from seedbed.leaderboard.data.collect import SweepReader
from tests.helpers.sweeping import end, scheduler_of, small

folder = Path.cwd()
generate(folder / "voc", layout="voc", images=24, size=48)
data = DATASET.open(folder / "voc")
view = data.split(Split.VAL)
scheduler = scheduler_of(small(folder / "voc", refiners=["none"], trials=0, seeds=[0, 1, 2]), folder / "work")
while (spec := scheduler.next_trial()) is not None:
    generator, trial = np.random.default_rng(spec.trial.seed), scheduler.folder(spec)
    masks = trial / "masks"
    masks.mkdir()
    for image_id in view.ids:
        # A tenth of the pixels become background.
        truth = view.mask(image_id)
        write_mask(masks / f"{image_id}.png", np.where(generator.random(truth.shape) < 0.1, 0, truth))
    context = Context(spec.trial.seed, Split.VAL, trial)
    MeasureMasks(level="segmentation").run(data, {Kind.MASKS: masks}, trial, context)
    (trial / "per_image").mkdir()
    (trial / "per_image.parquet").rename(trial / "per_image" / "segmentation.val.parquet")
    end(scheduler, spec)
write_text(scheduler.plan.folder / "sweep.json", json.dumps({**scheduler.plan.description(), "code": "abc"}))
work = WorkFolder(folder / "work")
sync(work, None)
build(default_uri(work), "small", folder / "site")
(run, *_) = SweepReader(default_uri(work)).trials("small")
print(json.dumps({name: value for name, value in run.metrics.items() if "F2" in name}))
"""
COLUMN = """
import json
from pathlib import Path
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.files import write_text
from seedbed.benchmark.tracking.sync import sync
from seedbed.benchmark.tracking.store import default_uri
from seedbed.datasets.chimera import generate
from seedbed.leaderboard.build import build
from seedbed.leaderboard.data.collect import SweepReader
from tests.helpers.sweeping import end, scheduler_of, small

folder = Path.cwd()
generate(folder / "voc", layout="voc", images=24, size=48)
changes = {"refiners": ["none"], "trials": 0, "seeds": [0, 1, 2], "settings": {"TrainCam.jitter": False}}
scheduler = scheduler_of(small(folder / "voc", **changes), folder / "work")
while (spec := scheduler.next_trial()) is not None:
    end(scheduler, spec)
write_text(scheduler.plan.folder / "sweep.json", json.dumps({**scheduler.plan.description(), "code": "abc"}))
work = WorkFolder(folder / "work")
sync(work, None)
build(default_uri(work), "small", folder / "site")
(run, *_) = SweepReader(default_uri(work)).trials("small")
print({name: text for name, text in run.tags.items() if name == "colour_jitter"})
"""

OPTION = """
import json
from pathlib import Path
from typer.testing import CliRunner
from seedbed.benchmark.cli.main import app
from seedbed.benchmark.sweeps.settings import read_settings
from seedbed.benchmark.tracking.command_line import command_line
from seedbed.datasets.chimera import generate
from tests.helpers.sweeping import scheduler_of, small

folder = Path.cwd()
generate(folder / "voc", layout="voc", images=24, size=48)
scheduler = scheduler_of(small(folder / "voc", refiners=["none"], trials=0, epochs_factor=3), folder / "work")
spec = scheduler.next_trial()
stages = scheduler.plan.plan(scheduler.cell_of(spec), spec.trial).chain.stages
scheduler.plan.settings.save(folder / "sweep.yaml")
helps = {}
for command in ("run", "sweep", "study"):
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "300", "TERMINAL_WIDTH": "300"}).output
    helps[command] = [line for line in shown.splitlines() if "--epochs-factor" in line]
print(json.dumps({
    "helps": helps,
    "file": read_settings(folder / "sweep.yaml", {}).epochs_factor,
    "spec": json.loads((scheduler.folder(spec) / "job.json").read_text())["trial"]["epochs_factor"],
    "conditions": spec.conditions["epochs_factor"],
    "command": command_line(spec, generated=False),
    "epochs": {type(stage).__name__: stage.epochs for stage in stages if hasattr(stage, "epochs")},
}))
"""


FOLDERS = """
import shutil
from pathlib import Path
import numpy as np
from seedbed.datasets.chimera import DATASET
from seedbed.datasets.io.images import decode_mask, write_mask

data, root, same = DATASET.open(Path("tiny")), Path("my-data"), Path("same")
for folder in ("images", "masks"):
    (same / folder).mkdir(parents=True)
labels = {i: data.tags(i)[0] for split in ("train", "val") for i in data.ids(split)}
classes = sorted({data.classes[labels[i] - 1] for i in data.ids("train")})
rows = []
for split in ("train", "val"):
    for image_id in data.ids(split):
        name = data.classes[labels[image_id] - 1]
        if name not in classes:
            continue
        rows.append((split, name, image_id))
        truth = decode_mask(data.mask_path(image_id))
        # An image has one class: the others do not count.
        mask = np.where(truth == labels[image_id], classes.index(name) + 1, np.where(truth == 0, 0, 255))
        (folder := root / split / name).mkdir(parents=True, exist_ok=True)
        for image in (folder / f"{image_id}.jpg", same / "images" / f"{image_id}.jpg"):
            shutil.copy(data.image_path(image_id), image)
        for path in (folder / f"{image_id}_mask.png", same / "masks" / f"{image_id}.png"):
            write_mask(path, mask.astype(np.uint8))
(same / "classes.txt").write_text("\\n".join(classes))
for name, column, place in (("splits", "split", 0), ("tags", "classes", 1)):
    lines = [f"{row[2]},{row[place]}" for row in sorted(rows)]
    (same / f"{name}.csv").write_text("\\n".join([f"image_id,{column}", *lines]))
"""
"""Writes images of the tiny Chimera in the layout of the section on data sets, and in that of docs/folder.md."""


def follow(title: str, folder: Path, before: str = "") -> dict[str, str]:
    """Follow a section: make its files and changes, make the tiny Chimera, run `before`, and run its commands."""
    copy = changed_copy(section(title), folder)
    run_commands(commands(page("extending.md").partition("## ")[0]), copy)
    run(before, copy)
    return run_commands(commands(section(title)), copy)


def table(output: str) -> dict[tuple[str, ...], list[str]]:
    """Return the numbers of each row that `seedbed run` printed, by level, split and metric."""
    rows = (line.split() for line in output.splitlines() if re.match(r"(classification|seed|pseudo_mask) ", line))
    return {tuple(words[:3]): words[3:] for words in rows}


@pytest.mark.parametrize(
    ("title", "most"),
    [
        ("A refiner", 1),
        ("A backbone", 1),
        ("A data set", 1),
        ("A study", 2),
        ("A metric", 3),
        ("A trial option", 2),
        ("A leaderboard column", 2),
    ],
)
def test_few_files_are_changed_and_every_change_has_its_place(title, most):
    text = section(title)
    assert 0 < len({*new_files(text), *(path for path, _, _ in changes(text))}) <= most
    for path, before, _ in changes(text):
        assert (CHECKOUT / path).read_text("utf-8").count(before) == 1, f"{path}\n{before}"


# New files


@pytest.mark.slow
def test_the_refiner_changes_the_masks_and_fits_every_method(tmp_path):
    trial, contract = follow("A refiner", tmp_path).values()
    assert "run cam-vote-chimera-voc-seed0" in trial
    numbers = table(trial)
    assert len(numbers["pseudo_mask", "train", "mIoU"]) == 3
    assert numbers["pseudo_mask", "train", "mIoU"] != numbers["seed", "train", "mIoU"]
    assert int(re.search(r"(\d+) passed", contract)[1]) >= 1
    assert "failed" not in contract


@pytest.mark.slow
def test_the_backbone_has_its_recipe_and_passes_the_tests_of_backbones(tmp_path):
    shown, trial, tests = follow("A backbone", tmp_path).values()
    assert re.search(r"^  dropout +0\.0 .* a first guess; elsewhere: ", shown, re.M)
    assert len(table(trial)["pseudo_mask", "train", "mIoU"]) == 3
    assert int(re.search(r"(\d+) passed", tests)[1]) >= 7
    assert "failed" not in tests


@pytest.mark.slow
def test_the_data_set_gives_the_numbers_of_the_same_images_in_the_layout_folder(tmp_path):
    checked, trial = follow("A data set", tmp_path, FOLDERS).values()
    assert checked == "0 errors, 0 warnings\n"
    (same,) = run_commands(["seedbed run --dataset folder --root same --no-segment"], tmp_path).values()
    assert table(trial) == table(same)
    assert len(table(trial)) > 5


@pytest.mark.slow
def test_the_study_prints_our_numbers_beside_the_papers_and_its_claim(tmp_path):
    (printed,) = follow("A study", tmp_path).values()
    assert re.search(r"^CAM +\d+\.\d+ ± \d+\.\d+ \(48\.30, −\d+\.\d+\)$", printed, re.M)
    assert re.search(r"^CAM \+ CRF +\d+\.\d+ ± \d+\.\d+ \(53\.70, −\d+\.\d+\)$", printed, re.M)
    assert re.search(r": the CRF helps \(.*; the paper has \+5\.40\)$", printed, re.M)


# A metric


@pytest.fixture(scope="module")
def metric(tmp_path_factory) -> tuple[Path, str]:
    """Return the leaderboard of a sweep with the metric, and the metrics of a run in MLflow."""
    copy = changed_copy(section("A metric"), tmp_path_factory.mktemp("metric"))
    return copy / "site", run(METRIC, copy)


def test_the_metric_is_measured_and_tracked(metric):
    _, printed = metric
    *_, metrics = printed.splitlines()
    assert '"val/mF2": 0.9' in metrics
    assert '"val/F2_background": 0.9' in metrics


def test_the_leaderboard_shows_it_with_an_interval(metric):
    site, _ = metric
    (row,) = csv.DictReader((site / "leaderboard.csv").open(newline=""))
    low, mean, high = (float(row[f"val_F2_{what}"]) for what in ("low", "mean", "high"))
    assert 0.9 < low < mean < high < 1
    text = (site / "leaderboard.md").read_text("utf-8")
    assert f"| {100 * mean:.2f} ± " in text
    assert f"| {100 * low:.2f} … {100 * high:.2f} |" in text
    assert "- **val F2 95 %**: 95 % interval of the number before it" in text
    assert r"val F2 95 \%" in (site / "leaderboard.tex").read_text("utf-8")
    assert "val F2" in (site / "index.html").read_text("utf-8")


# A trial option


def test_the_option_is_on_every_command_in_every_file_and_in_effect(tmp_path):
    found = json.loads(run(OPTION, changed_copy(section("A trial option"), tmp_path)).splitlines()[-1])
    wanted = "Multiply the number of epochs of every training. [default: (1.0)]"
    for command, lines in found["helps"].items():
        (line,) = lines
        assert wanted in " ".join(line.split()), command
    assert found["file"] == found["spec"] == 3
    assert found["conditions"] == "3"
    assert "--epochs-factor 3 " in found["command"]
    assert found["epochs"] == {"TrainCam": 3, "TrainSegmentation": 3}


# A leaderboard column


def test_the_condition_is_a_tag_and_a_column_with_its_title(tmp_path):
    copy = changed_copy(section("A leaderboard column"), tmp_path)
    assert run(COLUMN, copy).splitlines()[-1] == "{'colour_jitter': 'false'}"
    (row,) = csv.DictReader((copy / "site/leaderboard.csv").open(newline=""))
    assert row["colour_jitter"] == "false"
    text = (copy / "site/leaderboard.md").read_text("utf-8")
    assert "| Jitter |" in text
    assert "- **Jitter**: whether the colours of training images are jittered" in text
