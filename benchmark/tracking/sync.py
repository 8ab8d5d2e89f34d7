"""`seedbed sync`: uploads to MLflow what running sweeps could not upload."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.files import write_text
from seedbed.benchmark.pipeline.work_folder import WorkFolder
from seedbed.benchmark.progress import progress_bar
from seedbed.benchmark.sweeps.settings import read_saved
from seedbed.benchmark.sweeps.trial_files import SPEC, UPLOADED, read_outcome
from seedbed.benchmark.tracking.client import Tracker
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

    `uri` is an MLflow server; None: the one that each sweep was started with. The trials of `seedbed run` are only
    in the work folder's own store. Runs that a kill left RUNNING are ended. Returns the numbers of trials uploaded
    and left. Raises ConfigError if MLflow cannot be reached.
    """
    if uri is not None:
        check_uri(uri)
    trackers: dict[str, Tracker] = {}
    uploaded = left = 0
    if uri in (None, default_uri(work)) and (waiting := _single_runs(work, again)):
        tracker = _opened(trackers, default_uri(work), work)
        uploaded, left = _upload(tracker, None, waiting, again, "runs")
        end_lost_runs(tracker, work)
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
        tracker = _opened(trackers, target, work)
        try:
            parent = tracker.sweep(folder.name, description, description.get("code", ""), folder)
        except ConfigError as error:
            logger.info(f"note: {error}")
            left += len(waiting)
            continue
        done, not_done = _upload(tracker, parent, waiting, again, folder.name)
        uploaded, left = uploaded + done, left + not_done
        if not running:
            status = "FINISHED" if len(trials) >= description.get("expected", 0) else "KILLED"
            # A worker that outlived its driver still runs its trial.
            left_running = end_lost_runs(tracker, work, folder)
            tracker.send(parent, SweepState(folder).numbers(), {})
            tracker.close(parent, status)
            if not left_running:
                write_text(folder / CLOSED, status)
    return uploaded, left


def _single_runs(work: WorkFolder, again: bool) -> list[Path]:
    """Return the folders of `seedbed run` that wait for an upload, or were killed; `again`: all with a result."""
    begun = (path.parent for path in sorted(work.runs.glob(f"*/{SPEC}")))
    return [folder for folder in begun if again or not (folder / UPLOADED).exists()]


def _opened(trackers: dict[str, Tracker], target: str, work: WorkFolder) -> Tracker:
    try:
        if target not in trackers:
            trackers[target] = Tracker(None if target == default_uri(work) else target, work)
    except Exception as error:
        raise unusable(target, error) from None
    return trackers[target]


def _upload(
    tracker: Tracker, parent: str | None, trials: Sequence[Path], again: bool, what: str
) -> tuple[int, int]:
    """Upload the ended ones of some trials, and return how many were uploaded and left."""
    ended = [trial for trial in trials if read_outcome(trial) is not None]
    left = 0
    with progress_bar(f"uploading {what}", len(ended)) as bar:
        for trial in ended:
            try:
                upload_once(tracker, parent, trial, again)
            except Exception as error:
                logger.info(f"note: {trial}: {type(error).__name__}: {str(error)[:300]}")
                left += 1
            bar.advance()
    return len(ended) - left, left
