"""All measurements of speed and memory, as one table of ratios. They take about ten minutes of one core.

    python -m tests.performance                     every part
    python -m tests.performance loader inference    some of them

Each script in this folder is a part: its `rows` measures. Run by itself, a script prints its own rows.
Every row compares two ways of doing the same in the same run, by turns.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.helpers.measurement import Row, print_table

PARTS = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))


def rows_of(part: str) -> Callable[[], Iterable[Row]]:
    """Return the function of a script that measures."""
    rows: Callable[[], Iterable[Row]] = importlib.import_module(f"tests.performance.{part}").rows
    return rows


def main() -> None:
    """Print the table of the parts that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parts = parser.parse_args().parts or PARTS
    if unknown := sorted(set(parts) - set(PARTS)):
        parser.error(f"unknown: {', '.join(unknown)}. Valid: {', '.join(PARTS)}")
    print_table({part: rows_of(part) for part in parts})


if __name__ == "__main__":
    main()
