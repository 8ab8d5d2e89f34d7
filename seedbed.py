"""Seedbed: a benchmark suite for weakly-supervised semantic segmentation.

The packages `benchmark`, `methods`, `datasets` and `leaderboard` are imported as `seedbed.benchmark` and so on, so
that they never collide with other distributions (Hugging Face has a package named `datasets`). In a checkout they
lie beside this file, in an installation below it.
"""

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parent)]
"""Where the packages lie. With it, this file is a package although it is not named `__init__.py`."""
