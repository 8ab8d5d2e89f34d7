"""One PNG of some images of a run: image, truth, localisation map, pseudo-mask, prediction, and a legend."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from seedbed.benchmark.evaluation.maps import MapReader, ScoreMaps
from seedbed.datasets.base import IGNORE_INDEX, Dataset, Split
from seedbed.datasets.io.images import decode_mask, palette

ROWS = 8
CELL = 150
MARGIN = 6
LINE = 20
"""Height of a line of text."""
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
        columns: dict[str, Callable[[str], Picture]] = {"image": view.image, "truth": view.mask}
        if "scores" in artifacts:
            maps = MapReader(artifacts["scores"])
            columns["localisation map"] = lambda i: heat_map(view.image(i), maps.read(i))
        if "masks" in artifacts:
            columns["pseudo-mask"] = lambda i: decode_mask(artifacts["masks"] / f"{i}.png")
        if predict is not None:
            predict(ids, Path(temporary))
            columns["prediction"] = lambda i: decode_mask(Path(temporary) / f"{i}.png")
        sheet(ids, columns, data.classes).save(path, format="PNG")


def sheet(
    rows: Sequence[str], columns: Mapping[str, Callable[[str], Picture]], classes: Sequence[str]
) -> Image.Image:
    """Return a picture with a row per image id and a column per title, with a legend of the labels below.

    A column gives the picture uint8 (H, W, 3) of an image id, or labels uint8 (H, W), which are drawn in VOC's
    colours.
    """
    cells = [[render(image_id) for render in columns.values()] for image_id in rows]
    drawn = [cell for row in cells for cell in row]
    labels = sorted({int(label) for cell in drawn if cell.ndim == 2 for label in np.unique(cell)})
    maps = any(
        cell.ndim == 3 for row in cells for title, cell in zip(columns, row, strict=True) if title != "image"
    )
    width = MARGIN + len(columns) * (CELL + MARGIN)
    legend = _legend(labels, classes, maps, width)
    height = LINE + len(rows) * (LINE + CELL + MARGIN)
    page = Image.new("RGB", (width, height + legend.height), "white")
    draw = ImageDraw.Draw(page)
    for column, title in enumerate(columns):
        _write(draw, (MARGIN + column * (CELL + MARGIN) + CELL // 2, LINE // 2 + 2), title, CELL, "mm")
    for number, (image_id, row) in enumerate(zip(rows, cells, strict=True)):
        top = LINE + number * (LINE + CELL + MARGIN)
        _write(draw, (MARGIN, top + LINE // 2), image_id, width - 2 * MARGIN, "lm")
        for column, (title, cell) in enumerate(zip(columns, row, strict=True)):
            small = _fitted(cell, Image.Resampling.LANCZOS if title == "image" else Image.Resampling.NEAREST)
            left = MARGIN + column * (CELL + MARGIN)
            page.paste(small, (left + (CELL - small.width) // 2, top + LINE))
    page.paste(legend, (0, height))
    return page


def _fitted(cell: Picture, filtering: Image.Resampling) -> Image.Image:
    """Return a cell whose longer side is CELL pixels."""
    picture = Image.fromarray(cell if cell.ndim == 3 else coloured(cell))
    scale = CELL / max(picture.size)
    return picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), filtering)


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, room: int, anchor: str) -> None:
    """Write one line of text, its middle left out if it is longer than `room` pixels."""
    font, kept = ImageFont.load_default(13), len(text)
    shown = text
    while draw.textlength(shown, font) > room and kept > 2:
        kept -= 1
        shown = f"{text[: kept // 2]}…{text[len(text) - kept // 2 :]}"
    draw.text(place, shown, fill="black", anchor=anchor, font=font)


def _legend(labels: Sequence[int], classes: Sequence[str], maps: bool, width: int) -> Image.Image:
    """Return the colours of labels with their names, and those of map scores, in as many lines as they need."""
    names = {0: "background", **dict(enumerate(classes, 1)), IGNORE_INDEX: "not counted"}
    colours = np.frombuffer(palette(), np.uint8).reshape(256, 3)
    entries: list[tuple[str, NDArray[Any]]] = [
        (names.get(label, f"label {label}"), colours[None, None, label]) for label in labels
    ]
    # A scale of 60 pixels, over grey as the maps are.
    entries += [("map score, 0 to 1", 0.4 * 128 + 0.6 * _heat(np.linspace(0, 1, 60))[None])] if maps else []
    room = width - 2 * MARGIN
    page = Image.new("RGB", (width, LINE * (1 + len(entries))), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    left, top = MARGIN, 2
    for name, colour in entries:
        wide = max(12, colour.shape[1])
        needed = min(room, wide + 4 + int(draw.textlength(name, font)) + 12)
        if left > MARGIN and left + needed > width - MARGIN:
            left, top = MARGIN, top + LINE
        swatch = Image.fromarray(np.broadcast_to(colour, (12, wide, 3)).astype(np.uint8))
        page.paste(swatch, (left, top + 4))
        draw.rectangle((left, top + 4, left + wide - 1, top + 15), outline="grey")
        _write(draw, (left + wide + 4, top + 10), name, needed - wide - 4, "lm")
        left += needed
    return page.crop((0, 0, width, top + LINE + 2))


def coloured(mask: NDArray[np.uint8]) -> Picture:
    """Return labels uint8 (H, W) as RGB in VOC's palette."""
    colours = np.frombuffer(palette(), np.uint8).reshape(256, 3)
    return colours[mask]


def heat_map(image: Picture, maps: ScoreMaps) -> Picture:
    """Return the image (H, W, 3) under the pixelwise maximum of its foreground maps."""
    foreground = maps.at_full_size()[maps.labels != 0]
    score = foreground.max(0) if len(foreground) else np.zeros(maps.size, np.float32)
    grey = image.astype(np.float32).mean(-1, keepdims=True)
    return (0.4 * grey + 0.6 * _heat(score)).astype(np.uint8)


def _heat(score: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the colours (…, 3) of map scores."""
    position = np.clip(score, 0, 1) * (len(HEAT) - 1)
    return np.stack([np.interp(position, range(len(HEAT)), HEAT[:, c]) for c in range(3)], axis=-1)
