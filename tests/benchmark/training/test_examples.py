"""Training examples: set by seed, epoch and index alone; JPEGs decoded smaller look like those of full size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from seedbed.benchmark.training import augmentation
from seedbed.benchmark.training import examples as module
from seedbed.benchmark.training.augmentation import classification, scaled_crops, segmentation, squares
from seedbed.benchmark.training.examples import DecodedImages, Examples
from seedbed.benchmark.training.reproducibility import derive_seed
from seedbed.datasets.base import Dataset, Split, SplitView
from tests.benchmark.training.test_augmentation import JITTER, RED, padded, restored, smooth
from tests.helpers import torchvision_augmentation
from tests.helpers.fakes import FolderDataset, random_scene


@pytest.fixture
def data(tmp_path: Path) -> FolderDataset:
    scenes = {f"image{i}": random_scene(i, 40, 56, (1, 2)) for i in range(6)}
    return FolderDataset(tmp_path, {i: s[0] for i, s in scenes.items()}, {i: s[1] for i, s in scenes.items()})


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


def test_the_draws_are_those_of_torchvision_under_the_examples_seed(data: FolderDataset):
    transform = torchvision_augmentation.segmentation((0.5, 1.5), 48, 40)
    image = data.split("weak").image("image3")
    expected = torchvision_augmentation.augmented(transform, derive_seed(0, "augmentation", 1, 3), image)[0]
    torch.testing.assert_close(supervised(data)[1, 3]["image"], expected, atol=1e-4, rtol=0)


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


# --- decoded images


def test_images_are_kept_only_if_all_fit(data: FolderDataset, monkeypatch: pytest.MonkeyPatch):
    """Six images of 40 × 56 pixels are judged as squares of 56; the same bytes either way."""
    view = data.split("weak")
    counts = []
    for budget in (6 * 3 * 56 * 56 - 1, 6 * 3 * 56 * 56):
        monkeypatch.setattr(module, "KEPT_BYTES", budget)
        images = DecodedImages(view)
        for image_id in 2 * view.ids:
            np.testing.assert_array_equal(images.read(image_id, 1), view.image(image_id))
        counts.append(len(images.kept))
        assert sum(image.nbytes for image in images.kept.values()) <= budget
    assert counts == [0, 6]


def test_the_room_for_images_is_never_exceeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One image is much larger than the median says."""
    scenes = {f"{i}": random_scene(i, 200 if i == 1 else 10, 10, (1,)) for i in range(3)}
    data = FolderDataset(tmp_path, {i: s[0] for i, s in scenes.items()}, {i: s[1] for i, s in scenes.items()})
    monkeypatch.setattr(module, "KEPT_BYTES", 1000)
    images = DecodedImages(data.split("weak"))
    for image_id in data.split("weak").ids:
        images.read(image_id, 1)
    assert set(images.kept) == {"0", "2"}


# --- JPEGs


def jpegs(folder: Path, count: int) -> FolderDataset:
    """Return JPEGs of 300 × 404 pixels, smooth with noise."""
    images = {f"{i}": smooth(np.random.default_rng(i), 300, 404) for i in range(count)}
    masks = {i: np.ones(image.shape[:2], np.uint8) for i, image in images.items()}
    return FolderDataset(folder, images, masks, suffix=".jpg")


def reductions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list of the reductions at which images are decoded from now on."""
    seen: list[int] = []
    read = SplitView.image

    def noted(view: SplitView, image_id: str, reduction: int = 1) -> np.ndarray:
        seen.append(reduction)
        return read(view, image_id, reduction)

    monkeypatch.setattr(SplitView, "image", noted)
    return seen


def test_jpegs_are_decoded_at_the_smallest_size_that_is_not_below_the_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    view, seen = jpegs(tmp_path, 1).split("weak"), reductions(monkeypatch)
    for transform, expected in (
        (classification((404, 404), 64, None), 1),
        (classification((203, 203), 64, None), 1),
        (classification((202, 202), 64, None), 2),
        (classification((60, 60), 64, JITTER), 4),
        (classification((50, 50), 64, None), 8),
        (squares(100, 64), 2),
        # These mix four pixels and skip the rest, and a smaller image has no such pixels.
        (segmentation((1.0, 1.0), 60, 64), 1),
        (scaled_crops((0.1,), 0, 64), 1),
    ):
        Examples(view, transform, 0)[0, 0]
        assert seen.pop() == expected


def test_examples_are_the_same_from_kept_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An image of full size that is kept never stands for a smaller one."""
    view = jpegs(tmp_path, 2).split("weak")
    transform = classification((60, 404), 64, JITTER)
    kept = Examples(view, transform, 0)
    monkeypatch.setattr(module, "KEPT_BYTES", 0)
    fresh, seen = Examples(view, transform, 0), reductions(monkeypatch)
    for place in [(epoch, index) for epoch in range(5) for index in range(2)]:
        assert torch.equal(kept[place]["image"], fresh[place]["image"])
    assert {1, 2} <= set(seen)
    assert len(kept.images.kept) == 2


