"""The style of the figures: pictures for light and dark pages, each with its numbers."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape, quoteattr

from seedbed.leaderboard.analysis.ranking import Group, Row
from seedbed.leaderboard.tables.columns import group_title

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

INK = "#010203"
"""Placeholder for the colour of the page's text; no figure uses it for anything else."""
COLOURS = ("#0f8b8d", "#d1495b", "#7b6dd0", "#c98a00", "#5b8c3a", "#3b7dd8", "#b04fa0", "#8a6d55")
"""Readable on white and on black."""
WIDTH = 4.6
"""Inches. Text of 8 points stays readable if the figure is 360 pixels wide."""
LONGEST = 44
"""Maximum number of letters of a name in a figure."""
_SHOWN = 1.35
"""Maximum magnification of a figure on a page."""
_UNWANTED = re.compile(
    r"<metadata>.*?</metadata>\s*"
    # The SVG's style rules would apply to the whole page.
    r"|<style.*?</style>\s*"
    # Clip paths are not needed, and a page without references is easy to check.
    r'|<clipPath.*?</clipPath>\s*|\sclip-path="[^"]*"|\sxmlns:xlink="[^"]*"',
    re.DOTALL,
)


@dataclass(frozen=True)
class Figure:
    """One picture with its numbers."""

    name: str
    """The stem of its files, [a-z0-9_-]."""
    title: str
    caption: str
    """What it shows and how to read it."""
    svg: str
    """A whole `<svg>` element, transparent, with text and axes in the colour of the text around it."""
    csv: str
    """The numbers, unrounded, with a header."""
    methods: tuple[str, ...] = ()
    """The methods that it shows; empty: all."""
    dataset: str = ""
    """The data set that it shows; empty: all."""


def slug(text: str) -> str:
    """Return text as part of a figure's name, [a-z0-9_-]."""
    return re.sub(r"[^a-z0-9_]+", "-", text.lower()).strip("-") or "unnamed"


def stems(groups: Sequence[Group]) -> list[str]:
    """Return the end of the names of each group's figures: the data set, numbered if it has several groups."""
    names: list[str] = []
    for group in groups:
        name, number = slug(group.scope.dataset), 1
        while (stem := name if number == 1 else f"{name}-{number}") in names:
            number += 1
        names.append(stem)
    return names


def ordinal(row: Row) -> str:
    """Return a row's rank, or a dash."""
    return "–" if row.rank is None else str(row.rank)


def short(name: str) -> str:
    """Return a name cut to LONGEST letters; the CSV has the whole name."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def label(row: Row) -> str:
    """Return a row's rank and short name."""
    return f"{ordinal(row)} · {short(row.name)}"


def of_group(group: Group) -> str:
    """Return the start of a caption, which names the group."""
    return f"{group_title(group)}."


@contextmanager
def canvas(height: float, rows: int = 1, columns: int = 1, **options: Any) -> Iterator[tuple[Canvas, Any]]:
    """Yield an empty canvas, `height` inches high, and its axes (rows, columns), in the leaderboard's style."""
    from matplotlib import style
    from matplotlib.figure import Figure as Canvas

    with style.context(_style()):
        figure = Canvas(figsize=(WIDTH, height), layout="constrained")
        yield figure, figure.subplots(rows, columns, squeeze=False, **options)


def svg_of(figure: Canvas, name: str, title: str) -> str:
    """Return a canvas as an SVG element with unique ids; the same content gives the same bytes."""
    from matplotlib import style

    out = io.StringIO()
    with style.context([*_style(), {"svg.hashsalt": name}]):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = _UNWANTED.sub("", text[text.index("<svg") :]).replace("xlink:href", "href")
    text = re.sub(r'\b(id="|href="#)', rf"\g<1>{name}-", text)
    head, end, body = text.partition(">")
    box = re.search(r'viewBox="0 0 ([\d.]+)', head)
    assert box is not None, "matplotlib writes a view box"
    width = round(_SHOWN * float(box[1]))
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    shown = f"width:100%;max-width:{width}px;height:auto;stroke-linejoin:round;stroke-linecap:butt"
    head += f' role="img" aria-label={quoteattr(title)} style="{shown}"'
    body = re.sub(r"font: ([^'\"]*)'[^\"]*?sans-serif", r"font: \1sans-serif", body)
    text = f"{head}{end}<title>{escape(title)}</title>{body}"
    return text.replace(INK, "currentColor").replace("\r", "")


def _style() -> list[Any]:
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color")
    own = {
        **dict.fromkeys(inked, INK),
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 8,
        "axes.titlesize": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.unicode_minus": False,
        "grid.color": INK,
        "grid.alpha": 0.15,
        "grid.linewidth": 0.5,
        "legend.frameon": False,
        "svg.fonttype": "none",
        # Show dollar signs in names as they are.
        "text.parse_math": False,
    }
    # "default" keeps the bytes independent of the user's matplotlibrc.
    return ["default", own]
