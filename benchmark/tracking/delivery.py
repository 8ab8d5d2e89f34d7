"""Delivers the trials of a sweep to MLflow, from the files that the trials left.

One run a trial, found again by its key, so that delivering twice or after a kill makes no second one; a parent
run a sweep. Only whoever drives the sweep (or `seedbed sync`) talks to MLflow: a slow or absent server delays no
trial, and what could not be delivered stays in the work folder until it can be.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from optuna.distributions import distribution_to_json

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.evaluation.records import read_records
from seedbed.benchmark.paths import sqlite_file, without_folders
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.progress import Reporter
from seedbed.benchmark.sweeps.search import drawn, storage_at
from seedbed.benchmark.sweeps.settings import read_saved
from seedbed.benchmark.sweeps.trial_files import Outcome, TrialSpec, read_outcome, read_spec, write_text
from seedbed.benchmark.tracking.command_line import command_line
from seedbed.benchmark.tracking.mlflow_store import (
    ARTIFACTS,
    EXPERIMENT,
    artifacts_beside,
    check_uri,
    default_uri,
    fail_fast,
    relocate_artifacts,
    unusable,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from optuna.storages import BaseStorage

METRICS_A_CALL, PARAMS_A_CALL, TAGS_A_CALL = 1000, 100, 100
"""Limits of MLflow's `log_batch`."""
DELIVERED = "delivered.json"
CLOSED = "closed"
"""Says that a sweep's parent run was ended."""
FILES = ("config.json", "per_class.csv", "examples.png", "log.txt", "error.txt", "records.parquet")


def uri_of(work: WorkFolder, sweep: str) -> str:
    """Return where the records of a sweep go: the server that it was started with, or the work folder's store."""
    path = work.sweeps / sweep / "sweep.yaml"
    return (read_saved(path).tracking_uri if path.exists() else None) or default_uri(work)