def differences(data: Dataset, name: str, arguments: tuple[object, ...]) -> np.ndarray:
    """Return, by crop, the difference of the means, the ratio of the deviations, and that of the gradients.

    The first crop is that of `Examples`, the second that of torchvision's steps on the fully decoded image. Only
    what is shown of the image counts.
    """
    view = data.split(Split.WEAK)
    examples = Examples(view, getattr(augmentation, name)(*arguments), 0)
    theirs = getattr(torchvision_augmentation, name)(*arguments)
    rows = []
    for index in range(len(view)):
        seed = derive_seed(0, "augmentation", 0, index)
        expected = torchvision_augmentation.augmented(theirs, seed, view.image(view.ids[index]))[0]
        found = examples[0, index]["image"]
        shown = ~padded(expected)
        assert torch.equal(~padded(found), shown)
        ours, reference = (restored(crop) for crop in (found, expected))
        gradient = [
            np.abs(np.diff(crop, axis=1))[shown[:, 1:] & shown[:, :-1]].mean() for crop in (ours, reference)
        ]
        rows.append(
            (
                (ours[shown] - reference[shown]).mean(),
                ours[shown].std() / reference[shown].std(),
                gradient[0] / gradient[1],
            )
        )
    return np.array(rows)


SMALL = {
    "PSA": ("classification", ((90, 200), 150, JITTER)),
    "IRN": ("classification", ((90, 200), 150, None)),
    "ACoL": ("squares", (110, 100)),
}
"""Recipes whose targets are less than half of the images."""


def check_differences(found: np.ndarray) -> None:
    """Check the means over crops, and each crop more loosely."""
    mean, deviation, gradient = found.T
    assert abs(mean.mean()) < 0.3
    assert np.abs(mean).max() < 2.5
    assert deviation.mean() == pytest.approx(1, abs=0.01)
    assert np.abs(deviation - 1).max() < 0.08
    assert gradient.mean() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("recipe", SMALL)
def test_smaller_jpegs_give_the_crops_of_full_size(tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch):
    seen = reductions(monkeypatch)
    check_differences(differences(jpegs(tmp_path, 8), *SMALL[recipe]))
    assert {2, 4} & set(seen)


def photographs(folder: Path, work: Path, count: int) -> FolderDataset:
    """Return some JPEGs of a folder as a data set without masks and tags."""
    names = [path.stem for path in sorted(folder.glob("*.jpg"))[:count]]
    (work / "images").symlink_to(folder)
    return FolderDataset(work, {}, {}, splits={Split.WEAK: names}, tags=dict.fromkeys(names, ()), suffix=".jpg")


@pytest.mark.real_data
@pytest.mark.parametrize("recipe", SMALL)
def test_smaller_photographs_give_the_crops_of_full_size(
    recipe: str, real_voc: Path, real_coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen = reductions(monkeypatch)
    for folder in (real_voc / "JPEGImages", real_coco / "train2014"):
        (tmp_path / folder.name).mkdir()
        check_differences(differences(photographs(folder, tmp_path / folder.name, 24), *SMALL[recipe]))
    assert {2, 4} <= set(seen)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("classification", ((256, 512), 448, JITTER)),
        ("classification", ((320, 640), 512, None)),
        ("segmentation", ((0.5, 1.5), 500, 321)),
        ("squares", (256, 224)),
        ("scaled_crops", ((0.5, 0.75, 1.0, 1.25, 1.5), 0, 321)),
        ("unscaled", (0, 448, JITTER)),
    ],
    ids=["PSA", "IRN", "DeepLab", "ACoL", "ICD", "PSA's affinities"],
)
def test_photographs_at_the_published_sizes_give_equal_crops(
    name: str, arguments: tuple[object, ...], real_voc: Path, tmp_path: Path
):
    """At full size nothing is left of the difference but rounding and the sampled mean."""
    data = photographs(real_voc / "JPEGImages", tmp_path, 12)
    mean, deviation, gradient = differences(data, name, arguments).T
    assert np.abs(mean).max() < 0.3
    assert np.abs(deviation - 1).max() < 3e-3
    assert np.abs(gradient - 1).max() < 5e-3


def test_masks_lie_on_images_that_are_decoded_smaller(tmp_path: Path):
    """The area right of an edge near the end of a row, in pixels of the crop: the mask's is the image's.

    453 pixels at an eighth are 57, which cover 456.
    """
    images, masks = {}, {}
    for edge in range(390, 440, 2):
        image, mask = np.zeros((301, 453, 3), np.uint8), np.zeros((301, 453), np.uint8)
        image[:, edge:], mask[:, edge:] = RED, 1
        images[f"{edge}"], masks[f"{edge}"] = image, mask
    view = FolderDataset(tmp_path, images, masks, suffix=".jpg").split("weak", supervision="full")
    examples = Examples(view, segmentation((1.0, 1.0), 50, 50, resampling="bicubic"), 0, masks=view.mask)
    offsets = []
    for index in range(len(view)):
        example = examples[0, index]
        labels = example["mask"].numpy()
        row = (labels != 255).any(1).nonzero()[0][15]
        red = restored(example["image"])[row, labels[row] != 255, 0] / RED[0]
        offsets.append(red.sum() - (labels[row] == 1).sum())
    assert abs(np.mean(offsets)) < 0.1
