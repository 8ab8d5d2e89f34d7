"""The MLflow store in the work folder: an SQLite file, and the folder of its artifacts."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from filelock import FileLock

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.paths import sqlite_url
from seedbed.benchmark.pipeline.work_folder import WorkFolder

EXPERIMENT = "seedbed"
ARTIFACTS = "artifacts"
"""The folder of the artifacts, beside the database: `artifacts/RUN/artifacts/`."""
SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
"""What MLflow takes as a tracking store, without the driver of a database."""


def database_of(work: WorkFolder) -> Path:
    """Return the path of the work folder's MLflow database."""
    return work.root / "mlflow" / "mlflow.db"


def opening(database: Path) -> FileLock:
    """Return the lock to hold while opening a database: if several processes make a new one, all of them fail."""
    return FileLock(database.with_suffix(".lock"))


def default_uri(work: WorkFolder) -> str:
    """Return the URL of the work folder's MLflow database."""
    return sqlite_url(database_of(work))


def check_uri(uri: str) -> None:
    """Raise ConfigError if MLflow cannot use a tracking URI, whether or not anything answers there."""
    scheme, separator, rest = uri.partition(":")
    if scheme.partition("+")[0] not in SCHEMES or (scheme != "databricks" and not (separator and rest.strip("/"))):
        raise ConfigError(
            f"tracking URI {uri!r}: expected an MLflow server, http://HOST:PORT, or a database, such as "
            "sqlite:////DIR/mlflow.db or postgresql+psycopg2://USER@HOST/NAME"
        )


def fail_fast() -> None:
    """Let MLflow give up on an unreachable server within seconds. Call it before MLflow is imported."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")


def unusable(uri: str, error: Exception) -> ConfigError:
    """Return the error for a store that MLflow cannot open, in one line."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    broken = any(words in text for words in ("not a database", "malformed"))
    way = ". Move the file away; `seedbed sync --all` writes it again from the sweeps' folders" if broken else ""
    return ConfigError(f"MLflow at {uri} cannot be used: {text[:300]}{way}")


def artifacts_of(database: Path, run: str) -> Path:
    """Return the folder of a run's artifacts, which lies beside the database, also after a move of both."""
    return database.parent / ARTIFACTS / run / "artifacts"


def artifacts_beside(database: Path) -> str:
    """Return the location of the artifacts of a database, as MLflow records it."""
    return (database.resolve().parent / ARTIFACTS).as_uri()


def relocate_artifacts(database: Path) -> None:
    """Make MLflow look for and write artifacts beside the database, where it is now.

    MLflow records absolute locations. After a move they are wrong, and a copy would write into the original.
    Artifacts that were never beside the database stay where they are. Raises ConfigError if the database cannot
    be changed.
    """
    location = artifacts_beside(database)
    try:
        with closing(sqlite3.connect(database, timeout=60)) as connection, connection:
            found = connection.execute(
                "select experiment_id, artifact_location from experiments where name = ?", (EXPERIMENT,)
            ).fetchone()
            if found is None or found[1] == location or not _is_beside(found[1]):
                return
            connection.execute(
                "update experiments set artifact_location = ? where experiment_id = ?", (location, found[0])
            )
            connection.execute(
                "update runs set artifact_uri = ? || '/' || run_uuid || '/artifacts' where experiment_id = ?",
                (location, found[0]),
            )
    except sqlite3.Error as error:
        raise ConfigError(f"{database}: {error}") from None


def _is_beside(location: str) -> bool:
    return location.startswith("file:") and location.endswith(f"/{ARTIFACTS}")
