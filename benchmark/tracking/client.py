"""Writes sweeps and trials to one MLflow store: a parent run per sweep, one run per trial, found by its key."""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.paths import sqlite_file
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.sweeps.trial_files import CONFIG, UPLOADED, Outcome, TrialSpec, read_outcome, read_spec
from seedbed.benchmark.tracking.run_content import (
    FILES,
    Number,
    metrics_of,
    milliseconds,
    note_of,
    note_of_sweep,
    params_of,
    pictures,
    read_json,
    tags_of,
    tags_of_end,
)
from seedbed.benchmark.tracking.store import (
    ARTIFACTS,
    EXPERIMENT,
    artifacts_beside,
    default_uri,
    fail_fast,
    opening,
    relocate_artifacts,
)
from seedbed.benchmark.trials.progress_log import read_progress

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

NOTE = "mlflow.note.content"
"""The tag that MLflow shows as a run's description."""
METRICS_A_CALL, PARAMS_A_CALL, TAGS_A_CALL = 1000, 100, 100
"""Limits of MLflow's `log_batch`."""


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
        with _quiet_migrations(), nullcontext() if self._database is None else opening(self._database):
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
        were uploaded from `folder` is the same, although its `sweep.json` was lost and has a new id.
        """
        self._relocate()
        run, own = self.find(f"sweep:{name}"), description.get("id", "")
        if run is not None and self.client.get_run(run).data.tags.get("seedbed.id") != own:
            if folder is None or not self._uploaded_below(run, folder):
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
                NOTE: note_of_sweep(name),
            }
            run = str(self.client.create_run(self._experiment, run_name=name, tags=tags).info.run_id)
        else:
            self.client.update_run(run, status="RUNNING")
        self.client.log_text(run, json.dumps(description, indent=1), "sweep.json")
        return run

    def _uploaded_below(self, parent: str, folder: Path) -> bool:
        """Say whether a trial of the sweep in `folder` was uploaded as a run below `parent`."""
        from mlflow.exceptions import MlflowException

        for path in sorted(folder.glob(f"trials/*/{UPLOADED}")):
            with contextlib.suppress(ValueError, KeyError, TypeError, MlflowException):
                run = self.client.get_run(json.loads(path.read_bytes())["run"])
                return bool(run.data.tags.get("mlflow.parentRunId") == parent)
        return False

    def close(self, run: str, status: str) -> None:
        """End a run: `FINISHED`, `FAILED` or `KILLED`."""
        self.client.set_terminated(run, status)

    def running(self) -> list[Run]:
        """Return the runs of sweeps and trials that are RUNNING in the store."""
        return [
            run
            for kind in ("sweep", "trial")
            for run in self._search(f"attributes.status = 'RUNNING' and tags.`seedbed.kind` = '{kind}'")
        ]

    def _search(self, condition: str) -> Iterator[Run]:
        token = None
        while True:
            page = self.client.search_runs([self._experiment], condition, max_results=1000, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def begin(self, parent: str | None, folder: Path) -> str:
        """Return the id of the run of the trial in `folder`, which runs now: RUNNING, with parameters and tags."""
        spec, progress, config = read_spec(folder), read_progress(folder), read_json(folder / CONFIG, {})
        assert progress is not None
        self._relocate()
        run = self._run_of(parent, folder, spec, config, progress.started)
        self.client.update_run(run, status="RUNNING")
        self._log_settings(run, folder, spec, config)
        return run

    def send(self, run: str, numbers: Iterable[Number], tags: Mapping[str, str]) -> None:
        """Write numbers of a run, in batches, and tags."""
        from mlflow.entities import Metric, RunTag

        metrics = [
            Metric(_valid(name), value, when, step) for name, value, when, step in numbers if math.isfinite(value)
        ]
        for some_metrics in _batches(metrics, METRICS_A_CALL):
            self.client.log_batch(run, metrics=some_metrics)
        for some_tags in _batches([RunTag(name, value) for name, value in tags.items()], TAGS_A_CALL):
            self.client.log_batch(run, tags=some_tags)

    def upload(self, parent: str | None, folder: Path) -> str:
        """Write the ended trial in `folder` as one run below `parent`, if it has one, and return the run's id."""
        spec, outcome, config = read_spec(folder), read_outcome(folder), read_json(folder / CONFIG, {})
        assert outcome is not None
        progress = read_progress(folder)
        self._relocate()
        started = outcome.started if progress is None else progress.started
        run = self._run_of(parent, folder, spec, config, started)
        status = "FAILED"
        try:
            self._log_settings(run, folder, spec, config)
            self._log_artifacts(run, folder, outcome)
            # How it ended comes last: what has a status is whole.
            self.send(run, metrics_of(folder, outcome), tags_of_end(spec, outcome))
            status = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}[outcome.status]
        finally:
            self.client.set_terminated(run, status, milliseconds(outcome.finished))
        return run

    def _run_of(
        self, parent: str | None, folder: Path, spec: TrialSpec, config: Mapping[str, Any], started: float
    ) -> str:
        """Return the run of the attempt that began at `started`, made if there is none."""
        run, attempt = self.find(folder.name), str(started)
        if run is not None:
            data = self.client.get_run(run).data
            changed = any(data.params.get(name, value) != value for name, value in params_of(config).items())
            if data.tags.get("seedbed.attempt") != attempt or changed:
                # The trial was tried again, perhaps with other code: nothing of the old run is to remain.
                self.client.delete_run(run)
                run = None
        if run is None:
            tags = {"seedbed.key": folder.name, "seedbed.attempt": attempt}
            created = self.client.create_run(
                self._experiment,
                start_time=milliseconds(started),
                run_name=spec.label,
                tags=tags if parent is None else {**tags, "mlflow.parentRunId": parent},
            )
            run = str(created.info.run_id)
        return run

    def _log_settings(self, run: str, folder: Path, spec: TrialSpec, config: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(name, value) for name, value in params_of(config).items()]
        for some_params in _batches(params, PARAMS_A_CALL):
            self.client.log_batch(run, params=some_params)
        tags = tags_of(folder, spec, config)
        self.send(run, (), {**tags, NOTE: note_of(run, folder, spec, tags["command"])})
        self._log_input(run, spec, config)

    def _log_artifacts(self, run: str, folder: Path, outcome: Outcome) -> None:
        for name in FILES:
            if (folder / name).exists():
                self.client.log_artifact(run, str(folder / name))
        for name in ("per_image", "figures"):
            if (folder / name).is_dir():
                self.client.log_artifacts(run, str(folder / name), name)
        self.client.log_text(run, json.dumps(dict(outcome.stages), indent=1), "stages.json")
        # Each call makes a file of its own; an earlier upload has made them.
        if (found := pictures(folder)) and not self.client.list_artifacts(run, "images"):
            for path in found:
                with Image.open(path) as image:
                    self.client.log_image(run, image, key=path.stem, step=0, synchronous=True)

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


def _batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _valid(name: str) -> str:
    """Return a name that MLflow accepts: letters, digits and `_ - . / :` and spaces."""
    return "".join(c if c.isalnum() or c in "_-./: " else "_" for c in name)[:250]


@contextmanager
def _quiet_migrations() -> Iterator[None]:
    """Hide the messages that MLflow logs for each table that it creates."""
    loggers = [logging.getLogger(name) for name in ("alembic", "mlflow.store.db.utils")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
