"""What becomes of a trial whose worker was lost: an innocent one goes on, a deadly one fails. No Ray here."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.sweeps.driver import DealerSearcher
from seedbed.benchmark.sweeps.failures import DEATHS, PATIENCE, PAUSE, Deaths
from seedbed.benchmark.sweeps.progress import SweepProgress
from seedbed.benchmark.sweeps.trial_files import BEGUN, Job, Outcome, read_outcome, write_outcome
from tests.helpers.sweeping import dealer_of, end, small


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

    def ended(self, job: Job, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


class Tune:
    """Takes trials from a sweep's searcher and loses their workers, as Ray Tune does."""

    def __init__(self, root, work, **changes) -> None:
        self.dealer = dealer_of(small(root, **{"trials": 0, "seeds": [0], "refiners": ["none"], **changes}), work)
        self.clock, self.watch = Clock(), Ends()
        self.searcher = DealerSearcher(self.dealer, self.watch, {})
        self.searcher.deaths = Deaths(self.clock)
        self.asked = 0

    def ask(self) -> tuple[str, Job] | None:
        """Return the next trial's id and job, None where none may start now."""
        self.asked += 1
        answer = self.searcher.suggest(str(self.asked))
        return (str(self.asked), Job.from_json(answer["job"])) if isinstance(answer, dict) else None

    def lose(self, trial: str, job: Job, begun: bool) -> None:
        """Let the worker of a trial die, before or after it began the job."""
        if begun:
            (self.dealer.folder(job) / BEGUN).touch()
        self.searcher.on_trial_complete(trial, error=True)

    def finish(self, trial: str, job: Job) -> None:
        self.searcher.on_trial_complete(trial, {"outcome": json.dumps(asdict(Outcome(job.key, "complete")))})


@pytest.fixture
def tune(chimera_root, tmp_path):
    return Tune(chimera_root, tmp_path)


def test_ten_workers_that_began_nothing_cost_a_trial_nothing(tune):
    """A node is gone and the cluster does not know it yet."""
    keys = set()
    for _ in range(10):
        trial, job = tune.ask()
        keys.add(job.key)
        tune.lose(trial, job, begun=False)
        assert tune.watch.outcomes == []
        tune.clock.now += PAUSE
    trial, job = tune.ask()
    tune.finish(trial, job)
    assert keys == {job.key}
    assert [outcome.status for outcome in tune.watch.outcomes] == ["complete"]
    assert tune.searcher.suggest("last") == tune.searcher.FINISHED


def test_nothing_is_dealt_for_a_while_after_a_worker_that_began_nothing(tune):
    tune.lose(*tune.ask(), begun=False)
    tune.clock.now += PAUSE - 0.5
    assert tune.ask() is None
    tune.clock.now += 0.5
    assert tune.ask() is not None


def test_a_trial_that_kills_its_workers_fails_after_three_restarts(tune):
    for _ in range(DEATHS + 1):
        assert tune.watch.outcomes == []
        trial, job = tune.ask()
        tune.lose(trial, job, begun=True)
    (outcome,) = tune.watch.outcomes
    assert (outcome.status, outcome.reason) == ("failed", "its worker died 4 times")
    assert read_outcome(tune.dealer.folder(job)).reason == outcome.reason
    assert tune.dealer.done


def test_a_worker_that_began_nothing_does_not_inherit_the_mark_of_the_one_before(tune):
    """One real death, then many on a node that is gone: the real one is counted once."""
    trial, job = tune.ask()
    tune.lose(trial, job, begun=True)
    for _ in range(2 * DEATHS):
        tune.lose(*tune.ask(), begun=False)
        tune.clock.now += PAUSE
    for _ in range(DEATHS - 1):
        tune.lose(*tune.ask(), begun=True)
    assert tune.watch.outcomes == []
    assert tune.ask() is not None


def test_a_worker_that_dies_after_it_wrote_its_result_has_ended_its_trial(tune):
    trial, job = tune.ask()
    write_outcome(tune.dealer.folder(job), Outcome(job.key, "complete", objective=0.25))
    tune.lose(trial, job, begun=True)
    assert [outcome.objective for outcome in tune.watch.outcomes] == [0.25]
    assert tune.dealer.done


def test_where_no_worker_can_begin_for_long_the_sweep_stops_and_says_why(tune):
    """No trial is failed by it: a resumed sweep tries them all."""
    tune.searcher.deaths.cause = "DataError: sweep.json: not on this node"
    tune.lose(*tune.ask(), begun=False)
    tune.clock.now += PATIENCE
    tune.lose(*tune.ask(), begun=False)
    tune.clock.now += PAUSE
    tune.lose(*tune.ask(), begun=False)
    with pytest.raises(ConfigError, match="could begin a trial for 10 minutes; the last error: DataError: sweep"):
        tune.ask()
    assert tune.watch.outcomes == []
    assert not list(tune.dealer.plan.folder.glob("trials/*/result.json"))


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
        (tune.dealer.folder(healthy) / BEGUN).touch()
    elif other == "ends":
        tune.finish(trial, healthy)
    else:
        tune.lose(trial, healthy, begun=True)
    tune.lose(*lost, begun=False)
    tune.clock.now += PAUSE
    assert tune.ask() is not None


def test_a_trial_that_is_taken_back_is_the_next_of_its_cell(chimera_root, tmp_path):
    dealer = dealer_of(small(chimera_root, trials=0, seeds=[0, 1, 2], refiners=["none"]), tmp_path)
    first, second = dealer.deal(), dealer.deal()
    dealer.take_back(first.key)
    assert dealer.finished == 0
    assert dealer.deal().key == first.key
    third = dealer.deal()
    assert third.key not in (first.key, second.key)
    for job in (first, second, third):
        end(dealer, job)
    assert dealer.done
