"""One PNG of some images of a run: image, truth, localisation map, pseudo-mask, prediction."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from benchmark.maps import MapReader, ScoreMaps
from datasets.base import Dataset, Split
from datasets.files import decode_mask, palette

ROWS = 8
CELL = 150
MARGIN = 6
TITLE = 22
HEAT = np.array([(20, 20, 80), (40, 110, 200), (80, 190, 140), (250, 220, 70), (230, 50, 30)], np.float32)
"""Colours of map scores 0, ¼, ½, ¾ and 1."""
Picture = NDArray[np.uint8]


def draw_examples(
    path: Path,
    data: Dataset,
    artifacts: Mapping[str, Path],
    predict: Callable[[tuple[str, ...], Path], None] | None = None,
) -> None:
    """Draw up to 8 images spread over `train` with the columns that `artifacts` has, and write `path`, a PNG.

    `artifacts` names folders: `scores` (maps) and `masks` (pseudo-masks); `predict(ids, folder)` writes the
    network's masks of some images as PNGs.
    """
    view = data.split(Split.TRAIN)
    ids = view.ids[:: max(1, len(view) // ROWS)][:ROWS]
    with tempfile.TemporaryDirectory() as temporary:
        columns: dict[str, Callable[[str], Picture]] = {
            "image": view.image,
            "truth": lambda i: coloured(view.mask(i)),
        }
        if "scores" in artifacts:
            maps = MapReader(artifacts["scores"])
            columns["localisation map"] = lambda i: heat_map(view.image(i), maps.read(i))
        if "masks" in artifacts:
            columns["pseudo-mask"] = lambda i: coloured(decode_mask(artifacts["masks"] / f"{i}.png"))
        if predict is not None:
            predict(ids, Path(temporary))
            columns["prediction"] = lambda i: coloured(decode_mask(Path(temporary) / f"{i}.png"))
        sheet(ids, columns).save(path, format="PNG")


def sheet(rows: tuple[str, ...], columns: Mapping[str, Callable[[str], Picture]]) -> Image.Image:
    """Return a picture with one row an image id and one titled column a way of drawing it."""
    width = MARGIN + len(columns) * (CELL + MARGIN)
    height = TITLE + len(rows) * (CELL + MARGIN) + MARGIN
    page = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for column, (title, render) in enumerate(columns.items()):
        left = MARGIN + column * (CELL + MARGIN)
        draw.text((left + CELL // 2, TITLE // 2 + 2), title, fill="black", anchor="mm", font=font)
        for row, image_id in enumerate(rows):
            cell = Image.fromarray(render(image_id))
            scale = CELL / max(cell.size)
            size = (max(1, round(cell.width * scale)), max(1, round(cell.height * scale)))
            cell = cell.resize(size, Image.Resampling.LANCZOS if title == "image" else Image.Resampling.NEAREST)
            top = TITLE + row * (CELL + MARGIN)
            page.paste(cell, (left + (CELL - size[0]) // 2, top + (CELL - size[1]) // 2))
    return page


def coloured(mask: NDArray[np.uint8]) -> Picture:
    """Return labels uint8 (H, W) as RGB in VOC's palette."""
    colours = np.frombuffer(palette(), np.uint8).reshape(256, 3)
    return colours[mask]


def heat_map(image: Picture, maps: ScoreMaps) -> Picture:
    """Return the image (H, W, 3) under the pixelwise maximum of its foreground maps."""
    foreground = maps.at_full_size()[maps.labels != 0]
    score = foreground.max(0) if len(foreground) else np.zeros(maps.size, np.float32)
    position = np.clip(score, 0, 1) * (len(HEAT) - 1)
    heat = np.stack([np.interp(position, range(len(HEAT)), HEAT[:, c]) for c in range(3)], axis=-1)
    grey = image.astype(np.float32).mean(-1, keepdims=True)
    return (0.4 * grey + 0.6 * heat).astype(np.uint8)
