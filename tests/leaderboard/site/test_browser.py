"""The site as a reader uses it, in headless Chromium: from files, with and without JavaScript."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seedbed.leaderboard.site.content import Content
from seedbed.leaderboard.site.gallery import above
from tests.helpers.chromium import Page, chromium
from tests.helpers.site_content import HOSTILE, build_site

ROWS = "[...document.querySelectorAll('table.main tbody tr')]"
METHODS = f"{ROWS}.filter(row => !row.hidden).map(row => row.dataset.method)"
DESKTOP, PHONE = (1280, 900), (360, 740)


@pytest.fixture(scope="module")
def site(tmp_path_factory, chimera_root) -> tuple[Path, Content]:
    """Return the folder of a site, and what it shows."""
    return build_site(tmp_path_factory.mktemp("site"), chimera_root)


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    """Return one page of one browser for all tests."""
    with chromium() as page:
        yield page


@pytest.fixture
def page(browser) -> Page:
    """Return the page as a new reader on a desktop has it."""
    browser.script(enabled=True)
    browser.prefer("light")
    browser.size(*DESKTOP)
    return browser


@pytest.fixture
def index(page, site) -> Page:
    """Return the page with the overview open."""
    page.open(site[0] / "index.html")
    page.evaluate("localStorage.clear()")
    page.open(site[0] / "index.html")
    return page


def head(title: str) -> str:
    """Return the JavaScript of the button in the head of a main table's column."""
    return f"[...document.querySelectorAll('table.main th')].find(th => th.textContent === '{title}')"


def test_a_click_sorts_and_a_second_click_turns_the_order(index):
    assert index.evaluate(METHODS) == ["cam", "sc_cam", HOSTILE, "broken"]
    # Pseudo-masks are 1 − val here; the row that failed has no number and stays last.
    index.evaluate(f"{head('Pseudo-masks mIoU')}.querySelector('button').click()")
    assert index.evaluate(METHODS) == [HOSTILE, "sc_cam", "cam", "broken"]
    assert index.evaluate(f"{head('Pseudo-masks mIoU')}.ariaSort") == "descending"
    index.evaluate(f"{head('Pseudo-masks mIoU')}.querySelector('button').click()")
    assert index.evaluate(METHODS) == ["cam", "sc_cam", HOSTILE, "broken"]
    assert index.evaluate(f"{head('Pseudo-masks mIoU')}.ariaSort") == "ascending"
    index.evaluate(f"{head('Method')}.querySelector('button').click()")
    assert index.evaluate(METHODS) == [HOSTILE, "broken", "cam", "sc_cam"]
    sorted_by = (
        "[...document.querySelectorAll('table.main th[aria-sort]')].filter(th => th.ariaSort !== 'none').length"
    )
    assert index.evaluate(sorted_by) == 1


def test_enter_on_a_head_that_has_the_focus_sorts(index):
    index.evaluate(f"{head('Pseudo-masks mIoU')}.querySelector('button').focus()")
    index.press("Enter")
    assert index.evaluate(METHODS) == [HOSTILE, "sc_cam", "cam", "broken"]


def test_a_column_is_sorted_by_its_own_cells_where_cells_before_it_are_wide(index):
    """In the table of all columns the failed row has one cell for several columns."""
    order = "[...document.querySelectorAll('table.all tbody tr')].map(row => row.dataset.method)"

    def click(title: str) -> None:
        head = f"[...document.querySelectorAll('table.all th')].find(th => th.textContent === '{title}')"
        index.evaluate(f"{head}.querySelector('button').click()")

    click("val mIoU")
    click("val mIoU")
    assert index.evaluate(order) == [HOSTILE, "sc_cam", "cam", "broken"]
    # The failed row has a dash, the others `val`.
    click("Ranked on")
    assert index.evaluate(order) == ["broken", HOSTILE, "sc_cam", "cam"]


def test_filters_hide_rows_and_count_them(index):
    count = "document.querySelector('.filters output').textContent"
    assert index.evaluate(count) == "4 of 4 rows"

    def fill(name: str, value: str) -> None:
        index.evaluate(
            f"(() => {{ const field = document.querySelector('.filters').elements['{name}'];"
            f" field.type === 'checkbox' ? field.checked = {value} : field.value = {value};"
            " field.dispatchEvent(new Event('input', {bubbles: true})); })()"
        )

    fill("text", "'CAM'")
    assert index.evaluate(METHODS) == ["cam", "sc_cam"]
    assert index.evaluate(count) == "2 of 4 rows"
    fill("text", "''")
    fill("ranked", "true")
    assert index.evaluate(METHODS) == ["cam", "sc_cam", HOSTILE]
    fill("method", "[...document.querySelector('.filters').elements['method'].options].at(1).value")
    assert index.evaluate(METHODS) == [HOSTILE]
    assert index.evaluate(count) == "1 of 4 rows"
    shown = "[...document.querySelectorAll('table.heat tbody tr')].filter(row => !row.hidden).length"
    assert index.evaluate(shown) == 1
    fill("refiner", "'none'")
    assert index.evaluate(count) == "1 of 4 rows"
    fill("text", "'nowhere'")
    assert index.evaluate(count) == "0 of 4 rows"


def test_a_hostile_name_runs_nothing(index, site):
    for path in site[0].rglob("*.html"):
        index.open(path)
        assert index.evaluate("document.scripts.length") == 1
        assert index.evaluate("document.querySelectorAll('[onload], [onerror], [onclick]').length") == 0


