"""Every link and path in the documentation leads somewhere, and the documentation site builds without warnings."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from markdown.extensions.toc import slugify

from tests.docs.extending import CHECKOUT, new_files, page

PAGES = sorted([*CHECKOUT.glob("*.md"), *(CHECKOUT / "docs").rglob("*.md")])
PACKAGES = ("benchmark", "methods", "datasets", "leaderboard", "tests")
LINK = re.compile(r"(?<!`)\[[^\]]*\]\(([^)\s]+)\)")
PATH = re.compile(rf"(?<![\w/.<-])((?:{'|'.join(PACKAGES)}|docs)/[\w/.-]+\.(?:py|md|yaml|json))\b")
EXAMPLES = {*new_files(page("adding-a-method.md")), *new_files(page("extending.md")), "tests/methods/test_toy.py"}
"""The files that a page tells its reader to create."""


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#+ +(.+?) *$", text, re.M)
    return {slugify(re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", title), "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(CHECKOUT)) for page in PAGES])
def test_every_link_leads_to_a_file_and_a_heading(page):
    broken = []
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
    for target in LINK.findall(text):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    assert not broken


def test_every_path_that_code_and_pages_name_exists():
    files = [path for package in PACKAGES for path in (CHECKOUT / package).rglob("*.py")]
    pages = [page for page in PAGES if "results" not in page.parts]
    lost = {
        f"{file.relative_to(CHECKOUT)}: {path}"
        for file in [*files, *pages]
        for path in PATH.findall(file.read_text("utf-8"))
        if path not in EXAMPLES and not (CHECKOUT / path).exists()
    }
    assert not lost, "\n".join(sorted(lost))


def test_every_module_that_a_command_names_exists():
    files = [path for package in PACKAGES for path in (CHECKOUT / package).rglob("*.py")]
    lost = {
        f"{file.relative_to(CHECKOUT)}: {module}"
        for file in [*files, *PAGES]
        for module in re.findall(r"python -m (tests[\w.]*\w)", file.read_text("utf-8"))
        if not any((CHECKOUT / module.replace(".", "/")).with_suffix(suffix).exists() for suffix in ("", ".py"))
    }
    assert not lost, "\n".join(sorted(lost))


def test_the_architecture_page_lists_every_folder_of_the_packages():
    page = (CHECKOUT / "docs/architecture.md").read_text("utf-8")
    tree = page.partition("## Folders")[2].split("```")[1]
    listed: set[Path] = set()
    above: list[str] = []
    for indent, name in re.findall(r"^( *)(\w+)/ ", tree, re.M):
        above = [*above[: len(indent) // 2], name]
        listed.add(Path(*above))
    folders = {CHECKOUT / name for name in PACKAGES}
    for package in PACKAGES[:-1]:
        folders |= {file.parent for pattern in ("*.py", "*.yaml") for file in (CHECKOUT / package).rglob(pattern)}
    assert listed - {Path("docs")} == {folder.relative_to(CHECKOUT) for folder in folders}


def test_the_site_builds_without_warnings(tmp_path):
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).strip() == ""
    assert "Stage" in (tmp_path / "site/reference.html").read_text("utf-8")
