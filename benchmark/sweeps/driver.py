"""Runs a sweep: one Ray Tune run over all cells, resumable at any moment.

    sweeps/NAME/sweep.yaml     the settings         sweeps/NAME/studies.db   the Optuna studies (SQLite)
    sweeps/NAME/sweep.json     cells, conditions    sweeps/NAME/trials/      one folder per trial (trial_files.py)
    sweeps/NAME/driver.lock    held by the driver   sweeps/NAME/ray/         Tune's own files
    sweeps/NAME/driver.token   tells a node that it sees this folder; only with a store on an object store
    sweeps/NAME/plugins/       the plug-ins, as the workers import them

All state is in these files and in the store, never in Ray's memory, so a resumed sweep starts a new Tune run over
the remaining trials. The scheduler chooses the next trial (benchmark/sweeps/scheduler.py),
workers run trials (benchmark/sweeps/worker.py), and the driver tells listeners
(`SweepListener`), one of which uploads the records to MLflow (benchmark/tracking/uploader.py). With a store on an
object store, nodes need not see these files: another listener brings their trials (benchmark/sweeps/remote/).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import ray.tune
from filelock import FileLock, Timeout
from ray.tune import Callback, Trainable
from ray.tune.search import Searcher

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.files import write_text
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.plugins import copy_plugins
from seedbed.benchmark.sweeps.cluster import RayWatchdog, check_nodes, connected
from seedbed.benchmark.sweeps.code_changes import check_code, check_trial
from seedbed.benchmark.sweeps.failures import WorkerFailures
from seedbed.benchmark.sweeps.plan import SweepPlan, plan_sweep
from seedbed.benchmark.sweeps.progress import SweepListener, SweepProgress, SweepResult
from seedbed.benchmark.sweeps.remote.exchange import PLUGINS, Exchange
from seedbed.benchmark.sweeps.remote.node import DriverFolder, Node
from seedbed.benchmark.sweeps.remote.receiver import Receiver
from seedbed.benchmark.sweeps.resume import (
    check_same_sweep,
    describe,
    forget_damaged,
    forget_failures,
    naming_other_code,
    update_dataset_specs,
)
from seedbed.benchmark.sweeps.scheduler import Scheduler
from seedbed.benchmark.sweeps.settings import SweepSettings
from seedbed.benchmark.sweeps.trial_files import ERROR, Outcome, TrialSpec, read_outcome
from seedbed.benchmark.sweeps.worker import reason_of, run_sweep_trial
from seedbed.benchmark.training.initialisation import check_weights

TOKEN = "driver.token"

logger = logging.getLogger(__name__)


def run_sweep(
    settings: SweepSettings,
    work: WorkFolder,
    listeners: Sequence[SweepListener] = (),
    retry_failed: bool = False,
    accept_changed_code: bool = False,
) -> SweepResult:
    """Run or continue a sweep to its end; `retry_failed` runs failed trials again (`resume.to_retry`).

    Results of earlier code are refused unless `accept_changed_code` (benchmark/sweeps/code_changes.py).

    Raises ConfigError for such results, if the settings differ from those of an earlier sweep of the same name, if
    another process drives the sweep, if a node of the cluster does not see the data, and if this code cannot
    continue a search that other code began; DataError if the data changed.
    """
    started = time.monotonic()
    work = work.resolved()
    if settings.precision == "auto" and settings.device is None:
        logger.info("note: trials compute in fp32; on GPUs built for it, --precision bf16 is faster")
    settings = settings.resolved()
    folder = work.sweeps / settings.name
    folder.mkdir(parents=True, exist_ok=True)
    with _only_driver(folder):
        check_same_sweep(folder, settings)
        if not (folder / "sweep.json").exists():
            settings.save(folder / "sweep.yaml")
        logger.info(f"sweep {settings.name}: reading data sets and plans")
        with naming_other_code(folder):
            plan = plan_sweep(settings, work)
        check_code(plan, accept_changed_code)
        _check_weights(plan)
        describe(folder, plan)
        # Saved once the content is known to be the same: data sets and weights may have new paths.
        settings.save(folder / "sweep.yaml")
        receiver = _receiver(plan)
        if receiver is not None and (count := receiver.bring_all()):
            logger.info(f"{count} trials had ended on other nodes")
        forget_damaged(folder)
        update_dataset_specs(folder, plan)
        if retry_failed and (count := forget_failures(folder)):
            logger.info(f"{count} trials run again")
        scheduler = Scheduler(plan)
        scheduler.refresh()
        for change in scheduler.changes():
            logger.info(f"note: {change}")
        if receiver is not None:
            listeners = [receiver, *listeners]
        for listener in listeners:
            listener.sweep_started(folder)
        try:
            if not scheduler.done:
                _tune(plan, scheduler, listeners, receiver, accept_changed_code)
        finally:
            _stop(listeners, scheduler.done)
    seconds = time.monotonic() - started
    return SweepResult(settings.name, folder, plan.expected(), scheduler.ended, seconds)


class TrialActor(Trainable):
    """A Ray worker: runs one trial after another, so that libraries and data are loaded once."""

    def setup(self, config: dict[str, Any]) -> None:
        """Take the first trial. Raises what `Node.open` raises."""
        self._node = Node.open(DriverFolder.of(config["driver"]))
        self._config = config

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial."""
        self._config = new_config
        return True

    def step(self) -> dict[str, Any]:
        """Run the trial to its end."""
        config = self._config
        spec, work = TrialSpec.from_json(config["spec"]), self._node.work
        trial = work.sweeps / spec.sweep / "trials" / spec.key
        with self._node.delivering(trial, config.get("attempt", ""), config.get("left", {})):
            try:
                outcome = run_sweep_trial(spec, work, config["device"], config["workers"])
            except Exception as error:
                with contextlib.suppress(OSError):
                    write_text(trial / ERROR, traceback.format_exc())
                outcome = Outcome(spec.key, "failed", reason_of(error))
        return {"done": True, "outcome": json.dumps(asdict(outcome))}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Keep nothing: the store has everything."""

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Load nothing."""


