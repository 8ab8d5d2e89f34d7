"""Runs a sweep: one Ray Tune run over all cells, resumable at any moment.

    sweeps/NAME/sweep.yaml     the settings         sweeps/NAME/studies.db   the Optuna studies (SQLite)
    sweeps/NAME/sweep.json     cells and facts      sweeps/NAME/trials/      one folder per trial (trial_files.py)
    sweeps/NAME/driver.lock    held by the driver   sweeps/NAME/ray/         Tune's own files

What is done is known from these files and the store alone, never from Ray's memory, so a resumed sweep starts a
new Tune run over what is left. The driver deals trials out (benchmark/sweeps/scheduler.py), workers run them
(benchmark/sweeps/worker.py), and the driver delivers their records to MLflow (benchmark/tracking/delivery.py).
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import ray.tune
from filelock import FileLock, Timeout
from ray.tune import Callback, Trainable
from ray.tune.search import Searcher

from seedbed.benchmark.errors import ConfigError, DataError
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.progress import Reporter
from seedbed.benchmark.sweeps.cluster import Pulse, check_nodes, connected
from seedbed.benchmark.sweeps.code_changes import check_code, check_job
from seedbed.benchmark.sweeps.failures import Deaths
from seedbed.benchmark.sweeps.plan import SweepPlan, plan_sweep
from seedbed.benchmark.sweeps.progress import SweepProgress, SweepResult
from seedbed.benchmark.sweeps.resume import (
    check_same_sweep,
    describe,
    forget_damaged,
    forget_failures,
    naming_other_code,
    update_places,
)
from seedbed.benchmark.sweeps.scheduler import Dealer
from seedbed.benchmark.sweeps.settings import SweepSettings
from seedbed.benchmark.sweeps.trial_files import ERROR, Job, Outcome, read_outcome, write_text
from seedbed.benchmark.sweeps.worker import reason_of, run_job
from seedbed.benchmark.tracking.delivery import Delivery
from seedbed.benchmark.tracking.mlflow_store import check_uri
from seedbed.benchmark.training.initialisation import check_weights


def run_sweep(
    settings: SweepSettings,
    work: WorkFolder,
    reporter: Reporter,
    retry_failed: bool = False,
    accept_changed_code: bool = False,
) -> SweepResult:
    """Run a sweep, or go on with it, to its end; `retry_failed` runs failed trials again (`resume.to_retry`).

    Results that earlier code made are refused unless `accept_changed_code` (benchmark/sweeps/code_changes.py).

    Raises ConfigError for those, if the settings disagree with those of an earlier sweep of the same name, if
    another process drives it, if a node of the cluster does not see the data, and if other code began the search
    and this code cannot go on with it; DataError if the data changed.
    """
    started = time.monotonic()
    work = WorkFolder(work.root.resolve())
    settings = settings.resolved()
    if settings.tracking_uri is not None:
        check_uri(settings.tracking_uri)
    folder = work.sweeps / settings.name
    folder.mkdir(parents=True, exist_ok=True)
    with _only_driver(folder):
        check_same_sweep(folder, settings)
        if not (folder / "sweep.json").exists():
            settings.save(folder / "sweep.yaml")
        reporter.say(f"sweep {settings.name}: reading data sets and plans")
        with naming_other_code(folder):
            plan = plan_sweep(settings, work, reporter)
        check_code(plan, accept_changed_code, reporter)
        _check_weights(plan)
        describe(folder, plan, reporter)
        # Saved once the content is known to be the same: data sets and weights may lie at new places.
        settings.save(folder / "sweep.yaml")
        forget_damaged(folder, reporter)
        update_places(folder, plan)
        if retry_failed and (count := forget_failures(folder)):
            reporter.say(f"{count} trials run again")
        dealer = Dealer(plan)
        dealer.refresh()
        for change in dealer.changes():
            reporter.say(f"note: {change}")
        delivery = Delivery(settings.tracking_uri, work, settings.name, reporter)
        delivery.start()
        status = "KILLED"
        try:
            if not dealer.done:
                _tune(plan, dealer, delivery, reporter, accept_changed_code)
            status = "FINISHED" if dealer.done else "KILLED"
        finally:
            delivery.stop(status)
    seconds = time.monotonic() - started
    return SweepResult(settings.name, folder, plan.expected(), dealer.ended, delivery.undelivered, seconds)


class TrialActor(Trainable):
    """A worker of Ray: runs one job after another, so that libraries and data are loaded once."""

    def setup(self, config: dict[str, Any]) -> None:
        """Take the first job. Raises DataError on a node, perhaps a new one, that does not see the work folder."""
        if not Path(config["token"]).exists():
            raise DataError(f"{config['token']}: not on this node; all nodes must share the work folder")
        self._config = config

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next job."""
        self._config = new_config
        return True

    def step(self) -> dict[str, Any]:
        """Run the job to its end."""
        config = self._config
        job = Job.from_json(config["job"])
        try:
            outcome = run_job(job, WorkFolder(Path(config["work"])), config["device"], config["workers"])
        except Exception as error:
            work = WorkFolder(Path(config["work"]))
            with contextlib.suppress(OSError):
                write_text(work.sweeps / job.sweep / "trials" / job.key / ERROR, traceback.format_exc())
            outcome = Outcome(job.key, "failed", reason_of(error))
        return {"done": True, "outcome": json.dumps(asdict(outcome))}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Keep nothing: the store has everything."""

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Load nothing."""


