"""A figure of the leaderboard: a picture that reads on light and dark pages, and the numbers under it."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape, quoteattr

from seedbed.leaderboard.analysis.ranking import Group, Row
from seedbed.leaderboard.data.snapshot import Scope
from seedbed.leaderboard.tables.columns import group_title

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

INK = "#010203"
"""Stands for the colour of the page's text: no figure has it otherwise."""
COLOURS = ("#0f8b8d", "#d1495b", "#7b6dd0", "#c98a00", "#5b8c3a", "#3b7dd8", "#b04fa0", "#8a6d55")
"""Readable on white and on black."""
WIDTH = 4.6
"""Inches. With text of 8 points all is readable where the figure is 360 pixels wide."""
LONGEST = 44
"""Letters of a name in a figure."""
_SHOWN = 1.35
"""So many times its own size a figure is shown at most."""
_UNWANTED = re.compile(
    r"<metadata>.*?</metadata>\s*"
    # Its style is for every element: on a page, for the page's too.
    r"|<style.*?</style>\s*"
    # Nothing is drawn outside its axes, and a page that refers to nothing is easily checked.
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
    """The numbers, not rounded, with a header."""
    methods: tuple[str, ...] = ()
    """The methods that it is about; empty: all."""
    dataset: str = ""
    """The data set that it is about; empty: all."""


def scope_of(group: Group) -> Scope:
    """Return what the runs of a group have in common."""
    return Scope(
        group.dataset,
        group.supervision,
        group.backbone,
        group.initialisation,
        group.segmentation_backbone,
        group.segmentation_initialisation,
    )


def slug(text: str) -> str:
    """Return text in the letters of a figure's name."""
    return re.sub(r"[^a-z0-9_]+", "-", text.lower()).strip("-") or "unnamed"


def stems(groups: Sequence[Group]) -> list[str]:
    """Return what the names of each group's figures end with: the data set, numbered where it has more groups."""
    names: list[str] = []
    for group in groups:
        name, number = slug(group.dataset), 1
        while (stem := name if number == 1 else f"{name}-{number}") in names:
            number += 1
        names.append(stem)
    return names


def ordinal(row: Row) -> str:
    """Return a row's rank, or a dash."""
    return "–" if row.rank is None else str(row.rank)


def short(name: str) -> str:
    """Return a name that leaves room for the numbers: the whole one is in the CSV."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def of_group(group: Group) -> str:
    """Return how a caption says which group it is about."""
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
    """Return a canvas as an SVG element with ids of its own, the same bytes for the same content."""
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
        # Names are shown as they are, dollar signs too.
        "text.parse_math": False,
    }
    # Whatever the user's own matplotlibrc says, the bytes are the same.
    return ["default", own]
