"""The site's pages: what is escaped, that links lead somewhere, that numbers are those of the tables."""

from __future__ import annotations

import csv
import io
import json
import re
import warnings
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from markupsafe import escape

from seedbed.benchmark.errors import DataError
from seedbed.benchmark.paths import slug
from seedbed.benchmark.studies.result import read_studies, signed
from seedbed.leaderboard.analysis.ranking import board_of
from seedbed.leaderboard.analysis.result import analyse
from seedbed.leaderboard.analysis.summary import Summary
from seedbed.leaderboard.build import write_leaderboard
from seedbed.leaderboard.data.snapshot import runs_of, table_of
from seedbed.leaderboard.figures.classes import class_figure
from seedbed.leaderboard.site import pages
from seedbed.leaderboard.site.content import Content
from seedbed.leaderboard.site.downloads import FORMATS, downloads
from seedbed.leaderboard.tables import claims
from seedbed.leaderboard.tables.columns import percent, printed
from seedbed.leaderboard.tables.table import Column, text_table
from tests.helpers.site_content import HOSTILE, build_site, runs, study, write_study


class Reader(HTMLParser):
    """Collects tags, links, ids and the texts of table cells of a page."""

    VOID = ("meta", "link", "img", "input", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.rows: list[tuple[str, list[str]]] = []
        """The class of its table and the cells of each row."""
        self.attributes: list[tuple[str, str | None]] = []
        self._open: list[str] = []
        self._table = ""
        self.feed(text)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags[tag] += 1
        self.attributes += attrs
        self.links += [values[name] for name in ("href", "src", "data-photo") if name in values]
        self.ids += [values["id"]] if "id" in values else []
        if tag not in self.VOID:
            self._open.append(tag)
        if tag == "table":
            self._table = values.get("class") or ""
        elif tag == "tr":
            self.rows.append((self._table, []))
        elif tag in ("td", "th"):
            self.rows[-1][1].append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self.rows and {"td", "th"} & set(self._open):
            self.rows[-1][1][-1] += data

    def table(self, name: str) -> list[list[str]]:
        """Return the cells of the tables of a class, heads included."""
        return [[" ".join(cell.split()) for cell in cells] for kind, cells in self.rows if kind == name]


@pytest.fixture(scope="module")
def site(tmp_path_factory, chimera_root) -> tuple[Path, Content]:
    """Return the folder of a written site, and what it shows."""
    return build_site(tmp_path_factory.mktemp("site"), chimera_root)


def read(path: Path) -> Reader:
    """Return the reader of a page."""
    return Reader(path.read_text("utf-8"))


def test_every_page_is_there_and_well_formed(site):
    folder, _ = site
    found = {str(path.relative_to(folder)) for path in folder.rglob("*.html")}
    methods = {f"methods/{slug(name)}.html" for name in ("cam", "sc_cam", "broken", HOSTILE)}
    assert found == methods | {
        *("index.html", "studies.html", "gallery.html", "datasets/chimera.html"),
        *("studies/svm_t2-chimera.html", "gallery/chimera.html"),
    }
    for name in found:
        reader = read(folder / name)
        assert reader.tags["h1"] == reader.tags["main"] == 1
        assert len(reader.ids) == len(set(reader.ids))


def test_all_links_resolve(site):
    folder, _ = site
    for page in folder.rglob("*.html"):
        for link in read(page).links:
            address, _, fragment = link.partition("#")
            target = page.parent / unquote(address) if address else page
            assert target.is_file(), f"{page}: {link}"
            assert folder.resolve() in target.resolve().parents
            if fragment:
                assert fragment in read(target).ids, f"{page}: {link}"


def test_hostile_names_are_text_everywhere(site):
    folder, _ = site
    for page in folder.rglob("*.html"):
        text = page.read_text("utf-8")
        assert "<script>alert" not in text
        reader = Reader(text)
        assert reader.tags["script"] == 1
        assert not [name for name, _ in reader.attributes if name.startswith("on")]
    index = (folder / "index.html").read_text("utf-8")
    escaped = "&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;&amp;\u202eevil"
    assert f'data-method="{escaped}"' in index
    # The name cannot turn what stands beside it.
    assert f"<bdi>{escaped}</bdi>" in index


def test_a_hostile_name_gives_a_plain_file_name():
    names = [HOSTILE, "../../etc/passwd", "a/b", "a b", "A b", "", ".", "..", "x" * 300, "CON:", "漢"]
    slugs = [slug(name) for name in names]
    assert len(set(slugs)) == len(slugs)
    assert all(re.fullmatch(r"[a-z0-9_][a-z0-9_-]*", text) and len(text) < 60 for text in slugs)
    assert (slug("sc_cam"), slug("voc2012-sbd.v2")) == ("sc_cam", "voc2012-sbd.v2")


def test_the_same_content_gives_the_same_bytes(site, tmp_path, chimera_root):
    folder, _ = site
    again, _ = build_site(tmp_path, chimera_root)
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    for name in names:
        assert (folder / name).read_bytes() == (again / name).read_bytes(), name


def test_no_page_asks_for_anything_elsewhere(site):
    folder, _ = site
    for path in [*folder.rglob("*.html"), *folder.rglob("*.css"), *folder.rglob("*.js")]:
        # What comes after # is a part of the same figure.
        text = re.sub(r'xmlns(:\w+)?="[^"]*"', "", path.read_text("utf-8"))
        assert not re.search(r"https?:|@import|url\((?!#)|fetch\(", text), path
        assert not any(
            link.startswith(("/", "file:", "data:")) for link in read(path).links if path.suffix == ".html"
        )


def test_the_numbers_of_the_page_are_those_of_the_csv(site):
    folder, _ = site
    flat = list(csv.DictReader(io.StringIO((folder / "tables/group-1-chimera.csv").read_text("utf-8"))))
    head, *rows = read(folder / "index.html").table("rows main")
    assert head == ["#", "Method", "Refiner", "Settings", "val mIoU", "Share", "Maps mIoU tuned",
                    "Pseudo-masks mIoU", "Gain", "Time", "How to repeat it"]  # fmt: skip
    assert [row[1] for row in rows] == [row["method"] for row in flat] == ["cam", "sc_cam", HOSTILE, "broken"]
    names = ("val_mIoU", "maps_mIoU_tuned", "pseudo_mask_mIoU")
    for row, numbers in zip(rows[:3], flat[:3], strict=True):
        assert row[0].removesuffix("1–2") == numbers["rank"]
        for cell, name in zip([row[4], *row[6:8]], names, strict=True):
            mean, std = (float(numbers[f"{name}_{part}"]) for part in ("mean", "std"))
            assert cell.partition("[")[0].strip() == percent(Summary(mean, std, 3))
    assert rows[3][4:8] == ["failed (3 of 3)", "–", "failed (3 of 3)", "failed (3 of 3)"]


def test_rank_and_number_of_a_row_have_their_intervals(site):
    folder, _ = site
    _, first, second, *_ = read(folder / "index.html").table("rows main")
    assert first[0] == "11–2"
    assert first[4] == "50.00 ± 1.00[48.12, 51.87]"
    assert second[4] == "45.00 ± 1.00"
    assert "50.00 ± 1.00 \\[48.12, 51.87\\]" in (folder / "tables/group-1-chimera-main.md").read_text("utf-8")


def test_the_heat_map_has_each_class_of_each_row(site):
    folder, _ = site
    head, *rows = read(folder / "index.html").table("rows heat")
    assert head[4:] == ["background", HOSTILE, "griffin"]
    assert [row[4:] for row in rows] == [["50.0"] * 3, ["45.0"] * 3, ["40.0"] * 3]


def test_the_comparison_of_two_rows_is_in_points(site):
    folder, _ = site
    _, pair = read(folder / "index.html").table("pairs")
    assert pair == [
        "cam + none, default",
        "sc_cam + none, default",
        "5.00",
        "1.00 … 9.00",
        "0.020",
        "–",
        "–",
        "yes",
    ]


def test_a_row_says_how_to_repeat_it():
    """Command, commit, seeds, settings, hours and remarks of a row are on its method's page."""
    command = 'seedbed run --method cam --set "A.b=<1>"'
    changes = {"parameters": json.dumps({"Cut.t": 0.3, "A.b": "<1>"}), "settings": "best", "dirty": "true"}
    found = [replace(run, **changes, command=f"{command} --seed {run.seed}") for run in runs()[:3]]
    board = board_of(runs_of(table_of(found)))
    content = Content(board, tuple(found), analyse(board, runs_of(table_of(found)), None))
    # A command is parted into words that do not break.
    text = re.sub("</?span>", "", dict(pages.pages(content))["methods/cam.html"])
    for seed in range(3):
        assert f"seedbed run --method cam --set &#34;A.b=&lt;1&gt;&#34; --seed {seed}</code>" in text
    assert "<code>A.b = &lt;1&gt;</code>; " in text
    assert "<code>Cut.t = 0.3</code>" in text
    assert "<code>abc</code> with changes that were not committed" in " ".join(text.split())
    assert "<li>not ranked: no search trial was recorded</li>" in text
    assert 'id="row-1-1"' in text


def test_a_method_tells_its_paper_and_what_the_paper_reported(site):
    folder, _ = site
    text = (folder / "methods/sc_cam.html").read_text("utf-8")
    assert "Sub-category Exploration&#34;, CVPR 2020" in text
    assert "Reported by the paper, not measured here" in text
    assert ["ours <b>", "66.6", "–", f"note {HOSTILE}"] in [cells for _, cells in Reader(text).rows]
    assert "66.6" not in (folder / "index.html").read_text("utf-8")
    unknown = (folder / f"methods/{slug(HOSTILE)}.html").read_text("utf-8")
    assert "The installed Seedbed does not have this method" in unknown


def test_a_study_is_shown_beside_the_paper(site):
    folder, _ = site
    page = read(folder / "studies/svm_t2-chimera.html")
    assert page.table("study")[2:] == [
        ["β = 20", "50.50 ± 1.25 [48.00, 52.00]", "55.25", "−4.75"],
        ["β = 0", "was not run", "–", "–"],
    ]
    text = (folder / "studies/svm_t2-chimera.html").read_text("utf-8")
    assert "20 beats 0: +1.50 [+0.50, +2.50], p = 0.010" in text
    assert (folder / "tables/svm_t2-chimera.csv").read_text("utf-8").splitlines()[1:] == [
        "svm_t2,chimera,%,β = 20,overlap,50.5,1.25,48.0,52.0,3,55.25,-4.75,",
        "svm_t2,chimera,%,β = 0,overlap,,,,,0,,,was not run",
    ]


def test_the_claims_of_all_studies_stand_in_one_table(site):
    folder, _ = site
    page = read(folder / "studies.html").table("rows claimed")
    row = ["svm_t2", "chimera", "0, 1, 2", "20 beats 0", "%", "–", "+1.50", "+0.50", "+2.50", "0.010", "holds"]
    assert page == [[column.title for column in claims.COLUMNS], row]
    with (folder / "tables/claims.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == page
    assert "Claims: 1 (holds 1, does not hold 0, undecided 0)." in (folder / "studies.html").read_text("utf-8")


def test_a_study_that_was_run_twice_has_two_pages(tmp_path):
    """The sweep's own name tells them apart, in the files too."""
    write_study(tmp_path)
    again = write_study(tmp_path / "again", sweep=HOSTILE)
    (tmp_path / "studies/svm_t2/long").mkdir()
    again.rename(tmp_path / "studies/svm_t2/long/table.json")
    both = read_studies(tmp_path / "studies")
    board = board_of(runs_of(table_of(runs())))
    content = Content(board, tuple(runs()), analyse(board, runs_of(table_of(runs())), None), both)
    found = dict(pages.pages(content)) | dict(downloads(content))
    for name in ("svm_t2-chimera", f"svm_t2-{slug(HOSTILE)}"):
        assert f"studies/{name}.html" in found["studies.html"]
        assert f"studies/{name}.html" in found
        assert {f"tables/{name}.{suffix}" for suffix in ("md", "tex", "csv")} <= set(found)
    assert found["studies.html"].count(f"<bdi>{escape(HOSTILE)}</bdi>") == 1
    assert [row[0] for row in claims.claims_table(both).rows] == ["svm_t2", f"svm_t2 ({HOSTILE})"]


def test_a_claim_that_nobody_measured_has_dashes(tmp_path):
    """The digits are those of the study's unit; what is not known is not zero."""
    nothing = {"verdict": "undecided", "difference": None, "low": None, "high": None, "p": None}
    measured = {"verdict": "does not hold", "difference": -0.0104, "low": -0.016, "high": -0.006, "p": 0.001}
    both = [{"text": "a", **nothing}, {"text": "b", **measured, "paper": 0.14}]
    write_study(tmp_path, unit="fraction", claims=both, seeds=[0])
    found = read_studies(tmp_path / "studies")
    assert [row[2:] for row in claims.claims_table(found).rows] == [
        ("0", "a", "fraction", "–", "–", "–", "–", "–", "undecided"),
        ("0", "b", "fraction", "+0.140", "−0.010", "−0.016", "−0.006", "0.001", "does not hold"),
    ]
    assert claims.claims_counted(found) == "holds 0, does not hold 1, undecided 1"


def test_without_claims_there_is_no_table_of_them(tmp_path):
    write_leaderboard(table_of(runs()), tmp_path)
    assert "claims" not in (tmp_path / "studies.html").read_text("utf-8")
    assert not (tmp_path / "tables/claims.md").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rows": [{"label": "a", "cells": []}]}, "more or fewer cells"),
        ({"other": 1}, "other"),
        ({"claims": [{"text": "a"}]}, "verdict"),
        ({"protocol": {"ours": {}}}, "paper"),
    ],
)
def test_a_study_that_cannot_be_read_is_named(tmp_path, changes, words):
    path = write_study(tmp_path, **changes)
    with pytest.raises(DataError, match=words) as error:
        read_studies(tmp_path / "studies")
    assert str(path) in str(error.value)


