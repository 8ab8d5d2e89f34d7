"""What the duration of a step depends on, recorded with each entry of the store and never part of its key."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seedbed.benchmark.pipeline.pipeline import Step
    from seedbed.datasets.base import Dataset


@dataclass(frozen=True)
class Conditions:
    """The amount of work of a step, and the device that it runs on."""

    device: str
    """`cpu` or `cuda`."""
    backbone: str
    """Backbone of the network that the step trains or runs; empty for a step without one."""
    side: int
    """Side in pixels of the images that the step works on: its crop, or the longer side."""
    images: int
    epochs: int
    precision: str = "fp32"
    """Of the network; entries of earlier versions do not record it."""

    @property
    def work(self) -> int:
        """Number of processed pixels; durations are roughly proportional to it."""
        return self.images * self.epochs * self.side**2

    def to_json(self) -> dict[str, Any]:
        """Return the fields by name."""
        return asdict(self)


def conditions_of(step: Step, data: Dataset, device: str) -> Conditions:
    """Return the conditions of a step on a data set. Reads at most 64 image headers."""
    settings = step.stage.settings()
    given = int(settings.get("crop") or settings.get("long_side") or data.long_side)
    return Conditions(
        device=device.partition(":")[0],
        backbone=_backbone(step),
        side=min(given, data.long_side),
        images=len(data.ids(step.split)),
        epochs=getattr(step.stage, "stop_after", 1),
        precision=str(step.identity.get("precision", "fp32")),
    )


def _backbone(step: Step) -> str:
    """Return the backbone that a step declares, else the one of the checkpoint that it uses."""
    if backbone := step.stage.settings().get("backbone"):
        return str(backbone)
    return next((found for needed in step.inputs.values() if (found := _backbone(needed))), "")
