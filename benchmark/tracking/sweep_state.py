"""The state of a sweep, read from its folder alone: also of one that died, or runs on a cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seedbed.benchmark.errors import DataError
from seedbed.benchmark.sweeps.settings import Cell
from seedbed.benchmark.sweeps.trial_files import (
    BEGUN,
    RESULT,
    UPLOADED,
    Outcome,
    Phase,
    TrialSpec,
    read_outcome,
    read_spec,
)
from seedbed.benchmark.tracking.run_content import Number, milliseconds
from seedbed.benchmark.trials.conditions import search_trials_in


@dataclass(frozen=True)
class CellState:
    """How far the trials of a cell are."""

    cell: Cell
    expected: dict[Phase, int]
    ended: list[tuple[TrialSpec, Outcome]] = field(default_factory=list)

    def done(self, phase: Phase) -> int:
        """Return how many trials of a phase have ended, also failed ones."""
        return sum(spec.phase == phase for spec, _ in self.ended)

    @property
    def failed(self) -> int:
        """Number of failed trials."""
        return sum(outcome.status == "failed" for _, outcome in self.ended)

    @property
    def best(self) -> float | None:
        """The best objective so far, in [0, 1], of the search; without a search, of the confirming trials."""
        phase: Phase = "search" if self.expected["search"] else "confirm"
        found = [o.objective for s, o in self.ended if s.phase == phase and o.objective is not None]
        return max(found, default=None)


class SweepState:
    """The trials of the sweep in `folder`. Files of ended trials are read once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ended: dict[Path, tuple[int, TrialSpec, Outcome]] = {}

    def cells(self) -> list[CellState]:
        """Return the state of each cell. Raises DataError if `sweep.json` is missing or damaged."""
        path = self.folder / "sweep.json"
        try:
            plan = json.loads(path.read_bytes())
            found = [_planned(plan, entry) for entry in plan["cells"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            again = f"`seedbed sweep --resume {self.folder.name}` writes it again"
            raise DataError(f"{path}: missing, empty or cut off ({type(error).__name__}); {again}") from None
        by_cell = {state.cell: state for state in found}
        for spec, outcome in self._read_ended():
            if spec.cell in by_cell:
                by_cell[spec.cell].ended.append((spec, outcome))
        return found

    def begun(self) -> list[Path]:
        """Return the folders of the trials that a worker has begun and that have not ended."""
        began = (path.parent for path in sorted(self.folder.glob(f"trials/*/{BEGUN}")))
        return [folder for folder in began if not (folder / RESULT).exists()]

    def not_uploaded(self) -> int:
        """Return how many ended trials are not in MLflow."""
        return sum(not (path.parent / UPLOADED).exists() for path in self.folder.glob(f"trials/*/{RESULT}"))

    def numbers(self) -> list[Number]:
        """Return what MLflow shows of the sweep: trials done and failed, and the best objective of each cell."""
        cells = self.cells()
        ended = [outcome for state in cells for _, outcome in state.ended]
        last = max((outcome.finished for outcome in ended), default=(self.folder / "sweep.json").stat().st_mtime)
        counts = {
            "trials/done": len(ended),
            "trials/failed": sum(state.failed for state in cells),
            "trials/expected": sum(sum(state.expected.values()) for state in cells),
        }
        best = {f"best_objective/{_plain(state.cell)}": state.best for state in cells}
        known = {**counts, **{name: value for name, value in best.items() if value is not None}}
        return [(name, float(value), milliseconds(last), len(ended)) for name, value in known.items()]

    def _read_ended(self) -> Iterator[tuple[TrialSpec, Outcome]]:
        for path in sorted(self.folder.glob(f"trials/*/{RESULT}")):
            folder, written = path.parent, path.stat().st_mtime_ns
            known = self._ended.get(folder)
            if known is None or known[0] != written:
                outcome = read_outcome(folder)
                try:
                    spec = read_spec(folder)
                except DataError:
                    continue
                if outcome is None:
                    continue
                known = self._ended[folder] = (written, spec, outcome)
            yield known[1:]


def _planned(plan: Mapping[str, Any], entry: Mapping[str, Any]) -> CellState:
    cell = Cell(*(str(entry.get(name, "")) for name in ("method", "refiner", "dataset", "variant")))
    trials = search_trials_in(entry, plan["trials"])
    seeds = len(entry.get("seeds", plan["seeds"]))
    return CellState(cell, {"search": trials, "confirm": seeds * (2 if trials else 1)})


def _plain(cell: Cell) -> str:
    """Return a cell's name in characters that MLflow takes, `cam crf voc2012`."""
    return str(cell).replace(" × ", " ")
