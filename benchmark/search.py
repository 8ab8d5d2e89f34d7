"""The search of one cell: its space, its Optuna study, and suggestions that do not depend on timing.

Suggestion k is a function of the seed, k, and the results of the trials 0 … k − window. Trials that happen to end
earlier or later than others, on another number of GPUs or after a kill, therefore change no suggestion. The study
on disk (SQLite) is what `optuna-dashboard` shows; the sampler itself works on a copy with the visible trials.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from benchmark.errors import ConfigError
from benchmark.hparams import declared
from benchmark.paths import sqlite_url
from benchmark.seeding import derive_seed
from benchmark.stage import Stage
from benchmark.sweep_settings import ALL

optuna.logging.set_verbosity(optuna.logging.WARNING)

Settings = dict[str, Any]
Status = Literal["complete", "pruned", "failed"]
STATES: dict[Status, TrialState] = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


def search_space(
    stages: Sequence[Stage], tune: Sequence[str], fixed: Mapping[str, Any]
) -> dict[str, tuple[BaseDistribution, Any]]:
    """Return distribution and default by `Stage.field` of what a search over `stages` draws.

    `tune` are words (benchmark/sweep_settings.py: tune); `fixed` names settings that are given and not drawn.
    A field that has no effect at these settings is left out.
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


def check_tune(chains: Sequence[Sequence[Stage]], tune: Sequence[str]) -> None:
    """Raise ConfigError where a word of `tune` names nothing that any of the chains can search."""
    searchable = {key for stages in chains for key in search_space(stages, ["."], {})}
    for word in tune:
        if word != ALL and not any(_asked(key, True, [word]) for key in searchable):
            valid = ", ".join([ALL, *sorted(searchable)])
            raise ConfigError(f"tune: nothing to search is called {word!r}. Valid: {valid}")


def _asked(key: str, on_request: bool, tune: Sequence[str]) -> bool:
    for word in tune:
        if word == ALL and not on_request:
            return True
        if word != ALL and (word == key if "." in word and word != "." else word.lower() in key.lower()):
            return True
    return False


def storage_at(path: Path) -> optuna.storages.BaseStorage:
    """Open, or make, the SQLite file that holds a sweep's studies."""
    # Somebody may look at the file with optuna-dashboard at the same time.
    return optuna.storages.RDBStorage(sqlite_url(path), engine_kwargs={"connect_args": {"timeout": 60}})


def drawn(
    storage: optuna.storages.BaseStorage, name: str
) -> tuple[dict[int, Settings], dict[str, BaseDistribution]]:
    """Return the drawn settings of each trial of a study, by number, and the distributions they were drawn from.

    Both are empty where the storage has no such study.
    """
    if name not in optuna.get_all_study_names(storage):
        return {}, {}
    trials = optuna.load_study(storage=storage, study_name=name).get_trials(deepcopy=False)
    space = {key: distribution for trial in trials for key, distribution in trial.distributions.items()}
    return {trial.number: dict(trial.params) for trial in trials}, space


class CellStudy:
    """The study of one cell."""

    def __init__(
        self,
        storage: optuna.storages.BaseStorage,
        name: str,
        space: Mapping[str, tuple[BaseDistribution, Any]],
        seed: int,
        trials: int,
        window: int,
    ) -> None:
        self.space, self.window = space, window
        self._name, self._seed = name, seed
        self._startup = min(10, max(2, trials // 3))
        self._study = optuna.create_study(
            storage=storage, study_name=name, direction="maximize", load_if_exists=True
        )
        self._trials = self._study.get_trials()

    def ready(self, number: int) -> bool:
        """Say whether suggestion `number` can be made: all that it may see has ended."""
        return all(trial.state.is_finished() for trial in self._visible(number))

    def begin(self, number: int) -> Settings:
        """Return the settings of trial `number`, and note it as running where it is not known yet."""
        if number < len(self._trials):
            return dict(self._trials[number].params)
        settings = self.suggest(number)
        spaces = {key: self.space[key][0] for key in settings}
        self._study.add_trial(
            optuna.trial.create_trial(state=TrialState.RUNNING, params=settings, distributions=spaces)
        )
        self._trials = self._study.get_trials()
        return settings

    def suggest(self, number: int) -> Settings:
        """Return suggestion `number`. The first is the default, as far as its values lie in the space."""
        if number == 0:
            return {key: value for key, (space, value) in self.space.items() if _within(space, value)}
        seed = derive_seed(self._seed, self._name, number) % 2**32
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=self._startup)
        copy = optuna.create_study(direction="maximize", sampler=sampler)
        copy.add_trials(self._visible(number))
        return dict(copy.ask({key: space for key, (space, _) in self.space.items()}).params)

    def finish(self, number: int, status: Status, value: float | None, losses: Sequence[float]) -> None:
        """Tell the study how trial `number` ended. A value that is not finite counts as failed.

        `losses` are those of the epochs of its first training; the study keeps them negated, as it maximises.
        A trial that had ended before is left as it is.
        """
        trial = self._trials[number]
        if trial.state.is_finished():
            return
        if status == "complete" and (value is None or not math.isfinite(value)):
            status = "failed"
        running = optuna.trial.Trial(self._study, trial._trial_id)
        for epoch, loss in enumerate(losses, 1):
            if math.isfinite(loss):
                running.report(-loss, epoch)
        self._study.tell(number, value if status == "complete" else None, STATES[status])
        self._trials = self._study.get_trials()

    def finished(self, number: int) -> bool:
        """Say whether trial `number` has ended."""
        return number < len(self._trials) and self._trials[number].state.is_finished()

    def rivals(self, number: int) -> list[list[float]]:
        """Return the losses by epoch of the complete trials that trial `number` may be compared with."""
        curves = (t.intermediate_values for t in self._visible(number) if t.state is TrialState.COMPLETE)
        return [[-curve[epoch] for epoch in sorted(curve)] for curve in curves if curve]

    def best(self) -> int | None:
        """Return the number of the complete trial with the highest value, of equal ones the first."""
        complete = [t for t in self._trials if t.state is TrialState.COMPLETE]
        return max(complete, key=lambda t: (t.value, -t.number)).number if complete else None

    def value(self, number: int) -> float | None:
        """Return the value of a complete trial."""
        trial = self._trials[number]
        return trial.value if trial.state is TrialState.COMPLETE else None

    def _visible(self, number: int) -> list[FrozenTrial]:
        return self._trials[: max(0, number - self.window + 1)]


class StoppedEarlyError(Exception):
    """A search trial was stopped inside its first training, whose losses by epoch were `losses`."""

    def __init__(self, losses: Sequence[float]) -> None:
        super().__init__(f"its loss {losses[-1]:.4f} in epoch {len(losses)} is above the median of earlier trials")
        self.losses = losses


def stop_if_above_median(rivals: Sequence[Sequence[float]], losses: Sequence[float], epochs: int) -> None:
    """Raise StoppedEarlyError where the best loss so far is above the median of the rivals' at that epoch.

    Optuna's median rule, from a third of the epochs on, with at least two rivals. The last epoch stops nothing.
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