def test_a_study_without_a_condition_of_the_paper_has_a_dash(tmp_path):
    write_study(tmp_path)
    (found,) = read_studies(tmp_path / "studies")
    assert found.conditions == [("backbone", "tiny", "VGG-16"), ("images", "–", "10,582")]
    assert read_studies(tmp_path / "nowhere") == ()
    assert study()["rows"][0]["label"] == found.rows[0].label


def test_a_study_shows_no_nan(tmp_path):
    rows = study()["rows"]
    rows[0]["cells"][0] |= {"ours": float("nan"), "difference": float("inf")}
    write_study(tmp_path, rows=rows)
    (found,) = read_studies(tmp_path / "studies")
    assert (found.rows[0].cells[0].ours, found.rows[0].cells[0].difference) == (None, None)


def test_differences_have_a_sign_and_no_negative_zero():
    assert [signed(value) for value in (1.234, -1.236, -0.001, 0.0)] == ["+1.23", "−1.24", "+0.00", "+0.00"]


def test_a_plain_table_is_escaped_in_each_format():
    table = text_table([Column("a|b"), Column("50%")], [("<x>", "y_z & *q*")])
    assert FORMATS["md"](table) == "| a\\|b | 50% |\n| --- | --- |\n| \\<x\\> | y_z \\& \\*q\\* |\n"
    assert r"\textless{}x\textgreater{} & y\_z \& {*}q{*} \\" in FORMATS["tex"](table)
    assert FORMATS["csv"](table) == "a|b,50%\n<x>,y_z & *q*\n"


