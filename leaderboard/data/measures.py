"""The numbers that the leaderboard shows for every row, and the one that ranks the rows of a group."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from seedbed.benchmark.evaluation import records
from seedbed.benchmark.evaluation.metrics import COUNTED
from seedbed.benchmark.evaluation.records import RecordName, Selection, first_value
from seedbed.leaderboard.data.conditions import Scope
from seedbed.leaderboard.data.snapshot import Run


@dataclass(frozen=True)
class Measure:
    """A number that the leaderboard shows for every row."""

    name: str
    section: str
    title: str
    meaning: str
    records: tuple[RecordName, ...]
    """Of several, the first that a run has: masks that need no threshold have no selection."""

    @property
    def metric(self) -> str:
        """The metric that the number is a mean of over labels: `IoU`."""
        return self.records[0].metric.removeprefix("m")

    def beside(self) -> list[Measure]:
        """Return the other measures that follow from the same counted pixels per image."""
        same = {m: tuple(record.of(m.records[0].metric) for record in self.records) for m in MEASURES}
        return [m for m, records in same.items() if m != self and m.metric in COUNTED and m.records == records]

    def of(self, run: Run) -> float | None:
        """Return the run's number, a fraction; None if it has none."""
        return first_value(self.records, run.metrics)

    def uncounted(self, run: Run) -> bool:
        """Return whether the run was measured on a split without a counted pixel, so that it has no number."""
        counted = (run.metrics.get(str(record.of("classes"))) for record in self.records)
        return self.of(run) is None and any(number == 0 for number in counted)


def _maps(metric: str, selection: Selection = "none") -> tuple[RecordName, ...]:
    return (RecordName("seed", "train", metric, selection),)


MEASURES = (
    Measure(
        "maps_mIoU_fixed",
        "Maps",
        "mIoU fixed",
        "localisation maps on `train`, cut at the threshold of the paper",
        _maps("mIoU", "fixed"),
    ),
    Measure(
        "maps_mIoU_tuned",
        "Maps",
        "mIoU tuned",
        "the same maps, cut at the threshold that is best on `tune`",
        _maps("mIoU", "tuned"),
    ),
    Measure(
        "maps_mIoU_oracle",
        "Maps",
        "mIoU oracle",
        "the same maps, cut at the threshold that is best on `train` itself: an upper bound",
        _maps("mIoU", "oracle"),
    ),
    Measure(
        "maps_soft_overlap",
        "Maps",
        "Overlap",
        "soft intersection over union of the maps, without a threshold",
        _maps("msoft_overlap"),
    ),
    Measure(
        "maps_soft_precision",
        "Maps",
        "Precision",
        "how much of the maps is on the object",
        _maps("msoft_precision"),
    ),
    Measure(
        "maps_soft_recall",
        "Maps",
        "Recall",
        "how much of the object is covered by the maps",
        _maps("msoft_recall"),
    ),
    Measure(
        "pseudo_mask_mIoU",
        "Pseudo-masks",
        "mIoU",
        "masks after the refiner on `train`, at the tuned threshold if there is one",
        records.PSEUDO_MASK,
    ),
    Measure(
        "one_step_mIoU",
        "Segmentation",
        "one-step val",
        "the network of a one-step method itself, on `val`",
        (RecordName("one_step", "val", "mIoU"),),
    ),
    Measure(
        "val_mIoU",
        "Segmentation",
        "val mIoU",
        "the segmentation network that was trained on the pseudo-masks, on `val`",
        records.VAL,
    ),
)
VAL, PSEUDO_MASK = (next(m for m in MEASURES if m.records == names) for names in records.RANKED.values())


def measures(runs: Iterable[Run]) -> dict[Scope, Measure]:
    """Return the measure that ranks the rows of each scope: on `val` if any of them has a network."""
    found: dict[Scope, Measure] = {}
    for run in runs:
        if run.phase == "confirm":
            on_val = VAL.of(run) is not None or found.get(run.scope) is VAL
            found[run.scope] = VAL if on_val else PSEUDO_MASK
    return found
