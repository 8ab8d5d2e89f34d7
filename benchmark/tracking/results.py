"""A submitted or imported result as a run in MLflow, beside the trials of sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from time import time

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.tracking.client import Tracker
from seedbed.benchmark.tracking.run_content import milliseconds
from seedbed.benchmark.tracking.store import EXPERIMENT, check_uri, default_uri, unusable

KIND = "result"


def upload_result(
    work: WorkFolder,
    uri: str | None,
    name: str,
    key: str,
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
    files: Sequence[Path],
) -> str:
    """Write a run with the tags, metrics and files of a result, in place of an earlier one with its key.

    `uri` is an MLflow server; None: the store in the work folder. Returns the run's id. Raises ConfigError if
    MLflow cannot be used; the leaderboard reads the result's own files, which are kept.
    """
    if uri is not None:
        check_uri(uri)
    try:
        return _upload(
            Tracker(uri, work), name, {"seedbed.kind": KIND, "seedbed.key": key, **tags}, metrics, files
        )
    except ConfigError:
        raise
    except Exception as error:
        raise unusable(uri or default_uri(work), error) from None


def _upload(
    tracker: Tracker, name: str, tags: Mapping[str, str], metrics: Mapping[str, float], files: Sequence[Path]
) -> str:
    if (earlier := tracker.find(tags["seedbed.key"])) is not None:
        tracker.client.delete_run(earlier)
    experiment = tracker.client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    run = str(tracker.client.create_run(experiment.experiment_id, run_name=name, tags=dict(tags)).info.run_id)
    now = milliseconds(time())
    tracker.send(run, [(metric, value, now, 0) for metric, value in metrics.items()], {})
    for file in files:
        tracker.client.log_artifact(run, str(file))
    tracker.close(run, "FINISHED")
    return run
