"""Class names: which are refused, and what they become in file names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from seedbed.benchmark.errors import DataError
from seedbed.datasets.chimera import DATASET
from seedbed.datasets.classes import check_classes, class_key

FILE = Path("labels.json")


def test_names_are_kept_without_blanks_at_their_ends():
    names = ("person", "traffic light", "cabinet/shelf", "tv & <co>", "größe", "wall-other(x)")
    assert check_classes([*names[:-1], f" {names[-1]} "], FILE) == names


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "has no classes"),
        (["a", "b", "a"], "'a' and 'a'"),
        (["Cat", "cat"], "'Cat' and 'cat'"),
        (["a/b", "a:b"], "'a/b' and 'a:b'"),
        (["a", "background"], "'background'"),
        (["__Background__"], "'__Background__'"),
        (["a", " "], "named ' '"),
        (["a", 3], "named 3"),
        (["x" * 101], "1 to 100 characters"),
        ([f"c{n}" for n in range(255)], "255 classes; the limit is 254"),
    ],
)
def test_names_that_results_could_not_tell_apart_are_refused(names: list[Any], message: str):
    with pytest.raises(DataError, match=rf"^labels\.json: .*{message}"):
        check_classes(names, FILE)


def test_keys_are_file_names():
    assert class_key("cabinet/shelf") == "cabinet_shelf"
    assert class_key("tv & <co>") == "tv _ _co_"
    assert class_key("traffic light") == "traffic light"


def test_the_limit_holds_in_the_layout_of_voc(tmp_path: Path, chimera_root: Path):
    for folder in chimera_root.iterdir():
        if folder.is_dir():
            (tmp_path / folder.name).symlink_to(folder)
    description = json.loads((chimera_root / "chimera.json").read_text())
    classes = [f"c{n}" for n in range(255)]
    (tmp_path / "chimera.json").write_text(json.dumps({**description, "classes": classes}))
    with pytest.raises(DataError, match="255 classes; the limit is 254"):
        DATASET.open(tmp_path)
