"""Multi-scale inference equals the one-by-one loop of docs/methods.md, CAM, whatever the batches and workers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from seedbed.benchmark.pipeline.stage import Context
from seedbed.benchmark.training import inference
from seedbed.benchmark.training.augmentation import MEAN_COLOUR
from seedbed.benchmark.training.inference import multi_scale, padded_images, resized
from seedbed.datasets.base import Split
from seedbed.methods.cam import CamNetwork
from tests.helpers.fakes import FolderDataset, random_scene

SCALES = (1.0, 0.5, 1.5, 2.0)


@pytest.fixture
def data(tmp_path: Path) -> FolderDataset:
    """Return seven images of three sizes."""
    sizes = [(40, 56), (56, 40), (40, 56), (33, 47), (40, 56), (56, 40), (40, 56)]
    scenes = {f"image{i}": random_scene(i, *size, (1, 2)) for i, size in enumerate(sizes)}
    return FolderDataset(tmp_path, {i: s[0] for i, s in scenes.items()}, {i: s[1] for i, s in scenes.items()})


@pytest.fixture
def network() -> CamNetwork:
    torch.manual_seed(0)
    return CamNetwork("tiny", 2, stride=8, dropout=0.0, pretrained=False).eval()


def one_by_one(network: CamNetwork, image: np.ndarray, grid: tuple[int, int]) -> torch.Tensor:
    """The loop of PSA's code for one image: PIL's bicubic on uint8, each scale with its flip, one at a time."""
    total = torch.zeros(2, *grid)
    with torch.inference_mode():
        for scale in SCALES:
            size = (round(image.shape[0] * scale), round(image.shape[1] * scale))
            resized = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC))
            scaled = torch.from_numpy(resized.transpose(2, 0, 1)[None].copy()).float()
            for flipped in (False, True):
                given = scaled.flip(-1) if flipped else scaled
                maps = F.interpolate(network.maps(given), grid, mode="bilinear", align_corners=False)[0]
                total += maps.flip(-1) if flipped else maps
    return total / (2 * len(SCALES))


def run(network: CamNetwork, data: FolderDataset, workers: int = 0, **changes) -> dict[str, torch.Tensor]:
    options = {"scales": SCALES, "flip": True, "long_side": 0, **changes}
    context = Context(seed=0, split=Split.TRAIN, scratch=Path(), workers=workers)
    return dict(
        multi_scale(
            network.maps,
            data.split(Split.TRAIN),
            grid=lambda _, h, w: (-(-h // 4), -(-w // 4)),
            ctx=context,
            label="test",
            **options,
        )
    )


def test_networks_run_in_inference_mode(data, network):
    enabled = []
    network.backbone.register_forward_hook(lambda *_: enabled.append(torch.is_inference_mode_enabled()))
    run(network, data)
    assert enabled
    assert all(enabled)


def test_batches_give_what_the_one_by_one_loop_gives(data, network):
    maps = run(network, data)
    assert set(maps) == set(data.ids(Split.TRAIN))
    for image_id, batched in maps.items():
        image = data.split(Split.TRAIN).image(image_id)
        grid = (-(-image.shape[0] // 4), -(-image.shape[1] // 4))
        torch.testing.assert_close(batched, one_by_one(network, image, grid), atol=1e-5, rtol=0)


def test_the_size_of_batches_and_the_number_of_workers_do_not_matter(data, network, monkeypatch):
    expected = run(network, data)
    for image_id, maps in run(network, data, workers=2).items():
        assert torch.equal(maps, expected[image_id])
    monkeypatch.setattr(inference, "PIXELS_A_BATCH", {"cpu": 1})
    for image_id, maps in run(network, data).items():
        torch.testing.assert_close(maps, expected[image_id], atol=1e-5, rtol=0)


def test_the_activation_comes_after_the_resize_and_before_the_mean(data):
    """Logits (0, 8) at one of two cells: 1/2 and sigmoid(8) resized first, another mean if it came last."""

    def logits(images: torch.Tensor) -> torch.Tensor:
        maps = torch.zeros(len(images), 2, 1, 2)
        maps[:, 1, :, 1] = 8.0
        return maps

    context = Context(seed=0, split=Split.TRAIN, scratch=Path())
    for _, maps in multi_scale(
        logits,
        data.split(Split.TRAIN),
        scales=(1.0, 0.5),
        flip=True,
        long_side=0,
        grid=lambda *_: (1, 4),
        ctx=context,
        label="test",
        activation=lambda x: x.softmax(1),
    ):
        single = torch.tensor([0.0, 2.0, 6.0, 8.0]).sigmoid()  # bilinear, half-pixel centres
        torch.testing.assert_close(maps[1, 0], (single + single.flip(0)) / 2)


def test_flips_are_turned_back(data):
    """A network that marks the left half: averaged with its flip, the map is symmetric."""

    def left_half(images: torch.Tensor) -> torch.Tensor:
        maps = torch.zeros(len(images), 1, 4, 4)
        maps[..., :2] = 1
        return maps

    context = Context(seed=0, split=Split.TRAIN, scratch=Path())
    options = {"scales": (1.0,), "long_side": 0, "grid": lambda *_: (4, 4), "ctx": context, "label": "test"}
    for _, maps in multi_scale(left_half, data.split(Split.TRAIN), flip=True, **options):
        assert (maps == 0.5).all()
    for _, maps in multi_scale(left_half, data.split(Split.TRAIN), flip=False, **options):
        assert (maps[..., :2] == 1).all()
        assert (maps[..., 2:] == 0).all()


def test_a_long_side_resizes_the_image_first(data, network):
    assert resized(375, 500, 100) == (75, 100)
    assert resized(500, 375, 0) == (500, 375)
    maps = run(network, data, long_side=28)
    assert {m.shape[-2:] for m in maps.values()} == {(5, 7), (7, 5)}


def test_padded_images_come_in_order_with_their_size_and_the_mean_colour_around(tmp_path):
    """At least 32 pixels and a multiple of 16: 40 × 24 becomes 48 × 32, and shown with 20 pixels 32 × 32."""
    scenes = {f"i{n}": random_scene(n, 40, 24, (1,)) for n in range(3)}
    images, masks = ({i: scene[k] for i, scene in scenes.items()} for k in (0, 1))
    view = FolderDataset(tmp_path / "data", images, masks).split(Split.TRAIN)
    context = Context(seed=0, split=Split.TRAIN, scratch=tmp_path)
    found = list(padded_images(view, 0, 32, 16, context, "test"))
    assert [image_id for image_id, *_ in found] == list(view.ids)
    for image_id, image, size in found:
        assert (tuple(image.shape), size) == ((1, 3, 48, 32), (40, 24))
        assert image.dtype == torch.float32
        assert np.array_equal(image[0, :, :40, :24].permute(1, 2, 0).numpy(), images[image_id])
        colour = torch.tensor(MEAN_COLOUR)[:, None, None]
        assert (image[0, :, 40:] == colour).all()
        assert (image[0, :, :, 24:] == colour).all()
    _, image, size = next(padded_images(view, 20, 32, 16, context, "test"))
    assert (tuple(image.shape), size) == ((1, 3, 32, 32), (20, 12))
