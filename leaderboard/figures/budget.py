"""The expected best score of a search against its number of trials."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Mapping, Sequence

from seedbed.leaderboard.analysis.grouping import objective
from seedbed.leaderboard.analysis.ranking import Group
from seedbed.leaderboard.data.snapshot import Run
from seedbed.leaderboard.figures.style import (
    COLOURS,
    Figure,
    canvas,
    of_group,
    short,
    svg_of,
)
from seedbed.leaderboard.tables.columns import group_title
from seedbed.leaderboard.tables.table import unrounded

Searches = Mapping[tuple[str, str], Sequence[Run]]
"""Search trials by method and refiner."""


def expected_best(values: Sequence[float]) -> list[float]:
    """Return the expected maximum of n of the values, drawn without replacement, for n = 1 … all.

    Of the sorted values v₁ ≤ … ≤ v_N the i-th is the highest of n in C(i−1, n−1) of the C(N, n) choices (docs/
    protocol.md, Statistics, names the sources).
    """
    ordered = sorted(values)
    return [
        math.fsum(map(operator.mul, ordered[n - 1 :], shares)) for n, shares in enumerate(_shares(len(ordered)), 1)
    ]


@functools.lru_cache(maxsize=8)
def _shares(total: int) -> list[list[float]]:
    """Return, for n = 1 … total, in which share of the choices of n each value from the n-th on is the highest."""
    return [
        [math.comb(i, n - 1) / choices for i in range(n - 1, total)]
        for n in range(1, total + 1)
        for choices in [math.comb(total, n)]
    ]


def budget_figure(group: Group, cells: Searches, stem: str) -> Figure | None:
    """Return the curves of a group's searches, one panel per method; None if no search trial is complete."""
    curves = {cell: expected_best(known) for cell, runs in cells.items() if (known := _known(runs))}
    if not curves:
        return None
    methods = sorted({method for method, _ in curves})
    refiners = sorted({refiner for _, refiner in curves})
    colours = {refiner: COLOURS[i % len(COLOURS)] for i, refiner in enumerate(refiners)}
    name, title = f"budget-{stem}", f"Expected best tune score against search trials: {group_title(group)}"
    columns = 1 if len(methods) == 1 else 2
    lines = math.ceil(len(methods) / columns)
    with canvas(0.7 + 1.7 * lines, lines, columns, sharex=True, sharey=True) as (figure, axes):
        for axis, method in zip(axes.flat, methods, strict=False):
            for refiner in refiners:
                if (method, refiner) in curves:
                    curve = [100 * value for value in curves[method, refiner]]
                    axis.plot(range(1, len(curve) + 1), curve, "o-", ms=2.5, lw=1.2, color=colours[refiner])
                    default = _default(cells[method, refiner])
                    if default is not None:
                        axis.axhline(100 * default, color=colours[refiner], lw=0.8, ls=":")
            axis.set_title(short(method), loc="left")
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.grid(visible=True)
        for axis in axes.flat[len(methods) :]:
            axis.set_visible(False)
        figure.supxlabel("search trials", fontsize=8)
        figure.supylabel("expected best tune mIoU (%)", fontsize=8)
        keys = [axes[0, 0].plot([], [], "o-", ms=2.5, lw=1.2, color=colours[refiner])[0] for refiner in refiners]
        figure.legend(
            keys, [short(refiner) for refiner in refiners], loc="outside upper center", ncols=min(4, len(refiners))
        )
        svg = svg_of(figure, name, title)
    caption = (
        f"{of_group(group)} Expected best mIoU of the pseudo-masks on tune among n search trials, drawn without "
        "replacement from the trials that ran; dotted: the default settings, trial 0. Optuna's trials are not "
        "independent, because later ones depend on earlier ones, so a curve describes these trials and "
        f"not other searches. {_left_out(cells)}"
    ).strip()
    header = ["method", "refiner", "trials", "expected_best", "default"]
    rows = [
        [*cell, n, value, _default(cells[cell])]
        for cell, curve in sorted(curves.items())
        for n, value in enumerate(curve, 1)
    ]
    return Figure(name, title, caption, svg, unrounded(header, rows), tuple(methods), group.scope.dataset)


def _known(runs: Sequence[Run]) -> list[float]:
    return [value for run in runs if (value := objective(run)) is not None]


def _default(runs: Sequence[Run]) -> float | None:
    return next((objective(run) for run in runs if run.settings == "default"), None)


def _left_out(cells: Searches) -> str:
    """Return how many trials have no score and are therefore in no curve."""
    count = sum(objective(run) is None for runs in cells.values() for run in runs)
    if not count:
        return ""
    return (
        f"{count} trial{'s' if count > 1 else ''} without a score (pruned, failed or not finished) are left out."
    )
