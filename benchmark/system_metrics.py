"""The load of the machine while a trial runs, under the names that MLflow's own system metrics have."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

INTERVAL = 10.0
"""Seconds between two samples; one more is taken at the end."""


class SystemMetrics:
    """Samples processor, memory and GPU in a thread, and adds each sample to `system.jsonl`.

    A line of the file is `{"time": seconds since 1970, "system/…": value, …}`.
    """

    def __init__(self, path: Path, interval: float = INTERVAL) -> None:
        self._path, self._interval = path, interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> SystemMetrics:
        psutil.cpu_percent()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        # Neither a full disk nor a broken GPU may hide what the trial itself ended with.
        with contextlib.suppress(Exception):
            self._sample()

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            with contextlib.suppress(Exception):
                self._sample()

    def _sample(self) -> None:
        memory = psutil.virtual_memory()
        values = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": memory.percent,
            **_gpu(),
        }
        sample = {"time": time.time()} | {f"system/{name}": value for name, value in values.items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(sample) + "\n")


def _gpu() -> dict[str, float]:
    """Return the load of the first GPU that this process sees; empty if there is none."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return {}
    free, total = torch.cuda.mem_get_info()
    values = {
        "gpu_0_memory_usage_megabytes": (total - free) / 1e6,
        "gpu_0_memory_usage_percentage": 100 * (total - free) / total,
    }
    # Utilisation needs NVIDIA's management library for Python; memory does not.
    with contextlib.suppress(Exception):
        values["gpu_0_utilization_percentage"] = float(torch.cuda.utilization())
    return values
