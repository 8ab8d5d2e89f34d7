"""seedbed.toml: what is read from it, and one line for each problem, with the file's name."""

from __future__ import annotations

import pytest

from seedbed.benchmark.errors import ConfigError
from seedbed.benchmark.pipeline.configuration import Configuration, read_configuration


def test_without_the_file_nothing_is_configured(tmp_path):
    assert read_configuration(tmp_path / "seedbed.toml") == Configuration({}, None)


def test_options_of_a_loader_are_kept_and_keys_of_all_loaders_are_typed(tmp_path):
    (tmp_path / "seedbed.toml").write_text(
        "[datasets]\nvoc2012 = 'voc'\n[datasets.mine]\ndataset = 'folder'\nroot = 'here'\n"
        "classes = ['cat']\nyear = 7\n"
    )
    assert read_configuration(tmp_path / "seedbed.toml").datasets == {
        "voc2012": {"root": "voc"},
        "mine": {"dataset": "folder", "root": "here", "classes": ["cat"], "year": 7},
    }


def test_all_problems_of_all_tables_are_listed(tmp_path):
    (tmp_path / "seedbed.toml").write_text(
        "[datasets]\nother = 3\n[datasets.mine]\nroot = ''\nclasses = 'cat'\ntags = 1\n[store]\ncache = 'here'\n"
    )
    with pytest.raises(ConfigError) as caught:
        read_configuration(tmp_path / "seedbed.toml")
    assert [line.strip() for line in str(caught.value).splitlines()] == [
        f"{tmp_path / 'seedbed.toml'}: 5 problems",
        "datasets.other: expected a table. Valid: root, dataset, masks, saliency, tags, classes",
        "datasets.mine.root = '': expected a text that is not empty",
        "datasets.mine.tags = 1: expected text; put it in quotes",
        "datasets.mine.classes = 'cat': expected a list of class names",
        "store needs address",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'[datasets]\nvoc2012 = "C:\\Users\\me"\n', r"seedbed.toml: .*line 2.*single quotes"),
        (b'[datasets]\nvoc2012 = "voc_\xe9"\n', r"seedbed.toml: not UTF-8"),
        (b'datasets = "voc"\n', r"seedbed.toml: datasets: expected a table"),
        (b"[datasets]\nvoc2012 = 3\n", r"datasets.voc2012: expected a table. Valid: root, dataset"),
        (b"[datasets.voc2012]\nroot = 3\n", r"datasets.voc2012.root = 3: expected text"),
        (b'[datasets.voc2012]\nroot = ""\n', r"datasets.voc2012.root = '': expected a text that is not empty"),
        (b"[datasets.voc2012]\nroot = 'voc'\ntags = [1]\n", r"datasets.voc2012.tags = \[1\]: expected text"),
        (b"[datasets.voc2012]\ndataset = 7\n", r"datasets.voc2012.dataset = 7: expected text"),
        (b"[datasets.'a=b']\nroot = 'voc'\n", r"datasets.'a=b': a name must be printable and without '='"),
        (b'[datasets."a\\nb"]\nroot = "voc"\n', r"a name must be printable"),
        (b"[data]\nvoc2012 = 'voc'\n", r"unknown key 'data'. .*Valid: datasets, store"),
    ],
)
def test_a_wrong_configuration_is_one_line_with_the_file(text, message, tmp_path):
    (tmp_path / "seedbed.toml").write_bytes(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_configuration(tmp_path / "seedbed.toml")
    assert str(tmp_path / "seedbed.toml") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("store = 's3://bucket'\n", r"store: expected a table. Valid: address, cache"),
        ("[store]\n", r"store needs address"),
        ("[store]\naddress = 'bucket'\n", r"store.address: expected an address like s3://BUCKET/FOLDER"),
        ("[store]\naddress = 's3://me:secret@bucket'\n", r"store.address: .* without credentials"),
        ("[store]\naddress = 3\n", r"store.address = 3: expected text"),
        ("[store]\naddress = 's3://bucket'\nurl = ''\n", r"unknown key of store 'url'. Valid: address, cache"),
        ("[store]\naddress = 's3://bucket'\ncache = ''\n", r"store.cache = '': expected a text that is not empty"),
    ],
)
def test_a_wrong_object_store_is_one_line_with_the_file(text, message, tmp_path):
    (tmp_path / "seedbed.toml").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_configuration(tmp_path / "seedbed.toml")
    assert str(caught.value).startswith(f"{tmp_path / 'seedbed.toml'}: ")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
