"""Which trial is next: phases, turns, what is held back, and what is known after a kill. No Ray here."""

from __future__ import annotations

import hashlib
import json
from collections import Counter

import pytest

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.pipeline.stage import Kind
from seedbed.benchmark.sweeps.trial_files import Job, Outcome
from seedbed.datasets.base import Split
from tests.helpers.sweeping import dealer_of, end, put_entry, run_to_its_end, small


@pytest.fixture
def settings(chimera_root):
    return small(chimera_root)


def test_the_best_settings_are_confirmed_after_a_search_with_a_seed_of_its_own(settings, tmp_path):
    dealer = dealer_of(settings, tmp_path)
    jobs = run_to_its_end(dealer)
    assert len(jobs) == dealer.plan.expected() == 2 * (2 + 2 * 2)
    for cell in settings.cells():
        mine = [job for job in jobs if job.cell == cell]
        last_search = max(n for n, job in enumerate(mine) if job.phase == "search")
        assert all(job.settings == "default" for job in mine[:last_search] if job.phase == "confirm")
        assert all(n > last_search for n, job in enumerate(mine) if job.settings == "best")
        assert {job.trial.seed for job in mine if job.phase == "search"} == {1000}
        confirmed = {(job.settings, job.trial.seed) for job in mine if job.phase == "confirm"}
        assert confirmed == {("default", 0), ("default", 1), ("best", 0), ("best", 1)}
    assert len({job.key for job in jobs}) == len(jobs)


def test_the_best_settings_are_those_of_the_best_search_trial(settings, tmp_path):
    dealer = dealer_of(settings, tmp_path)
    jobs = run_to_its_end(dealer, objective=lambda job: float(job.number or 0))
    for cell in settings.cells():
        suggested = next(j for j in jobs if j.cell == cell and j.number == 1)
        best = [j for j in jobs if j.cell == cell and j.settings == "best"]
        changes = {k: v for k, v in suggested.trial.settings.items() if k not in settings.settings}
        assert changes
        assert all(changes.items() <= dict(j.trial.settings).items() for j in best)


def test_without_a_search_only_the_default_is_confirmed(chimera_root, tmp_path):
    jobs = run_to_its_end(dealer_of(small(chimera_root, trials=0), tmp_path))
    assert {(job.phase, job.settings) for job in jobs} == {("confirm", "default")}


def test_variants_are_cells_with_settings_of_their_own(chimera_root, tmp_path):
    variants = {
        "low": {"method": "cam", "settings": {"TrainCam.lr": 0.01}},
        "network": {"method": "cam", "refiner": "crf", "segment": True, "segmentation_backbone": "squeezenet"},
    }
    settings = small(chimera_root, trials=0, segment=False, seeds=[0], variants=variants)
    dealer = dealer_of(settings, tmp_path)
    low, network = sorted(run_to_its_end(dealer), key=lambda job: job.cell.variant)
    assert low.trial.settings["TrainCam.lr"] == 0.01
    assert (low.trial.segment, network.trial.segment) == (False, True)
    assert (network.trial.refiner, network.trial.segmentation_backbone) == ("crf", "squeezenet")
    assert "TrainCam.lr" not in network.trial.settings
    assert low.key != network.key
    assert Job.from_json(low.to_json()).cell == low.cell
    wrong = {"typo": {"method": "cam", "settings": {"TrainCan.lr": 0.01}}}
    with pytest.raises(
        ConfigError, match=r"unknown stage of the variant 'typo' 'TrainCan'\. Did you mean 'TrainCam'"
    ):
        dealer_of(small(chimera_root, variants=wrong), tmp_path / "wrong")


def test_a_cell_without_a_variant_has_the_key_that_it_always_had(chimera_root, tmp_path):
    """Sweeps that began before there were variants are resumed by these keys."""
    job = dealer_of(small(chimera_root, trials=0), tmp_path).deal()
    identity = [job.sweep, "cam", job.cell.refiner, job.cell.dataset, "confirm", "default", None, job.trial.seed]
    assert job.key == hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def test_where_every_search_trial_failed_the_best_is_the_default(chimera_root, tmp_path):
    dealer = dealer_of(small(chimera_root, refiners=["none"]), tmp_path)
    for _ in range(2):
        job = dealer.deal()
        assert job.phase == "search"
        end(dealer, job, None, status="failed", reason="a NaN")
    rest = run_to_its_end(dealer)
    assert len(rest) == 4
    assert all("TrainCam.lr" not in job.trial.settings for job in rest)


