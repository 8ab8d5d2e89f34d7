"""Paths: as users write them, as database URLs, and as published text may show them."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.paths import expanded, sqlite_file, sqlite_url, without_folders

ODD_NAMES = ("a b", "a#b", "a?b", "a%20b", "a%b", "größe", "it's", "a{b}", "a&b;c", 'a"b', "a:b", "a\\b", "a+b")


def test_tilde_and_variables_are_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "/disk")
    monkeypatch.delenv("NOT_SET", raising=False)
    assert expanded("~/voc") == Path("/home/me/voc")
    assert expanded("$DATA/voc") == expanded(Path("${DATA}/voc")) == Path("/disk/voc")
    assert expanded("$NOT_SET/voc") == Path("$NOT_SET/voc")
    assert expanded("a~b") == Path("a~b")


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_database_url_leads_to_its_file_whatever_the_path(name, tmp_path):
    import sqlalchemy

    folder = tmp_path / name
    folder.mkdir()
    url = sqlite_url(folder / "x.db")
    assert sqlite_file(url) == folder / "x.db"
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("create table t (n integer)")
    engine.dispose()
    with sqlite3.connect(folder / "x.db") as database:
        assert database.execute("select name from sqlite_master").fetchall() == [("t",)]
    database.close()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_plain_path_has_a_plain_url(tmp_path):
    assert sqlite_url(tmp_path / "x.db") == f"sqlite:///{tmp_path}/x.db"


def test_other_urls_are_no_files():
    assert sqlite_file("http://127.0.0.1:5000") is None
    assert sqlite_file("postgresql+psycopg2://me@/mlflow?host=/var/run") is None
    with pytest.raises(ConfigError, match="sqlite:"):
        sqlite_file("sqlite:")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/me/VOC 2012/JPEGImages/a.jpg: broken", "DIR/JPEGImages/a.jpg: broken"),
        ("/home/me/VOC 2012: no such folder", "DIR: no such folder"),
        ("/home/me/VOC 2012b/x: no", "DIR/x: no"),
        ("/scratch/my job/a.png: not there", "DIR/a.png: not there"),
        (
            "OSError: [Errno 28] No space left on device: '/scratch/my job/out.npy'",
            "OSError: [Errno 28] No space left on device: 'DIR/out.npy'",
        ),
        (
            "weights:/home/me/w.pth is bad (~/x/y.pth, file:///tmp/a%20b/z)",
            "weights:DIR/w.pth is bad (DIR/y.pth, DIR/z)",
        ),
        (r"C:\Users\me\VOC\a.jpg: broken", "DIR/a.jpg: broken"),
        (
            "TrainCam: the loss is nan after 1/2 epochs and/or 3 / 4",
            "TrainCam: the loss is nan after 1/2 epochs and/or 3 / 4",
        ),
        ("no answer from http://10.0.0.5:5000/api/2.0", "no answer from http://10.0.0.5:5000/api/2.0"),
        ("per_image/val.parquet of JPEGImages/a.jpg", "per_image/val.parquet of JPEGImages/a.jpg"),
        ("", ""),
    ],
)
def test_published_text_shows_no_folder(text, shown):
    assert without_folders(text, "/home/me/VOC 2012", Path("/")) == shown
