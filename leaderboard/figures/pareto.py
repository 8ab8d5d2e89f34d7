"""The Pareto front of quality and cost."""

from __future__ import annotations

from dataclasses import dataclass

from seedbed.leaderboard.analysis.ranking import Group, Row
from seedbed.leaderboard.analysis.summary import Summary
from seedbed.leaderboard.figures.style import (
    COLOURS,
    INK,
    Figure,
    canvas,
    of_group,
    ordinal,
    short,
    svg_of,
)
from seedbed.leaderboard.tables.columns import duration, group_title, ranked_by
from seedbed.leaderboard.tables.table import unrounded


@dataclass(frozen=True)
class Point:
    """A row's cost and quality."""

    row: Row
    hours: float
    value: float
    """The group's measure, a fraction."""


def points_by_device(group: Group) -> dict[str, list[Point]]:
    """Return the rows that have a number and a cost, by the kind of device: `CPU`, `GPU` or `CPU + GPU`.

    Time on a GPU and on a CPU cannot be compared, so they never share an axis.
    """
    found: dict[str, list[Point]] = {}
    for row in group.rows:
        value = row.values[group.measure.name]
        if row.seconds and isinstance(value, Summary):
            devices = sorted({"CPU" if device == "cpu" else "GPU" for device in row.seconds})
            point = Point(row, sum(row.seconds.values()) / 3600, value.mean)
            found.setdefault(" + ".join(devices), []).append(point)
    return dict(sorted(found.items()))


def front(points: list[Point]) -> list[Point]:
    """Return the Pareto front, the cheapest first: no other point costs as little or less and gives more, or costs
    less and gives as much."""
    return sorted(
        (point for point in points if not any(_beats(other, point) for other in points)),
        key=lambda point: (point.hours, -point.value, point.row.name),
    )


def _beats(one: Point, other: Point) -> bool:
    no_worse = one.hours <= other.hours and one.value >= other.value
    return no_worse and (one.hours, one.value) != (other.hours, other.value)


def sentence(group: Group, device: str, points: list[Point]) -> str:
    """Return a sentence that lists the Pareto front."""
    listed = [
        f"{point.row.name} ({duration(3600 * point.hours)}, {100 * point.value:.2f})" for point in front(points)
    ]
    return f"On the Pareto front of {device} time and {ranked_by(group)}: {'; '.join(listed)}."


def cost_figures(group: Group, stem: str) -> list[Figure]:
    """Return a figure for each kind of device in a group."""
    return [
        _figure(group, f"pareto-{stem}" if number == 1 else f"pareto-{stem}-{number}", device, points)
        for number, (device, points) in enumerate(points_by_device(group).items(), 1)
    ]


def _figure(group: Group, name: str, device: str, points: list[Point]) -> Figure:
    best = front(points)
    title = f"{device} time and {ranked_by(group)}: {group_title(group)}"
    scale, unit = (1, "hours") if max(point.hours for point in points) >= 1 else (60, "minutes")
    with canvas(3.4 + 0.14 * len(best)) as (figure, axes):
        axis = axes[0, 0]
        for point in points:
            colour = COLOURS[0] if point in best else INK
            filled = colour if point.row.rank is not None else "none"
            axis.plot(
                scale * point.hours,
                100 * point.value,
                "o",
                ms=4,
                color=colour,
                mfc=filled,
                alpha=_alpha(point, best),
            )
            axis.annotate(
                ordinal(point.row),
                (scale * point.hours, 100 * point.value),
                (3, 3),
                textcoords="offset points",
                fontsize=7,
                alpha=_alpha(point, best),
            )
        steps = [(scale * point.hours, 100 * point.value) for point in best]
        axis.step(*zip(*steps, strict=True), where="post", color=COLOURS[0], lw=1)
        hours = [point.hours for point in points]
        if min(hours) > 0 and max(hours) > 10 * min(hours):
            axis.set_xscale("log")
            axis.xaxis.set_major_formatter("{x:g}")
        axis.set(xlabel=f"{device} {unit}", ylabel=f"{ranked_by(group)} (%)")
        axis.grid(visible=True)
        listed = "\n".join(f"{ordinal(point.row)}  {short(point.row.name)}" for point in best)
        figure.supxlabel(f"On the front, with their ranks:\n{listed}", fontsize=7, x=0.02, ha="left")
        svg = svg_of(figure, name, title)
    caption = (
        f"{of_group(group)} Each point is a row: {ranked_by(group)} against the time to compute it from "
        "scratch, search included for `best`. The line joins the rows of the Pareto front; a number "
        "is the row's rank, and rows without a rank are hollow."
    )
    header = ["method", "refiner", "settings", "rank", "device", "hours", group.measure.name, "on_front"]
    rows = [[*_cells(point.row), device, point.hours, point.value, str(point in best).lower()] for point in points]
    return Figure(name, title, caption, svg, unrounded(header, rows), dataset=group.scope.dataset)


def _alpha(point: Point, best: list[Point]) -> float:
    return 1.0 if point in best else 0.55


def _cells(row: Row) -> tuple[object, ...]:
    return row.method, row.refiner, row.settings, row.rank


def sentences(group: Group) -> list[str]:
    """Return the Pareto front of each kind of device in a group, as a sentence."""
    return [sentence(group, device, points) for device, points in points_by_device(group).items()]
