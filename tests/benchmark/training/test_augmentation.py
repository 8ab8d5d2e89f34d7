"""Augmentation: image and mask move together, by the seed alone, whatever the number of workers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from seedbed.benchmark.training.augmentation import (
    MEAN,
    STD,
    Examples,
    RandomCropOrPad,
    RandomLongSide,
    RandomScale,
    classification,
    normalise,
    resize_image,
    scaled_crops,
    segmentation,
    squares,
    unscaled,
)
from tests.helpers.fakes import FolderDataset, random_scene

RED, BLUE = (250, 10, 10), (10, 10, 250)


@pytest.fixture
def data(tmp_path: Path) -> FolderDataset:
    scenes = {f"image{i}": random_scene(i, 40, 56, (1, 2)) for i in range(6)}
    return FolderDataset(tmp_path, {i: s[0] for i, s in scenes.items()}, {i: s[1] for i, s in scenes.items()})


def scene(height: int, width: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    """Return a blue image with a red square off its centre, and its mask."""
    image = np.empty((height, width, 3), np.uint8)
    image[:] = BLUE
    mask = np.zeros((height, width), np.uint8)
    top, left, side = height // 5, width // 2, min(height, width) // 3
    image[top : top + side, left : left + side] = RED
    mask[top : top + side, left : left + side] = 1
    return tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)), tv_tensors.Mask(torch.from_numpy(mask))


def restored(image: torch.Tensor) -> np.ndarray:
    """Return a normalised image as float (H, W, 3) in 0..255."""
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    return ((image * std + mean) * 255).permute(1, 2, 0).numpy()


def test_normalise_by_hand():
    image = torch.tensor([[[0, 255]], [[51, 102]], [[128, 255]]], dtype=torch.uint8)
    expected = [[[-0.485 / 0.229, 0.515 / 0.229]], [[(0.2 - 0.456) / 0.224, (0.4 - 0.456) / 0.224]]]
    expected.append([[(128 / 255 - 0.406) / 0.225, (1 - 0.406) / 0.225]])
    found = normalise(image)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize("size", [(40, 60), (75, 50), (200, 150)])
def test_image_and_mask_have_the_same_geometry(size: tuple[int, int]):
    """The red square is where the mask says, over resizing, flipping, cutting and padding, but for soft edges."""
    transform = segmentation(scale=(0.5, 1.5), base=80, crop=72)
    padded = 0
    for seed in range(40):
        torch.manual_seed(seed)
        image, mask = transform(*scene(*size))
        assert image.shape == (3, 72, 72)
        assert image.dtype == torch.float32
        assert mask.shape == (72, 72)
        drawn, labels = restored(image), mask.numpy()
        outside = labels == 255
        assert (image.numpy()[:, outside] == 0).all()
        red = drawn[..., 0] > 130
        wrong = (red != (labels == 1)) & ~outside
        # Bilinear edges are soft: a border pixel of the square may fall on either side.
        assert wrong.sum() <= 0.03 * 72 * 72
        np.testing.assert_array_equal(_inner(wrong), np.zeros_like(_inner(wrong)))
        padded += outside.any()
    assert padded


def test_half_of_the_examples_are_flipped_left_to_right():
    transform = segmentation(scale=(1.0, 1.0), base=40, crop=40)
    plain = scene(40, 40)[1]
    seen = []
    for seed in range(60):
        torch.manual_seed(seed)
        mask = transform(*scene(40, 40))[1]
        seen.append(torch.equal(mask, plain.flip(-1)))
        assert seen[-1] or torch.equal(mask, plain)
    assert 15 < sum(seen) < 45


def test_masks_are_resized_by_the_pixel_whose_centre_is_nearest():
    """Half of six pixels: centres 1, 3 and 5. The image's mean over pairs has the same centres."""
    row = torch.arange(6, dtype=torch.uint8).reshape(1, 6)
    mask = RandomLongSide(3, 3)(tv_tensors.Mask(row))
    assert isinstance(mask, tv_tensors.Mask)
    assert mask.tolist() == [[1, 3, 5]]


def _inner(wrong: np.ndarray) -> np.ndarray:
    """Return where a pixel and all its four neighbours are wrong: no edge, but a shift."""
    centre = wrong[1:-1, 1:-1]
    return centre & wrong[:-2, 1:-1] & wrong[2:, 1:-1] & wrong[1:-1, :-2] & wrong[1:-1, 2:]


def row(*values: float) -> torch.Tensor:
    """Return an image of one row, the same in all channels; whole numbers are uint8."""
    whole = all(isinstance(value, int) for value in values)
    return torch.tensor(values, dtype=torch.uint8 if whole else torch.float32).expand(3, 1, -1)


