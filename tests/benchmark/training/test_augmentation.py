"""Augmentation: image and mask move together, as torchvision's steps on the whole image move them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from seedbed.benchmark.training import augmentation
from seedbed.benchmark.training.augmentation import (
    Augmentation,
    classification,
    scaled_crops,
    segmentation,
    squares,
    unscaled,
)
from tests.helpers import torchvision_augmentation
from tests.helpers.fakes import random_scene

RED, BLUE = (250, 10, 10), (10, 10, 250)
JITTER = (0.3, 0.3, 0.3, 0.1)
Arguments = tuple[Any, ...]


def drawn(transform: Augmentation, seed: int, image: np.ndarray, mask: np.ndarray | None = None) -> Any:
    """Return the crop of an image, and that of its mask if there is one."""
    plan = transform.plan(image.shape[:2], torch.Generator().manual_seed(seed))
    crop = transform.image(image, plan)
    return crop if mask is None else (crop, transform.mask(mask, plan, image.shape[:2]))


def scene(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a blue image with a red square off its centre, and its mask."""
    image = np.empty((height, width, 3), np.uint8)
    image[:] = BLUE
    mask = np.zeros((height, width), np.uint8)
    top, left, side = height // 5, width // 2, min(height, width) // 3
    image[top : top + side, left : left + side] = RED
    mask[top : top + side, left : left + side] = 1
    return image, mask


def restored(image: torch.Tensor) -> np.ndarray:
    """Return a crop as float (H, W, 3)."""
    return image.permute(1, 2, 0).numpy()


def padded(image: torch.Tensor) -> torch.Tensor:
    """Return which pixels (H, W) of a crop have the mean colour."""
    return (image == torch.tensor(augmentation.MEAN_COLOUR)[:, None, None]).all(0)


# --- against torchvision

RECIPES: dict[str, tuple[str, Arguments, float, float]] = {
    "PSA, IRN, SC-CAM": ("classification", ((20, 60), 40, None), 2, 0.03),
    "DeepLab, RRM": ("segmentation", ((0.5, 1.5), 48, 40), 1e-3, 0),
    "IRN's edges": ("segmentation", ((0.5, 1.5), 48, 40, None, "bicubic"), 2, 0.03),
    "ICD": ("scaled_crops", ((0.5, 0.75, 1.0, 1.5), 0, 40), 1, 0.01),
    "ICD, smaller": ("scaled_crops", ((0.5, 1.0, 1.5), 48, 40), 1, 0.01),
    # Pillow begins with the axis that shrinks most, torch with the rows, and both round in between.
    "ACoL": ("squares", (32, 28), 1, 0.25),
    "PSA's affinities": ("unscaled", (0, 40, None), 0, 0),
    "PSA's affinities, smaller": ("unscaled", (44, 40, None), 2, 0.03),
}
"""Recipe, arguments, how many grey levels a value of noise may differ, and the share of values that may."""


@pytest.mark.parametrize("size", [(30, 47), (61, 40), (40, 40)])
@pytest.mark.parametrize("recipe", RECIPES)
def test_crops_are_those_of_torchvisions_steps(recipe: str, size: tuple[int, int]):
    """The same draws, so the same crops. Masks and padding are equal; filters round up or down (resampling.py)."""
    name, arguments, most, share = RECIPES[recipe]
    ours, theirs = getattr(augmentation, name)(*arguments), getattr(torchvision_augmentation, name)(*arguments)
    rng = np.random.default_rng(0)
    image = np.asarray(random_scene(3, *size, (1, 2))[0])
    mask = rng.integers(0, 21, size, dtype=np.uint8)
    stack = rng.random((4, *size), np.float32)
    for seed in range(12):
        for labels in (mask, stack):
            found, found_mask = drawn(ours, seed, image, labels)
            expected, expected_mask = torchvision_augmentation.augmented(theirs, seed, image, labels)
            assert found.dtype == expected.dtype == torch.float32
            assert torch.equal(found_mask, expected_mask)
        difference = np.abs(restored(found) - restored(expected))
        assert difference.max() <= most + 1e-3
        assert (difference > 1e-3).mean() <= share
        assert torch.equal(padded(found), padded(expected))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("classification", ((100, 200), 160, JITTER)),
        ("unscaled", (0, 120, JITTER)),
        ("segmentation", ((1.0, 1.0), 180, 130, JITTER)),
    ],
)
def test_jittered_crops_are_nearly_those_of_torchvisions_steps(name: str, arguments: Arguments):
    """Only the crop is jittered, and contrast changes around a sampled mean: most values differ by less than 1."""
    ours, theirs = getattr(augmentation, name)(*arguments), getattr(torchvision_augmentation, name)(*arguments)
    image = smooth(np.random.default_rng(0), 135, 180)
    for seed in range(12):
        found, expected = drawn(ours, seed, image), torchvision_augmentation.augmented(theirs, seed, image)[0]
        difference = restored(found) - restored(expected)
        assert abs(difference.mean()) < 0.3
        assert np.abs(difference).mean() < 0.5
        assert np.quantile(np.abs(difference), 0.999) < 4


