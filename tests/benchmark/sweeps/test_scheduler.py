"""Which trial is next: phases, turns, what is held back, and what is known after a kill. No Ray here."""

from __future__ import annotations

import hashlib
import json
from collections import Counter

import pytest

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.pipeline.stage import Kind
from seedbed.benchmark.sweeps.trial_files import Outcome, TrialSpec
from seedbed.datasets.base import Split
from seedbed.leaderboard.data.expected import ExpectedTrials
from tests.helpers.sweeping import end, put_entry, run_to_its_end, scheduler_of, small


@pytest.fixture
def settings(chimera_root):
    return small(chimera_root)


def test_the_best_settings_are_confirmed_after_a_search_with_a_seed_of_its_own(settings, tmp_path):
    scheduler = scheduler_of(settings, tmp_path)
    specs = run_to_its_end(scheduler)
    assert len(specs) == scheduler.plan.expected() == 2 * (2 + 2 * 2)
    for cell in settings.cells():
        mine = [spec for spec in specs if spec.cell == cell]
        last_search = max(n for n, spec in enumerate(mine) if spec.phase == "search")
        assert all(spec.settings == "default" for spec in mine[:last_search] if spec.phase == "confirm")
        assert all(n > last_search for n, spec in enumerate(mine) if spec.settings == "best")
        assert {spec.trial.seed for spec in mine if spec.phase == "search"} == {1000}
        confirmed = {(spec.settings, spec.trial.seed) for spec in mine if spec.phase == "confirm"}
        assert confirmed == {("default", 0), ("default", 1), ("best", 0), ("best", 1)}
    assert len({spec.key for spec in specs}) == len(specs)


def test_the_best_settings_are_those_of_the_best_search_trial(settings, tmp_path):
    scheduler = scheduler_of(settings, tmp_path)
    specs = run_to_its_end(scheduler, objective=lambda spec: float(spec.number or 0))
    for cell in settings.cells():
        suggested = next(j for j in specs if j.cell == cell and j.number == 1)
        best = [j for j in specs if j.cell == cell and j.settings == "best"]
        changes = {k: v for k, v in suggested.trial.settings.items() if k not in settings.settings}
        assert changes
        assert all(changes.items() <= dict(j.trial.settings).items() for j in best)


def test_without_a_search_only_the_default_is_confirmed(chimera_root, tmp_path):
    specs = run_to_its_end(scheduler_of(small(chimera_root, trials=0), tmp_path))
    assert {(spec.phase, spec.settings) for spec in specs} == {("confirm", "default")}


def test_a_cell_with_nothing_to_search_has_no_search(chimera_root, tmp_path):
    settings = small(chimera_root, refiners=["none", "crf"], trials=2, tune=["crf"], seeds=[0, 1])
    scheduler = scheduler_of(settings, tmp_path)
    specs = run_to_its_end(scheduler)
    ran = Counter((spec.cell.refiner, spec.phase, spec.settings) for spec in specs)
    assert ran == {
        ("none", "confirm", "default"): 2,
        ("crf", "search", "default"): 1,
        ("crf", "search", "suggested"): 1,
        ("crf", "confirm", "default"): 2,
        ("crf", "confirm", "best"): 2,
    }
    assert scheduler.plan.expected() == len(specs)
    described = scheduler.plan.description()
    assert [(cell["refiner"], cell["trials"]) for cell in described["cells"]] == [("none", 0), ("crf", 2)]
    expected = ExpectedTrials.parse(described).expected()
    assert Counter((run.refiner, run.settings) for run in expected) == {
        ("none", "default"): 2,
        ("crf", "default"): 2,
        ("crf", "best"): 2,
    }
    # Earlier versions searched in each cell, and wrote only one number.
    for cell in described["cells"]:
        del cell["trials"]
    assert len([*ExpectedTrials.parse(described).expected()]) == 8