def test_opencvs_linear_mixes_two_pixels_and_pillows_bilinear_all_that_are_shrunk():
    """By hand: of six pixels, two have their centres on 1 and 4; Pillow's triangles weigh (2, 3, 2, 1)/8."""
    image = row(0, 32, 0, 0, 64, 0)
    assert resize_image(image, (1, 2), "linear")[0].tolist() == [[32, 64]]
    assert resize_image(image, (1, 2), "bilinear")[0].tolist() == [[12, 24]]
    # Pairs have their centre between them.
    assert resize_image(row(0, 10, 20, 40), (1, 2), "linear")[0].tolist() == [[5, 30]]


def test_opencvs_linear_rounds_whole_numbers_alone():
    """By hand: four pixels of two lie on −¼, ¼, ¾ and 1¼."""
    assert resize_image(row(0, 9), (1, 4), "linear")[0].tolist() == [[0, 2, 7, 9]]
    assert resize_image(row(0.0, 9.0), (1, 4), "linear")[0].tolist() == [[0, 2.25, 6.75, 9]]


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


@pytest.mark.parametrize("size", [(7, 9), (11, 30), (31, 40)])
def test_images_are_resized_as_by_pillow_and_opencv(size):
    pixels = random_scene(0, 20, 26, (1, 2))[0]
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    for resampling, pillow in (("bicubic", Image.Resampling.BICUBIC), ("bilinear", Image.Resampling.BILINEAR)):
        expected = np.asarray(Image.fromarray(pixels).resize(size[::-1], pillow))
        np.testing.assert_array_equal(resize_image(image, size, resampling).permute(1, 2, 0), expected)
    floats = resize_image(image.float(), size, "linear").permute(1, 2, 0)
    np.testing.assert_allclose(floats, slow_linear(pixels, size), atol=1e-3)
    rounded = resize_image(image, size, "linear")
    assert rounded.dtype == torch.uint8
    assert (rounded.permute(1, 2, 0) - floats).abs().max() <= 0.5 + 1e-3
    assert resize_image(image, (20, 26), "bicubic") is image


@pytest.mark.parametrize(
    ("transform", "resampling", "floats"),
    [
        (classification((13, 13), 13, None), "bicubic", False),
        (segmentation((0.5, 0.5), 26, 13), "linear", True),
        (segmentation((0.5, 0.5), 26, 13, resampling="bicubic"), "bicubic", False),
        (scaled_crops((0.5,), 26, 13), "linear", False),
        (unscaled(13, 13, None), "bicubic", False),
    ],
    ids=["PSA, IRN, SC-CAM", "DeepLab, RRM", "IRN's edges", "ICD", "PSA's affinities"],
)
def test_each_method_resizes_images_as_its_authors_do(transform, resampling, floats):
    image, mask = scene(26, 26)
    for seed in range(4):
        torch.manual_seed(seed)
        found = transform(image, mask)[0]
        plain = image.as_subclass(torch.Tensor)
        small = resize_image(plain.float() if floats else plain, (13, 13), resampling).float()
        expected = small.permute(1, 2, 0).numpy()
        assert min(np.abs(restored(x) - expected).max() for x in (found, found.flip(-1))) < 1e-2


def test_the_padding_of_psas_affinity_crops_is_black():
    """PSA code: crops are padded before they are normalised; those of its classifier are after."""
    image, mask = scene(10, 10)
    black = restored(unscaled(0, 16, None)(image, mask)[0])
    grey = restored(classification((10, 10), 16, None)(image))
    for found, colour in ((black, (0, 0, 0)), (grey, (123.675, 116.28, 103.53))):
        padding = (np.abs(found - colour) < 1e-2).all(-1)
        assert padding.sum() == 16 * 16 - 10 * 10


def test_the_longer_side_is_drawn_from_its_range():
    """Of an image smaller than the crop the unpadded part shows the size."""
    for make, low, high in (
        (lambda: classification((30, 60), 64, None), 30, 60),
        (lambda: segmentation((0.5, 1.0), 60, 64), 30, 60),
    ):
        sides = []
        for seed in range(60):
            torch.manual_seed(seed)
            _, mask = make()(*scene(20, 40))
            rows, columns = ((mask != 255).any(axis).sum().item() for axis in (1, 0))
            assert rows == pytest.approx(columns / 2, abs=1)
            sides.append(columns)
        assert low <= min(sides) < low + 4
        assert high - 4 < max(sides) <= high


def test_large_images_are_cut_everywhere_and_small_ones_put_everywhere():
    transform = RandomCropOrPad(4)
    image = tv_tensors.Image(torch.arange(48.0).reshape(1, 6, 8).expand(3, 6, 8))
    corners = set()
    for seed in range(200):
        torch.manual_seed(seed)
        corners.add(int(transform(image)[0, 0, 0]))
    assert corners == {8 * row + column for row in range(3) for column in range(5)}
    places = set()
    small = tv_tensors.Mask(torch.ones(3, 2, dtype=torch.uint8))
    for seed in range(200):
        torch.manual_seed(seed)
        found = transform(small)
        assert sorted(found.unique().tolist()) == [1, 255]
        places.add(tuple(int(v) for v in (found == 1).nonzero()[0]))
    assert places == {(row, column) for row in range(2) for column in range(3)}