class Tracker:
    """Writes to one MLflow store. Every method may be called again with the same result."""

    def __init__(self, uri: str | None, work: WorkFolder) -> None:
        """Open the store; the work folder's SQLite file is made here, before anybody writes to it."""
        fail_fast()
        from mlflow import MlflowClient

        self.uri = uri or default_uri(work)
        self._database = sqlite_file(self.uri)
        if self._database is not None:
            (self._database.parent / ARTIFACTS).mkdir(parents=True, exist_ok=True)
        with _quiet_migrations():
            self.client: MlflowClient = MlflowClient(self.uri)
            self._experiment = self._get_experiment()
        self._relocate()

    def _relocate(self) -> None:
        """Keep artifacts beside the database, also if another process has opened it under another path."""
        if self._database is not None:
            relocate_artifacts(self._database)

    def _get_experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        if (found := self.client.get_experiment_by_name(EXPERIMENT)) is not None:
            return str(found.experiment_id)
        location = None if self._database is None else artifacts_beside(self._database)
        try:
            # The kind tells MLflow's page to begin with runs, and not with its tools for language models.
            return self.client.create_experiment(
                EXPERIMENT, artifact_location=location, tags={"mlflow.experimentKind": "custom_model_development"}
            )
        except MlflowException:
            # Somebody else made it in between.
            found = self.client.get_experiment_by_name(EXPERIMENT)
            if found is None:
                raise
            return str(found.experiment_id)

    def find(self, key: str) -> str | None:
        """Return the id of the run with a key."""
        found = self.client.search_runs(
            [self._experiment], f"tags.`seedbed.key` = '{key}'", max_results=1, order_by=["attributes.start_time"]
        )
        return found[0].info.run_id if found else None

    def sweep(self, name: str, description: Mapping[str, Any], code: str, folder: Path | None = None) -> str:
        """Return the id of a sweep's parent run, made with `sweep.json` if it is not there yet.

        Raises ConfigError if the store has another sweep of this name, for example a colleague's. One whose trials
        were delivered from `folder` is the same, although its `sweep.json` was lost and has a new id.
        """
        self._relocate()
        run, own = self.find(f"sweep:{name}"), description.get("id", "")
        if run is not None and self.client.get_run(run).data.tags.get("seedbed.id") != own:
            if folder is None or not self._delivered_below(run, folder):
                raise ConfigError(
                    f"{self.uri} has another sweep named {name!r}; delete that one there, or give this one a "
                    "new name"
                )
            self.client.set_tag(run, "seedbed.id", own)
        if run is None:
            tags = {
                "seedbed.kind": "sweep",
                "seedbed.sweep": name,
                "seedbed.key": f"sweep:{name}",
                "seedbed.id": description.get("id", ""),
                "code": code.removesuffix("+dirty"),
                "dirty": str(code.endswith("+dirty")).lower(),
            }
            run = str(self.client.create_run(self._experiment, run_name=name, tags=tags).info.run_id)
        else:
            self.client.update_run(run, status="RUNNING")
        self.client.log_text(run, json.dumps(description, indent=1), "sweep.json")
        return run

    def _delivered_below(self, parent: str, folder: Path) -> bool:
        """Say whether a trial of the sweep in `folder` was delivered as a run below `parent`."""
        from mlflow.exceptions import MlflowException

        for path in sorted(folder.glob(f"trials/*/{DELIVERED}")):
            with contextlib.suppress(ValueError, KeyError, TypeError, MlflowException):
                run = self.client.get_run(json.loads(path.read_bytes())["run"])
                return bool(run.data.tags.get("mlflow.parentRunId") == parent)
        return False

    def close(self, run: str, status: str) -> None:
        """End a run: `FINISHED`, `FAILED` or `KILLED`."""
        self.client.set_terminated(run, status)

    def deliver(self, parent: str, folder: Path) -> str:
        """Write the trial in `folder` as one run below `parent`, and return the run's id."""
        spec, outcome = read_spec(folder), read_outcome(folder)
        assert outcome is not None
        self._relocate()
        run, attempt = self.find(spec.key), str(outcome.started)
        if run is not None and self.client.get_run(run).data.tags.get("seedbed.attempt") != attempt:
            # The trial failed, was delivered, and was tried again: nothing of the old run is to remain.
            self.client.delete_run(run)
            run = None
        if run is None:
            created = self.client.create_run(
                self._experiment,
                start_time=_milliseconds(outcome.started),
                run_name=spec.label,
                tags={"seedbed.key": spec.key, "seedbed.attempt": attempt, "mlflow.parentRunId": parent},
            )
            run = str(created.info.run_id)
        status = "FAILED"
        try:
            config = _read_json(folder / "config.json", {})
            self._log(run, folder, spec, outcome, config)
            self._log_artifacts(run, folder, outcome)
            self._log_input(run, spec, config)
            status = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}[outcome.status]
        finally:
            self.client.set_terminated(run, status, _milliseconds(outcome.finished))
        return run

    def _log(self, run: str, folder: Path, spec: TrialSpec, outcome: Outcome, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        known = {**tags_of(spec, outcome, config), **search_tags(folder, spec)}
        tags = [RunTag(name, value) for name, value in known.items()]
        params = [
            Param(f"{stage['stage']}.{name}", ",".join(map(str, value)) if isinstance(value, list) else str(value))
            for stage in config.get("stages", [])
            for name, value in stage.items()
            if name not in ("stage", "version")
        ]
        # A stage that occurs several times has its parameters once.
        params = list({param.key: param for param in params}.values())
        metrics = [
            Metric(_valid(name), value, when, step)
            for name, value, when, step in metrics_of(folder, outcome)
            if math.isfinite(value)
        ]
        for some_tags in _batches(tags, TAGS_A_CALL):
            self.client.log_batch(run, tags=some_tags)
        for some_params in _batches(params, PARAMS_A_CALL):
            self.client.log_batch(run, params=some_params)
        for some_metrics in _batches(metrics, METRICS_A_CALL):
            self.client.log_batch(run, metrics=some_metrics)

    def _log_artifacts(self, run: str, folder: Path, outcome: Outcome) -> None:
        for name in FILES:
            if (folder / name).exists():
                self.client.log_artifact(run, str(folder / name))
        for name in ("per_image", "figures"):
            if (folder / name).is_dir():
                self.client.log_artifacts(run, str(folder / name), name)
        self.client.log_text(run, json.dumps(dict(outcome.stages), indent=1), "stages.json")

    def _log_input(self, run: str, spec: TrialSpec, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = config.get("data", {})
        source = {"loader": spec.dataset_spec.loader, "tags": data.get("tags"), "masks": data.get("masks")}
        dataset = Dataset(
            name=spec.cell.dataset,
            digest=spec.digest[:36],
            source_type="local",
            source=json.dumps(source),
            profile=json.dumps(data.get("images", {})),
        )
        context = InputTag("mlflow.data.context", "search" if spec.phase == "search" else "confirm")
        self.client.log_inputs(run, datasets=[DatasetInput(dataset, [context])])


def tags_of(spec: TrialSpec, outcome: Outcome, config: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags of a trial's run (docs/sweeps.md lists them)."""
    code = str(config.get("environment", {}).get("code", ""))
    return {
        "seedbed.kind": "trial",
        "seedbed.sweep": spec.sweep,
        "seedbed.key": spec.key,
        "method": spec.cell.method,
        "refiner": spec.cell.refiner,
        "dataset": spec.cell.dataset,
        "variant": spec.cell.variant,
        "seed": str(spec.trial.seed),
        "phase": spec.phase,
        "settings": spec.settings,
        "number": "" if spec.number is None else str(spec.number),
        **{name: str(value) for name, value in spec.conditions.items()},
        "data_digest": spec.digest,
        "code": code.removesuffix("+dirty"),
        "dirty": str(code.endswith("+dirty")).lower(),
        "device": outcome.device,
        "hardware": outcome.hardware,
        "status": outcome.status,
        "reason": without_folders(outcome.reason, *spec.dataset_spec.folders())[:4000],
        "stages": json.dumps(dict(outcome.stages)),
    }


def search_tags(folder: Path, spec: TrialSpec) -> dict[str, str]:
    """Return the tags that tell what was drawn for the trial in `folder`, and how to run it again.

    `parameters` are the drawn settings as JSON: all of a search trial, of another one those that differ from the
    sweep's. `space` are the distributions of a search trial's, as Optuna writes them. Both are `{}` in a sweep
    without a search.
    """
    sweep = folder.parents[1]
    studies = sweep / "studies.db"
    by_number, space = drawn(_opened(studies), str(spec.cell)) if studies.exists() else ({}, {})
    changed = {key: value for key, value in spec.trial.settings.items() if key in space}
    # The first search trial has the default settings, which its spec does not name.
    parameters = changed if spec.number is None else by_number.get(spec.number, changed)
    distributions = {key: json.loads(distribution_to_json(space[key])) for key in parameters}
    generated = Path(spec.dataset_spec.root).is_relative_to(sweep.parents[1].resolve() / "data")
    return {
        "parameters": json.dumps(parameters, sort_keys=True),
        "space": json.dumps(distributions if spec.phase == "search" else {}, sort_keys=True),
        "command": command_line(spec, generated),
    }


@functools.lru_cache(maxsize=1)
def _opened(studies: Path) -> BaseStorage:
    """Open a sweep's studies once: it takes as long as to deliver a trial."""
    return storage_at(studies)


def metrics_of(folder: Path, outcome: Outcome) -> Iterator[tuple[str, float, int, int]]:
    """Yield (name, value, milliseconds since 1970, step) of all numbers that a trial left."""
    when = _milliseconds(outcome.finished)
    if (folder / "records.parquet").exists():
        for record in read_records(folder / "records.parquet"):
            if record.value is not None:
                yield record.name, record.value, when, 0
    for stage, history in _read_json(folder / "losses.json", {}).items():
        for epoch, losses in enumerate(history, 1):
            for loss, value in losses.items():
                yield f"{stage}/{loss}", float(value), when, epoch
    for name, samples in _read_json(folder / "system.json", {}).items():
        for step, (moment, value) in enumerate(samples):
            yield name, float(value), int(moment), step
    yield "cost/computed_seconds", outcome.computed, when, 0


class MlflowUploader:
    """Delivers trials in a thread of its own, while others run."""

    def __init__(self, uri: str | None, work: WorkFolder, name: str, reporter: Reporter) -> None:
        self._uri, self._work, self._reporter = uri, work, reporter
        self._folder = work.sweeps / name
        self._queue: queue.Queue[Path | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._tracker: Tracker | None = None
        self._parent = ""
        self._retry_at = 0.0
        self.undelivered = 0

    def start(self) -> None:
        """Begin, with the trials that ended earlier and were not delivered."""
        (self._folder / CLOSED).unlink(missing_ok=True)
        self._thread.start()

    def put(self, folder: Path) -> None:
        """Deliver the trial in `folder` when its turn comes."""
        self._queue.put(folder)

    def stop(self, status: str) -> None:
        """Deliver what is left, end the parent run with `status`, and return."""
        self._queue.put(None)
        self._thread.join()
        self.undelivered = len(list(self._pending()))
        if self._tracker is not None:
            with self._forgiving():
                self._tracker.close(self._parent, status)
                write_text(self._folder / CLOSED, status)
        if self.undelivered:
            self._reporter.say(
                f"note: {self.undelivered} trials could not be delivered to MLflow; their records are kept, "
                "and `seedbed sync` delivers them"
            )

    def _run(self) -> None:
        self._connect()
        for folder in self._pending():
            self._deliver(folder)
        while (item := self._queue.get()) is not None:
            self._deliver(item)
        self._retry_at = 0.0
        for folder in self._pending():
            self._deliver(folder)

    def _connect(self) -> None:
        if self._tracker is None:
            with self._forgiving():
                tracker = Tracker(self._uri, self._work)
                description = json.loads((self._folder / "sweep.json").read_text())
                self._parent = tracker.sweep(
                    self._folder.name, description, description.get("code", ""), self._folder
                )
                self._tracker = tracker

    def _deliver(self, folder: Path) -> None:
        if time.monotonic() < self._retry_at:
            return
        self._connect()
        if self._tracker is not None:
            with self._forgiving():
                _deliver_once(self._tracker, self._parent, folder)

    def _pending(self) -> Iterable[Path]:
        results = sorted(self._folder.glob("trials/*/result.json"))
        return [path.parent for path in results if not (path.parent / DELIVERED).exists()]

    @contextmanager
    def _forgiving(self) -> Iterator[None]:
        """Keep going where MLflow cannot be reached, and try again a minute later."""
        try:
            yield
        except Exception as error:
            self._retry_at = time.monotonic() + 60
            text = (str(error).splitlines() or [""])[0]
            self._reporter.say(f"note: MLflow did not take the records ({type(error).__name__}: {text[:300]})")


def sync(work: WorkFolder, uri: str | None, reporter: Reporter, again: bool = False) -> tuple[int, int]:
    """Deliver all trials of the work folder that were not delivered yet; `again` delivers every trial.

    `uri` is an MLflow server; None: the one that each sweep was started with. Returns the numbers of trials
    delivered and left. Raises ConfigError where MLflow cannot be reached.
    """
    if uri is not None:
        check_uri(uri)
    trackers: dict[str, Tracker] = {}
    delivered = left = 0
    for path in sorted(work.sweeps.glob("*/sweep.json")):
        folder = path.parent
        results = sorted(result.parent for result in folder.glob("trials/*/result.json"))
        trials = [trial for trial in results if read_outcome(trial) is not None]
        if damaged := len(results) - len(trials):
            reporter.say(
                f"note: {damaged} results are damaged; seedbed sweep --resume {folder.name} runs them again"
            )
            left += damaged
        waiting = [trial for trial in trials if again or not (trial / DELIVERED).exists()]
        driven = _is_driven(folder)
        if not waiting and (driven or (folder / CLOSED).exists()):
            continue
        try:
            place, description = uri or uri_of(work, folder.name), json.loads(path.read_bytes())
        except (ConfigError, ValueError) as error:
            what = f"{path}: empty or cut off" if isinstance(error, ValueError) else str(error)
            reporter.say(f"note: {what}; not delivered. `seedbed sweep --resume {folder.name}` repairs sweep.json")
            left += len(waiting)
            continue
        try:
            if place not in trackers:
                trackers[place] = Tracker(None if place == default_uri(work) else place, work)
        except Exception as error:
            raise unusable(place, error) from None
        try:
            parent = trackers[place].sweep(folder.name, description, description.get("code", ""), folder)
        except ConfigError as error:
            reporter.say(f"note: {error}")
            left += len(waiting)
            continue
        with reporter.bar(f"delivering {folder.name}", len(waiting)) as bar:
            for trial in waiting:
                try:
                    _deliver_once(trackers[place], parent, trial, again)
                    delivered += 1
                except Exception as error:
                    reporter.say(f"note: {trial}: {type(error).__name__}: {str(error)[:300]}")
                    left += 1
                bar.advance()
        if not driven:
            status = "FINISHED" if len(trials) >= description.get("expected", 0) else "KILLED"
            trackers[place].close(parent, status)
            write_text(folder / CLOSED, status)
    return delivered, left


def _deliver_once(tracker: Tracker, parent: str, folder: Path, again: bool = False) -> None:
    """Deliver the trial in `folder`, unless it was, or has no result yet. One process at a time."""
    with FileLock(folder / "delivery.lock"):
        if read_outcome(folder) is None or ((folder / DELIVERED).exists() and not again):
            return
        run = tracker.deliver(parent, folder)
        write_text(folder / DELIVERED, json.dumps({"run": run, "uri": tracker.uri}))


def _is_driven(folder: Path) -> bool:
    """Say whether a driver is at work on a sweep."""
    try:
        with FileLock(folder / "driver.lock", timeout=0):
            return False
    except Timeout:
        return True


def _batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _valid(name: str) -> str:
    """Return a name that MLflow accepts: letters, digits and `_ - . / :` and spaces."""
    return "".join(c if c.isalnum() or c in "_-./: " else "_" for c in name)[:250]


def _milliseconds(seconds: float) -> int:
    return round(1000 * seconds)


def _read_json(path: Path, default: Any) -> Any:
    return json.loads(path.read_text()) if path.exists() else default


@contextmanager
def _quiet_migrations() -> Iterator[None]:
    """MLflow tells of each step in which it makes its tables."""
    import logging

    loggers = [logging.getLogger(name) for name in ("alembic", "mlflow.store.db.utils")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
