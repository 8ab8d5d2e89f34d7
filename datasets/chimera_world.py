"""Draws the images of Chimera: a small world in which weak supervision is really hard.

An animal has a *head* that only its class has and a *body* that all classes share. A classifier needs the head
alone; a mask needs the body too, and only the head next to it tells whose it is. Backgrounds are textured, and
each class has one that it is seen on more often than by chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CLASSES = ("lion", "goat", "serpent", "eagle", "salmon", "ram")
HEAD_COLOURS = (
    ((235, 180, 40), (150, 70, 20)),
    ((240, 240, 235), (70, 60, 140)),
    ((40, 170, 70), (225, 225, 60)),
    ((200, 40, 40), (250, 250, 250)),
    ((250, 130, 120), (60, 200, 220)),
    ((120, 60, 150), (240, 170, 220)),
)
"""The two colours of each class's head; its pattern is rings, checks or stripes by the class's index."""
BODY_TINTS = ((150, 120, 95), (120, 120, 125), (165, 150, 120), (105, 90, 85), (140, 130, 140))
"""Bodies are one of these, whatever the class."""
BACKGROUNDS = (((95, 130, 70), 12), ((190, 170, 125), 18), ((90, 125, 160), 24), ((120, 125, 115), 8))
"""Mean colour and size of the blotches, in 96ths of the image."""
CO_OCCURRENCE = 0.7
"""How often an image has the background that goes with the class of its first animal (index modulo four)."""
ANIMALS = (0.45, 0.35, 0.20)
"""How often an image has one, two and three animals."""
LENGTHS = (0.20, 0.32)
"""Half the length of a body, in image sides."""
HEAD_SHARE = 0.20
"""Area of the head by area of the body."""
HIDDEN = 0.4
"""An animal is left out where it would hide more of another one's head or body than this."""
BORDER = 255


@dataclass(frozen=True)
class Scene:
    """One drawn image."""

    image: NDArray[np.uint8]
    """(S, S, 3) RGB."""
    mask: NDArray[np.uint8]
    """(S, S): labels 0..6, with 255 along the edges, as in VOC."""
    animals: tuple[tuple[int, NDArray[np.bool_]], ...]
    """Label and visible pixels (S, S) of each animal, back to front."""


def draw_scene(seed: int, index: int, size: int) -> Scene:
    """Return image `index` of the world `seed`; the same arguments give the same pixels."""
    generator = np.random.default_rng([seed, index])
    rows, columns = np.mgrid[0:size, 0:size] / size
    count = 1 + int(generator.choice(len(ANIMALS), p=ANIMALS))
    labels = 1 + generator.choice(len(CLASSES), count, replace=False)
    kind = (labels[0] - 1) % 4 if generator.random() < CO_OCCURRENCE else generator.integers(4)
    image = _background(generator, size, *BACKGROUNDS[kind])
    animals: list[tuple[int, NDArray[np.bool_], NDArray[np.bool_]]] = []
    for label in labels.tolist():
        for _ in range(20):
            body, head, paint = _animal(generator, label, rows, columns, image)
            if all(_hidden(body | head, part) <= HIDDEN for _, *parts in animals for part in parts):
                image = paint
                whole = body | head
                animals = [(other, b & ~whole, h & ~whole) for other, b, h in animals]
                animals.append((label, body, head))
                break
    mask = np.zeros((size, size), np.uint8)
    for label, body, head in animals:
        mask[body | head] = label
    noise = generator.normal(0, 6, image.shape)
    visible = tuple((label, body | head) for label, body, head in animals)
    return Scene(np.clip(image + noise, 0, 255).astype(np.uint8), with_border(mask), visible)


