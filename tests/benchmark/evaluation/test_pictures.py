"""The picture of examples: ids, and a legend of the colours that occur."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import ImageDraw

from seedbed.benchmark.evaluation import pictures
from seedbed.datasets.io.images import palette


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the texts that are drawn, filled while a picture is made."""
    texts: list[str] = []
    draw = ImageDraw.ImageDraw.text

    def text(self, place, words, *rest, **options):
        texts.append(words)
        return draw(self, place, words, *rest, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return texts


def image(_: str) -> np.ndarray:
    return np.full((30, 40, 3), 90, np.uint8)


def test_a_sheet_has_the_ids_and_names_the_labels_that_occur(written):
    masks = {"a": np.zeros((30, 40), np.uint8), "b": np.full((30, 40), 2, np.uint8)}
    masks["b"][:5] = 255
    page = pictures.sheet(("a", "b"), {"image": image, "truth": masks.__getitem__}, ("cat", "dog", "owl"))
    assert written == ["background", "dog", "not counted", "image", "truth", "a", "b"]
    shown = {tuple(colour) for colour in np.asarray(page).reshape(-1, 3).tolist()}
    colours = [tuple(palette()[3 * label : 3 * label + 3]) for label in (0, 2, 255)]
    assert shown >= set(colours)


def test_maps_have_a_scale_and_pictures_alone_no_legend_of_labels(written):
    pictures.sheet(("a",), {"image": image, "map": image}, ("cat",))
    assert "map score, 0 to 1" in written
    written.clear()
    pictures.sheet(("a",), {"image": image}, ("cat",))
    assert written == ["image", "a"]


def test_long_names_stay_on_the_page(written):
    name = "a very long name of a class that nobody would ever give to anything " * 3
    masks = np.arange(40 * 30, dtype=np.uint8).reshape(30, 40) % 3
    page = pictures.sheet(("id" * 200,), {"truth": lambda _: masks}, (name, "dog"))
    assert page.width == pictures.CELL + 2 * pictures.MARGIN
    assert all(len(text) < 40 for text in written)
    assert any(text.startswith("a very") and "…" in text for text in written)


def test_every_label_of_many_classes_is_in_the_legend(written):
    masks = np.arange(81, dtype=np.uint8).repeat(10).reshape(27, 30)
    names = [f"class {number}" for number in range(1, 81)]
    page = pictures.sheet(("a",), {"image": image, "truth": lambda _: masks, "map": image}, names)
    assert set(names) <= set(written)
    assert page.height > 500
