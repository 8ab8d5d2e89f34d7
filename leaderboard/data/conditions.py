"""How the leaderboard shows the conditions of a row (benchmark/trials/conditions.py defines them).

A condition that is not listed here has a column, too, titled with its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Scope(NamedTuple):
    """The data set and the conditions that runs must share to be compared."""

    dataset: str
    supervision: str
    backbone: str
    initialisation: str
    segmentation_backbone: str
    segmentation_initialisation: str
    precision: str
    classes: str = ""
    """Which classes of the data set were chosen; empty if all."""

    @property
    def data(self) -> str:
        """The data set, with the choice of its classes."""
        return f"{self.dataset} ({self.classes})" if self.classes else self.dataset


SCOPE = Scope._fields[1:]
"""The conditions that are in the heading of a group, not in columns."""
CONDITIONS = (*SCOPE[:-1], "crf_preset", "multi_scale", "segmentation", "selection", "tuning_masks")
"""The conditions that every run has, in the order of the snapshot's columns; "" if one was not recorded."""
SUBMITTED = "submitted"
"""The condition of a row that `seedbed submit` scored; no run of Seedbed has it."""
RANK_NEEDS = ("crf_preset", "multi_scale", "selection", "tuning_masks")
"""A row has no rank if one of these was not recorded."""


@dataclass(frozen=True)
class Shown:
    """How a condition is shown."""

    title: str
    """Title of its column."""
    meaning: str
    words: str
    """Its name in a sentence."""
    number: bool = False


SHOWN: Mapping[str, Shown] = {
    "crf_preset": Shown("CRF", "settings of the dense CRF", "CRF preset"),
    "multi_scale": Shown("Scales", "scales of inference that are averaged", "multi-scale"),
    "selection": Shown("Selection", "how the threshold of the training masks was chosen", "selection"),
    "tuning_masks": Shown(
        "Tuning masks",
        "number of true masks available to choose threshold and settings",
        "number of masks used for tuning",
        number=True,
    ),
    SUBMITTED: Shown("Submitted", "saved results that `seedbed submit` scored, with their source", "submission"),
}


def shown(name: str) -> Shown:
    """Return how a condition is shown."""
    words = name.replace("_", " ")
    return SHOWN.get(name) or Shown(words[:1].upper() + words[1:], f"the setting `{name}`", words)


def column_names(names: Iterable[str]) -> list[str]:
    """Return the conditions that have a column: those that always have one, then others by name."""
    return [*RANK_NEEDS, *sorted({*names} - {*CONDITIONS, *SCOPE})]
