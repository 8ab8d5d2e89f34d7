"""Small copies of data sets."""

from __future__ import annotations

import numpy as np
import pytest
from typer.testing import CliRunner

from seedbed.benchmark.cli.main import app
from seedbed.benchmark.errors import ConfigError
from seedbed.datasets.base import Split
from seedbed.datasets.chimera import generate
from seedbed.datasets.chimera.world import CLASSES
from seedbed.datasets.io.images import decode_image, decode_mask, write_mask
from seedbed.datasets.tools.reduced import reduce
from seedbed.datasets.voc2012 import LISTS, VocDataset


@pytest.fixture
def source(tmp_path):
    """Return a data set in the layout of VOC, of Chimera's pictures."""
    generate(tmp_path / "voc", layout="voc", images=20, size=48, seed=1)
    return VocDataset(tmp_path / "voc", "voc2012", CLASSES, saliency=tmp_path / "voc" / "Saliency")


def test_a_copy_has_the_same_ids_and_tags_and_every_second_pixel(source, tmp_path):
    out = tmp_path / "small"
    assert reduce(source, out, 24) == 20
    copy = VocDataset(out, "voc2012", CLASSES, saliency=out / "Saliency")
    for split in Split:
        assert copy.ids(split) == source.ids(split)
    for image_id in source.ids(Split.WEAK):
        assert copy.tags(image_id) == source.tags(image_id)
    image_id = source.ids(Split.VAL)[0]
    assert decode_image(copy.image_path(image_id)).shape == (24, 24, 3)
    small, full = decode_mask(copy.mask_path(image_id)), decode_mask(source.mask_path(image_id))
    assert np.array_equal(small, full[1::2, 1::2])
    assert copy.digest() != source.digest()
    assert copy.split("val").saliency(image_id).shape == (24, 24)


def test_small_images_stay_as_they_are(source, tmp_path):
    reduce(source, tmp_path / "same", 500)
    copy = VocDataset(tmp_path / "same", "voc2012", CLASSES)
    image_id = source.ids(Split.TRAIN)[0]
    assert np.array_equal(decode_mask(copy.mask_path(image_id)), decode_mask(source.mask_path(image_id)))


def test_an_object_that_is_lost_keeps_its_tag(source, tmp_path):
    image_id = source.ids(Split.TRAIN)[0]
    mask = np.zeros_like(decode_mask(source.mask_path(image_id)))
    mask[0, 0] = 7
    write_mask(source.mask_path(image_id), mask)
    tags = source.tags(image_id)
    reduce(source, tmp_path / "small", 12)
    copy = VocDataset(tmp_path / "small", "voc2012", CLASSES)
    assert not decode_mask(copy.mask_path(image_id)).any()
    assert copy.tags(image_id) == tags


def test_an_interrupted_copy_is_gone_on_with_and_another_folder_is_left_alone(source, tmp_path):
    out = tmp_path / "small"
    reduce(source, out, 24)
    kept = out / "JPEGImages" / f"{source.ids(Split.VAL)[0]}.jpg"
    (out / "JPEGImages" / f"{source.ids(Split.VAL)[1]}.jpg").unlink()
    changed = kept.stat().st_mtime_ns
    (out / LISTS / "val.txt").unlink()
    reduce(source, out, 24)
    assert kept.stat().st_mtime_ns == changed
    assert len(list((out / "JPEGImages").glob("*.jpg"))) == 20
    assert (out / LISTS / "val.txt").exists()
    with pytest.raises(ConfigError, match="holds something other"):
        reduce(source, out, 32)
    with pytest.raises(ConfigError, match="holds something other"):
        reduce(source, tmp_path, 24)


def test_the_command_makes_a_copy_that_is_read_as_any_other(tmp_path):
    """The data set is Chimera's, whose loader reads VOC's layout with its own classes."""
    generate(tmp_path / "voc", layout="voc", images=20, size=48, seed=1)
    words = ["--root", str(tmp_path / "voc"), "--out", str(tmp_path / "small"), "--size", "32"]
    done = CliRunner().invoke(app, ["data", "reduce", "chimera", *words, "--work", str(tmp_path / "work")])
    assert done.exit_code == 0, done.output
    assert f"20 images in {tmp_path / 'small'}" in done.output
    check = ["data", "check", "chimera", "--root", str(tmp_path / "small"), "--work", str(tmp_path / "work")]
    assert "0 errors" in CliRunner().invoke(app, check).output
