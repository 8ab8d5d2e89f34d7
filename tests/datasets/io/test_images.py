"""Images that are decoded at a part of their size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seedbed.datasets.io.images import decode_image, jpeg_reduction
from tests.helpers.fakes import random_scene


def test_the_greatest_reduction_that_is_not_below_the_target():
    assert jpeg_reduction((375, 500), (375, 500)) == 1
    assert jpeg_reduction((375, 500), (187, 250)) == 2
    assert jpeg_reduction((375, 500), (188, 250)) == 1
    assert jpeg_reduction((400, 600), (100, 199)) == 2
    assert jpeg_reduction((400, 600), (100, 150)) == 4
    assert jpeg_reduction((4000, 6000), (50, 70)) == 8
    assert jpeg_reduction((100, 100), (200, 200)) == 1


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
def test_a_jpeg_is_decoded_smaller_and_a_png_is_not(tmp_path: Path, reduction: int):
    """A reduced JPEG is nearly the mean of its squares of pixels; sides are rounded up."""
    scene = Image.fromarray(random_scene(0, 9, 12, (1, 2))[0]).resize((203, 101), Image.Resampling.BICUBIC)
    scene.save(tmp_path / "a.jpg", quality=95)
    scene.save(tmp_path / "a.png")
    found = decode_image(tmp_path / "a.jpg", reduction)
    assert found.shape == (-(-101 // reduction), -(-203 // reduction), 3)
    assert found.flags.writeable
    full = decode_image(tmp_path / "a.jpg")[: 101 // reduction * reduction, : 203 // reduction * reduction]
    means = full.reshape(101 // reduction, reduction, 203 // reduction, reduction, 3).mean((1, 3))
    assert np.abs(found[: 101 // reduction, : 203 // reduction] - means).mean() < 2
    np.testing.assert_array_equal(decode_image(tmp_path / "a.png", reduction), np.asarray(scene))
