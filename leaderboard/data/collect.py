"""From MLflow to the snapshot's table: the only module that talks to the experiment tracker."""

from __future__ import annotations

import gc
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from seedbed.benchmark.errors import ConfigError, DataError, unknown_name
from seedbed.benchmark.evaluation.records import RecordName
from seedbed.benchmark.paths import sqlite_file, without_folders
from seedbed.benchmark.tracking.store import EXPERIMENT, artifact_file, check_uri, fail_fast, unusable
from seedbed.leaderboard.data.conditions import CONDITIONS
from seedbed.leaderboard.data.expected import ExpectedTrials
from seedbed.leaderboard.data.snapshot import STAGE, Run, table_of

if TYPE_CHECKING:
    from mlflow.entities import Run as TrackedRun

PAGE = 2000
"""Runs per request. Larger pages are hardly faster and take more memory: 0.8 GB at 2,000, 1.6 GB at 10,000."""


def collect(tracking_uri: str, sweep: str | Sequence[str]) -> pa.Table:
    """Return the snapshot's table of one sweep or several, with a row for each reported trial that has no run.

    Raises ConfigError for an unknown sweep, DataError for runs that contradict each other, within a sweep or
    between two.
    """
    store = SweepReader(tracking_uri)
    names = [sweep] if isinstance(sweep, str) else list(dict.fromkeys(sweep))
    runs = [run for name in names for run in _runs_of_sweep(store, name)]
    _refuse_doubles(runs)
    return table_of(runs)


def _runs_of_sweep(store: SweepReader, sweep: str) -> list[Run]:
    plan = store.expected(sweep)
    with _no_garbage_collection():
        runs = [run_of(run.data.tags, run.data.metrics, plan) for run in store.trials(sweep)]
    twice = sorted(key for key, count in Counter(run.key for run in runs).items() if count > 1)
    if twice:
        listed = ", ".join(twice[:5])
        raise DataError(f"sweep {sweep!r} has more than one run of the trial {listed}; delete all but one of each")
    return [*runs, *plan.missing(runs)]


def _refuse_doubles(runs: Iterable[Run]) -> None:
    """Raise DataError if two sweeps ran the same trials: the numbers of a row must be of one sweep."""
    owners: dict[tuple[object, ...], Run] = {}
    for run in runs:
        place = (*run.cell, run.phase) + ((run.settings, run.seed) if run.phase == "confirm" else ())
        other = owners.setdefault(place, run)
        if other.sweep != run.sweep:
            what = f"{run.method} + {run.refiner} on {run.dataset}"
            which = f"{run.settings}, seed {run.seed}" if run.phase == "confirm" else "a search"
            raise DataError(
                f"the sweeps {other.sweep!r} and {run.sweep!r} both have {what} ({which}), under the same "
                "conditions; build the leaderboard of one of them, or delete those runs of the other"
            )


