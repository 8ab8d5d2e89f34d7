"""Resampling: Pillow's filters, OpenCV's linear, and masks by the pixel at the centre, each cut to a crop."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from seedbed.benchmark.training.resampling import Span, averaging, linear, nearest
from tests.helpers.fakes import random_scene

FILTERS: dict[Literal["bicubic", "bilinear"], Image.Resampling] = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}
SIZES = [(7, 9), (11, 30), (20, 26), (31, 40)]


def whole(length: int) -> Span:
    return Span(length, 0, length, 0)


def row(*values: int) -> np.ndarray:
    """Return an image of one row, the same in all channels."""
    return np.repeat(np.array(values, np.uint8)[None, :, None], 3, 2)


def slow_linear(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an image (H, W, 3) pixel by pixel as OpenCV's INTER_LINEAR."""
    result = np.empty((*size, 3))
    for y, x in np.ndindex(*size):
        corners, weights = [], []
        for place, shown, length in ((y, size[0], image.shape[0]), (x, size[1], image.shape[1])):
            position = min(max((place + 0.5) * length / shown - 0.5, 0), length - 1)
            first = int(position)
            corners.append((first, min(first + 1, length - 1)))
            weights.append((1 - (position - first), position - first))
        result[y, x] = sum(
            weights[0][i] * weights[1][j] * image[corners[0][i], corners[1][j]] for i in (0, 1) for j in (0, 1)
        )
    return result


def test_opencvs_linear_mixes_two_pixels_and_pillows_bilinear_all_that_are_shrunk():
    """By hand: of six pixels, two have their centres on 1 and 4; Pillow's triangles weigh (2, 3, 2, 1)/8."""
    image = row(0, 32, 0, 0, 64, 0)
    assert linear(image, whole(1), whole(2))[0].tolist() == [[32, 64]]
    assert averaging(image, (1, 2), "bilinear")[0].tolist() == [[12, 24]]
    # Pairs have their centre between them.
    assert linear(row(0, 10, 20, 40), whole(1), whole(2))[0].tolist() == [[5, 30]]
    # Four pixels of two lie on −¼, ¼, ¾ and 1¼.
    assert linear(row(0, 9), whole(1), whole(4))[0].tolist() == [[0, 2.25, 6.75, 9]]


@pytest.mark.parametrize("size", SIZES)
def test_images_are_resized_as_by_pillow_and_opencv(size: tuple[int, int]):
    """Pillow's filters along rows, then along columns; which comes first depends on Pillow's version."""
    pixels = random_scene(0, 20, 26, (1, 2))[0]
    for mode, pillow in FILTERS.items():
        rows = Image.fromarray(pixels).resize((size[1], 20), pillow)
        expected = np.asarray(rows.resize(size[::-1], pillow)).astype(int)
        difference = np.abs(averaging(pixels, size, mode).transpose(1, 2, 0) - expected)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.03
    found = linear(pixels, whole(size[0]), whole(size[1])).transpose(1, 2, 0)
    np.testing.assert_allclose(found, slow_linear(pixels, size), atol=1e-3)
    floats = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float()
    theirs = F.interpolate(floats, size, mode="bilinear")[0].permute(1, 2, 0)
    np.testing.assert_allclose(found, theirs, atol=5e-4)


@pytest.mark.parametrize("size", SIZES)
def test_a_crop_is_a_part_of_the_whole(size: tuple[int, int]):
    pixels, mask = random_scene(0, 20, 26, (1, 2))
    rows, columns = Span(size[0], 2, 4, 1), Span(size[1], size[1] - 6, 5, 0)
    entire = linear(pixels, whole(size[0]), whole(size[1]))
    np.testing.assert_array_equal(linear(pixels, rows, columns), entire[:, rows.shown, columns.shown])
    entire = nearest(mask, whole(size[0]), whole(size[1]), mask.shape)
    np.testing.assert_array_equal(nearest(mask, rows, columns, mask.shape), entire[rows.shown, columns.shown])
    assert rows.part(1, 2) == Span(size[0], 3, 2, 1)
    assert rows.part(3, 2) == Span(size[0], 5, 1, 1)


def test_masks_are_resized_by_the_pixel_whose_centre_is_nearest():
    """Half of six pixels: centres 1, 3 and 5. The image's mean over pairs has the same centres."""
    mask = np.arange(6, dtype=np.uint8).reshape(1, 6)
    assert nearest(mask, whole(1), whole(3), (1, 6)).tolist() == [[1, 3, 5]]


def test_masks_are_resized_as_by_torch():
    for old in range(1, 60, 3):
        for new in range(1, 90, 4):
            mask = torch.arange(old).expand(1, 2, 1, old).float()
            expected = F.interpolate(mask, (1, new), mode="nearest-exact")[0]
            found = nearest(mask[0].numpy(), whole(1), whole(new), (1, old))
            np.testing.assert_array_equal(found, expected)


def test_a_mask_may_end_before_its_image():
    """Five pixels of a mask, and eight of its image: pixels 1, 3, 5 and 7, the last two of which are the edge."""
    mask = np.arange(5, dtype=np.uint8).reshape(1, 5)
    assert nearest(mask, whole(1), whole(4), (1, 8)).tolist() == [[1, 3, 4, 4]]
