"""The pages of the site as HTML, from the templates in `templates/`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from seedbed.benchmark.pipeline.registry import METHODS
from seedbed.benchmark.studies.result import StudyResult, signed
from seedbed.leaderboard.analysis.ranking import NOTHING
from seedbed.leaderboard.data.conditions import SUBMITTED
from seedbed.leaderboard.site import content as places
from seedbed.leaderboard.site.content import Content
from seedbed.leaderboard.site.gallery import DatasetGallery
from seedbed.leaderboard.site.rows import GroupView, repeats
from seedbed.leaderboard.tables.claims import claims_counted, claims_table
from seedbed.leaderboard.tables.columns import (
    EMPTY,
    MARKS,
    NUMBERS,
    classes_counted,
    columns_of,
    group_title,
    initialisation,
    legend,
    number,
    printed,
    ranked_by,
    remarks,
    segmentation,
    summary,
)
from seedbed.leaderboard.tables.pairwise import all_pairs, average_table
from seedbed.leaderboard.tables.study import side_by_side
from seedbed.leaderboard.tables.table import sections

REFERENCES = {
    "fully_supervised": "The group's segmentation network, trained on true masks with the settings and random "
    "seeds of the methods' networks: the upper bound. It is not ranked.",
    "background": "Masks of background alone, made without a network. They are not ranked.",
    "whole_image": "Masks that fill each image with its tag; of several, with the one that most training images "
    "have. They are not ranked.",
}
"""What each reference is, for its page."""
SUBMISSION = (
    "Saved results of code outside Seedbed. `seedbed submit` scored them by the same protocol; what produced them "
    "is as their authors state it."
)
"""What a submitted row is, for its page."""


def pages(content: Content) -> Iterator[tuple[str, str]]:
    """Yield path and text of each page, the overview first."""
    yield "index.html", overview(content)
    yield "studies.html", _studies(content)
    yield "gallery.html", _render("gallery.html", content)
    for method in content.methods:
        yield places.method_page(method), _method(content, method)
    for reference, title in content.references.items():
        yield places.reference_page(reference), _reference(content, reference, title)
    for dataset in content.datasets:
        yield places.dataset_page(dataset), _dataset(content, dataset)
    for study in content.studies:
        yield places.study_page(study), _study(content, study)
    for gallery in content.galleries:
        yield places.gallery_page(gallery), _gallery(content, gallery)


def overview(content: Content) -> str:
    """Return `index.html`."""
    # A figure about one method is on the method's page.
    figures = [figure for figure in content.analysis.figures if len(figure.methods) != 1]
    return _render("index.html", content, summary=summary(content.board), views=content.views, figures=figures)


def _method(content: Content, method: str) -> str:
    known = method in METHODS.names()
    submitted = any(run.method == method and run.conditions.get(SUBMITTED) for run in content.runs)
    page = places.method_page(method)
    return _render(
        "method.html",
        content,
        root="../",
        method=method,
        description=METHODS.description(method).split("\n\n") if known else [SUBMISSION] if submitted else [],
        **_rows_of(content, page),
        figures=[figure for figure in content.analysis.figures if method in figure.methods],
        studies=[study for study in content.studies if study.method == method],
        papers=[paper for paper in content.papers if paper.method == method],
    )


def _reference(content: Content, reference: str, title: str) -> str:
    return _render(
        "method.html",
        content,
        root="../",
        method=title,
        description=[REFERENCES[reference]],
        **_rows_of(content, places.reference_page(reference)),
        figures=[],
        studies=[],
        papers=[],
    )


def _rows_of(content: Content, page: str) -> dict[str, Any]:
    """Return what a page shows of the rows of its method or reference."""
    return {
        "views": [_only(view, page) for view in content.views if _only(view, page).main],
        "repeats": [repeat for view in content.views for repeat in repeats(view, content.rows_by_scope, page)],
    }


def _only(view: GroupView, page: str) -> GroupView:
    """Return a group with the rows of one page; ranks and marks stay those of the whole group."""
    return replace(
        view,
        main=tuple(line for line in view.main if line.page == page),
        all=tuple(line for line in view.all if line.page == page),
        heat=tuple(heat for heat in view.heat if heat.line.page == page),
    )


def _dataset(content: Content, dataset: str) -> str:
    runs = [run for run in content.runs if run.dataset == dataset]
    return _render(
        "dataset.html",
        content,
        root="../",
        dataset=dataset,
        views=[view for view in content.views if view.group.scope.dataset == dataset],
        digests=sorted({run.data_digest for run in runs if run.data_digest}),
        figures=[figure for figure in content.analysis.figures if figure.dataset == dataset],
        studies=[study for study in content.studies if study.dataset == dataset],
        galleries=[gallery for gallery in content.galleries if gallery.dataset == dataset],
    )


def _studies(content: Content) -> str:
    claims, counted = claims_table(content.studies), claims_counted(content.studies)
    linked = [places.study_page(study) for study in content.studies for _ in study.claims]
    return _render(
        "studies.html", content, claims=claims, counted=counted, claimed=zip(linked, claims.rows, strict=True)
    )


def _study(content: Content, study: StudyResult) -> str:
    return _render("study.html", content, root="../", study=study)


def _gallery(content: Content, gallery: DatasetGallery) -> str:
    return _render("gallery_dataset.html", content, root="../", gallery=gallery)


def _render(template: str, content: Content, root: str = "", **values: Any) -> str:
    """Return a page; `root` leads from it to the site's folder."""
    return _environment().get_template(template).render(content=content, root=root, **values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("seedbed.leaderboard.site"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"code": _code, "number": number, "printed": printed, "signed": _signed, "svg": Markup}
    environment.globals |= {
        "places": places,
        "all_pairs": all_pairs,
        "average_table": average_table,
        "columns_of": columns_of,
        "legend": legend,
        "sections": sections,
        "side_by_side": side_by_side,
        "group_title": group_title,
        "initialisation": initialisation,
        "segmentation": segmentation,
        "classes_counted": classes_counted,
        "ranked_by": ranked_by,
        "remarks": remarks,
        "empty": EMPTY,
        "marks": MARKS,
        "numbers": NUMBERS,
    }
    return environment


def _signed(value: float | None, digits: int = 2) -> str:
    return NOTHING if value is None else signed(value, digits)


def _code(text: str) -> Markup:
    """Return text as HTML in which `words between backticks` are code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