class SweepReader:
    """Reads sweeps from an MLflow store."""

    def __init__(self, tracking_uri: str) -> None:
        """Raises ConfigError if there is no store, no sweep in it, or no answer."""
        check_uri(tracking_uri)
        self._database = sqlite_file(tracking_uri)
        if self._database is not None and not self._database.is_file():
            # MLflow would create the file.
            raise ConfigError(
                f"{self._database}: no such file; a sweep writes it, `seedbed sync --all` rewrites it"
            )
        fail_fast()
        from mlflow.tracking import MlflowClient

        try:
            self._client = MlflowClient(tracking_uri)
            experiment = self._client.get_experiment_by_name(EXPERIMENT)
        except Exception as error:
            raise unusable(tracking_uri, error) from None
        if experiment is None:
            raise ConfigError(f"{tracking_uri}: no sweep was recorded here (no experiment {EXPERIMENT!r})")
        self._experiment = experiment.experiment_id

    def trials(self, sweep: str) -> Iterator[TrackedRun]:
        """Yield the runs of a sweep's trials."""
        return self._search(_trials_of(sweep))

    def places(self, sweep: str) -> dict[str, str]:
        """Return the id of the run of each confirming trial of a sweep, by the trial's key."""
        with _no_garbage_collection():
            confirmed = self._search(f"{_trials_of(sweep)} and tags.phase = 'confirm'")
            return {run.data.tags.get("seedbed.key", ""): run.info.run_id for run in confirmed}

    def expected(self, sweep: str) -> ExpectedTrials:
        """Return the plan of a sweep. Raises ConfigError for an unknown one, DataError for one without a plan."""
        parents: dict[str, list[str]] = {}
        for run in self._search("tags.`seedbed.kind` = 'sweep'"):
            parents.setdefault(run.data.tags.get("seedbed.sweep", ""), []).append(run.info.run_id)
        if sweep not in parents:
            raise unknown_name("sweep", sweep, parents)
        if len(parents[sweep]) > 1:
            raise DataError(f"{len(parents[sweep])} sweeps are named {sweep!r}; delete all but one")
        from mlflow.exceptions import MlflowException

        with tempfile.TemporaryDirectory() as folder:
            try:
                content = json.loads(self._file(parents[sweep][0], "sweep.json", Path(folder)).read_text("utf-8"))
            except (OSError, ValueError, MlflowException) as error:
                plan = f"the plan of sweep {sweep!r}, its artifact sweep.json,"
                raise DataError(f"{plan} cannot be read: {error}") from None
        return ExpectedTrials.parse(content)

    def download(self, run: str, artifact: str, folder: Path) -> Path | None:
        """Return the path of a run's artifact, downloaded to `folder` if needed; None if there is none."""
        from mlflow.exceptions import MlflowException

        try:
            return self._file(run, artifact, folder)
        except (OSError, MlflowException):
            return None

    def _file(self, run: str, artifact: str, folder: Path) -> Path:
        here = None if self._database is None else artifact_file(self._database, run, artifact)
        return here or Path(self._client.download_artifacts(run, artifact, str(folder)))

    def _search(self, where: str) -> Iterator[TrackedRun]:
        token: str | None = None
        while True:
            page = self._client.search_runs([self._experiment], where, max_results=PAGE, page_token=token)
            yield from page
            token = page.token
            if not token:
                return


def _trials_of(sweep: str) -> str:
    quote = '"' if "'" in sweep else "'"
    return f"tags.`seedbed.kind` = 'trial' and tags.`seedbed.sweep` = {quote}{sweep}{quote}"


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Pause Python's garbage collector: MLflow creates a hundred objects per run, which it would scan repeatedly.

    This halves the time for a sweep of 10,000 runs, and needs no more memory.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def run_of(tags: Mapping[str, str], metrics: Mapping[str, float], plan: ExpectedTrials) -> Run:
    """Make a run from the tags and metrics of a trial. Raises DataError for tags that cannot be read.

    Loss curves, costs and system metrics are left out. A trial without a status has not finished.
    """
    key = tags.get("seedbed.key", "")
    try:
        seed = int(tags["seed"])
        int(tags.get("tuning_masks") or 0)
        stages: dict[str, Any] = json.loads(tags.get("stages") or "{}")
        costs = {f"{STAGE}{stage}": float(seconds) for stage, seconds in stages.items()}
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"trial {key!r} of sweep {plan.name!r} has tags that cannot be read: {error!r}") from None

    def tag(name: str) -> str:
        return tags.get(name, "")

    return Run(
        sweep=plan.name,
        key=key,
        method=tag("method"),
        refiner=tag("refiner"),
        dataset=tag("dataset"),
        conditions={name: tag(name) for name in plan.conditions if name in CONDITIONS or tag(name)},
        phase=tag("phase"),
        settings=tag("settings"),
        number=tag("number"),
        parameters=tag("parameters"),
        space=tag("space"),
        command=tag("command"),
        seed=seed,
        status=tag("status") or "unfinished",
        reason=without_folders(tag("reason")) if tag("status") else "has not finished",
        device=tag("device"),
        hardware=tag("hardware"),
        code=tag("code"),
        dirty=tag("dirty"),
        data_digest=tag("data_digest"),
        trials=plan.trials,
        metrics={name: value for name, value in metrics.items() if is_record(name)} | costs,
    )


def is_record(metric: str) -> bool:
    """Return whether a metric is a record: `val/mIoU`, `seed.train/mIoU_tuned`; losses and costs are not."""
    return RecordName.parse(metric) is not None
