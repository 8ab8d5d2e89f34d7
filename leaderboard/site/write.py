"""The leaderboard as a folder of pages that need no server and no network."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from seedbed.leaderboard.site.content import Content
from seedbed.leaderboard.site.downloads import downloads
from seedbed.leaderboard.site.pages import pages

STATIC = ("site.css", "site.js")


def write_site(out: Path, content: Content) -> list[Path]:
    """Write pages, tables and figures; return their paths, `index.html` first.

    The same content gives the same bytes. The pictures of the gallery are there already (gallery.py).
    """
    written = []
    for name, text in _files(content):
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8", newline="\n")
        written.append(path)
    return written


def _files(content: Content) -> Iterator[tuple[str, str]]:
    yield from pages(content)
    yield from downloads(content)
    for name in STATIC:
        yield f"static/{name}", files("seedbed.leaderboard.site").joinpath("static", name).read_text("utf-8")
