"""How far a sweep is: a line for each trial that ends, and the time that is left."""

from __future__ import annotations

from collections.abc import Mapping

import ray

from benchmark.dealer import Dealer
from benchmark.job import Job, Outcome
from benchmark.progress import Reporter
from benchmark.tracking import Delivery


class SweepProgress:
    """Tells the user how far the sweep is and how long it will still take, and hands trials to the tracker."""

    def __init__(
        self, dealer: Dealer, delivery: Delivery, wanted: Mapping[str, float], reporter: Reporter
    ) -> None:
        """Take what a trial wants of the cluster, `{"CPU": …, "GPU": …}`."""
        self._dealer, self._delivery, self._wanted, self._reporter = dealer, delivery, wanted, reporter

    def ended(self, job: Job, outcome: Outcome) -> None:
        """Tell of a trial's end and deliver its records."""
        seconds = outcome.finished - outcome.started
        self._delivery.put(self._dealer.folder(job))
        total = self._dealer.plan.expected()
        numbers = ""
        if outcome.objective is not None:
            numbers = f"  tune mIoU {100 * outcome.objective:.2f}"
            best = self._dealer.best(job)
            if job.phase == "search" and best is not None:
                numbers += f" (best {100 * best:.2f})"
        state = "" if outcome.status == "complete" else f"  {outcome.status}: {outcome.reason}"
        self._reporter.say(
            f"[{self._dealer.finished}/{total}] {job.label}{numbers}{state}  {seconds:.0f} s{self._left()}"
        )

    def _slots(self) -> int:
        """Return how many trials the cluster runs at once, as it is now."""
        there = ray.cluster_resources()
        fits = [there.get(what, 0) / wanted for what, wanted in self._wanted.items() if wanted]
        return max(1, int(min(fits)))

    def _left(self) -> str:
        remaining = self._dealer.remaining()
        seconds = 0.0
        for phase, count in remaining.items():
            known = self._dealer.computed_seconds[phase]
            other = self._dealer.computed_seconds["search" if phase == "confirm" else "confirm"]
            if count and not known and not other:
                return ""
            if count:
                samples = known or other
                seconds += count * sum(samples) / len(samples)
        seconds /= self._slots()
        if not any(remaining.values()):
            return ""
        return f"; about {seconds / 60:.0f} min left" if seconds >= 90 else f"; about {seconds:.0f} s left"
