"""The same bytes every time: derived seeds, and deterministic algorithms on the CPU and on a GPU."""

from __future__ import annotations

import hashlib
import os


def derive_seed(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed that depends on `seed` and on all `names`, and on nothing else.

    Each random choice has names of its own, so that no two use the same random numbers.
    """
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def make_deterministic() -> None:
    """Ask torch for the same bytes every time; called before a network is trained or loaded."""
    import torch  # not above: most callers only derive seeds

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling fresh memory is a debugging aid of that mode and costs time in every allocation.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
