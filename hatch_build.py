"""Builds the wheel: `seedbed.py` becomes the `__init__.py` of the package that holds the checkout's folders."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class PackageRoot(BuildHookInterface):
    """Adds the files that an installed package has at its root; an editable installation needs none."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add them to `build_data`; `version` is "standard" or "editable"."""
        if version == "standard":
            build_data["force_include"] |= {"seedbed.py": "seedbed/__init__.py", "py.typed": "seedbed/py.typed"}
