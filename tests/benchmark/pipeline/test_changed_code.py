"""Edited code: results that earlier code made are named, refused in a sweep, and accepted on request."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from seedbed.benchmark.cli.main import app
from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.files import write_text
from seedbed.benchmark.pipeline.changed_code import changed_names
from seedbed.benchmark.pipeline.stage import cache_key
from seedbed.benchmark.pipeline.store import Entry, Store
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.source import modules as source_modules
from seedbed.benchmark.source.closure import forget
from seedbed.benchmark.sweeps.code_changes import check_code, check_trial
from seedbed.benchmark.sweeps.plan import plan_sweep
from seedbed.benchmark.sweeps.trial_files import Outcome, TrialSpec, write_outcome
from tests.helpers.sweeping import small

Edit = Callable[[str, str, str], None]
TRAIN_CAM = '"""Train the classifier on the tags of `weak`."""\n\n    '
LOSS = ("seedbed.methods.cam", "F.multilabel_soft_margin_loss(logits.float(), tags)", "logits.float().mean()")


@pytest.fixture
def edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Edit]:
    """Return a function that edits a module as it is read for its source; what is imported stays as it is."""
    original = source_modules.location_of
    edited: dict[str, Path] = {}

    def change(module: str, old: str, new: str) -> None:
        path = edited.get(module) or original(module)
        assert path is not None
        text = path.read_text()
        assert text.count(old) == 1
        edited[module] = tmp_path / f"{module}.py"
        edited[module].write_text(text.replace(old, new))
        forget()

    monkeypatch.setattr(source_modules, "location_of", lambda name: edited.get(name) or original(name))
    yield change
    forget()


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory, chimera_root: Path) -> Path:
    """Return a work folder in which a run has ended."""
    forget()
    work = tmp_path_factory.mktemp("computed") / "work"
    assert run(work, chimera_root).exit_code == 0
    return work


@pytest.fixture
def work(computed: Path, tmp_path: Path) -> Path:
    """Return a copy of that work folder."""
    shutil.copytree(computed, tmp_path / "work")
    return tmp_path / "work"


def run(work: Path, root: Path, *words: str) -> Result:
    """Run CAM for one epoch without a segmentation network, quietly."""
    command = ["run", "--method", "cam", "--dataset", "chimera-voc", "--root", root, "--no-segment", "-q"]
    settings = ["--set", "TrainCam.epochs=1", "--workers", "0", "--device", "cpu", "--work", work]
    return CliRunner().invoke(app, [str(word) for word in (*command, *settings, *words)])


def test_nothing_is_said_where_nothing_has_changed(work, chimera_root):
    again = run(work, chimera_root)
    assert "every stage was in the store)" in again.stdout
    assert again.stderr == ""


def test_a_run_names_the_function_and_the_stage_until_the_change_is_accepted(work, chimera_root, edit):
    edit(*LOSS)
    again = run(work, chimera_root)
    assert again.exit_code == 0
    (warning,) = again.stderr.splitlines()
    assert warning.startswith("warning: code has changed since ")
    assert "seedbed.methods.cam.multi_label_soft_margin (in TrainCam)" in warning
    assert "raise `version` of TrainCam; if not, --accept-changed-code ends this warning" in warning
    assert re.search(
        r"every stage was in the store; \d+ results from the store were made by earlier code", again.stdout
    )
    (description,) = (work / "runs").glob("*/run.json")
    assert ["seedbed.methods.cam.multi_label_soft_margin"] in json.loads(description.read_text())[
        "changed_code"
    ].values()
    accepted = run(work, chimera_root, "--accept-changed-code")
    assert (accepted.exit_code, accepted.stderr) == (0, "")
    assert run(work, chimera_root).stderr == ""
    assert "changed_code" not in json.loads(description.read_text())
    # What was accepted is this code and the code that computed it, and no other.
    edit("seedbed.methods.cam", "logits.float().mean()", "logits.float().sum()")
    assert "multi_label_soft_margin" in run(work, chimera_root).stderr
    edit("seedbed.methods.cam", "logits.float().sum()", LOSS[1])
    assert run(work, chimera_root).stderr == ""


@pytest.mark.parametrize(
    ("module", "old", "new", "named"),
    [
        (
            "seedbed.methods.backbones.tiny",
            "nn.ReLU(",
            "nn.GELU(",
            "seedbed.methods.backbones.tiny._block (in TrainCam)",
        ),
        (
            "seedbed.methods.cam",
            "logits.relu()",
            "logits.abs()",
            "seedbed.methods.cam.CamNetwork.maps (in InferCam)",
        ),
        (
            "seedbed.benchmark.training.reproducibility",
            "sha256",
            "sha512",
            "seedbed.benchmark.training.reproducibility.derive_seed (in TrainCam)",
        ),
        ("seedbed.methods.backbones.squeezenet", "padding = (3, 3)", "padding = (4, 4)", None),
        ("seedbed.methods.cam", f"{TRAIN_CAM}version = ", f"{TRAIN_CAM}version = 9", None),
        ("seedbed.methods.cam", '"""Return the trained', '"""Return the', None),
    ],
)
def test_a_change_anywhere_that_the_result_depends_on_is_named(work, chimera_root, edit, module, old, new, named):
    if "Return the trained" in old:
        old, new = '"""Write the trained network."""', '"""Write it."""  # A comment.'
    edit(module, old, new)
    said = run(work, chimera_root).stderr
    assert (named in said) if named else said == ""


def test_what_is_computed_from_an_earlier_result_stays_suspect_when_that_result_is_computed_again(
    work, chimera_root, edit
):
    edit(*LOSS)
    assert CliRunner().invoke(app, ["cache", "rm", "TrainCam", "--work", str(work)]).exit_code == 0
    # The maps are of the removed network, which need not be what the network of today gives.
    said = run(work, chimera_root).stderr
    assert "seedbed.methods.cam.multi_label_soft_margin (in" in said
    assert "TrainCam" not in said


def test_an_entry_of_an_earlier_seedbed_is_taken_as_it_is(work, chimera_root, edit):
    for path in (work / "store/entries").glob("*/*/entry.json"):
        record = json.loads(path.read_text())
        del record["source"]
        path.write_text(json.dumps(record))
    edit(*LOSS)
    assert run(work, chimera_root).stderr == ""


def test_the_list_of_the_store_shows_what_has_changed(work, edit):
    listed = CliRunner().invoke(app, ["cache", "ls", "--work", str(work)]).stdout
    assert "changed" not in listed
    edit(*LOSS)
    lines = CliRunner().invoke(app, ["cache", "ls", "--work", str(work)]).stdout.splitlines()
    (training,) = [line for line in lines if " TrainCam " in line]
    assert training.endswith("changed: seedbed.methods.cam.multi_label_soft_margin")


def test_the_key_does_not_depend_on_the_source(work, edit):
    store = Store(work / "store")
    edit(*LOSS)
    for entry in store.entries():
        assert cache_key(entry.record["identity"]) == entry.key


def sweep_words(work: Path, root: Path, *words: str) -> list[str]:
    command = f"sweep --name s --methods cam --refiners none --datasets chimera-voc={root} --trials 0 --seeds 0"
    return [*command.split(), "--no-segment", "--set", "TrainCam.epochs=1", "--work", str(work), *words]


def test_a_sweep_is_refused_before_any_trial_and_names_all_that_changed(work, chimera_root, edit):
    edit(*LOSS)
    edit("seedbed.methods.cam", "present.amax((1, 2), keepdim=True) + 1e-5", "present.amax((1, 2), keepdim=True)")
    refused = CliRunner().invoke(app, sweep_words(work, chimera_root))
    assert isinstance(refused.exception, ConfigError)
    message = str(refused.exception)
    assert "seedbed.methods.cam.multi_label_soft_margin (in TrainCam)" in message
    assert "seedbed.methods.cam.normalised_maps (in InferCam)" in message
    assert message.endswith("if not, give --accept-changed-code to use the stored results")
    assert not (work / "sweeps/s/trials").exists()
    # A dry run says the same, and does nothing else.
    tried = CliRunner().invoke(app, sweep_words(work, chimera_root, "--dry-run"))
    assert tried.exit_code == 0
    assert f"the sweep will be refused: {message}" in tried.stdout
    accepting = CliRunner().invoke(app, sweep_words(work, chimera_root, "--dry-run", "--accept-changed-code"))
    assert "refused" not in accepting.stdout
    assert isinstance(CliRunner().invoke(app, sweep_words(work, chimera_root)).exception, ConfigError)


def test_an_accepted_change_is_recorded_and_the_sweep_goes_on(work, chimera_root, edit, monkeypatch):
    import seedbed.benchmark.sweeps.driver

    tuned = []
    monkeypatch.setattr(seedbed.benchmark.sweeps.driver, "_tune", lambda *words: tuned.append(words))
    edit(*LOSS)
    CliRunner().invoke(app, sweep_words(work, chimera_root, "--accept-changed-code"))
    assert len(tuned) == 1
    CliRunner().invoke(app, sweep_words(work, chimera_root))
    assert len(tuned) == 2


def settings_and_plan(work: Path, root: Path):
    settings = small(root, refiners=["none"], trials=0, seeds=[0], segment=False, settings={"TrainCam.epochs": 1})
    return plan_sweep(settings, WorkFolder(work))


def test_a_trial_whose_settings_were_not_known_is_checked_when_it_begins(work, chimera_root, edit):
    plan = settings_and_plan(work, chimera_root)
    spec = plan.spec(plan.cells[0], "confirm", "default", None, 0, {})
    check_trial(plan, spec, accepted=False)
    edit(*LOSS)
    with pytest.raises(ConfigError, match=r"multi_label_soft_margin \(in TrainCam\)"):
        check_trial(plan, spec, accepted=False)
    check_trial(plan, spec, accepted=True)
    check_trial(plan, spec, accepted=False)


def finish(plan, spec: TrialSpec) -> None:
    folder = plan.folder / "trials" / spec.key
    folder.mkdir(parents=True)
    write_text(folder / "job.json", spec.to_json())
    steps = plan.plan(plan.cells[0], spec.trial).steps()
    write_outcome(folder, Outcome(spec.key, "complete", stages={key[:12]: 1.0 for key in steps}))


def test_a_sweep_whose_trials_used_another_version_is_not_mixed_silently(work, chimera_root, monkeypatch, caplog):
    from seedbed.methods.cam import TrainCam

    plan = settings_and_plan(work, chimera_root)
    finish(plan, plan.spec(plan.cells[0], "confirm", "default", None, 0, {}))
    check_code(plan, accepted=False)
    monkeypatch.setattr(TrainCam, "version", 99)
    with pytest.raises(ConfigError, match=r"used other versions of TrainCam\. Give the sweep a new --name"):
        check_code(plan, accepted=False)
    check_code(plan, accepted=True)
    assert "used other versions of TrainCam" in caplog.text


def test_entries_from_before_the_packages_had_their_prefix_are_taken_as_they_are(tmp_path):
    def entry(*definitions):
        sources = [{"roots": [], "definitions": one} for one in definitions]
        return Entry("k", tmp_path, {"source": sources[0], "accepted": sources[1:]})

    today = {"seedbed.methods.cam.loss": "1"}
    earlier, other = {"methods.cam.loss": "0"}, {"seedbed.methods.cam.loss": "2"}
    assert changed_names(entry(earlier), today) == []
    assert changed_names(entry(other), today) == ["seedbed.methods.cam.loss"]
    # Accepted since by code that has changed again: compared.
    assert changed_names(entry(earlier, other), today) == ["seedbed.methods.cam.loss"]