def test_search_trials_see_only_tune_and_train_no_segmentation(settings, tmp_path):
    dealer = dealer_of(settings, tmp_path)
    job = dealer.deal()
    steps = dealer.plan.plan(dealer.cell_of(job), job.trial).steps().values()
    assert {step.split for step in steps if step.stage.produces is not Kind.CHECKPOINT} == {Split.TUNE}
    assert "TrainSegmentation" not in {type(step.stage).__name__ for step in steps}


def test_a_trial_is_held_back_while_another_computes_what_it_needs(settings, tmp_path):
    """Both cells begin with the same training: the second waits for the first, holding no machine."""
    dealer = dealer_of(small_without_search(settings), tmp_path)
    first, second = dealer.deal(), dealer.deal()
    assert (first.trial.seed, second.trial.seed) == (0, 1)
    assert dealer.deal() is None
    shared = keys_of(dealer, first) & {
        key for cell in dealer.plan.cells for key in dealer.plan.plan(cell, first_trial(dealer, cell)).steps()
    }
    for key in shared:
        put_entry(dealer.plan.work.store, key)
    third = dealer.deal()
    assert third.trial.seed == 0
    assert third.cell != first.cell


def small_without_search(settings):
    from dataclasses import replace

    return replace(settings, trials=0)


def keys_of(dealer, job) -> set[str]:
    return set(dealer.plan.plan(dealer.cell_of(job), job.trial).steps())


def first_trial(dealer, cell):
    return dealer.plan.trial(cell, 0, {}, "confirm")


def test_the_default_is_confirmed_while_search_trials_wait(chimera_root, tmp_path):
    """All search trials need one training: meanwhile a second machine confirms, and does not stand still."""
    dealer = dealer_of(small(chimera_root, trials=4, tune=["crf", "threshold"]), tmp_path)
    first, second = dealer.deal(), dealer.deal()
    assert (first.phase, second.phase, second.settings) == ("search", "confirm", "default")


def test_no_stage_is_dealt_to_two_trials_at_once(chimera_root, tmp_path):
    dealer = dealer_of(small(chimera_root, trials=4, tune=["crf", "threshold"]), tmp_path)
    running: dict[str, set[str]] = {}
    computed: Counter[str] = Counter()
    jobs: list[Job] = []
    while not dealer.done:
        while len(running) < 3 and (job := dealer.deal()) is not None:
            store = dealer.plan.work.store
            missing = {key for key in keys_of(dealer, job) if not store.path(key).exists()}
            assert not any(missing & other for other in running.values())
            computed.update(missing)
            running[job.key] = missing
            jobs.append(job)
        job = next(j for j in jobs if j.key in running)
        del running[job.key]
        end(dealer, job, 0.1 * (job.number or 0))
    assert max(computed.values()) == 1


def test_a_search_over_postprocessing_trains_each_network_once(chimera_root, tmp_path):
    settings = small(
        chimera_root, trials=4, tune=["crf", "threshold"], segment=False, settings={"TrainCam.epochs": 1}
    )
    dealer = dealer_of(settings, tmp_path)
    jobs = run_to_its_end(dealer, objective=lambda job: 0.1 * (job.number or 0))
    plans = [dealer.plan.plan(dealer.cell_of(job), job.trial) for job in jobs]
    steps = {key: step for plan in plans for key, step in plan.steps().items()}
    trainings = [step for step in steps.values() if step.stage.produces is Kind.CHECKPOINT]
    assert len(trainings) == 1 + 2  # The search's seed, and the two that confirm.


def test_with_early_stopping_a_job_carries_the_curves_that_it_may_be_compared_with(chimera_root, tmp_path):
    settings = small(chimera_root, refiners=["none"], trials=3, window=1, early_stopping=True)
    dealer = dealer_of(settings, tmp_path)
    first = dealer.deal()
    assert first.rivals == []
    end(dealer, first, losses=[0.5, 0.25])
    second = dealer.deal()
    assert second.rivals == [[0.5, 0.25]]
    end(dealer, second, None, status="pruned", losses=[0.9])
    assert dealer.deal().rivals == [[0.5, 0.25]]
    without = dealer_of(small(chimera_root, refiners=["none"]), tmp_path / "without")
    assert without.deal().rivals is None


def test_cells_take_turns(chimera_root, tmp_path):
    dealer = dealer_of(small(chimera_root, trials=6), tmp_path)
    dealt: Counter[str] = Counter()
    for _ in range(8):
        job = dealer.deal()
        dealt[job.cell.refiner] += 1
        assert max(dealt.values()) - min(dealt["none"], dealt["crf"]) <= 1
        end(dealer, job)