class DealerSearcher(Searcher):
    """Shows the dealer to Ray Tune. State is in the sweep's folder, so nothing is saved here."""

    def __init__(
        self,
        dealer: Dealer,
        watch: SweepProgress,
        constants: Mapping[str, Any],
        check: Callable[[Job], None] = lambda _: None,
    ) -> None:
        """`check` is given each job before it starts, and may raise."""
        super().__init__(metric="outcome", mode="max")
        self._dealer, self._watch, self._constants, self._check = dealer, watch, dict(constants), check
        self._jobs: dict[str, Job] = {}
        self.deaths = Deaths()
        self.broken: Exception | None = None
        """What went wrong while a trial's end was noted; Tune itself would go on without the trial."""

    def __getstate__(self) -> dict[str, Any]:
        """Give Tune, which pickles its searcher for a restore that Seedbed never does, nothing to keep."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        """Return the next job, None while none can start, FINISHED after the last."""
        if self.broken is not None:
            raise self.broken
        if self._dealer.done:
            return Searcher.FINISHED
        if self.deaths.pausing:
            return None
        job = self._dealer.deal()
        if job is None:
            # The dealer may just have found the last trials done.
            return Searcher.FINISHED if self._dealer.done else None
        self._check(job)
        self._jobs[trial_id] = job
        return {**self._constants, "job": job.to_json()}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Pass on how a trial ended; one whose worker was lost is dealt again, unless it lost too many."""
        job = self._jobs.pop(trial_id, None)
        if job is None:
            return
        try:
            self._ended(job, result, error)
        except Exception as problem:
            self.broken = problem

    def _ended(self, job: Job, result: Any, error: bool) -> None:
        if error or not result or "outcome" not in result:
            outcome = self._lost(job)
        else:
            self.deaths.none()
            outcome = Outcome(**json.loads(result["outcome"]))
        if outcome is None:
            self._dealer.take_back(job.key)
            return
        self._dealer.finish(outcome)
        self._watch.ended(job, outcome)

    def _lost(self, job: Job) -> Outcome | None:
        """Return how a trial ended whose worker was lost, None where it is tried again."""
        folder = self._dealer.folder(job)
        if (outcome := read_outcome(folder)) is not None:
            return outcome
        others = [self._dealer.folder(other) for other in self._jobs.values()]
        reason = self.deaths.lost(folder, others)
        return self._dealer.give_up(job.key, reason) if reason else None

    def save(self, checkpoint_path: str) -> None:
        """Write nothing."""

    def restore(self, checkpoint_path: str) -> None:
        """Read nothing."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Write nothing."""


