"""What becomes of a trial whose worker was lost: an innocent one goes on, a deadly one fails. No Ray here."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.sweeps.driver import SchedulerSearcher
from seedbed.benchmark.sweeps.failures import MAX_RESTARTS, PATIENCE, PAUSE, WorkerFailures
from seedbed.benchmark.sweeps.progress import SweepProgress
from seedbed.benchmark.sweeps.trial_files import BEGUN, Outcome, TrialSpec, read_outcome, write_outcome
from tests.helpers.sweeping import end, scheduler_of, small


class Clock:
    """Time that passes when it is told to, in seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Ends(SweepProgress):
    """Keeps how trials ended."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    def ended(self, spec: TrialSpec, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


class Tune:
    """Takes trials from a sweep's searcher and loses their workers, as Ray Tune does."""

    def __init__(self, root, work, **changes) -> None:
        self.scheduler = scheduler_of(
            small(root, **{"trials": 0, "seeds": [0], "refiners": ["none"], **changes}), work
        )
        self.clock, self.progress = Clock(), Ends()
        self.searcher = SchedulerSearcher(self.scheduler, self.progress.ended)
        self.searcher.failures = WorkerFailures(self.clock)
        self.asked = 0

    def ask(self) -> tuple[str, TrialSpec] | None:
        """Return the next trial's id and trial, None where none may start now."""
        self.asked += 1
        answer = self.searcher.suggest(str(self.asked))
        return (str(self.asked), TrialSpec.from_json(answer["spec"])) if isinstance(answer, dict) else None

    def lose(self, trial: str, spec: TrialSpec, begun: bool) -> None:
        """Let the worker of a trial die, before or after it began the trial."""
        if begun:
            (self.scheduler.folder(spec) / BEGUN).touch()
        self.searcher.on_trial_complete(trial, error=True)

    def finish(self, trial: str, spec: TrialSpec) -> None:
        self.searcher.on_trial_complete(trial, {"outcome": json.dumps(asdict(Outcome(spec.key, "complete")))})


@pytest.fixture
def tune(chimera_root, tmp_path):
    return Tune(chimera_root, tmp_path)


def test_ten_workers_that_began_nothing_cost_a_trial_nothing(tune):
    """A node is gone and the cluster does not know it yet."""
    keys = set()
    for _ in range(10):
        trial, spec = tune.ask()
        keys.add(spec.key)
        tune.lose(trial, spec, begun=False)
        assert tune.progress.outcomes == []
        tune.clock.now += PAUSE
    trial, spec = tune.ask()
    tune.finish(trial, spec)
    assert keys == {spec.key}
    assert [outcome.status for outcome in tune.progress.outcomes] == ["complete"]
    assert tune.searcher.suggest("last") == tune.searcher.FINISHED


def test_nothing_is_started_for_a_while_after_a_worker_that_began_nothing(tune):
    tune.lose(*tune.ask(), begun=False)
    tune.clock.now += PAUSE - 0.5
    assert tune.ask() is None
    tune.clock.now += 0.5
    assert tune.ask() is not None


def test_a_trial_that_kills_its_workers_fails_after_three_restarts(tune):
    for _ in range(MAX_RESTARTS + 1):
        assert tune.progress.outcomes == []
        trial, spec = tune.ask()
        tune.lose(trial, spec, begun=True)
    (outcome,) = tune.progress.outcomes
    assert (outcome.status, outcome.reason) == ("failed", "its worker died 4 times")
    assert read_outcome(tune.scheduler.folder(spec)).reason == outcome.reason
    assert tune.scheduler.done


def test_a_worker_that_began_nothing_does_not_inherit_the_mark_of_the_one_before(tune):
    """One real death, then many on a node that is gone: the real one is counted once."""
    trial, spec = tune.ask()
    tune.lose(trial, spec, begun=True)
    for _ in range(2 * MAX_RESTARTS):
        tune.lose(*tune.ask(), begun=False)
        tune.clock.now += PAUSE
    for _ in range(MAX_RESTARTS - 1):
        tune.lose(*tune.ask(), begun=True)
    assert tune.progress.outcomes == []
    assert tune.ask() is not None


def test_a_worker_that_dies_after_it_wrote_its_result_has_ended_its_trial(tune):
    trial, spec = tune.ask()
    write_outcome(tune.scheduler.folder(spec), Outcome(spec.key, "complete", objective=0.25))
    tune.lose(trial, spec, begun=True)
    assert [outcome.objective for outcome in tune.progress.outcomes] == [0.25]
    assert tune.scheduler.done


def test_where_no_worker_can_begin_for_long_the_sweep_stops_and_says_why(tune):
    """No trial is failed by it: a resumed sweep tries them all."""
    tune.searcher.failures.cause = "DataError: sweep.json: not on this node"
    tune.lose(*tune.ask(), begun=False)
    tune.clock.now += PATIENCE
    tune.lose(*tune.ask(), begun=False)
    tune.clock.now += PAUSE
    tune.lose(*tune.ask(), begun=False)
    with pytest.raises(ConfigError, match="could begin a trial for 10 minutes; the last error: DataError: sweep"):
        tune.ask()
    assert tune.progress.outcomes == []
    assert not list(tune.scheduler.plan.folder.glob("trials/*/result.json"))


@pytest.mark.parametrize("other", ["ends", "runs", "died"])
def test_patience_does_not_end_while_another_worker_is_at_work(chimera_root, tmp_path, other):
    """One node of two is gone for an hour."""
    tune = Tune(chimera_root, tmp_path, seeds=[0, 1])
    lost = tune.ask()
    trial, healthy = tune.ask()
    tune.lose(*lost, begun=False)
    tune.clock.now += PATIENCE + 1
    lost = tune.ask()
    if other == "runs":
        (tune.scheduler.folder(healthy) / BEGUN).touch()
    elif other == "ends":
        tune.finish(trial, healthy)
    else:
        tune.lose(trial, healthy, begun=True)
    tune.lose(*lost, begun=False)
    tune.clock.now += PAUSE
    assert tune.ask() is not None


def test_a_trial_that_is_taken_back_is_the_next_of_its_cell(chimera_root, tmp_path):
    scheduler = scheduler_of(small(chimera_root, trials=0, seeds=[0, 1, 2], refiners=["none"]), tmp_path)
    first, second = scheduler.next_trial(), scheduler.next_trial()
    scheduler.take_back(first.key)
    assert scheduler.finished == 0
    assert scheduler.next_trial().key == first.key
    third = scheduler.next_trial()
    assert third.key not in (first.key, second.key)
    for spec in (first, second, third):
        end(scheduler, spec)
    assert scheduler.done
