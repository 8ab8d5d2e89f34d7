"""IRN, then a dense CRF on its masks, as the paper reports (its code has no CRF; see irn/)."""

from __future__ import annotations

from dataclasses import dataclass

from seedbed.benchmark.evaluation.threshold import SelectThreshold
from seedbed.benchmark.pipeline.stage import Meta, Stage
from seedbed.methods.refine.crf import CrfMasks
from seedbed.methods.refine.irn import walked_stages


@dataclass(frozen=True)
class IrnCrf:
    """IRN's walk, a threshold, and a dense CRF."""

    name: str = "irn_crf"
    paper: str = "Ahn et al., CVPR 2019; its author says that the paper's numbers have a dense CRF"

    def refine(self, meta: Meta, fixed_threshold: float) -> list[Stage]:
        """Return the stages of `irn`, with a CRF after the threshold."""
        return [*walked_stages(meta), SelectThreshold(value=0.25), CrfMasks()]


REFINER = IrnCrf()
