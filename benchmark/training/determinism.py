"""The same bytes every time, on the CPU and on a GPU."""

from __future__ import annotations

import os

import torch


def make_deterministic() -> None:
    """Ask torch for the same bytes every time; called before a network is trained or loaded."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling fresh memory is a debugging aid of that mode and costs time in every allocation.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