class SchedulerSearcher(Searcher):
    """The scheduler as a searcher of Ray Tune. State is in the sweep's folder, so nothing is saved here."""

    def __init__(
        self,
        scheduler: Scheduler,
        ended: Callable[[TrialSpec, Outcome], None],
        starts: Callable[[TrialSpec], Mapping[str, Any]] = lambda _: {},
        bring: Callable[[TrialSpec], None] = lambda _: None,
    ) -> None:
        """Take what is called with each trial, in this order.

        `starts` returns what its worker gets besides the trial, and may raise. Once its worker ended it or died,
        `bring` brings what is elsewhere to its folder. `ended` is called after its end.
        """
        super().__init__(metric="outcome", mode="max")
        self._scheduler, self._starts, self._bring, self._notify = scheduler, starts, bring, ended
        self._specs: dict[str, TrialSpec] = {}
        self.failures = WorkerFailures()
        self.broken: Exception | None = None
        """The error while a trial's end was recorded; Tune itself would continue without the trial."""

    def __getstate__(self) -> dict[str, Any]:
        """Return no state: Tune pickles its searcher for a restore that Seedbed never does."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial; None while none can start; FINISHED after the last."""
        if self.broken is not None:
            raise self.broken
        if self._scheduler.done:
            return Searcher.FINISHED
        if self.failures.pausing:
            return None
        spec = self._scheduler.next_trial()
        if spec is None:
            # The scheduler may just have found that the last trials are done.
            return Searcher.FINISHED if self._scheduler.done else None
        more = self._starts(spec)
        self._specs[trial_id] = spec
        return {**more, "spec": spec.to_json()}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Record how a trial ended; if its worker was lost, start it again unless it lost too many."""
        spec = self._specs.pop(trial_id, None)
        if spec is None:
            return
        try:
            self._ended(spec, result, error)
        except Exception as problem:
            self.broken = problem

    def _ended(self, spec: TrialSpec, result: Any, error: bool) -> None:
        self._bring(spec)
        if error or not result or "outcome" not in result:
            outcome = self._lost(spec)
        else:
            self.failures.none()
            outcome = Outcome(**json.loads(result["outcome"]))
        if outcome is None:
            self._scheduler.take_back(spec.key)
            return
        self._scheduler.finish(outcome)
        self._notify(spec, outcome)

    def _lost(self, spec: TrialSpec) -> Outcome | None:
        """Return the outcome of a trial whose worker was lost; None if it is tried again."""
        folder = self._scheduler.folder(spec)
        if (outcome := read_outcome(folder)) is not None:
            return outcome
        others = [self._scheduler.folder(other) for other in self._specs.values()]
        reason = self.failures.lost(folder, others)
        return self._scheduler.give_up(spec.key, reason) if reason else None

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
    plan: SweepPlan,
    scheduler: Scheduler,
    listeners: Sequence[SweepListener],
    receiver: Receiver | None,
    accept_changed_code: bool,
) -> None:
    """Run the remaining trials of a sweep as one Tune run."""
    settings = plan.settings
    dataset_specs = {cell.dataset_spec.name: cell.dataset_spec for cell in plan.cells}
    apart = [plan.work.root, *(Path(dataset_spec.root) for dataset_spec in dataset_specs.values())]
    plugins = copy_plugins(plan.folder / PLUGINS)
    driver = _driver_folder(plan, receiver)
    with connected(settings, apart, plugins):
        gpus = settings.gpus_per_trial
        if gpus is None:
            gpus = 1.0 if ray.cluster_resources().get("GPU", 0) else 0.0
            if settings.address is not None and not gpus:
                logger.info(
                    "note: the cluster has no GPU now, so trials use none; --gpus-per-trial overrides this"
                )
        if settings.address is not None:  # On this machine, the plan has just read them.
            check_nodes(list(dataset_specs.values()), driver, settings.weights, settings.segmentation_weights)
        progress = SweepProgress(scheduler, {"CPU": settings.cpus_per_trial, "GPU": gpus})

        def ended(spec: TrialSpec, outcome: Outcome) -> None:
            for listener in listeners:
                listener.trial_ended(scheduler.folder(spec))
            progress.ended(spec, outcome)

        constants = {
            "driver": asdict(driver),
            "device": "cuda" if gpus else "cpu",
            "workers": settings.workers,
        }

        def starts(spec: TrialSpec) -> Mapping[str, Any]:
            check_trial(plan, spec, accepted=accept_changed_code)
            folder = scheduler.folder(spec)
            for listener in listeners:
                listener.trial_started(folder)
            return constants if receiver is None else {**constants, **receiver.attempt(folder)}

        def bring(spec: TrialSpec) -> None:
            if receiver is not None:
                receiver.bring(scheduler.folder(spec))

        searcher = SchedulerSearcher(scheduler, ended, starts, bring)
        ray_folder = plan.folder / "ray"
        shutil.rmtree(ray_folder, ignore_errors=True)
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(TrialActor, {"cpu": settings.cpus_per_trial, "gpu": gpus}),
            tune_config=ray.tune.TuneConfig(
                search_alg=searcher,
                # A repeated trial is a new one to Tune; the searcher knows when all have ended.
                num_samples=-1,
                reuse_actors=True,
                trial_name_creator=lambda trial: f"trial_{trial.trial_id}",
                trial_dirname_creator=lambda trial: f"trial_{trial.trial_id}",
            ),
            run_config=ray.tune.RunConfig(
                name="tune",
                storage_path=str(ray_folder),
                failure_config=ray.tune.FailureConfig(max_failures=0),
                callbacks=[_Causes(searcher.failures)],
                verbose=0,
            ),
        )
        try:
            with RayWatchdog(lambda: _ray_died(settings.name, listeners)):
                tuner.fit()
            if searcher.broken is not None:
                raise searcher.broken
        except Exception as error:
            raise ConfigError(f"{_stopped(settings.name)} ({reason_of(error)})") from error
    if not scheduler.done:
        raise ConfigError(
            f"stopped after {scheduler.finished} of {plan.expected()} trials; continue with: "
            f"seedbed sweep --resume {settings.name}"
        )


def _receiver(plan: SweepPlan) -> Receiver | None:
    """Return what brings trials from nodes that do not see the work folder; None if all must see it."""
    location = plan.work.location
    if location is None or plan.settings.address is None:
        return None
    sweep = json.loads((plan.folder / "sweep.json").read_bytes())["id"]
    return Receiver(Exchange(location.address, sweep), plan.folder)


def _driver_folder(plan: SweepPlan, receiver: Receiver | None) -> DriverFolder:
    """Return how nodes find the work folder, or do without it, and send them what they need for that."""
    where, work = plan.folder.relative_to(plan.work.root), plan.work
    if receiver is None:
        return DriverFolder(str(work.root), str(where / "sweep.json"), store=work.location)
    receiver.send_plugins(plan.folder / PLUGINS)
    content = uuid.uuid4().hex
    write_text(plan.folder / TOKEN, content)
    return DriverFolder(str(work.root), str(where / TOKEN), content, receiver.exchange.sweep, work.location)


def _stopped(name: str) -> str:
    return f"The sweep stopped. Finished trials are kept; continue with: seedbed sweep --resume {name}"


def _ray_died(name: str, listeners: Sequence[SweepListener]) -> None:
    """End this process: Tune would wait forever for a lost Ray. All results are in files."""
    print(f"error: {_stopped(name)}", file=sys.stderr, flush=True)
    try:
        _stop(listeners, finished=False)
    finally:
        os._exit(1)


def _stop(listeners: Sequence[SweepListener], finished: bool) -> None:
    for listener in listeners:
        listener.sweep_stopped(finished)


class _Causes(Callback):
    """Records why the last worker was lost.

    Also replaces Tune's loggers, which would write one line per trial and import TensorBoard.
    """

    def __init__(self, failures: WorkerFailures) -> None:
        self._failures = failures

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record the last line of the error, which names it."""
        lines = Path(trial.error_file).read_text().splitlines() if trial.error_file else []
        self._failures.cause = next((line.strip() for line in reversed(lines) if line.strip()), "")


@contextmanager
def _only_driver(folder: Path) -> Iterator[None]:
    """Hold the sweep's lock, which the kernel frees if the driver is killed."""
    lock = FileLock(folder / "driver.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(f"{folder}: another process drives this sweep") from None
    try:
        yield
    finally:
        lock.release()