def test_printed_numbers_have_a_decimal():
    assert [printed(value) for value in (48.0, 66.6, 0.125, None)] == ["48.0", "66.6", "0.125", "–"]


def test_figures_lie_beside_the_pages_with_their_numbers(site):
    folder, content = site
    assert (folder / "figures/intervals.csv").read_text("utf-8") == "row,low\ncam,0.48\n"
    assert (folder / "figures/intervals.svg").read_text("utf-8") == content.analysis.figures[0].svg
    places = {"index": (True, False), "datasets/chimera": (True, False), "methods/cam": (False, True)}
    for name, wanted in (places | {"methods/sc_cam": (False, False)}).items():
        text = (folder / f"{name}.html").read_text("utf-8")
        assert tuple(figure.svg in text for figure in content.analysis.figures) == wanted
    assert "Of <code>lr</code>." in (folder / "methods/cam.html").read_text("utf-8")
    assert "Of all &lt;rows&gt;." in (folder / "index.html").read_text("utf-8")


def test_the_classes_of_one_row_have_room_for_a_long_name():
    """Names of classes stand upright below the picture; matplotlib warns where they leave nothing of it."""
    (group,) = board_of(runs_of(table_of(runs()[:3]))).groups
    assert max(map(len, group.classes)) > 30
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert class_figure(group, "one") is not None


def test_without_a_work_folder_the_gallery_says_why(tmp_path):
    write_leaderboard(table_of(runs()), tmp_path)
    text = (tmp_path / "gallery.html").read_text("utf-8")
    assert "This site has no gallery. It was built from a snapshot" in text
    assert not (tmp_path / "gallery").exists()


def test_two_data_sets_have_a_page_and_a_group_each(tmp_path):
    other = [replace(run, key=f"o{run.key}") for run in runs("voc2012")]
    write_leaderboard(table_of([*runs(), *other]), tmp_path)
    assert {path.name for path in (tmp_path / "datasets").iterdir()} == {"chimera.html", "voc2012.html"}
    assert read(tmp_path / "index.html").tags["section"] == 2
    assert read(tmp_path / "datasets/voc2012.html").tags["section"] == 1
    assert "row-2-1" in read(tmp_path / "methods/cam.html").ids
