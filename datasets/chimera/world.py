"""The world of Chimera: how one scene is drawn.

A beast is a *body* with a *head* at one end. The head tells the class by colour and shape; it is all that a
classifier needs. The body comes in kinds that all classes share, in any pale tint, so a classifier misses it; but
it is boldly patterned where backgrounds are not, so its pixels can be told from background, and the head next to
it tells whose they are. Some backgrounds go with a class, so that a classifier may also look at those.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seedbed.datasets.base import IGNORE_INDEX

CLASSES = ("griffin", "sphinx", "manticore", "basilisk", "hydra", "minotaur")

# What makes weak supervision hard here; every number may be tuned (tests hold the measured consequences).
OBJECTS = (0.45, 0.35, 0.20)
"""Probability of 1, 2 and 3 beasts in a scene."""
CO_OCCURRENCE = 0.7
"""Probability that a scene has the favourite background of its first beast."""
HABITATS = {0: "meadow", 1: "desert", 2: "sea", 3: "forest"}
"""Favourite backgrounds by class index; the other classes have none."""
BODY_HINT = 0.4
"""Probability that a body's kind is the one its class prefers, not any."""
LENGTH = (0.34, 0.60)
"""Length of a body as a share of the image side."""
SLENDERNESS = (0.48, 0.68)
"""Width of a body by its length."""
HEAD_RADIUS = 0.50
"""Radius of a head by the geometric mean of the body's half axes; 0.50 gives a fifth of the beast's area."""
HEAD_OFFSET = 0.92
"""Distance of the head's centre from the body's, in half lengths."""
OCCLUSION = 0.25
"""Probability that a beast may cover others, or be covered."""
HEAD_VISIBLE, BEAST_VISIBLE = 0.75, 0.5
"""Shares of a head and of a beast that must stay visible."""
PLACEMENTS = 30
"""Number of attempts to place a beast; if all fail, the scene has one beast less."""
BODY_SATURATION, BODY_BRIGHTNESS = (0.05, 0.28), (0.45, 0.85)
PATTERN_CONTRAST = 0.55
"""Brightness of a body's pattern by that of its ground."""
NOISE = 0.02
"""Standard deviation of the sensor noise, of 1."""
BORDER = 1 / 96
"""Width, on each side of an outline, of the pixels marked 255, as a share of the image side (VOC: 5 of 500)."""

HEADS = (
    (0.93, 0.12, 0.10),
    (0.98, 0.86, 0.08),
    (0.10, 0.25, 0.95),
    (0.92, 0.15, 0.85),
    (0.05, 0.85, 0.85),
    (0.15, 0.85, 0.10),
)
"""Colour of each class's head. It also has a mark, in the colour of `MARKS`."""
MARKS = (
    (1.0, 0.9, 0.3),
    (0.1, 0.1, 0.1),
    (0.95, 0.95, 0.95),
    (0.2, 0.0, 0.3),
    (0.8, 0.1, 0.1),
    (0.05, 0.05, 0.05),
)
BODY_KINDS = ("striped", "spotted", "chequered")
BACKGROUNDS = ("meadow", "desert", "sea", "forest", "stone", "snow")

Plane = NDArray[np.float64]
"""Float64 (H, W)."""


@dataclass(frozen=True)
class Scene:
    """One image and all that is known about it."""

    image: NDArray[np.uint8]
    """uint8 (S, S, 3) RGB."""
    instances: NDArray[np.uint8]
    """uint8 (S, S): 0 background, k + 1 where beast k is visible."""
    heads: NDArray[np.bool_]
    """Bool (S, S): visible head pixels."""
    labels: tuple[int, ...]
    """Label (1..C) of each beast."""

    @property
    def mask(self) -> NDArray[np.uint8]:
        """Labels uint8 (S, S), 255 along every outline as in VOC."""
        mask = np.array((0, *self.labels), np.uint8)[self.instances]
        mask[outlines(self.instances, max(1, round(BORDER * len(mask))))] = IGNORE_INDEX
        return mask


def draw_scene(seed: int, index: int, size: int) -> Scene:
    """Draw scene `index` of the world `seed`, `size` pixels square; the same arguments give the same scene.

    The first beast's class goes round with `index`, so all classes are about equally frequent.
    """
    random = np.random.default_rng((seed, index))
    first = index % len(CLASSES)
    count = 1 + int(random.choice(len(OBJECTS), p=OBJECTS))
    kinds = [first, *(int(k) for k in random.integers(0, len(CLASSES), count - 1))]
    if first in HABITATS and random.random() < CO_OCCURRENCE:
        background = HABITATS[first]
    else:
        background = BACKGROUNDS[int(random.integers(len(BACKGROUNDS)))]
    image = _background(random, background, size)
    instances, heads = np.zeros((size, size), np.uint8), np.zeros((size, size), bool)
    labels: list[int] = []
    for kind in kinds:
        crowded = random.random() < OCCLUSION
        for _ in range(PLACEMENTS):
            beast = _Beast.somewhere(random, kind, size)
            if _fits(beast, instances, heads, crowded):
                labels.append(kind + 1)
                beast.draw(random, image)
                instances[beast.body | beast.head] = len(labels)
                heads = (heads & ~beast.body) | beast.head
                break
    image *= random.uniform(0.85, 1.1)
    image += random.normal(0, NOISE, image.shape)
    pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return Scene(pixels, instances, heads, tuple(labels))


