"""How the scripts of tests/performance measure, and the table that they print."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch

from seedbed.benchmark.environment import environment

INSTRUCTIONS = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16")
HEADER = (
    "| what | unit | measured | against | reference | times as good | goal |",
    "|---|---|--:|---|--:|--:|--:|",
)


@dataclass(frozen=True)
class Row:
    """A cost (time or memory: less is better) beside that of a reference, both measured in this run."""

    what: str
    unit: str
    value: float
    reference: str
    """What `value` is compared with."""
    reference_value: float
    goal: float | None = None
    """The least `ratio` that the project wants."""

    @property
    def ratio(self) -> float:
        """How many times as good the measured value is as the reference."""
        return self.reference_value / self.value

    def cells(self) -> list[str]:
        """Return the row of HEADER's columns."""
        goal = "" if self.goal is None else f"≥ {self.goal:.2g}"
        value, reference = _three_digits(self.value), _three_digits(self.reference_value)
        return [self.what, self.unit, value, self.reference, reference, f"{self.ratio:.2f}", goal]


class SkippedError(Exception):
    """A script cannot measure here; the message says why."""


def photographs() -> Path:
    """Return the folder of real photographs in the layout of VOC. Raises SkippedError if none is named."""
    if folder := os.environ.get("SEEDBED_REAL_VOC"):
        return Path(folder)
    raise SkippedError("needs real photographs: SEEDBED_REAL_VOC is not set")


def least_seconds(tasks: Mapping[str, Callable[[], object]], rounds: int = 3) -> dict[str, float]:
    """Return the least CPU seconds of each task. They take turns, after one call each that does not count."""
    for task in tasks.values():
        task()
    least = dict.fromkeys(tasks, float("inf"))
    for _ in range(rounds):
        for name, task in tasks.items():
            start = time.process_time()
            task()
            least[name] = min(least[name], time.process_time() - start)
    return least


def print_table(parts: Mapping[str, Callable[[], Iterable[Row]]]) -> None:
    """Measure the parts one after another, on one core, and print their rows as one table in Markdown."""
    torch.set_num_threads(1)
    left_out = []
    print("\n".join(HEADER), flush=True)
    for name, rows in parts.items():
        try:
            for row in rows():
                print(f"| {' | '.join(row.cells())} |", flush=True)
        except SkippedError as reason:
            left_out.append(f"Not measured: {name} ({reason}).")
    print("\n".join(["", *left_out, machine()]))


def machine() -> str:
    """Return a sentence on processor, software and day."""
    here, able = environment(), torch.cpu.get_capabilities()
    instructions = ", ".join(f"{'' if able.get(name) else 'no '}{name}" for name in INSTRUCTIONS)
    return (
        f"{here['processor'] or here['machine']}, {here['cores']} cores, one of them used; {instructions}; "
        f"torch {torch.__version__}; code {here['code']}; {date.today()}."
    )


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"