@pytest.mark.parametrize("stop_after", [0, 1, 3, 6, 9])
def test_after_a_kill_what_ended_is_known_and_what_ran_is_dealt_again(settings, tmp_path, stop_after):
    whole = run_to_its_end(dealer_of(settings, tmp_path / "whole"), objective=value)
    first = dealer_of(settings, tmp_path / "killed")
    ended = []
    for _ in range(stop_after):
        job = first.deal()
        end(first, job, value(job))
        ended.append(job.key)
    running = first.deal()
    second = dealer_of(settings, tmp_path / "killed")
    rest = run_to_its_end(second, objective=value)
    assert not set(ended) & {job.key for job in rest}
    assert running.key in {job.key for job in rest}
    by_key = {job.key: job.trial for job in whole}
    again = {job.key: job.trial for job in rest}
    assert all(by_key[key] == trial for key, trial in again.items())
    assert len(ended) + len(rest) == len(whole)
    third = dealer_of(settings, tmp_path / "killed")
    third.refresh()
    assert third.done


def value(job: Job) -> float:
    return sum(v for k, v in job.trial.settings.items() if k.startswith("TrainCam.lr"))


def test_a_result_that_the_dead_driver_did_not_see_is_told_to_optuna(settings, tmp_path):
    """The worker wrote its result, then the driver died before it told the study."""
    from seedbed.benchmark.sweeps.trial_files import write_outcome

    first = dealer_of(settings, tmp_path)
    job = first.deal()
    write_outcome(first.folder(job), Outcome(job.key, "complete", objective=0.25))
    second = dealer_of(settings, tmp_path)
    second.refresh()
    assert second.finished == 1
    assert second.best(job) == 0.25


def test_an_outcome_that_the_worker_could_not_write_is_written_before_optuna_is_told(settings, tmp_path):
    """A full disk there, room here: files and study must agree after a kill."""
    from seedbed.benchmark.sweeps.trial_files import read_outcome

    dealer = dealer_of(settings, tmp_path)
    job = dealer.deal()
    dealer.finish(Outcome(job.key, "failed", "no space"))
    assert read_outcome(dealer.folder(job)).reason == "no space"


def test_settings_that_crash_a_plan_are_left_to_the_worker(settings, tmp_path, monkeypatch):
    dealer = dealer_of(settings, tmp_path)
    monkeypatch.setattr(type(dealer.plan), "plan", lambda *_: 1 / 0)
    assert dealer.deal() is not None


def test_a_trial_whose_worker_is_gone_is_written_down_as_failed(settings, tmp_path):
    dealer = dealer_of(settings, tmp_path)
    job = dealer.deal()
    outcome = dealer.give_up(job.key, "its worker died")
    dealer.finish(outcome)
    assert (outcome.status, outcome.reason) == ("failed", "its worker died")
    assert dealer.finished == 1


def test_a_job_is_the_same_after_a_journey_to_a_worker(settings, tmp_path):
    job = dealer_of(settings, tmp_path).deal()
    again = Job.from_json(job.to_json())
    assert again.to_json() == job.to_json()
    assert again.key == job.key


def test_a_setting_of_no_cell_is_refused(chimera_root, tmp_path):
    with pytest.raises(ConfigError, match="unknown stage 'TrainCamm'"):
        dealer_of(small(chimera_root, settings={"TrainCamm.lr": 1}), tmp_path)
    with pytest.raises(ConfigError, match=r"CrfMasks\.preset"):
        dealer_of(small(chimera_root, settings={"CrfMasks.preset": "best"}), tmp_path)


def test_a_grid_of_rays_is_refused(chimera_root, tmp_path):
    """The trap: `grid_search` cannot become a space of Optuna's; a list of values is no value."""
    with pytest.raises(ConfigError, match=r"TrainCam\.lr = \{'grid_search': \[0\.1\]\}: expected number"):
        dealer_of(small(chimera_root, settings={"TrainCam.lr": {"grid_search": [0.1]}}), tmp_path)


def test_the_roots_that_workers_get_are_absolute(settings, tmp_path, monkeypatch, chimera_root):
    """The trap: a worker's current folder is Ray's session folder."""
    monkeypatch.chdir(chimera_root.parent)
    job = dealer_of(small(chimera_root, datasets=[f"chimera-voc={chimera_root.name}"]), tmp_path).deal()
    assert job.place.root == str(chimera_root)


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
    job = dealer_of(small(chimera_root, **changes), tmp_path).deal()
    assert tuple(job.facts[name] for name in NETWORK) == expected


def test_coco_is_refused_for_the_method_of_a_sweep_too(chimera_root, tmp_path):
    with pytest.raises(ConfigError, match="--weights coco: they have seen masks"):
        dealer_of(small(chimera_root, backbone="resnet50", weights="coco"), tmp_path)