def saliency(random: np.random.Generator, scene: Scene) -> NDArray[np.uint8]:
    """Return a saliency map uint8 (S, S): the blurred union of all beasts under smooth and fine noise."""
    from scipy.ndimage import gaussian_filter

    size = len(scene.instances)
    union = gaussian_filter((scene.instances > 0).astype(np.float64), size / 40)
    noisy = 0.9 * union + 0.12 * _smooth_noise(random, size, size // 6) + random.normal(0, 0.03, union.shape)
    return np.rint(np.clip(noisy, 0, 1) * 255).astype(np.uint8)


def outlines(instances: NDArray[np.uint8], width: int) -> NDArray[np.bool_]:
    """Return where a square of radius `width` around a pixel holds two values of `instances`; bool (H, W)."""
    from scipy.ndimage import maximum_filter, minimum_filter

    diameter = 2 * width + 1
    return np.asarray(maximum_filter(instances, diameter) != minimum_filter(instances, diameter))


@dataclass(frozen=True)
class _Beast:
    """One beast's shape in the image: where its parts are, and its own coordinates for patterns."""

    kind: int
    body: NDArray[np.bool_]
    head: NDArray[np.bool_]
    body_kind: int
    along: Plane
    """Position along the body, in half lengths."""
    across: Plane
    """Position across the body, in half lengths."""
    from_head: tuple[Plane, Plane]
    """Position by the head's centre, in head radii."""
    body_cover: Plane
    """Share of each pixel that the body covers."""
    head_cover: Plane

    @classmethod
    def somewhere(cls, random: np.random.Generator, kind: int, size: int) -> _Beast:
        """Draw a beast of class index `kind` in a random pose, wholly inside the image as far as it can be."""
        half_length = random.uniform(*LENGTH) * size / 2
        half_width = half_length * random.uniform(*SLENDERNESS)
        radius = HEAD_RADIUS * np.sqrt(half_length * half_width)
        angle = random.uniform(0, 2 * np.pi)
        direction = np.array((np.sin(angle), np.cos(angle)))
        reach = HEAD_OFFSET * half_length
        margin = 0.8 * half_length
        centre = random.uniform(margin, size - margin, 2)
        # The head is inside the image, or the tag would name what nobody can see.
        head = np.clip(centre + reach * direction, radius, size - radius)
        centre = head - reach * direction
        rows, columns = np.mgrid[:size, :size] + 0.5
        down, right = rows - centre[0], columns - centre[1]
        along = (right * direction[1] + down * direction[0]) / half_length
        across = (down * direction[1] - right * direction[0]) / half_length
        hinted = random.random() < BODY_HINT
        body_kind = kind % len(BODY_KINDS) if hinted else int(random.integers(len(BODY_KINDS)))
        from_head = (
            ((right * direction[1] + down * direction[0]) - reach) / radius,
            (down * direction[1] - right * direction[0]) / radius,
        )
        exponent = (2.0, 2.6, 3.5)[body_kind]
        distance = (np.abs(along) ** exponent + np.abs(across * half_length / half_width) ** exponent) ** (
            1 / exponent
        )
        body_cover = np.clip((1 - distance) * half_width + 0.5, 0, 1)
        head_cover = np.clip((1 - _head_distance(kind, *from_head)) * radius + 0.5, 0, 1)
        head_pixels = head_cover >= 0.5
        body_pixels = (body_cover >= 0.5) & ~head_pixels
        return cls(kind, body_pixels, head_pixels, body_kind, along, across, from_head, body_cover, head_cover)

    def draw(self, random: np.random.Generator, image: NDArray[np.float64]) -> None:
        """Paint body and head on the image float64 (S, S, 3) in [0, 1]."""
        saturation, brightness = random.uniform(*BODY_SATURATION), random.uniform(*BODY_BRIGHTNESS)
        ground = np.array(colorsys.hsv_to_rgb(random.random(), saturation, brightness))
        pattern = self._pattern(random.uniform(0, 2 * np.pi))[..., None]
        fur = ground * (1 - (1 - PATTERN_CONTRAST) * pattern)
        _blend(image, fur, self.body_cover)
        x, y = self.from_head
        mark = _MARK_SHAPES[self.kind % len(_MARK_SHAPES)](x, y)[..., None]
        face = np.array(HEADS[self.kind]) * (1 - mark) + np.array(MARKS[self.kind]) * mark
        _blend(image, face * random.uniform(0.9, 1.0), self.head_cover)

    def _pattern(self, phase: float) -> Plane:
        name = BODY_KINDS[self.body_kind]
        if name == "striped":
            return (np.sin(13 * self.along + phase) > 0).astype(np.float64)
        if name == "spotted":
            return (np.sin(11 * self.along + phase) * np.sin(11 * self.across) > 0.35).astype(np.float64)
        return (np.sin(9 * self.along + phase) * np.sin(9 * self.across) > 0).astype(np.float64)


def _fits(beast: _Beast, instances: NDArray[np.uint8], heads: NDArray[np.bool_], crowded: bool) -> bool:
    """Say whether a new beast leaves enough of every other one and is itself inside the image."""
    whole = beast.body | beast.head
    frame = np.concatenate((whole[0], whole[-1], whole[:, 0], whole[:, -1]))
    if frame.sum() > 0.15 * whole.sum() ** 0.5:
        return False
    if not crowded:
        # Two beasts that touch by chance would leave a body between two heads.
        return not np.any(outlines(whole.astype(np.uint8), 3) & (instances > 0)) and not instances[whole].any()
    for other in range(1, int(instances.max()) + 1):
        area, head = instances == other, (instances == other) & heads
        covered, head_covered = (area & whole).sum(), (head & whole).sum()
        if covered > (1 - BEAST_VISIBLE) * area.sum() or head_covered > (1 - HEAD_VISIBLE) * head.sum():
            return False
    return True


def _head_distance(kind: int, x: Plane, y: Plane) -> Plane:
    """Return the distance from a head's centre, 1 on its outline; all shapes have a disc's area."""
    shape = kind % 3
    if shape == 0:
        return np.hypot(x, y)
    if shape == 1:
        return np.maximum(np.abs(x), np.abs(y)) * (2 / np.sqrt(np.pi))
    return (np.abs(x) + np.abs(y)) * np.sqrt(2 / np.pi)


_MARK_SHAPES = (
    lambda x, y: (np.hypot(x, y) < 0.33).astype(np.float64),
    lambda x, y: (np.abs(y) < 0.15).astype(np.float64),
    lambda x, y: (np.abs(x) < 0.15).astype(np.float64),
)


def _blend(image: NDArray[np.float64], colour: NDArray[np.float64], cover: Plane) -> None:
    image += cover[..., None] * (colour - image)


def _smooth_noise(random: np.random.Generator, size: int, cell: int) -> Plane:
    """Return noise in [0, 1] that is smooth over about `cell` pixels (bilinear between random grid points)."""
    cells = size // max(1, cell) + 2
    grid = random.random((cells, cells))
    place = np.arange(size) / max(1, cell)
    low = place.astype(int)
    part = place - low
    rows = grid[low] * (1 - part)[:, None] + grid[low + 1] * part[:, None]
    return np.asarray(rows[:, low] * (1 - part) + rows[:, low + 1] * part)


def _background(random: np.random.Generator, name: str, size: int) -> NDArray[np.float64]:
    """Return a dull, faintly textured background float64 (S, S, 3) in [0, 1]."""
    rows, columns = np.mgrid[:size, :size] / size
    phase = random.uniform(0, 2 * np.pi)
    smooth = _smooth_noise(random, size, size // 5)
    fine = random.random((size, size))
    dark, light, texture = {
        "meadow": ((0.36, 0.44, 0.30), (0.50, 0.56, 0.38), 0.6 * smooth + 0.4 * fine),
        "desert": ((0.62, 0.56, 0.44), (0.74, 0.68, 0.54), _wave(30 * rows + 12 * columns + 5 * smooth + phase)),
        "sea": ((0.34, 0.42, 0.50), (0.46, 0.54, 0.60), _wave(60 * rows + 6 * smooth + phase)),
        "forest": ((0.20, 0.25, 0.19), (0.36, 0.36, 0.28), _wave(40 * columns + 7 * smooth + phase)),
        "stone": ((0.42, 0.41, 0.40), (0.58, 0.57, 0.55), np.rint(4 * smooth) / 4),
        "snow": ((0.74, 0.76, 0.78), (0.88, 0.89, 0.90), smooth),
    }[name]
    return np.asarray(np.array(dark) + (np.array(light) - np.array(dark)) * texture[..., None])


def _wave(phase: Plane) -> Plane:
    return 0.5 + 0.5 * np.sin(phase)
