"""From MLflow to the snapshot's table."""

from __future__ import annotations

import gc
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from seedbed.benchmark.errors import ConfigError, DataError, unknown_name
from seedbed.benchmark.evaluation.records import RecordName
from seedbed.benchmark.paths import sqlite_file, without_folders
from seedbed.benchmark.tracking.store import check_uri
from seedbed.leaderboard.data.client_store import ClientStore, TrackedRun
from seedbed.leaderboard.data.conditions import CONDITIONS
from seedbed.leaderboard.data.expected import ExpectedTrials
from seedbed.leaderboard.data.snapshot import STAGE, Run, runs_of, table_of
from seedbed.leaderboard.data.sqlite_store import SqliteStore

PLAN = "sweep.json"
"""The artifact of a sweep's run that says which trials it plans."""
PER_IMAGE = "per_image"
"""The folder of artifacts with the statistics of images, of confirming trials."""


def collect(tracking_uri: str, sweep: str | Sequence[str]) -> pa.Table:
    """Return the snapshot's table of one sweep or several, with a row for each reported trial that has no run.

    Runs of trials that still run, or were killed, are left out: they have no status.

    Raises ConfigError for an unknown sweep, DataError for runs that contradict each other, within a sweep or
    between two.
    """
    store = SweepReader(tracking_uri)
    names = [sweep] if isinstance(sweep, str) else list(dict.fromkeys(sweep))
    runs = [run for name in names for run in _runs_of_sweep(store, name)]
    _refuse_contradictions(runs)
    return table_of(runs)


def joined(snapshots: Iterable[pa.Table]) -> pa.Table:
    """Return one snapshot with the runs of several, each once.

    Raises DataError for runs that contradict each other.
    """
    found: dict[tuple[str, str], Run] = {}
    for run in (run for snapshot in snapshots for run in runs_of(snapshot)):
        other = found.setdefault((run.sweep, run.key), run)
        if other.status != "complete":
            found[run.sweep, run.key] = run
        elif run.status == "complete" and run.metrics != other.metrics:
            raise DataError(
                f"two snapshots have other numbers for one trial of the sweep {run.sweep!r}: {run.method} + "
                f"{run.refiner} on {run.dataset} ({run.settings}, seed {run.seed}); leave one of them out"
            )
    _refuse_contradictions(found.values())
    return table_of(found.values())


def _runs_of_sweep(store: SweepReader, sweep: str) -> list[Run]:
    plan = store.expected(sweep)
    with _no_garbage_collection():
        runs = [run_of(run.tags, run.metrics, plan) for run in store.trials(sweep) if run.tags.get("status")]
    twice = sorted(key for key, count in Counter(run.key for run in runs).items() if count > 1)
    if twice:
        listed = ", ".join(twice[:5])
        raise DataError(f"sweep {sweep!r} has more than one run of the trial {listed}; delete all but one of each")
    return [*runs, *plan.missing(runs)]


def _refuse_contradictions(runs: Iterable[Run]) -> None:
    """Raise DataError for runs that cannot stand on one leaderboard.

    These are trials that two sweeps ran, since the numbers of a row must be of one of them, and runs of one row
    that have other settings. References are of all sweeps (leaderboard/analysis/grouping.py).
    """
    owners: dict[tuple[object, ...], Run] = {}
    recipes: dict[tuple[object, ...], dict[str, tuple[str, Run]]] = {}
    for run in runs:
        if run.reference:
            continue
        row = (*run.cell, run.phase, run.settings)
        confirming = run.phase == "confirm"
        other = owners.setdefault((*row, run.seed) if confirming else (*run.cell, run.phase), run)
        if other.sweep != run.sweep or (confirming and other.key != run.key):
            raise DataError(
                f"{_both(other, run)} both have {_what(run)}, under the same conditions; build the leaderboard of "
                "one of them, or delete those runs of the other"
            )
        if confirming and run.recipe:
            _refuse_other_settings(run, recipes.setdefault(row, {}))


