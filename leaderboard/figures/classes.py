"""The IoU of each class in each row of a group."""

from __future__ import annotations

import numpy as np

from seedbed.leaderboard.analysis.ranking import Group, Row
from seedbed.leaderboard.figures.style import (
    INK,
    Figure,
    canvas,
    label,
    of_group,
    short,
    svg_of,
)
from seedbed.leaderboard.tables.columns import group_title, ranked_by
from seedbed.leaderboard.tables.table import unrounded


def class_figure(group: Group, stem: str) -> Figure | None:
    """Return the IoU of each class in each row as a heat map; None if no row has any."""
    rows = [row for row in group.rows if any(value is not None for value in row.classes.values())]
    if not rows:
        return None
    classes = group.classes
    values = np.array([[_iou(row, name) for name in classes] for row in rows])
    name, title = f"classes-{stem}", f"IoU by class, {ranked_by(group)}: {group_title(group)}"
    names = [short(name) for name in classes]
    size = max(3, min(7, 150 / len(classes)))
    # Class names are vertical below the rows; a letter is 0.6 of its size wide, at 72 points per inch.
    written = 0.6 * size / 72 * max(map(len, names))
    with canvas(1.2 + written + 0.17 * len(rows)) as (figure, axes):
        axis = axes[0, 0]
        picture = axis.imshow(values, cmap="viridis", vmin=0, vmax=100, aspect="auto", interpolation="none")
        axis.set_xticks(range(len(classes)), names, rotation=90, fontsize=size)
        axis.set_yticks(range(len(rows)), [label(row) for row in rows], fontsize=7)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        scale = figure.colorbar(picture, ax=axis, orientation="horizontal", shrink=0.6, aspect=30, label="IoU (%)")
        scale.outline.set_edgecolor(INK)
        svg = svg_of(figure, name, title)
    caption = (
        f"{of_group(group)} IoU of each class by {ranked_by(group)}, mean over random seeds; lighter is better. "
        "A class without an IoU for one of the random seeds is empty."
    )
    table = unrounded(
        ["method", "refiner", "settings", "rank", *classes],
        [
            [row.method, row.refiner, row.settings, row.rank, *(row.classes.get(c) for c in classes)]
            for row in rows
        ],
    )
    return Figure(name, title, caption, svg, table, dataset=group.scope.dataset)


def _iou(row: Row, name: str) -> float:
    value = row.classes.get(name)
    return float("nan") if value is None else 100 * value
