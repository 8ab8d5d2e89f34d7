"""YAML files as people save them: read, or refused in one line that names the file."""

from __future__ import annotations

import pytest

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.studies.study import read_study
from seedbed.benchmark.sweeps.settings import read_settings
from seedbed.benchmark.yaml_file import read_yaml

TEXT = "name: größe\nseeds: [0, 1]\n"
BROKEN = {
    "latin-1": (TEXT.encode("latin-1"), "not a text file in UTF-8"),
    "utf-16-without-mark": (TEXT.encode("utf-16-le"), "not a text file in UTF-8"),
    "binary": (bytes(range(256)) * 4, "not a text file in UTF-8"),
    "nul": (b"name: a\0b\n", "not a text file in UTF-8"),
    "tab": (b"datasets:\n\t- voc2012\n", "line 2, column 1: .*indent with spaces, not tabs"),
    "twice": (b"name: a\nname: b\n", "the key 'name' is given twice"),
    "twice-below": (b"settings:\n  A.x: 1\n  A.x: 2\n", "the key 'A.x' is given twice"),
    "date": (b"name: 2012-13-45\n", "month must be in"),
    "deep": (b"[" * 5000, "not YAML"),
    "open": (b"a: [", "line 1"),
    "colon": (b"name: a: b\n", "mapping values are not allowed here"),
    "object": (b"name: !!python/object:os.system x\n", "could not determine a constructor"),
    "number": (b"name: !!int abc\n", "not YAML"),
    "unhashable": (b"? [1, {a: 2}]\n: 3\n", "unhashable"),
}


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_of_every_editor_is_read(tmp_path, coding):
    path = tmp_path / "s.yaml"
    path.write_bytes(TEXT.encode(coding))
    assert read_yaml(path) == {"name": "größe", "seeds": [0, 1]}
    path.write_bytes(TEXT.replace("\n", "\r\n").encode(coding))
    assert read_yaml(path) == {"name": "größe", "seeds": [0, 1]}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_yaml_is_refused_in_one_line(tmp_path, name):
    content, message = BROKEN[name]
    path = tmp_path / "s.yaml"
    path.write_bytes(content)
    for read in (read_yaml, lambda p: read_settings(p, {}), lambda p: read_study(str(p))):
        with pytest.raises(ConfigError, match=message) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


def test_files_that_are_no_files_are_refused(tmp_path):
    for path in (tmp_path / "away.yaml", tmp_path, tmp_path / ("x" * 300 + ".yaml")):
        with pytest.raises(ConfigError):
            read_yaml(path)
    with pytest.raises(ConfigError, match="No such file"):
        read_study(str(tmp_path / "away.yaml"))
    for name in ("x" * 300, "", "..", "a/b", "-x"):
        with pytest.raises(ConfigError, match="unknown study"):
            read_study(name)


def test_merged_tables_may_repeat_a_key(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text("x: &x {a: 1, b: 2}\ny:\n  <<: *x\n  a: 3\n")
    assert read_yaml(path)["y"] == {"a": 3, "b": 2}


@pytest.mark.parametrize("content", ["", "[1, 2]", "3", "text", "null"])
def test_a_file_that_is_no_table_is_refused(tmp_path, content):
    path = tmp_path / "s.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=f"{path}: expected a table of settings, not"):
        read_settings(path, {})
    with pytest.raises(ConfigError, match=f"{path}: study: expected a table"):
        read_study(str(path))
