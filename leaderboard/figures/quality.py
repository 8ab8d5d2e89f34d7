"""The numbers of a group's rows as pictures: with their intervals, and class by class."""

from __future__ import annotations

import numpy as np

from seedbed.leaderboard.analysis.pairwise import GroupAnalysis
from seedbed.leaderboard.analysis.ranking import Group, Row
from seedbed.leaderboard.analysis.summary import Summary
from seedbed.leaderboard.figures.figure import (
    COLOURS,
    INK,
    Figure,
    canvas,
    of_group,
    ordinal,
    short,
    svg_of,
)
from seedbed.leaderboard.tables.columns import group_title, ranked_by
from seedbed.leaderboard.tables.table import unrounded


def interval_figure(group: Group, analysis: GroupAnalysis, stem: str) -> Figure | None:
    """Return every row's number with its interval, in the order of the table; None where no row has a number."""
    known = [
        (index, row, value)
        for index, row in enumerate(group.rows)
        if isinstance(value := row.values[group.measure.name], Summary)
    ]
    if not known:
        return None
    name, title = f"intervals-{stem}", f"{ranked_by(group)} with 95 % intervals: {group_title(group)}"
    with canvas(0.8 + 0.17 * len(known)) as (figure, axes):
        axis = axes[0, 0]
        for place, (index, row, value) in enumerate(known):
            colour = COLOURS[0] if row.at("default") else COLOURS[1]
            if index in analysis.intervals:
                axis.plot(
                    [100 * limit for limit in analysis.intervals[index]], [place, place], color=colour, lw=1.2
                )
            filled = colour if row.rank is not None else "none"
            axis.plot(100 * value.mean, place, "o", ms=4, color=colour, mfc=filled)
        axis.set_yticks(range(len(known)), [_label(row) for _, row, _ in known], fontsize=7)
        axis.set_ylim(len(known) - 0.4, -0.6)
        axis.set_xlabel(f"{ranked_by(group)} (%)")
        axis.grid(visible=True, axis="x")
        svg = svg_of(figure, name, title)
    caption = (
        f"{of_group(group)} Dots are means over random seeds, lines 95 % intervals over images and random seeds; "
        "red: `best` settings; hollow: not ranked. Rows share images, so two lines that overlap may still be told "
        "apart: the comparisons say which."
    )
    header = [
        "method",
        "refiner",
        "settings",
        "rank",
        "rank_low",
        "rank_high",
        "random_seeds",
        "mean",
        "low",
        "high",
    ]
    rows = [
        [
            *(row.method, row.refiner, row.settings, row.rank),
            *analysis.rank_intervals.get(index, (None, None)),
            *(" ".join(map(str, row.seeds)), value.mean),
            *analysis.intervals.get(index, (None, None)),
        ]
        for index, row, value in known
    ]
    return Figure(name, title, caption, svg, unrounded(header, rows), dataset=group.dataset)


def class_figure(group: Group, stem: str) -> Figure | None:
    """Return the IoU of each class in each row as a map of colours; None where no row has any."""
    rows = [row for row in group.rows if any(value is not None for value in row.classes.values())]
    if not rows:
        return None
    classes = group.classes
    values = np.array([[_iou(row, label) for label in classes] for row in rows])
    name, title = f"classes-{stem}", f"IoU by class, {ranked_by(group)}: {group_title(group)}"
    names = [short(name) for name in classes]
    size = max(3, min(7, 150 / len(classes)))
    # The classes stand upright below the rows; a letter is 0.6 of its size wide, at 72 points an inch.
    written = 0.6 * size / 72 * max(map(len, names))
    with canvas(1.2 + written + 0.17 * len(rows)) as (figure, axes):
        axis = axes[0, 0]
        picture = axis.imshow(values, cmap="viridis", vmin=0, vmax=100, aspect="auto", interpolation="none")
        axis.set_xticks(range(len(classes)), names, rotation=90, fontsize=size)
        axis.set_yticks(range(len(rows)), [_label(row) for row in rows], fontsize=7)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        scale = figure.colorbar(picture, ax=axis, orientation="horizontal", shrink=0.6, aspect=30, label="IoU (%)")
        scale.outline.set_edgecolor(INK)
        svg = svg_of(figure, name, title)
    caption = (
        f"{of_group(group)} IoU of each class by {ranked_by(group)}, mean over random seeds; lighter is better. "
        "A class of which some random seed has no IoU is left empty."
    )
    table = unrounded(
        ["method", "refiner", "settings", "rank", *classes],
        [
            [row.method, row.refiner, row.settings, row.rank, *(row.classes.get(c) for c in classes)]
            for row in rows
        ],
    )
    return Figure(name, title, caption, svg, table, dataset=group.dataset)


def _label(row: Row) -> str:
    return f"{ordinal(row)} · {short(row.name)}"


def _iou(row: Row, label: str) -> float:
    value = row.classes.get(label)
    return float("nan") if value is None else 100 * value
