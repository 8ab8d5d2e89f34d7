"""docs/folder.md, followed literally: its files as printed, drawn images and masks, and its commands."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seedbed.datasets.base import Split
from seedbed.datasets.folder import DATASET
from tests.docs.extending import CHECKOUT, commands, page, run_commands

SIDE = 48
COLOURS = ((40, 40, 40), (220, 30, 30), (60, 200, 60), (120, 40, 200))


def write_files(folder: Path) -> Path:
    """Write the text files of the page, and an image and a mask for each id of its splits; return the data set."""
    text = page("folder.md")
    files = dict(re.findall(r"^`(fruit/[\w.]+)`: .*?\n\n```\n(.*?)^```", text, re.M | re.S))
    root = folder / "fruit"
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for path, content in files.items():
        (folder / path).write_text(content)
    (configuration,) = re.findall(r"^```toml\n(.*?)^```", text, re.M | re.S)
    (folder / "seedbed.toml").write_text(configuration)
    classes = files["fruit/classes.txt"].split()
    tags, splits = (csv.DictReader(files[f"fruit/{name}.csv"].splitlines()) for name in ("tags", "splits"))
    tagged = {row["image_id"]: row["classes"].split() for row in tags}
    for number, row in enumerate(splits):
        mask = np.zeros((SIDE, SIDE), np.uint8)
        for place, name in enumerate(tagged.get(row["image_id"], ())):
            mask[8:40, 4 + 22 * place : 22 + 22 * place] = classes.index(name) + 1
        noise = np.random.default_rng(number).integers(0, 30, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(np.array(COLOURS, np.uint8)[mask] + noise).save(root / "images" / f"{row['image_id']}.jpg")
        if row["split"] in ("train", "val"):
            Image.fromarray(mask).save(root / "masks" / f"{row['image_id']}.png")
    return root


def test_the_page_says_how_many_images_it_lists(tmp_path):
    data = DATASET.open(write_files(tmp_path))
    assert [len(data.ids(split)) for split in (Split.WEAK, Split.TRAIN, Split.VAL, Split.TEST)] == [10, 6, 3, 1]
    assert data.classes == ("apple", "pear", "plum")
    assert data.tags("bowl01") == (1, 2)


@pytest.mark.slow
def test_every_command_of_the_page_works(tmp_path):
    write_files(tmp_path)
    lines = [f"PYTHONPATH={CHECKOUT} {line}" for line in commands(page("folder.md"))]
    checked, counted, trial, dry_run = run_commands(lines, tmp_path).values()
    (warning, end) = checked.splitlines()
    assert warning.startswith("warning: ")
    assert "4 images of `weak` have no mask" in warning
    assert end == "0 errors, 1 warnings"
    assert re.search(r"^apple ", counted, re.M)
    assert "run cam-none-folder-seed0" in trial
    assert re.search(r"^segmentation +val +mIoU +\d+\.\d+$", trial, re.M)
    assert "fruit" in dry_run