def test_variants_are_cells_with_settings_of_their_own(chimera_root, tmp_path):
    variants = {
        "low": {"method": "cam", "settings": {"TrainCam.lr": 0.01}},
        "network": {"method": "cam", "refiner": "crf", "segment": True, "segmentation_backbone": "squeezenet"},
    }
    settings = small(chimera_root, trials=0, segment=False, seeds=[0], variants=variants)
    scheduler = scheduler_of(settings, tmp_path)
    low, network = sorted(run_to_its_end(scheduler), key=lambda spec: spec.cell.variant)
    assert low.trial.settings["TrainCam.lr"] == 0.01
    assert (low.trial.segment, network.trial.segment) == (False, True)
    assert (network.trial.refiner, network.trial.segmentation_backbone) == ("crf", "squeezenet")
    assert "TrainCam.lr" not in network.trial.settings
    assert low.key != network.key
    assert TrialSpec.from_json(low.to_json()).cell == low.cell
    wrong = {"typo": {"method": "cam", "settings": {"TrainCan.lr": 0.01}}}
    with pytest.raises(
        ConfigError, match=r"unknown stage of the variant 'typo' 'TrainCan'\. Did you mean 'TrainCam'"
    ):
        scheduler_of(small(chimera_root, variants=wrong), tmp_path / "wrong")


def test_a_cell_without_a_variant_has_the_key_that_it_always_had(chimera_root, tmp_path):
    """Sweeps that began before there were variants are resumed by these keys."""
    spec = scheduler_of(small(chimera_root, trials=0), tmp_path).next_trial()
    identity = [
        spec.sweep,
        "cam",
        spec.cell.refiner,
        spec.cell.dataset,
        "confirm",
        "default",
        None,
        spec.trial.seed,
    ]
    assert spec.key == hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def test_where_every_search_trial_failed_the_best_is_the_default(chimera_root, tmp_path):
    scheduler = scheduler_of(small(chimera_root, refiners=["none"]), tmp_path)
    for _ in range(2):
        spec = scheduler.next_trial()
        assert spec.phase == "search"
        end(scheduler, spec, None, status="failed", reason="a NaN")
    rest = run_to_its_end(scheduler)
    assert len(rest) == 4
    assert all("TrainCam.lr" not in spec.trial.settings for spec in rest)


def test_search_trials_see_only_tune_and_train_no_segmentation(settings, tmp_path):
    scheduler = scheduler_of(settings, tmp_path)
    spec = scheduler.next_trial()
    steps = scheduler.plan.plan(scheduler.cell_of(spec), spec.trial).steps().values()
    assert {step.split for step in steps if step.stage.produces is not Kind.CHECKPOINT} == {Split.TUNE}
    assert "TrainSegmentation" not in {type(step.stage).__name__ for step in steps}


def test_a_trial_is_held_back_while_another_computes_what_it_needs(settings, tmp_path):
    """Both cells begin with the same training: the second waits for the first, holding no machine."""
    scheduler = scheduler_of(small_without_search(settings), tmp_path)
    first, second = scheduler.next_trial(), scheduler.next_trial()
    assert (first.trial.seed, second.trial.seed) == (0, 1)
    assert scheduler.next_trial() is None
    shared = keys_of(scheduler, first) & {
        key
        for cell in scheduler.plan.cells
        for key in scheduler.plan.plan(cell, first_trial(scheduler, cell)).steps()
    }
    for key in shared:
        put_entry(scheduler.plan.work.store, key)
    third = scheduler.next_trial()
    assert third.trial.seed == 0
    assert third.cell != first.cell


def small_without_search(settings):
    from dataclasses import replace

    return replace(settings, trials=0)


def keys_of(scheduler, spec) -> set[str]:
    return set(scheduler.plan.plan(scheduler.cell_of(spec), spec.trial).steps())


def first_trial(scheduler, cell):
    return scheduler.plan.trial(cell, 0, {}, "confirm")


def test_the_default_is_confirmed_while_search_trials_wait(chimera_root, tmp_path):
    """All search trials need one training: meanwhile a second machine confirms, and does not stand still."""
    scheduler = scheduler_of(small(chimera_root, trials=4, tune=["crf", "threshold"]), tmp_path)
    first, second = scheduler.next_trial(), scheduler.next_trial()
    assert (first.phase, second.phase, second.settings) == ("search", "confirm", "default")


