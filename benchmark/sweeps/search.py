"""The search of one cell: its space, its Optuna study, and suggestions that do not depend on timing.

Suggestion k is a function of the seed, k, and the results of the trials 0 … k − window. So suggestions do not
change if trials end in another order, on another number of GPUs or after a kill. `optuna-dashboard` shows the
study on disk (SQLite); the sampler itself uses a copy with the visible trials.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from seedbed.benchmark.errors import ConfigError, StoreError
from seedbed.benchmark.evaluation.records import OBJECTIVE
from seedbed.benchmark.paths import sqlite_url
from seedbed.benchmark.pipeline.hparams import declared
from seedbed.benchmark.pipeline.stage import Stage
from seedbed.benchmark.sweeps.settings import ALL
from seedbed.benchmark.training.reproducibility import derive_seed

optuna.logging.set_verbosity(optuna.logging.WARNING)

Settings = dict[str, Any]
Space = Mapping[str, tuple[BaseDistribution, Any]]
"""Distribution and default of each searched setting, by `Stage.field`."""
PATIENCE = 600
"""Seconds to wait for a studies file that another program has locked."""
Status = Literal["complete", "pruned", "failed"]
STATES: dict[Status, TrialState] = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


def search_space(
    stages: Sequence[Stage], tune: Sequence[str], fixed: Mapping[str, Any]
) -> dict[str, tuple[BaseDistribution, Any]]:
    """Return distribution and default, by `Stage.field`, of the settings that a search over `stages` draws.

    `tune` are words (benchmark/sweeps/settings.py: tune); `fixed` names settings that are given, not drawn.
    Fields without effect at these settings are left out.
    """
    space = {}
    for stage in stages:
        values = stage.settings()
        for name, parameter in declared(type(stage)).items():
            key = f"{type(stage).__name__}.{name}"
            if parameter.space is None or key in fixed or not _asked(key, parameter.on_request, tune):
                continue
            if parameter.when is not None and values[parameter.when[0]] != parameter.when[1]:
                continue
            space[key] = (parameter.space, values[name])
    return space


def check_tune(
    chains: Sequence[Sequence[Stage]],
    tune: Sequence[str],
    elsewhere: Callable[[], Iterable[type[object]]] = tuple,
) -> list[str]:
    """Return the words of `tune` that match nothing in the chains, but a setting of the classes `elsewhere`.

    Raises ConfigError if a word matches nothing at all, or no word matches anything in the chains.
    """
    searchable = {key for stages in chains for key in search_space(stages, ["."], {})}
    ignored = [w for w in tune if w != ALL and not any(_asked(key, True, [w]) for key in searchable)]
    if not ignored:
        return []
    others = {f"{c.__name__}.{n}" for c in elsewhere() for n, parameter in declared(c).items() if parameter.space}
    for word in ignored:
        if len(ignored) == len(tune) or not any(_asked(key, True, [word]) for key in others):
            valid = ", ".join([ALL, *sorted(searchable)])
            raise ConfigError(f"tune: no searched setting matches {word!r}. Valid: {valid}")
    return ignored


def _asked(key: str, on_request: bool, tune: Sequence[str]) -> bool:
    for word in tune:
        if word == ALL and not on_request:
            return True
        if word != ALL and (word == key if "." in word and word != "." else word.lower() in key.lower()):
            return True
    return False


def storage_at(path: Path) -> optuna.storages.RDBStorage:
    """Open or create the SQLite file with a sweep's studies.

    Raises StoreError if the file is damaged, or locked by another program for more than PATIENCE seconds.
    """
    with named_errors(path):
        # optuna-dashboard may read the file at the same time.
        return optuna.storages.RDBStorage(sqlite_url(path), engine_kwargs={"connect_args": {"timeout": PATIENCE}})


@contextlib.contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Turn errors of SQLite into a StoreError with the studies file and the way out."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        causes = (error, error.__cause__, getattr(error, "orig", None))
        text = next((str(cause) for cause in reversed(causes) if cause is not None), "").splitlines()[0]
        if "locked" in text or "busy" in text:
            problem = f"locked by another program for more than {PATIENCE / 60:g} minutes; close it"
        elif "full" in text or "readonly" in text or "unable to open" in text:
            problem = f"cannot be written ({text}); make room or allow writing"
        else:
            problem = f"damaged ({text}); remove it: the sweep makes it again from the results of its trials"
        raise StoreError(
            f"{path}: {problem}, then continue with: seedbed sweep --resume {path.parent.name}"
        ) from None


def drawn(
    storage: optuna.storages.BaseStorage, name: str
) -> tuple[dict[int, Settings], dict[str, BaseDistribution]]:
    """Return the drawn settings of each trial of a study, by number, and the distributions they were drawn from.

    Both are empty if the storage has no such study.
    """
    if name not in optuna.get_all_study_names(storage):
        return {}, {}
    trials = optuna.load_study(storage=storage, study_name=name).get_trials(deepcopy=False)
    space = {key: distribution for trial in trials for key, distribution in trial.distributions.items()}
    return {trial.number: dict(trial.params) for trial in trials}, space


def recorded_space(current: Space, trials: Sequence[FrozenTrial]) -> tuple[Space, list[str]]:
    """Return the space that a search keeps, and how `current`, this code's space, differs from it.

    A search keeps the distributions that it began with: Optuna refuses other choices within a study, and other
    bounds would make trials incomparable. The first trial, with the defaults, need not have all settings.
    """
    found = {key: distribution for trial in trials for key, distribution in trial.distributions.items()}
    begun = any(trial.number > 0 for trial in trials)
    space, notes = {}, []
    for key, (distribution, default) in current.items():
        if key not in found and begun:
            notes.append(f"{key}: not searched, as when the sweep began")
            continue
        before = found.get(key, distribution)
        if before != distribution:
            notes.append(
                f"{key}: searched {described(before)}, as when the sweep began, not {described(distribution)}"
            )
        space[key] = (before, default)
    for key in sorted(found.keys() - current.keys()) if begun else ():
        notes.append(f"{key}: searched {described(found[key])}, as when the sweep began")
        space[key] = (found[key], None)
    return space, notes


def described(space: BaseDistribution) -> str:
    """Return a distribution in words."""
    if isinstance(space, CategoricalDistribution):
        return "among " + ", ".join(map(str, space.choices))
    low, high, log = space.low, space.high, space.log  # type: ignore[attr-defined]
    return f"from {low:g} to {high:g}" + (", logarithmically" if log else "")


def extremes(space: BaseDistribution) -> tuple[Any, ...]:
    """Return values of a distribution: if these are valid, all are."""
    if isinstance(space, CategoricalDistribution):
        return tuple(space.choices)
    return space.low, space.high  # type: ignore[attr-defined]


class CellStudy:
    """The study of one cell; there is none in the storage without search trials.

    Every method that writes may raise StoreError (see `storage_at`).
    """

    def __init__(
        self,
        storage: optuna.storages.RDBStorage,
        name: str,
        space: Space,
        seed: int,
        trials: int,
        window: int,
    ) -> None:
        self.window = window
        self._path = Path(str(storage.engine.url.database))
        self._name, self._seed = name, seed
        self._startup = min(10, max(2, trials // 3))
        if not trials:
            self._trials: list[FrozenTrial] = []
            self.space = space
            self.notes: list[str] = []
            return
        with named_errors(self._path):
            self._study = optuna.create_study(
                storage=storage, study_name=name, direction="maximize", load_if_exists=True
            )
            if self._study.metric_names != [str(OBJECTIVE[0])]:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ExperimentalWarning)
                    self._study.set_metric_names([str(OBJECTIVE[0])])
            self._trials = self._study.get_trials()
        self.space, self.notes = recorded_space(space, self._trials)

    def ready(self, number: int) -> bool:
        """Return whether suggestion `number` can be made: the trials that it sees have ended."""
        return all(trial.state.is_finished() for trial in self._visible(number))

    def knows(self, number: int) -> bool:
        """Return whether trial `number` has begun."""
        return number < len(self._trials)

    def begin(self, number: int, known: Settings | None = None) -> Settings:
        """Return the settings of trial `number`, and record it as running if it is new.

        `known` are the settings of its earlier run, if the studies file was lost.
        """
        if self.knows(number):
            return dict(self._trials[number].params)
        settings = known or self.suggest(number)
        spaces = {key: self.space[key][0] for key in settings}
        with named_errors(self._path):
            self._study.add_trial(
                optuna.trial.create_trial(state=TrialState.RUNNING, params=settings, distributions=spaces)
            )
            self._trials = self._study.get_trials()
        return settings

    def suggest(self, number: int) -> Settings:
        """Return suggestion `number`. The first has the defaults, as far as the space contains them."""
        if number == 0:
            return {key: value for key, (space, value) in self.space.items() if _within(space, value)}
        seed = derive_seed(self._seed, self._name, number) % 2**32
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=self._startup)
        copy = optuna.create_study(direction="maximize", sampler=sampler)
        copy.add_trials(self._visible(number))
        return dict(copy.ask({key: space for key, (space, _) in self.space.items()}).params)

    def finish(self, number: int, status: Status, value: float | None, losses: Sequence[float]) -> None:
        """Record in the study how trial `number` ended. A value that is not finite counts as failed.

        `losses` are the epochs' losses of its first training; the study stores them negated, because it maximises.
        An ended trial does not change.
        """
        trial = self._trials[number]
        if trial.state.is_finished():
            return
        if status == "complete" and (value is None or not math.isfinite(value)):
            status = "failed"
        with named_errors(self._path):
            running = optuna.trial.Trial(self._study, trial._trial_id)
            for epoch, loss in enumerate(losses, 1):
                if math.isfinite(loss):
                    running.report(-loss, epoch)
            self._study.tell(number, value if status == "complete" else None, STATES[status])
            self._trials = self._study.get_trials()

    def finished(self, number: int) -> bool:
        """Return whether trial `number` has ended."""
        return number < len(self._trials) and self._trials[number].state.is_finished()

    def rivals(self, number: int) -> list[list[float]]:
        """Return the losses by epoch of the complete trials to compare trial `number` with."""
        curves = (t.intermediate_values for t in self._visible(number) if t.state is TrialState.COMPLETE)
        return [[-curve[epoch] for epoch in sorted(curve)] for curve in curves if curve]

    def best(self) -> int | None:
        """Return the number of the complete trial with the highest value; the first of equal ones."""
        complete = [t for t in self._trials if t.state is TrialState.COMPLETE]
        return max(complete, key=lambda t: (t.value, -t.number)).number if complete else None

    def value(self, number: int) -> float | None:
        """Return the value of a complete trial."""
        trial = self._trials[number]
        return trial.value if trial.state is TrialState.COMPLETE else None

    def _visible(self, number: int) -> list[FrozenTrial]:
        return self._trials[: max(0, number - self.window + 1)]


class StoppedEarlyError(Exception):
    """A search trial was stopped during its first training, with `losses` by epoch."""

    def __init__(self, losses: Sequence[float]) -> None:
        super().__init__(f"its loss {losses[-1]:.4f} in epoch {len(losses)} is above the median of earlier trials")
        self.losses = losses


def stop_if_above_median(rivals: Sequence[Sequence[float]], losses: Sequence[float], epochs: int) -> None:
    """Raise StoppedEarlyError if the best loss so far is above the rivals' median at that epoch.

    Optuna's median rule, after a third of the epochs, with at least two rivals. Never stops after the last epoch.
    """
    study = optuna.create_study(
        direction="minimize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=max(1, epochs // 3)),
    )
    for curve in rivals:
        values = dict(enumerate(map(float, curve), 1))
        study.add_trial(
            optuna.trial.create_trial(state=TrialState.COMPLETE, value=curve[-1], intermediate_values=values)
        )
    trial = study.ask()
    for epoch, loss in enumerate(losses[: epochs - 1], 1):
        trial.report(loss, epoch)
        if trial.should_prune():
            raise StoppedEarlyError(losses[:epoch])


def _within(space: BaseDistribution, value: Any) -> bool:
    if value is None:
        return False
    if isinstance(space, CategoricalDistribution):
        return value in space.choices
    return bool(space.low <= value <= space.high)  # type: ignore[attr-defined]