def test_a_scale_is_drawn_from_a_list_and_relative_to_a_base():
    image, _ = scene(40, 80)
    torch.manual_seed(0)
    for base, sides in ((0, {40, 80, 120}), (60, {30, 60, 90})):
        resize = RandomScale((0.5, 1.0, 1.5), base)
        assert {max(resize(image).shape[-2:]) for _ in range(40)} == sides


def test_squares_do_not_keep_the_aspect_ratio():
    """On an image twice as wide as high a square becomes twice as high as wide."""
    image, _ = scene(30, 60)
    transform = squares(60, 60)
    found = transform(image)
    assert found.shape == (3, 60, 60)
    red = found[0] > found[2]
    rows, columns = red.any(1).sum(), red.any(0).sum()
    assert abs(int(rows) - 20) <= 2
    assert abs(int(columns) - 10) <= 2
    assert transform(scene(60, 30)[0]).shape == squares(64, 60)(image).shape == (3, 60, 60)


def test_icds_padding_is_at_the_bottom_and_right():
    image, mask = scene(20, 30)
    transform = scaled_crops((1.0,), 0, 48)
    for _ in range(5):
        found, labels = transform(image, mask)
        assert (labels[:20, :30] != 255).all()
        assert (labels[20:] == 255).all()
        assert (labels[:, 30:] == 255).all()
        assert not found[:, 20:].any()


def test_padding_is_exactly_zero_after_colour_jitter():
    transform = classification((20, 20), 32, (0.3, 0.3, 0.3, 0.1))
    torch.manual_seed(0)
    image = transform(scene(20, 20)[0])
    assert (image == 0).all(0).sum() == 32 * 32 - 20 * 20


def test_colour_jitter_is_used_and_can_be_left_out():
    colours = {}
    for jitter in (None, (0.3, 0.3, 0.3, 0.1)):
        seen = set()
        for seed in range(5):
            torch.manual_seed(seed)
            image = restored(classification((16, 16), 16, jitter)(scene(16, 16)[0]))
            seen.add(tuple(np.median(image.reshape(-1, 3), axis=0).round(1).tolist()))
        colours[jitter] = len(seen)
    assert colours[None] == 1
    assert colours[0.3, 0.3, 0.3, 0.1] == 5


# --- examples


def batches(examples: Examples, workers: int) -> list[dict[str, torch.Tensor]]:
    places = [[(epoch, i) for i in order] for epoch in (0, 1) for order in ([3, 1, 5], [0, 2, 4])]
    loader = torch.utils.data.DataLoader(examples, batch_sampler=places, num_workers=workers)
    return list(loader)


def supervised(data: FolderDataset, seed: int = 0) -> Examples:
    view = data.split("weak", supervision="full")
    return Examples(view, segmentation((0.5, 1.5), 48, 40), seed, masks=view.mask)


def test_what_an_example_holds(data: FolderDataset):
    example = supervised(data)[0, 2]
    assert {name: (value.dtype, tuple(value.shape)) for name, value in example.items()} == {
        "image": (torch.float32, (3, 40, 40)),
        "tags": (torch.float32, (2,)),
        "index": (torch.int64, ()),
        "mask": (torch.int64, (40, 40)),
    }
    assert all(type(value) is torch.Tensor for value in example.values())
    assert example["index"] == 2
    tags = [0.0, 0.0]
    for tag in data.tags("image2"):
        tags[tag - 1] = 1.0
    assert example["tags"].tolist() == tags
    assert set(example["mask"].unique().tolist()) <= {0, 1, 2, 255}
    weak = Examples(data.split("weak"), classification((30, 60), 40, None), 0)
    assert set(weak[0, 0]) == {"image", "tags", "index"}
    assert len(weak) == 6


def test_the_number_of_workers_makes_no_difference(data: FolderDataset):
    alone, together = batches(supervised(data), 0), batches(supervised(data), 2)
    for a, b in zip(alone, together, strict=True):
        for name in a:
            assert torch.equal(a[name], b[name]), name


def test_an_example_depends_on_seed_epoch_and_index_alone(data: FolderDataset):
    examples = supervised(data)
    first = examples[1, 3]["image"]
    torch.rand(7)
    examples[0, 0]
    assert torch.equal(examples[1, 3]["image"], first)
    assert not torch.equal(examples[2, 3]["image"], first)
    assert not torch.equal(supervised(data, seed=1)[1, 3]["image"], first)


def test_the_callers_random_numbers_go_on_as_if_nothing_were_loaded(data: FolderDataset):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    supervised(data)[0, 0]
    assert torch.equal(torch.rand(3), expected)


def test_the_gpus_random_numbers_are_left_alone(data: FolderDataset, monkeypatch: pytest.MonkeyPatch):
    """torch.manual_seed would seed them too, and dropout would depend on where images are loaded."""

    def refuse(seed: int) -> None:
        raise AssertionError("the GPU was seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    monkeypatch.setattr(torch.cuda, "manual_seed", refuse)
    supervised(data)[0, 0]
