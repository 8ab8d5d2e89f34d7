"""The numbers of a group's rows with their 95 % intervals."""

from __future__ import annotations

from seedbed.leaderboard.analysis.pairwise import GroupAnalysis
from seedbed.leaderboard.analysis.ranking import Group
from seedbed.leaderboard.analysis.summary import Summary
from seedbed.leaderboard.figures.style import (
    COLOURS,
    Figure,
    canvas,
    label,
    of_group,
    svg_of,
)
from seedbed.leaderboard.tables.columns import group_title, ranked_by
from seedbed.leaderboard.tables.table import unrounded


def interval_figure(group: Group, analysis: GroupAnalysis, stem: str) -> Figure | None:
    """Return every row's number with its interval, in the order of the table; None if no row has a number."""
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
        axis.set_yticks(range(len(known)), [label(row) for _, row, _ in known], fontsize=7)
        axis.set_ylim(len(known) - 0.4, -0.6)
        axis.set_xlabel(f"{ranked_by(group)} (%)")
        axis.grid(visible=True, axis="x")
        svg = svg_of(figure, name, title)
    caption = (
        f"{of_group(group)} Dots are means over random seeds, lines 95 % intervals over images and random seeds; "
        "red: `best` settings; hollow: not ranked. Rows share images, so rows whose lines overlap may still "
        "differ: see the comparisons."
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
    return Figure(name, title, caption, svg, unrounded(header, rows), dataset=group.scope.dataset)
