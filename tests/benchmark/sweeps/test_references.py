"""The references of a sweep: their trials and settings, and what a resumed sweep does with them."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.sweeps.dry_run import forecast
from seedbed.benchmark.sweeps.plan import plan_sweep
from seedbed.benchmark.sweeps.resume import check_same_sweep, describe, to_retry
from seedbed.benchmark.sweeps.search import storage_at
from seedbed.benchmark.sweeps.settings import change, saved_settings, settings_of
from seedbed.benchmark.sweeps.trial_files import TrialSpec, read_spec
from seedbed.benchmark.tracking.run_content import tags_of
from tests.helpers.sweeping import end, run_to_its_end, scheduler_of, small


@pytest.fixture
def settings(chimera_root):
    """Return a sweep of one cell without a search: two seeds, and all references."""
    return small(chimera_root, refiners=["none"], trials=0, seeds=[3, 4], references=True)


def test_the_bound_has_every_seed_and_constant_masks_are_measured_once(settings, tmp_path):
    specs = run_to_its_end(scheduler_of(settings, tmp_path))
    found = [(spec.cell.reference, spec.trial.supervision, spec.trial.seed) for spec in specs]
    # They are the last: nothing waits for them, and their times estimate nothing else.
    assert found == [
        ("", "weak", 3),
        ("", "weak", 4),
        ("fully_supervised", "full", 3),
        ("background", "background", 0),
        ("whole_image", "whole_image", 0),
        ("fully_supervised", "full", 4),
    ]
    assert {(spec.phase, spec.settings) for spec in specs} == {("confirm", "default")}
    assert len({spec.key for spec in specs}) == 6
    assert str(specs[2].cell) == "fully_supervised × chimera-voc"
    for spec in specs:
        assert TrialSpec.from_json(spec.to_json()) == spec


def test_references_have_no_search_and_no_study(chimera_root, tmp_path):
    settings = small(chimera_root, refiners=["none"], seeds=[0], references=True)
    scheduler = scheduler_of(settings, tmp_path)
    assert sum(scheduler.remaining().values()) == scheduler.plan.expected() == (2 + 2) + 3
    specs = run_to_its_end(scheduler)
    assert {spec.phase for spec in specs if spec.cell.reference} == {"confirm"}
    assert not any(scheduler.remaining().values())
    studies = storage_at(scheduler.plan.folder / "studies.db").get_all_studies()
    assert [study.study_name for study in studies] == ["cam × none × chimera-voc"]


def test_the_bound_trains_the_network_of_the_methods(chimera_root, tmp_path):
    own = {
        "TrainSegmentation.batch": 4,
        "TrainSegmentation.lr": 0.01,
        "PredictMasks.flip": False,
        "TrainCam.epochs": 1,
    }
    settings = small(chimera_root, refiners=["none"], trials=0, references=True, settings=own)
    method, bound, *_ = scheduler_of(settings, tmp_path).plan.cells
    assert bound.fixed == {"TrainSupervised.batch": 4, "TrainSupervised.lr": 0.01, "PredictMasks.flip": False}
    network, reference = method.default.chain.segment, bound.default.chain.segment
    assert [stage.settings() for stage in network] == [stage.settings() for stage in reference]
    assert type(reference[0]).__name__ == "TrainSupervised"
    # A setting for the bound alone is the user's own choice.
    longer = small(chimera_root, trials=0, references=True, settings={**own, "TrainSupervised.lr": 0.02})
    assert scheduler_of(longer, tmp_path).plan.cells[2].fixed["TrainSupervised.lr"] == 0.02


def test_other_options_of_the_network_hold_for_the_bound(chimera_root, tmp_path):
    options = {
        "segmentation_backbone": "squeezenet",
        "segmentation_weights": "none",
        "size": 48,
        "precision": "fp32",
    }
    settings = small(chimera_root, refiners=["none"], trials=0, references=True, **options)
    method, bound, *_ = scheduler_of(settings, tmp_path).plan.cells
    assert [s.settings() for s in method.default.chain.segment] == [
        s.settings() for s in bound.default.chain.segment
    ]
    names = ("segmentation_backbone", "segmentation_initialisation", "precision", "segmentation")
    assert {name: bound.conditions[name] for name in names} == {name: method.conditions[name] for name in names}


@pytest.mark.parametrize(
    ("changes", "references"),
    [
        ({}, ["fully_supervised", "background", "whole_image"]),
        # Without a segmentation network there is no bound of it.
        ({"segment": False}, ["background", "whole_image"]),
        ({"references": False}, []),
        # The table of a study is that of its paper.
        ({"variants": {"one": {"method": "cam"}}}, []),
    ],
)
def test_which_references_a_sweep_has(chimera_root, changes, references):
    settings = small(chimera_root, **{"references": True, **changes})
    assert [cell.reference for cell in settings.reference_cells()] == references


def test_they_are_the_default():
    assert settings_of({"name": "s", "datasets": ["a", "b"]}).references
    cells = settings_of({"name": "s", "datasets": ["a", "b"]}).reference_cells()
    assert [str(cell) for cell in cells][:4] == [
        "fully_supervised × a", "background × a", "whole_image × a", "fully_supervised × b"
    ]  # fmt: skip


def test_images_without_true_masks_are_noted_and_leave_out_the_bound_alone(chimera_root, tmp_path, caplog):
    data = tmp_path / "voc"
    shutil.copytree(chimera_root, data)
    settings = small(data, refiners=["none"], trials=0, seeds=[0], references=True)
    opened = plan_sweep(settings, WorkFolder(tmp_path / "work")).cells[0].data
    only_weak = [i for i in opened.ids("weak") if i not in opened.ids("train")]
    assert only_weak
    opened.mask_path(only_weak[0]).unlink()
    plan = plan_sweep(settings, WorkFolder(tmp_path / "work"))
    assert [cell.cell.reference for cell in plan.cells] == ["", "background", "whole_image"]
    assert plan.expected() == 3
    (note,) = [text for text in caplog.messages if "fully_supervised" in text]
    assert f"because 1 of the {len(opened.ids('weak'))} images of `weak` have no true mask" in note
    assert f"{only_weak[0]}.png" in note


def test_a_resumed_sweep_finds_them_done_and_runs_only_failed_ones_again(settings, tmp_path):
    scheduler = scheduler_of(settings, tmp_path)
    while (spec := scheduler.next_trial()) is not None:
        end(scheduler, spec, status="failed" if spec.cell.reference == "background" else "complete")
    again = scheduler_of(settings, tmp_path)
    again.refresh()
    assert again.done
    assert again.next_trial() is None
    assert [spec.cell.reference for spec in to_retry(again.ended)] == ["background"]


def test_a_reference_that_was_killed_runs_again(settings, tmp_path):
    scheduler = scheduler_of(settings, tmp_path)
    for _ in range(2):
        end(scheduler, scheduler.next_trial())
    killed = scheduler.next_trial()
    assert killed.cell.reference
    resumed = scheduler_of(settings, tmp_path)
    assert resumed.next_trial() == killed
    assert read_spec(resumed.folder(killed)) == killed


def test_a_sweep_from_before_there_were_references_is_complete_and_can_get_them(settings, chimera_root, tmp_path):
    before = small(chimera_root, refiners=["none"], trials=0, seeds=[3, 4])
    scheduler = scheduler_of(before, tmp_path)
    folder = scheduler.plan.folder
    before.save(folder / "sweep.yaml")
    written = yaml.safe_load((folder / "sweep.yaml").read_text())
    assert written.pop("references") is False
    (folder / "sweep.yaml").write_text(yaml.safe_dump(written))
    describe(folder, scheduler.plan)
    run_to_its_end(scheduler)
    work = WorkFolder(tmp_path)

    resumed = saved_settings(work.sweeps, "small")
    assert not resumed.references
    again = scheduler_of(resumed, tmp_path)
    again.refresh()
    assert again.done

    asked = change(resumed, {"references": True})
    check_same_sweep(folder, asked)
    more = scheduler_of(asked, tmp_path)
    describe(folder, more.plan)
    assert [spec.cell.reference != "" for spec in run_to_its_end(more)] == [True] * 4
    cells = json.loads((folder / "sweep.json").read_text())["cells"]
    assert [(cell.get("reference"), cell.get("seeds")) for cell in cells] == [
        (None, None),
        ("fully_supervised", [3, 4]),
        ("background", [0]),
        ("whole_image", [0]),
    ]
    # And they can be left out again.
    fewer = scheduler_of(change(asked, {"references": False}), tmp_path)
    describe(folder, fewer.plan)
    fewer.refresh()
    assert fewer.done


def test_a_dry_run_counts_them(settings, tmp_path):
    found = forecast(settings, WorkFolder(tmp_path))
    assert found.trials == 6
    assert [(cell.cell.reference, cell.searching, cell.confirming) for cell in found.cells] == [
        ("", 0, 2),
        ("fully_supervised", 0, 2),
        ("background", 0, 1),
        ("whole_image", 0, 1),
    ]
    needed = {row.stage: row.needed for row in found.stages}
    assert (needed["TrainSupervised"], needed["TrainSegmentation"]) == (2, 2)
    assert (needed["BackgroundMasks"], needed["WholeImageMasks"]) == (2, 1)


def test_a_run_in_mlflow_says_that_it_is_a_reference(settings, tmp_path):
    scheduler = scheduler_of(settings, tmp_path)
    tags = {}
    while (spec := scheduler.next_trial()) is not None:
        end(scheduler, spec)
        tags[spec.cell.reference] = tags_of(scheduler.folder(spec), spec, {})
    assert "reference" not in tags[""]
    bound = tags["fully_supervised"]
    assert (bound["method"], bound["refiner"], bound["reference"]) == ("fully_supervised", "", "fully_supervised")
    assert (bound["supervision"], bound["segmentation"]) == ("F", "deeplab")
