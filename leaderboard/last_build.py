"""The record of a build, `.build.json` in its folder, by which the next one knows that nothing has changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from seedbed.benchmark.files import write_text
from seedbed.datasets.io.digest import file_digest

FILE = ".build.json"


@dataclass(frozen=True)
class LastBuild:
    """What a build was made from, and what it wrote."""

    store: str | None
    """The state of the store that was collected (SweepReader.state)."""
    inputs: str
    """The digest of what the pages were made from (inputs.py)."""
    files: Mapping[str, str]
    """The sha256 of each file, by its path in the folder."""
    table: str
    """The table for a terminal."""

    @classmethod
    def read(cls, folder: Path) -> LastBuild | None:
        """Return the record in a folder; None if there is none, or if a file was changed or deleted since."""
        try:
            last = cls(**json.loads((folder / FILE).read_text("utf-8")))
            same = all(file_digest(folder / name) == digest for name, digest in last.files.items())
        except (OSError, ValueError, TypeError, AttributeError):
            return None
        return last if same else None

    def write(self, folder: Path) -> None:
        """Write the record into a folder."""
        write_text(folder / FILE, json.dumps(asdict(self), indent=1))