def test_no_stage_is_started_to_two_trials_at_once(chimera_root, tmp_path):
    scheduler = scheduler_of(small(chimera_root, trials=4, tune=["crf", "threshold"]), tmp_path)
    running: dict[str, set[str]] = {}
    computed: Counter[str] = Counter()
    specs: list[TrialSpec] = []
    while not scheduler.done:
        while len(running) < 3 and (spec := scheduler.next_trial()) is not None:
            store = scheduler.plan.work.store
            missing = {key for key in keys_of(scheduler, spec) if not store.path(key).exists()}
            assert not any(missing & other for other in running.values())
            computed.update(missing)
            running[spec.key] = missing
            specs.append(spec)
        spec = next(j for j in specs if j.key in running)
        del running[spec.key]
        end(scheduler, spec, 0.1 * (spec.number or 0))
    assert max(computed.values()) == 1


def test_a_search_over_postprocessing_trains_each_network_once(chimera_root, tmp_path):
    settings = small(
        chimera_root, trials=4, tune=["crf", "threshold"], segment=False, settings={"TrainCam.epochs": 1}
    )
    scheduler = scheduler_of(settings, tmp_path)
    specs = run_to_its_end(scheduler, objective=lambda spec: 0.1 * (spec.number or 0))
    plans = [scheduler.plan.plan(scheduler.cell_of(spec), spec.trial) for spec in specs]
    steps = {key: step for plan in plans for key, step in plan.steps().items()}
    trainings = [step for step in steps.values() if step.stage.produces is Kind.CHECKPOINT]
    assert len(trainings) == 1 + 2  # The search's seed, and the two that confirm.


def test_with_early_stopping_a_trial_carries_the_curves_that_it_may_be_compared_with(chimera_root, tmp_path):
    settings = small(chimera_root, refiners=["none"], trials=3, window=1, early_stopping=True)
    scheduler = scheduler_of(settings, tmp_path)
    first = scheduler.next_trial()
    assert first.rivals == []
    end(scheduler, first, losses=[0.5, 0.25])
    second = scheduler.next_trial()
    assert second.rivals == [[0.5, 0.25]]
    end(scheduler, second, None, status="pruned", losses=[0.9])
    assert scheduler.next_trial().rivals == [[0.5, 0.25]]
    without = scheduler_of(small(chimera_root, refiners=["none"]), tmp_path / "without")
    assert without.next_trial().rivals is None


def test_cells_take_turns(chimera_root, tmp_path):
    scheduler = scheduler_of(small(chimera_root, trials=6), tmp_path)
    started: Counter[str] = Counter()
    for _ in range(8):
        spec = scheduler.next_trial()
        started[spec.cell.refiner] += 1
        assert max(started.values()) - min(started["none"], started["crf"]) <= 1
        end(scheduler, spec)


@pytest.mark.parametrize("stop_after", [0, 1, 3, 6, 9])
def test_after_a_kill_what_ended_is_known_and_what_ran_is_started_again(settings, tmp_path, stop_after):
    whole = run_to_its_end(scheduler_of(settings, tmp_path / "whole"), objective=value)
    first = scheduler_of(settings, tmp_path / "killed")
    ended = []
    for _ in range(stop_after):
        spec = first.next_trial()
        end(first, spec, value(spec))
        ended.append(spec.key)
    running = first.next_trial()
    second = scheduler_of(settings, tmp_path / "killed")
    rest = run_to_its_end(second, objective=value)
    assert not set(ended) & {spec.key for spec in rest}
    assert running.key in {spec.key for spec in rest}
    by_key = {spec.key: spec.trial for spec in whole}
    again = {spec.key: spec.trial for spec in rest}
    assert all(by_key[key] == trial for key, trial in again.items())
    assert len(ended) + len(rest) == len(whole)
    third = scheduler_of(settings, tmp_path / "killed")
    third.refresh()
    assert third.done


def value(spec: TrialSpec) -> float:
    return sum(v for k, v in spec.trial.settings.items() if k.startswith("TrainCam.lr"))


def test_a_result_that_the_dead_driver_did_not_see_is_told_to_optuna(settings, tmp_path):
    """The worker wrote its result, then the driver died before it told the study."""
    from seedbed.benchmark.sweeps.trial_files import write_outcome

    first = scheduler_of(settings, tmp_path)
    spec = first.next_trial()
    write_outcome(first.folder(spec), Outcome(spec.key, "complete", objective=0.25))
    second = scheduler_of(settings, tmp_path)
    second.refresh()
    assert second.finished == 1
    assert second.best(spec) == 0.25


