"""The claims of all studies in one table."""

from __future__ import annotations

from collections.abc import Iterable

from seedbed.benchmark.studies.result import ClaimResult, StudyResult, signed
from seedbed.leaderboard.analysis.ranking import NOTHING
from seedbed.leaderboard.tables.table import Column, Table, text_table

COLUMNS = (
    *map(Column, ("study", "data set", "random seeds", "the paper says", "unit")),
    *(Column(title, number=True) for title in ("paper", "here", "low", "high", "p")),
    Column("verdict"),
)
VERDICTS = ("holds", "does not hold", "undecided")


def claims_table(studies: Iterable[StudyResult]) -> Table:
    """Return one row per claim: the paper's difference, and ours with its 95 % interval."""
    return text_table(COLUMNS, [_row(study, claim) for study in studies for claim in study.claims])


def claims_counted(studies: Iterable[StudyResult]) -> str:
    """Return "holds 3, does not hold 1, undecided 2" of all claims."""
    verdicts = [claim.verdict for study in studies for claim in study.claims]
    return ", ".join(f"{verdict} {verdicts.count(verdict)}" for verdict in VERDICTS)


def _row(study: StudyResult, claim: ClaimResult) -> tuple[str, ...]:
    def shown(value: float | None) -> str:
        return NOTHING if value is None else signed(value, study.digits)

    seeds = ", ".join(map(str, study.seeds))
    numbers = tuple(map(shown, (claim.paper, claim.difference, claim.low, claim.high)))
    p = NOTHING if claim.p is None else f"{claim.p:.3f}"
    return (study.label, study.data, seeds, claim.text, study.unit, *numbers, p, claim.verdict)
