"""The trials that a sweep plans, from `sweep.json`; they show which runs are missing."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from seedbed.benchmark.errors import ConfigError, DataError
from seedbed.benchmark.trials.conditions import conditions_in, search_trials_in
from seedbed.leaderboard.data.conditions import CONDITIONS
from seedbed.leaderboard.data.snapshot import Run

VERSION = 1


@dataclass(frozen=True)
class ExpectedTrials:
    """The trials that a sweep plans."""

    name: str
    trials: int
    """Search trials of a cell with something to search; 0: only default settings are run."""
    seeds: tuple[int, ...]
    cells: tuple[Mapping[str, Any], ...]
    """Method, refiner, data set and conditions, as columns of the snapshot."""

    @functools.cached_property
    def conditions(self) -> list[str]:
        """The names of all conditions: those that every run has, then the others of this sweep."""
        return [*dict.fromkeys([*CONDITIONS, *(name for cell in self.cells for name in conditions_in(cell))])]

    @classmethod
    def parse(cls, plan: Mapping[str, Any]) -> ExpectedTrials:
        """Read the content of `sweep.json`.

        Raises DataError for another version or a missing entry, ConfigError for a sweep of variants: its cells
        differ in more than the leaderboard shows.
        """
        if plan.get("version") != VERSION:
            raise DataError(f"sweep.json of version {plan.get('version')!r}, this Seedbed reads {VERSION}")
        if any(cell.get("variant") for cell in plan.get("cells", ())):
            name = plan.get("name")
            raise ConfigError(f"the sweep {name!r} is of variants, or a study: `seedbed study` makes its table")
        try:
            return cls(plan["name"], plan["trials"], tuple(plan["seeds"]), tuple(plan["cells"]))
        except KeyError as error:
            raise DataError(f"sweep.json has no entry {error}") from None

    def expected(self) -> Iterator[Run]:
        """Yield every trial that the tables report, as a run that is missing."""
        for cell in self.cells:
            for settings in ("default", "best") if search_trials_in(cell, self.trials) else ("default",):
                for seed in cell.get("seeds", self.seeds):
                    yield self._missing(cell, settings, seed)

    def missing(self, runs: Iterable[Run]) -> list[Run]:
        """Return the expected trials that have no run."""
        found = {_place(run) for run in runs}
        return [run for run in self.expected() if _place(run) not in found]

    def _missing(self, cell: Mapping[str, Any], settings: str, seed: int) -> Run:
        def text(name: str) -> str:
            return "" if cell.get(name) is None else str(cell[name])

        conditions = {name: text(name) for name in (*CONDITIONS, *conditions_in(cell))}
        names = ("method", "refiner", "dataset", "supervision", "backbone", "initialisation")
        return Run(
            sweep=self.name,
            key="/".join(["missing", *map(text, names), settings, str(seed)]),
            method=text("method"),
            refiner=text("refiner"),
            dataset=text("dataset"),
            conditions=conditions | {"selection": ""},
            phase="confirm",
            settings=settings,
            number="",
            seed=seed,
            status="missing",
            reason="no run was recorded",
            device="",
            hardware="",
            code="",
            dirty="",
            data_digest=text("data_digest"),
            trials=self.trials,
            metrics={},
        )


def _place(run: Run) -> tuple[object, ...]:
    return run.phase, *run.cell, run.settings, run.seed