def _refuse_other_settings(run: Run, seen: dict[str, tuple[str, Run]]) -> None:
    """Raise DataError if a stage of a run has other settings than in the run of the same row in `seen`."""
    recipe: dict[str, str] = json.loads(run.recipe)
    for stage, digest in recipe.items():
        known, other = seen.setdefault(stage, (digest, run))
        # Within a sweep only an upgrade changes them, and its resume decides what is computed again.
        if known != digest and (other.sweep != run.sweep or run.settings == "given"):
            raise DataError(
                f"{_both(other, run)} have different settings of {stage} for {_what(run)}, and runs of one row "
                "must have the same; build the leaderboard of one of them (`seedbed ui` compares parameters)"
            )


def _both(one: Run, other: Run) -> str:
    if one.sweep == other.sweep:
        return f"the trials {one.key} and {other.key} of {one.sweep!r}"
    return f"the sweeps {one.sweep!r} and {other.sweep!r}"


def _what(run: Run) -> str:
    which = f"{run.settings}, seed {run.seed}" if run.phase == "confirm" else "a search"
    return f"{run.method} + {run.refiner} on {run.dataset} ({which})"


class SweepReader:
    """Reads sweeps from an MLflow store."""

    def __init__(self, tracking_uri: str) -> None:
        """Raises ConfigError if there is no store, no sweep in it, or no answer."""
        check_uri(tracking_uri)
        database = sqlite_file(tracking_uri)
        if database is not None and not database.is_file():
            raise ConfigError(f"{database}: no such file; a sweep writes it, `seedbed sync --all` rewrites it")
        self._store = ClientStore(tracking_uri) if database is None else SqliteStore(tracking_uri, database)

    def trials(self, sweep: str) -> Iterator[TrackedRun]:
        """Yield the runs of a sweep's trials."""
        return self._store.search(_trials_of(sweep))

    def places(self, sweep: str) -> dict[str, str]:
        """Return the id of the run of each confirming trial of a sweep, by the trial's key."""
        return {run.tags.get("seedbed.key", ""): run.id for run in self._store.search(_confirming(sweep))}

    def expected(self, sweep: str) -> ExpectedTrials:
        """Return the plan of a sweep. Raises ConfigError for an unknown one, DataError for one without a plan."""
        parents: dict[str, list[str]] = {}
        for run in self._store.search({"seedbed.kind": "sweep"}):
            parents.setdefault(run.tags.get("seedbed.sweep", ""), []).append(run.id)
        if sweep not in parents:
            raise unknown_name("sweep", sweep, parents)
        if len(parents[sweep]) > 1:
            raise DataError(f"{len(parents[sweep])} sweeps are named {sweep!r}; delete all but one")
        with tempfile.TemporaryDirectory() as folder:
            try:
                content = json.loads(self._store.file(parents[sweep][0], PLAN, Path(folder)).read_text("utf-8"))
            except (OSError, ValueError) as error:
                plan = f"the plan of sweep {sweep!r}, its artifact {PLAN},"
                raise DataError(f"{plan} cannot be read: {error}") from None
        return ExpectedTrials.parse(content)

    def download(self, run: str, artifact: str, folder: Path) -> Path | None:
        """Return the path of a run's artifact, downloaded to `folder` if needed; None if there is none."""
        try:
            return self._store.file(run, artifact, folder)
        except OSError:
            return None

    def state(self, sweeps: Iterable[str]) -> str | None:
        """Return a digest that changes when the store does; None if only reading it tells."""
        plans = [({"seedbed.kind": "sweep", "seedbed.sweep": sweep}, PLAN) for sweep in sweeps]
        return self._store.state([*plans, *((_confirming(sweep), f"{PER_IMAGE}/*") for sweep in sweeps)])


def _trials_of(sweep: str) -> dict[str, str]:
    return {"seedbed.kind": "trial", "seedbed.sweep": sweep}


def _confirming(sweep: str) -> dict[str, str]:
    return {**_trials_of(sweep), "phase": "confirm"}


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Pause Python's garbage collector, which would scan the many objects of each run repeatedly."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def run_of(tags: Mapping[str, str], metrics: Mapping[str, float], plan: ExpectedTrials) -> Run:
    """Make a run from the tags and metrics of a trial. Raises DataError for tags that cannot be read.

    Loss curves, costs and system metrics are left out.
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
        recipe=tag("recipe"),
        command=tag("command"),
        seed=seed,
        status=tag("status"),
        reason=without_folders(tag("reason")),
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
