"""Reads runs by MLflow's client: from servers, and from databases other than SQLite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.tracking.store import EXPERIMENT, fail_fast, unusable

PAGE = 2000
"""Runs per request. Larger pages are hardly faster and take more memory: 0.8 GB at 2,000, 1.6 GB at 10,000."""


@dataclass(frozen=True)
class TrackedRun:
    """What the leaderboard needs of a run in MLflow."""

    id: str
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    """The latest value of each."""


def no_experiment(uri: str) -> ConfigError:
    """Return the error for a store without a sweep."""
    return ConfigError(f"{uri}: no sweep was recorded here (no experiment {EXPERIMENT!r})")


class ClientStore:
    """The runs of Seedbed's experiment in any store that MLflow can read."""

    def __init__(self, uri: str) -> None:
        """Raises ConfigError if nothing answers or there is no experiment."""
        fail_fast()
        from mlflow.tracking import MlflowClient

        try:
            self._client = MlflowClient(uri)
            experiment = self._client.get_experiment_by_name(EXPERIMENT)
        except Exception as error:
            raise unusable(uri, error) from None
        if experiment is None:
            raise no_experiment(uri)
        self._experiment = experiment.experiment_id

    def search(self, tags: Mapping[str, str]) -> Iterator[TrackedRun]:
        """Yield the runs that have all of the tags and are not deleted, the latest first."""
        where, token = " and ".join(f"tags.`{name}` = {_quoted(value)}" for name, value in tags.items()), None
        while True:
            page = self._client.search_runs([self._experiment], where, max_results=PAGE, page_token=token)
            for run in page:
                yield TrackedRun(run.info.run_id, run.data.tags, run.data.metrics)
            token = page.token
            if not token:
                return

    def file(self, run: str, artifact: str, folder: Path) -> Path:
        """Return the path of a run's artifact, downloaded to `folder` if needed.

        Raises OSError if there is none.
        """
        from mlflow.exceptions import MlflowException

        try:
            return Path(self._client.download_artifacts(run, artifact, str(folder)))
        except MlflowException as error:
            raise OSError(str(error)) from None

    def state(self, sweeps: object) -> None:
        """Return None: only reading all runs tells if one has changed."""


def _quoted(value: str) -> str:
    quote = '"' if "'" in value else "'"
    return f"{quote}{value}{quote}"
