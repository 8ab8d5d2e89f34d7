"""Colour jitter: torchvision's operations, one by one and together."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from torchvision.transforms import v2

from seedbed.benchmark.training import colour_jitter
from tests.helpers.fakes import random_scene

STRENGTHS = (0.3, 0.3, 0.3, 0.1)


@pytest.fixture
def image() -> np.ndarray:
    """Return noise, uint8 (3, 40, 56)."""
    return random_scene(0, 40, 56, ())[0].transpose(2, 0, 1).copy()


def jittered(image: np.ndarray, steps: colour_jitter.Steps, mean: float = 0) -> np.ndarray:
    planes = image.astype(np.float32)
    colour_jitter.apply(planes, steps, mean)
    return planes


def torchvisions(image: np.ndarray, steps: colour_jitter.Steps) -> np.ndarray:
    found = torch.from_numpy(image)
    for name, factor in steps:
        found = getattr(TF, f"adjust_{name}")(found, factor)
    return found.numpy().astype(np.float32)


def test_brightness_contrast_and_saturation_by_hand():
    """One pixel; its grey is ⌊29.89 + 117.4 + 0⌋ = 147."""
    pixel = np.array([100, 200, 0], np.uint8)[:, None, None]
    assert jittered(pixel, (("brightness", 1.3),)).ravel().tolist() == [130, 255, 0]
    assert jittered(pixel, (("contrast", 0.5),), 60).ravel().tolist() == [80, 130, 30]
    assert jittered(pixel, (("saturation", 0.5),)).ravel().tolist() == [123, 173, 73]


@pytest.mark.parametrize("shift", [-0.5, -0.4, -0.17, -0.1, -0.01, 0.0, 0.02, 0.1, 0.16, 0.25, 0.5])
def test_hue_is_that_of_hsv(shift: float):
    """All corners and edges of the cube of colours, and greys."""
    values = (0, 1, 90, 200, 254, 255)
    colours = np.array([(r, g, b) for r in values for g in values for b in values], np.uint8)
    found = jittered(colours.T[:, :, None], (("hue", shift),))[:, :, 0].T
    for colour, turned in zip(colours, found, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(colour / 255))
        expected = colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value)
        np.testing.assert_allclose(turned, np.array(expected) * 255, atol=1 + 1e-3)


@pytest.mark.parametrize("name", ["brightness", "saturation", "hue"])
@pytest.mark.parametrize("strength", [-0.9713, -0.3171, 0.0, 0.5237, 0.9871])
def test_each_operation_is_torchvisions(image: np.ndarray, name: str, strength: float):
    """To the bit, but where the exact result is nearly a whole number, which rounding may cut to the one below."""
    factor = 0.1 * strength if name == "hue" else 1 + 0.3 * strength
    difference = np.abs(jittered(image, ((name, factor),)) - torchvisions(image, ((name, factor),)))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def test_all_operations_in_all_orders_are_torchvisions(image: np.ndarray):
    """The mean grey is exact here, where every pixel is in the sample."""
    orders = set()
    for seed in range(40):
        steps = colour_jitter.draw(STRENGTHS, torch.Generator().manual_seed(seed))
        orders.add(tuple(name for name, _ in steps))
        found = jittered(image, steps, colour_jitter.mean_grey(image, steps))
        difference = np.abs(found - torchvisions(image, steps))
        assert difference.max() <= 2
        assert (difference > 0).mean() < 1e-3
    assert len(orders) > 15


def test_the_mean_of_a_large_image_is_that_of_a_sample():
    image = random_scene(1, 500, 400, (1, 2))[0].transpose(2, 0, 1)
    steps = (("saturation", 1.2), ("contrast", 1.3), ("hue", 0.1))
    expected = colour_jitter.grey(jittered(image, steps[:1])).mean()
    assert colour_jitter.mean_grey(image, steps) == pytest.approx(expected, abs=1.5)
    assert colour_jitter.mean_grey(image, steps) != expected


def test_the_draws_are_torchvisions():
    theirs = v2.ColorJitter(*STRENGTHS)
    names = ("brightness", "contrast", "saturation", "hue")
    for seed in range(5):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            drawn = theirs.make_params([])
        expected = tuple((names[i], drawn[f"{names[i]}_factor"]) for i in drawn["fn_idx"].tolist())
        assert colour_jitter.draw(STRENGTHS, torch.Generator().manual_seed(seed)) == expected