def test_an_outcome_that_the_worker_could_not_write_is_written_before_optuna_is_told(settings, tmp_path):
    """A full disk there, room here: files and study must agree after a kill."""
    from seedbed.benchmark.sweeps.trial_files import read_outcome

    scheduler = scheduler_of(settings, tmp_path)
    spec = scheduler.next_trial()
    scheduler.finish(Outcome(spec.key, "failed", "no space"))
    assert read_outcome(scheduler.folder(spec)).reason == "no space"


def test_settings_that_crash_a_plan_are_left_to_the_worker(settings, tmp_path, monkeypatch):
    scheduler = scheduler_of(settings, tmp_path)
    monkeypatch.setattr(type(scheduler.plan), "plan", lambda *_: 1 / 0)
    assert scheduler.next_trial() is not None


def test_a_trial_whose_worker_is_gone_is_written_down_as_failed(settings, tmp_path):
    scheduler = scheduler_of(settings, tmp_path)
    spec = scheduler.next_trial()
    outcome = scheduler.give_up(spec.key, "its worker died")
    scheduler.finish(outcome)
    assert (outcome.status, outcome.reason) == ("failed", "its worker died")
    assert scheduler.finished == 1


def test_a_trial_is_the_same_after_a_journey_to_a_worker(settings, tmp_path):
    spec = scheduler_of(settings, tmp_path).next_trial()
    again = TrialSpec.from_json(spec.to_json())
    assert again.to_json() == spec.to_json()
    assert again.key == spec.key


def test_a_setting_of_no_cell_is_refused(chimera_root, tmp_path):
    with pytest.raises(ConfigError, match="unknown stage 'TrainCamm'"):
        scheduler_of(small(chimera_root, settings={"TrainCamm.lr": 1}), tmp_path)
    with pytest.raises(ConfigError, match=r"CrfMasks\.preset"):
        scheduler_of(small(chimera_root, settings={"CrfMasks.preset": "best"}), tmp_path)


def test_a_grid_of_rays_is_refused(chimera_root, tmp_path):
    """The trap: `grid_search` cannot become a space of Optuna's; a list of values is no value."""
    with pytest.raises(ConfigError, match=r"TrainCam\.lr = \{'grid_search': \[0\.1\]\}: expected number"):
        scheduler_of(small(chimera_root, settings={"TrainCam.lr": {"grid_search": [0.1]}}), tmp_path)


def test_the_roots_that_workers_get_are_absolute(settings, tmp_path, monkeypatch, chimera_root):
    """The trap: a worker's current folder is Ray's session folder."""
    monkeypatch.chdir(chimera_root.parent)
    spec = scheduler_of(small(chimera_root, datasets=[f"chimera-voc={chimera_root.name}"]), tmp_path).next_trial()
    assert spec.dataset_spec.root == str(chimera_root)


NETWORK = ("supervision", "backbone", "initialisation", "segmentation_backbone", "segmentation_initialisation")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("I", "tiny", "none", "tiny", "none")),
        ({"segment": False, "settings": {"TrainCam.epochs": 1}}, ("I", "tiny", "none", "tiny", "none")),
        ({"segmentation_backbone": "resnet101"}, ("I", "tiny", "none", "resnet101", "imagenet")),
        (
            {"segmentation_backbone": "resnet101", "segmentation_weights": "coco"},
            ("I+COCO masks", "tiny", "none", "resnet101", "coco"),
        ),
        (
            {"segmentation_backbone": "resnet101", "settings": {"TrainSegmentation.weights": "coco"}},
            ("I+COCO masks", "tiny", "none", "resnet101", "coco"),
        ),
    ],
)
def test_masks_that_the_segmentation_network_has_seen_are_a_supervision_of_their_own(
    chimera_root, tmp_path, changes, expected
):
    spec = scheduler_of(small(chimera_root, **changes), tmp_path).next_trial()
    assert tuple(spec.conditions[name] for name in NETWORK) == expected


def test_coco_is_refused_for_the_method_of_a_sweep_too(chimera_root, tmp_path):
    with pytest.raises(ConfigError, match="--weights coco: they have seen masks"):
        scheduler_of(small(chimera_root, backbone="resnet50", weights="coco"), tmp_path)