def smooth(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Return colours that change smoothly, with a little noise, uint8 (H, W, 3)."""
    coarse = torch.from_numpy(rng.normal(128, 70, (1, 3, height // 15, width // 15)))
    colours = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0].permute(1, 2, 0).numpy()
    return (colours + rng.normal(0, 4, colours.shape)).clip(0, 255).astype(np.uint8)


# --- geometry


@pytest.mark.parametrize("size", [(40, 60), (75, 50), (200, 150)])
def test_image_and_mask_have_the_same_geometry(size: tuple[int, int]):
    """The red square is where the mask says, over resizing, flipping, cutting and padding, but for soft edges."""
    transform = segmentation(scale=(0.5, 1.5), base=80, crop=72)
    with_padding = 0
    for seed in range(40):
        image, mask = drawn(transform, seed, *scene(*size))
        assert image.shape == (3, 72, 72)
        assert image.dtype == torch.float32
        assert mask.shape == (72, 72)
        colours, labels = restored(image), mask.numpy()
        outside = labels == 255
        assert padded(image)[outside].all()
        red = colours[..., 0] > 130
        wrong = (red != (labels == 1)) & ~outside
        # Bilinear edges are soft: a border pixel of the square may fall on either side.
        assert wrong.sum() <= 0.03 * 72 * 72
        np.testing.assert_array_equal(_inner(wrong), np.zeros_like(_inner(wrong)))
        with_padding += outside.any()
    assert with_padding


def _inner(wrong: np.ndarray) -> np.ndarray:
    """Return where a pixel and all its four neighbours are wrong: no edge, but a shift."""
    centre = wrong[1:-1, 1:-1]
    return centre & wrong[:-2, 1:-1] & wrong[2:, 1:-1] & wrong[1:-1, :-2] & wrong[1:-1, 2:]


def test_half_of_the_examples_are_flipped_left_to_right():
    transform = segmentation(scale=(1.0, 1.0), base=40, crop=40)
    image, plain = scene(40, 40)
    seen = []
    for seed in range(60):
        mask = drawn(transform, seed, image, plain)[1].numpy()
        seen.append(np.array_equal(mask, plain[:, ::-1]))
        assert seen[-1] or np.array_equal(mask, plain)
    assert 15 < sum(seen) < 45


def test_the_padding_of_psas_affinity_crops_is_black():
    """PSA code: its affinity network's crops are padded before the mean is subtracted, its classifier's after."""
    image = scene(10, 10)[0]
    black = restored(drawn(unscaled(0, 16, None), 0, image))
    grey = restored(drawn(classification((10, 10), 16, None), 0, image))
    for found, colour in ((black, (0, 0, 0)), (grey, (123.675, 116.28, 103.53))):
        padding = (np.abs(found - colour) < 1e-2).all(-1)
        assert padding.sum() == 16 * 16 - 10 * 10


@pytest.mark.parametrize(
    ("make", "low", "high"),
    [
        (lambda: classification((30, 60), 64, None), 30, 60),
        (lambda: segmentation((0.5, 1.0), 60, 64), 30, 60),
    ],
)
def test_the_longer_side_is_drawn_from_its_range(make: Callable[[], Augmentation], low: int, high: int):
    """Of an image smaller than the crop the unpadded part shows the size."""
    sides = []
    for seed in range(60):
        _, mask = drawn(make(), seed, *scene(20, 40))
        rows, columns = ((mask != 255).any(axis).sum().item() for axis in (1, 0))
        assert rows == pytest.approx(columns / 2, abs=1)
        sides.append(columns)
    assert low <= min(sides) < low + 4
    assert high - 4 < max(sides) <= high


def test_large_images_are_cut_everywhere_and_small_ones_put_everywhere():
    transform = unscaled(0, 4, None)
    large = np.arange(48, dtype=np.int64).reshape(6, 8)
    corners, places = set(), set()
    for seed in range(400):
        cut = transform.mask(large, transform.plan((6, 8), torch.Generator().manual_seed(seed)), (6, 8))
        corners.add(int(cut[0].min()))
        plan = transform.plan((3, 2), torch.Generator().manual_seed(seed))
        found = transform.mask(np.ones((3, 2), np.uint8), plan, (3, 2))
        assert int(found.sum()) == 6
        places.add(tuple(int(v) for v in found.nonzero()[0]))
    assert corners == {8 * row + column for row in range(3) for column in range(5)}
    assert places == {(row, column) for row in range(2) for column in range(3)}


def test_a_scale_is_drawn_from_a_list_and_relative_to_a_base():
    generator = torch.Generator().manual_seed(0)
    for base, sides in ((0, {40, 80, 120}), (60, {30, 60, 90})):
        transform = scaled_crops((0.5, 1.0, 1.5), base, 48)
        assert {max(transform.plan((40, 80), generator).size) for _ in range(40)} == sides


def test_squares_do_not_keep_the_aspect_ratio():
    """On an image twice as wide as high a square becomes twice as high as wide."""
    image, _ = scene(30, 60)
    found = drawn(squares(60, 60), 0, image)
    assert found.shape == (3, 60, 60)
    red = found[0] > found[2]
    rows, columns = red.any(1).sum(), red.any(0).sum()
    assert abs(int(rows) - 20) <= 2
    assert abs(int(columns) - 10) <= 2
    assert drawn(squares(64, 60), 0, image).shape == (3, 60, 60)


def test_icds_padding_is_at_the_bottom_and_right():
    image, mask = scene(20, 30)
    for seed in range(5):
        found, labels = drawn(scaled_crops((1.0,), 0, 48), seed, image, mask)
        assert (labels[:20, :30] != 255).all()
        assert (labels[20:] == 255).all()
        assert (labels[:, 30:] == 255).all()
        assert padded(found)[20:].all()


def test_padding_has_exactly_the_mean_colour_after_colour_jitter():
    image = drawn(classification((20, 20), 32, JITTER), 0, scene(20, 20)[0])
    assert padded(image).sum() == 32 * 32 - 20 * 20


def test_colour_jitter_is_used_and_can_be_left_out():
    colours = {}
    for jitter in (None, JITTER):
        seen = set()
        for seed in range(5):
            image = restored(drawn(classification((16, 16), 16, jitter), seed, scene(16, 16)[0]))
            seen.add(tuple(np.median(image.reshape(-1, 3), axis=0).round(1).tolist()))
        colours[jitter] = len(seen)
    assert colours[None] == 1
    assert colours[JITTER] == 5


def test_large_crops_are_made_of_blocks(monkeypatch: pytest.MonkeyPatch):
    """Blocks of one row, of a few rows, and of the whole crop give the same bytes."""
    image = smooth(np.random.default_rng(1), 60, 90)
    for transform in (classification((50, 90), 64, JITTER), segmentation((0.5, 1.5), 80, 64)):
        crops = []
        for pixels in (1, 500, 100_000):
            monkeypatch.setattr(augmentation, "BLOCK", pixels)
            crops.append(drawn(transform, 3, image))
        assert torch.equal(crops[0], crops[1])
        assert torch.equal(crops[0], crops[2])
