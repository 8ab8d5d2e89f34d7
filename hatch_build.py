"""Builds the distribution: the checkout's folders become one package, `seedbed`, and nothing else is installed."""

from __future__ import annotations

from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGES = ("benchmark", "methods", "datasets", "leaderboard")
EDITABLE = """\
# An editable installation of the checkout below. The checkout itself is not on Python's path: it has a folder
# `datasets`, which is also the name of Hugging Face's package.
__file__ = {path!r}
with open(__file__, encoding="utf-8") as _file:
    exec(compile(_file.read(), __file__, "exec"))
"""


class OnePackage(BuildHookInterface):
    """Says which files the wheel has."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the files to `build_data`; `version` is "standard" or "editable"."""
        files = {"seedbed.py": "seedbed/__init__.py", "py.typed": "seedbed/py.typed"}
        build_data["force_include"] |= files | {name: f"seedbed/{name}" for name in PACKAGES}
        shim = Path(mkdtemp(prefix="seedbed-")) / "__init__.py"
        shim.write_text(EDITABLE.format(path=str(Path(self.root) / "seedbed.py")), "utf-8")
        build_data["force_include_editable"] = {str(shim): "seedbed/__init__.py"}