def with_border(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the mask with 255 on each pixel that has a neighbour, above, below or beside, of another label."""
    edge = np.zeros(mask.shape, bool)
    vertical, horizontal = mask[1:] != mask[:-1], mask[:, 1:] != mask[:, :-1]
    edge[1:] |= vertical
    edge[:-1] |= vertical
    edge[:, 1:] |= horizontal
    edge[:, :-1] |= horizontal
    return np.where(edge, np.uint8(BORDER), mask)


def saliency(scene: Scene, seed: int, index: int) -> NDArray[np.uint8]:
    """Return a saliency map (S, S), 0–255: the animals, blurred and blotched, as a detector might see them."""
    generator = np.random.default_rng([seed, index, 1])
    size = len(scene.mask)
    solid = np.zeros((size, size))
    for _, visible in scene.animals:
        solid[visible] = 1.0
    doubt = 0.75 + 0.25 * _blotches(generator, size, size / 6)
    return np.clip(255 * _blur(solid, max(1, size // 48)) * doubt, 0, 255).astype(np.uint8)


def _background(
    generator: np.random.Generator, size: int, colour: tuple[int, int, int], blotch: int
) -> NDArray[np.float64]:
    wide, narrow = _blotches(generator, size, blotch * size / 96), _blotches(generator, size, 3 * size / 96)
    tone = 30 * wide + 14 * narrow
    return np.array(colour, float) + tone[..., None] + generator.normal(0, 8, 3)


def _animal(
    generator: np.random.Generator,
    label: int,
    rows: NDArray[np.float64],
    columns: NDArray[np.float64],
    image: NDArray[np.float64],
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.float64]]:
    """Return the pixels of body and head, and the image with the animal painted on it."""
    length = generator.uniform(*LENGTHS)
    width = length * generator.uniform(0.5, 0.75)
    angle = generator.uniform(-np.pi, np.pi)
    centre = generator.uniform(0.25, 0.75, 2)
    along = (rows - centre[0]) * np.sin(angle) + (columns - centre[1]) * np.cos(angle)
    across = (rows - centre[0]) * np.cos(angle) - (columns - centre[1]) * np.sin(angle)
    bend = 0.25 * across * np.sin(4 * along / length + generator.uniform(0, 6))
    body = ((along + bend) / length) ** 2 + (across / width) ** 2 < 1
    radius = np.sqrt(HEAD_SHARE * length * width)
    from_head = np.hypot(along - length, across)
    head = from_head < radius
    fur = np.sin(2 * np.pi * along * 96 / 5 + generator.uniform(0, 6)) * 14
    tint = np.array(BODY_TINTS[generator.integers(len(BODY_TINTS))], float) + generator.normal(0, 6, 3)
    painted = np.where(body[..., None], tint + fur[..., None], image)
    first, second = (np.array(colour, float) for colour in HEAD_COLOURS[label - 1])
    cycle = 2 * np.pi / (radius * 0.9)
    pattern = (
        np.sin(cycle * from_head),
        np.sin(cycle * (along - length)) * np.sin(cycle * across),
        np.sin(cycle * across),
    )[(label - 1) % 3]
    face = np.where((pattern > 0)[..., None], first, second)
    return body & ~head, head, np.where(head[..., None], face, painted)


def _hidden(front: NDArray[np.bool_], back: NDArray[np.bool_]) -> float:
    pixels = int(back.sum())
    return float((front & back).sum() / pixels) if pixels else 1.0


def _blotches(generator: np.random.Generator, size: int, scale: float) -> NDArray[np.float64]:
    """Return smooth noise in about [−1, 1], with features `scale` pixels wide."""
    cells = max(2, round(size / scale) + 1)
    coarse = generator.uniform(-1, 1, (cells, cells))
    place = np.linspace(0, cells - 1.001, size)
    low = place.astype(int)
    part = place - low
    rows = coarse[low] * (1 - part)[:, None] + coarse[low + 1] * part[:, None]
    return rows[:, low] * (1 - part) + rows[:, low + 1] * part


def _blur(picture: NDArray[np.float64], radius: int) -> NDArray[np.float64]:
    for axis in (0, 1):
        padded = np.pad(picture, [(radius, radius) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        shifts = [np.take(padded, range(s, s + picture.shape[axis]), axis) for s in range(2 * radius + 1)]
        picture = np.mean(shifts, 0)
    return picture
