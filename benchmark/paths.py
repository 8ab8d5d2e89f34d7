"""Paths: as users write them, as database URLs, and as published text may show them."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from seedbed.benchmark.errors import ConfigError

DIR = "DIR"
"""Stands for a folder of the user's machine in published text."""
SAFE = re.compile(r"[a-z0-9_][a-z0-9_.-]{0,59}")
_QUOTED = re.compile(r"""(?P<quote>['"])(?:file://)?(?:~|[A-Za-z]:)?[\\/](?P<path>[^'"]*)(?P=quote)""")
_LEADING = re.compile(r"^(?:file://)?(?:~|[A-Za-z]:)?[\\/](?P<path>[^:\n]*)(?=: |$)")
_PLAIN = re.compile(r"""(?<![\w.~/\\])(?:file://)?(?:~|[A-Za-z]:)?[\\/](?![/\s])(?P<path>[^\s'",;:()<>]+)""")


def expanded(path: str | Path) -> Path:
    """Return a path with a leading `~` and environment variables replaced; unknown ones stay as they are."""
    return Path(os.path.expandvars(_home(Path(path))))


def _home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        # `~name` of nobody.
        return path


def slug(name: str) -> str:
    """Return a file name without suffix for any name; names that differ have file names that differ."""
    if SAFE.fullmatch(name):
        return name
    plain = re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-")[:40]
    return f"{plain or 'name'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def sqlite_url(path: Path) -> str:
    """Return the URL of an SQLite file, with characters such as `?`, `#` and `%` escaped."""
    import sqlalchemy

    url = sqlalchemy.URL.create("sqlite", database=str(path.resolve()))
    if "%" in url.render_as_string():
        # MLflow creates the parent folder of `sqlite:///` URLs from the escaped text.
        url = url.set(drivername="sqlite+pysqlite")
    return url.render_as_string()


def sqlite_file(url: str) -> Path | None:
    """Return the file of an SQLite URL, None for other URLs. Raises ConfigError for a malformed one."""
    import sqlalchemy

    if not url.startswith(("sqlite:", "sqlite+")):
        return None
    try:
        database = sqlalchemy.make_url(url).database
    except sqlalchemy.exc.ArgumentError as error:
        raise ConfigError(f"{url}: {error}") from None
    return Path(database or "")


def without_folders(text: str, *folders: str | Path) -> str:
    """Return text with `DIR` instead of the `folders` and of the folder of every other absolute path.

    Paths below one of the `folders` stay relative to it; of the others only the file name stays.
    """
    for folder in sorted(map(str, folders), key=len, reverse=True):
        if folder.strip("/."):
            text = re.sub(rf"{re.escape(folder)}(?=[/\\]|\W|$)", DIR, text)
    text = _QUOTED.sub(lambda found: f"{found['quote']}{_name(found['path'])}{found['quote']}", text)
    for pattern in (_LEADING, _PLAIN):
        text = pattern.sub(lambda found: _name(found["path"]), text)
    return text


def _name(path: str) -> str:
    name = re.split(r"[\\/]", path.rstrip("\\/"))[-1]
    return f"{DIR}/{name}" if name else DIR
