"""`import seedbed`: the interface gives what the command gives, and its notebook runs on a finished sweep."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from typer.testing import CliRunner

import seedbed
from seedbed.benchmark.cli.main import app
from seedbed.benchmark.errors import ConfigError, DataError
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from tests.conftest import CHECKOUT
from tests.helpers.site_content import write_study
from tests.helpers.sweeping import run_sweep_here, small


def test_the_import_is_light_and_offers_what_it_lists():
    program = (
        "import sys, seedbed\n"
        "assert all(callable(getattr(seedbed, name)) for name in seedbed.__all__)\n"
        "assert 'cam' in seedbed.list_methods() and 'crf' in seedbed.list_refiners()\n"
        "assert 'tiny' in seedbed.list_backbones() and 'voc2012' in seedbed.list_datasets()\n"
        "print([name for name in ('torch', 'numpy', 'pandas', 'mlflow', 'ray', 'typer') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_run_is_that_of_the_command_and_is_loaded_again(chimera_root, tmp_path):
    data = seedbed.open_dataset("chimera", root=chimera_root, work=tmp_path)
    settings = {"TrainCam.epochs": 1}
    result = seedbed.run(data, segment=False, settings=settings, work=tmp_path, workers=0, device="cpu")
    table = seedbed.records_table(result.records)
    value = table.set_index("name").value["seed.train/mIoU_oracle"]
    assert 0 < value < 1
    assert seedbed.load_run(result.run, tmp_path).equals(table)
    words = ["run", "--dataset", "chimera", "--root", str(chimera_root), "--no-segment", "--work", str(tmp_path)]
    command = CliRunner().invoke(app, [*words, "--set", "TrainCam.epochs=1", "--device", "cpu", "--workers", "0"])
    assert f"run {result.run}  (every stage was in the store)" in command.stdout


def test_stages_are_listed_without_running(chimera):
    chain = seedbed.build_stages(chimera, "cam", "crf", settings={"TrainCam.epochs": 3})
    assert [type(stage).__name__ for stage in chain.localise] == ["TrainCam", "InferCam"]
    assert chain.localise[0].settings()["epochs"] == 3
    with pytest.raises(ConfigError, match="Did you mean 'cam'"):
        seedbed.build_stages(chimera, "kam")


def test_masks_are_scored(chimera, chimera_root):
    table = seedbed.score_masks(chimera_root / "SegmentationClassAug", chimera, "train")
    assert (table[table.metric == "mIoU"].value == 1.0).all()


def test_a_study_is_a_table(tmp_path):
    path = write_study(tmp_path)
    study, dataset = path.parent.parent.name, path.parent.name
    table = seedbed.load_study(study, dataset, path.parents[3])
    assert [*table.columns[:4]] == ["row", "column", "ours", "std"]
    assert table.ours.notna().any()
    with pytest.raises(DataError, match="run the study"):
        seedbed.load_study("svm_t9", dataset, path.parents[3])


@pytest.mark.slow
def test_the_notebook_runs_on_a_finished_sweep(chimera_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(chimera_root, "seedbed-work/demo/chimera-voc")
    datasets = ["chimera-voc=seedbed-work/demo/chimera-voc"]
    settings = small(chimera_root, name="demo", refiners=["none"], datasets=datasets, trials=0, seeds=[0])
    run_sweep_here(settings.resolved(), WorkFolder(Path("seedbed-work").resolve()))
    results = seedbed.load_sweep("demo")
    assert {"val/mIoU", "seed.train/mIoU_oracle"} <= {*results.metric}
    notebook = nbformat.read(CHECKOUT / "docs/examples/results.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "seedbed-work/demo/site-of-the-notebook/index.html").is_file()
    assert "CrfMasks" in str(notebook.cells[-3].outputs)