def _check_weights(plan: SweepPlan) -> None:
    """Read the pretrained weights before any trial starts; nodes of a cluster download theirs themselves."""
    needed: set[tuple[str, str]] = set()
    files: dict[str, Path] = {}
    for cell in plan.cells:
        needed |= cell.default.weights_needed()
        files |= cell.default.machine.weights_files
    local = plan.settings.address is None
    check_weights({pair for pair in needed if local or pair[1] in files}, files)


def _tune(
    plan: SweepPlan, dealer: Dealer, delivery: Delivery, reporter: Reporter, accept_changed_code: bool
) -> None:
    """Run what is left of a sweep as one Tune run."""
    settings = plan.settings
    places = {cell.place.name: cell.place for cell in plan.cells}
    apart = [plan.work.root, *(Path(place.root) for place in places.values())]
    with connected(settings, apart, reporter):
        gpus = settings.gpus_per_trial
        if gpus is None:
            gpus = 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0
            if settings.address is not None and not gpus:
                reporter.say(
                    "note: the cluster has no GPU now, so trials get none; say --gpus-per-trial otherwise"
                )
        check_nodes(
            list(places.values()), plan.folder / "sweep.json", settings.weights, settings.segmentation_weights
        )
        watch = SweepProgress(dealer, delivery, {"CPU": settings.cpus_per_trial, "GPU": gpus}, reporter)
        constants = {
            "work": str(plan.work.root),
            "device": "cuda" if gpus else "cpu",
            "workers": settings.workers,
            "token": str(plan.folder / "sweep.json"),
        }
        check = functools.partial(check_job, plan, accepted=accept_changed_code)
        searcher = DealerSearcher(dealer, watch, constants, check)
        ray_folder = plan.folder / "ray"
        shutil.rmtree(ray_folder, ignore_errors=True)
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(TrialActor, {"cpu": settings.cpus_per_trial, "gpu": gpus}),
            tune_config=ray.tune.TuneConfig(
                search_alg=searcher,
                # A trial that is tried again is a new one to Tune; the searcher says when all have ended.
                num_samples=-1,
                reuse_actors=True,
                trial_name_creator=lambda trial: f"trial_{trial.trial_id}",
                trial_dirname_creator=lambda trial: f"trial_{trial.trial_id}",
            ),
            run_config=ray.tune.RunConfig(
                name="tune",
                storage_path=str(ray_folder),
                failure_config=ray.tune.FailureConfig(max_failures=0),
                callbacks=[_Causes(searcher.deaths)],
                verbose=0,
            ),
        )
        try:
            with Pulse(lambda: _ray_died(settings.name, delivery)):
                tuner.fit()
            if searcher.broken is not None:
                raise searcher.broken
        except Exception as error:
            raise ConfigError(f"{_stopped(settings.name)} ({reason_of(error)})") from error
    if not dealer.done:
        raise ConfigError(
            f"Ray Tune ended with {dealer.finished} of {plan.expected()} trials; go on with: "
            f"seedbed sweep --resume {settings.name}"
        )


def _stopped(name: str) -> str:
    return f"The sweep stopped. Nothing that ended is lost; go on with: seedbed sweep --resume {name}"


def _ray_died(name: str, delivery: Delivery) -> None:
    """End this process: Tune waits for ever for a Ray that is gone. All that counts is in files."""
    print(f"error: {_stopped(name)}", file=sys.stderr, flush=True)
    try:
        delivery.stop("KILLED")
    finally:
        os._exit(1)


class _Causes(Callback):
    """Keeps why the last worker was lost.

    Stands in for Tune's own loggers too, which would write a line a trial and import TensorBoard.
    """

    def __init__(self, deaths: Deaths) -> None:
        self._deaths = deaths

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Keep the last line of the error, which names it."""
        lines = Path(trial.error_file).read_text().splitlines() if trial.error_file else []
        self._deaths.cause = next((line.strip() for line in reversed(lines) if line.strip()), "")


@contextmanager
def _only_driver(folder: Path) -> Iterator[None]:
    """Hold the sweep's lock, which the kernel frees where the driver is killed."""
    lock = FileLock(folder / "driver.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(f"{folder}: another process drives this sweep") from None
    try:
        yield
    finally:
        lock.release()
