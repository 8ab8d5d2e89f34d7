"""`seedbed sync`: uploads to MLflow what running sweeps could not upload."""

from __future__ import annotations

import json
import logging

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.files import write_text
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.progress import progress_bar
from seedbed.benchmark.sweeps.settings import read_saved
from seedbed.benchmark.sweeps.trial_files import read_outcome
from seedbed.benchmark.tracking.client import UPLOADED, Tracker
from seedbed.benchmark.tracking.lost_runs import end_lost_runs, is_driven
from seedbed.benchmark.tracking.store import check_uri, default_uri, unusable
from seedbed.benchmark.tracking.sweep_state import SweepState
from seedbed.benchmark.tracking.trial_run import upload_once
from seedbed.benchmark.tracking.uploader import CLOSED

logger = logging.getLogger(__name__)


def uri_of(work: WorkFolder, sweep: str) -> str:
    """Return where the records of a sweep go: the server that it was started with, or the work folder's store."""
    path = work.sweeps / sweep / "sweep.yaml"
    return (read_saved(path).tracking_uri if path.exists() else None) or default_uri(work)


def sync(work: WorkFolder, uri: str | None, again: bool = False) -> tuple[int, int]:
    """Upload all trials of the work folder that were not uploaded yet; `again` uploads every trial.

    `uri` is an MLflow server; None: the one that each sweep was started with. Returns the numbers of trials
    uploaded and left. Raises ConfigError if MLflow cannot be reached.
    """
    if uri is not None:
        check_uri(uri)
    trackers: dict[str, Tracker] = {}
    uploaded = left = 0
    for path in sorted(work.sweeps.glob("*/sweep.json")):
        folder = path.parent
        results = sorted(result.parent for result in folder.glob("trials/*/result.json"))
        trials = [trial for trial in results if read_outcome(trial) is not None]
        if damaged := len(results) - len(trials):
            logger.info(
                f"note: {damaged} results are damaged; seedbed sweep --resume {folder.name} runs them again"
            )
            left += damaged
        waiting = [trial for trial in trials if again or not (trial / UPLOADED).exists()]
        running = is_driven(folder)
        if not waiting and (running or (folder / CLOSED).exists()):
            continue
        try:
            target, description = uri or uri_of(work, folder.name), json.loads(path.read_bytes())
        except (ConfigError, ValueError) as error:
            what = f"{path}: empty or cut off" if isinstance(error, ValueError) else str(error)
            logger.info(f"note: {what}; not uploaded. `seedbed sweep --resume {folder.name}` repairs sweep.json")
            left += len(waiting)
            continue
        try:
            if target not in trackers:
                trackers[target] = Tracker(None if target == default_uri(work) else target, work)
        except Exception as error:
            raise unusable(target, error) from None
        try:
            parent = trackers[target].sweep(folder.name, description, description.get("code", ""), folder)
        except ConfigError as error:
            logger.info(f"note: {error}")
            left += len(waiting)
            continue
        with progress_bar(f"uploading {folder.name}", len(waiting)) as bar:
            for trial in waiting:
                try:
                    upload_once(trackers[target], parent, trial, again)
                    uploaded += 1
                except Exception as error:
                    logger.info(f"note: {trial}: {type(error).__name__}: {str(error)[:300]}")
                    left += 1
                bar.advance()
        if not running:
            status = "FINISHED" if len(trials) >= description.get("expected", 0) else "KILLED"
            # A worker that outlived its driver still runs its trial.
            left_running = end_lost_runs(trackers[target], work, folder)
            trackers[target].send(parent, SweepState(folder).numbers(), {})
            trackers[target].close(parent, status)
            if not left_running:
                write_text(folder / CLOSED, status)
    return uploaded, left