def test_the_theme_is_the_systems_until_it_is_chosen(index, site):
    paper = "getComputedStyle(document.body).backgroundColor"
    light, dark = "rgb(255, 255, 255)", "rgb(20, 24, 29)"
    assert index.evaluate(paper) == light
    index.evaluate("document.getElementById('theme').click()")
    assert index.evaluate(paper) == dark
    index.open(site[0] / "studies.html")
    assert index.evaluate(paper) == dark
    index.evaluate("document.getElementById('theme').click()")
    assert index.evaluate(paper) == light
    index.evaluate("localStorage.clear()")
    index.prefer("dark")
    index.open(site[0] / "index.html")
    assert index.evaluate(paper) == dark


def test_the_slider_paints_what_is_above_the_threshold(page, site):
    folder, content = site
    page.open(folder / "gallery" / "chimera.html")
    page.wait_for("[...document.querySelectorAll('.threshold input')].every(input => !input.hidden)")
    image = content.galleries[0].images[0]
    _, _, data = image.runs[0].map.partition(",")
    grey = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    painted = (
        "(() => { const canvas = document.querySelector('.stack canvas'); const pixels = canvas.getContext('2d')"
        ".getImageData(0, 0, canvas.width, canvas.height).data; const found = [];"
        " for (let i = 0; i < pixels.length; i += 4) found.push(pixels[i + 3]); return found; })()"
    )

    def check(threshold: float) -> None:
        alpha = np.array(page.evaluate(painted)).reshape(grey.shape)
        assert (alpha == 255 * above(grey, threshold)).all()
        assert page.evaluate("document.querySelector('.threshold output').textContent") == f"{threshold:.2f}"

    # It begins at the threshold that the run chose.
    check(0.25)
    for threshold in (0.8, 0.1, 0.0, 1.0):
        page.evaluate(
            "(() => { const slider = document.querySelector('.threshold input');"
            f" slider.value = {threshold}; slider.dispatchEvent(new Event('input')); }})()"
        )
        check(threshold)
    page.evaluate("document.querySelector('.threshold input').focus()")
    page.press("ArrowLeft")
    check(0.99)
    colour = "[...document.querySelector('.stack canvas').getContext('2d').getImageData(63, 0, 1, 1).data]"
    assert page.evaluate(colour)[:3] == [int(image.colour[i : i + 2], 16) for i in (1, 3, 5)]
    assert page.evaluate("[...document.images].every(image => !image.complete || image.naturalWidth > 0)")


def test_without_javascript_the_tables_are_whole_and_nothing_is_offered_that_needs_it(page, site):
    folder, _ = site
    page.script(enabled=False)
    page.open(folder / "index.html")
    assert page.evaluate(METHODS) == ["cam", "sc_cam", HOSTILE, "broken"]
    assert page.evaluate("document.querySelector('table.main').rows[1].cells[4].innerText").startswith(
        "50.00 ± 1.00"
    )
    visible = "[...document.querySelectorAll('button, form')].filter(one => one.checkVisibility()).length"
    assert page.evaluate(visible) == 0
    assert page.evaluate("getComputedStyle(document.querySelector('table.main td.best')).fontWeight") == "700"
    page.open(folder / "gallery" / "chimera.html")
    assert page.evaluate("document.querySelectorAll('canvas').length") == 0
    assert page.evaluate("[...document.querySelectorAll('.still')].every(one => one.checkVisibility())")
    assert page.evaluate("[...document.querySelectorAll('input')].every(one => !one.checkVisibility())")


@pytest.mark.parametrize("opened", [False, True])
def test_no_page_is_wider_than_a_phone(page, site, opened):
    page.size(*PHONE)
    for path in sorted(site[0].rglob("*.html")):
        page.open(path)
        if opened:
            page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0], path


def test_on_a_phone_rank_and_method_stay_while_a_table_scrolls(page, site):
    page.size(*PHONE)
    page.open(site[0] / "index.html")
    left = "document.querySelector('table.main tbody tr').cells[1].getBoundingClientRect().left"
    before = page.evaluate(left)
    page.evaluate("document.querySelector('.wide').scrollLeft = 120")
    assert page.evaluate("document.querySelector('.wide').scrollLeft") == 120
    assert abs(page.evaluate(left) - before) <= 2


def test_the_keyboard_reaches_the_content_first_and_shows_where_it_is(index):
    index.press("Tab")
    assert index.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert index.evaluate("document.activeElement.getBoundingClientRect().left >= 0")
    for _ in range(40):
        index.press("Tab")
        assert index.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_of_aa(page, site, scheme):
    """WCAG 2: 4.5 between each text and what it stands on; colours as a canvas reads them."""
    page.prefer(scheme)
    measure = """
    (() => {
      const context = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
      const rgb = (colour) => { context.clearRect(0, 0, 1, 1); context.fillStyle = colour;
        context.fillRect(0, 0, 1, 1); return [...context.getImageData(0, 0, 1, 1).data]; };
      const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
        .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
      const behind = (one) => { for (; one; one = one.parentElement) {
        const colour = rgb(getComputedStyle(one).backgroundColor); if (colour[3] === 255) return colour; } };
      const bad = [];
      for (const one of document.querySelectorAll('body *')) {
        if (![...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
        const [a, b] = [light(rgb(getComputedStyle(one).color)), light(behind(one))].sort((x, y) => y - x);
        if ((a + 0.05) / (b + 0.05) < 4.5) bad.push(one.outerHTML.slice(0, 120) + ' ' + (a + 0.05) / (b + 0.05));
      }
      return bad;
    })()
    """
    for path in sorted(site[0].rglob("*.html")):
        page.open(path)
        assert page.evaluate(measure) == [], path
