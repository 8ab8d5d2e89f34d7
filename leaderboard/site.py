"""The leaderboard as one self-contained page that loads nothing from anywhere."""

from __future__ import annotations

import re

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from leaderboard.columns import COLUMNS, cells, initialisation, ranked_by, remarks, sections, segmentation
from leaderboard.standing import NOTHING, Board, Group, Row
from leaderboard.tables import EMPTY, MARKS, NUMBERS, summary


def page(board: Board) -> str:
    """Return the page as HTML."""
    environment = Environment(
        loader=PackageLoader("leaderboard"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.filters["code"] = _code
    return environment.get_template("leaderboard.html").render(
        board=board,
        summary=summary(board),
        columns=COLUMNS,
        initialisation=initialisation,
        segmentation=segmentation,
        sections=list(sections()),
        cells=cells,
        remarks=remarks,
        ranked_by=ranked_by,
        classes=_classes,
        empty=EMPTY,
        numbers=NUMBERS,
        marks=MARKS,
    )


def _classes(group: Group, row: Row) -> list[str]:
    """Return the row's IoU of each class of the group, in percent with one decimal."""
    known = [row.classes.get(name) for name in group.classes]
    return [NOTHING if value is None else f"{100 * value:.1f}" for value in known]


def _code(text: str) -> Markup:
    """Return text as HTML in which `words between backticks` are code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
