"""Scenes: which things there are, and where.

CoGenT (Johnson et al., 2017): in split A, squares and triangles each have four colors of their own; in split B they
swap them. Circles and crosses have all colors. A model that ties color to shape fails on B.
"""

from __future__ import annotations

from random import Random
from typing import NamedTuple

from simmim_export.errors import UsageError

SHAPES = ("circle", "square", "triangle", "cross")
COLORS = ("grey", "blue", "orange", "yellow", "red", "green", "purple", "cyan")
SIZES = ("small", "large")
TEXTURES = ("solid", "striped")
# The order of the attributes in a Thing, which is also their order in a description.
ATTRIBUTES = ("size", "texture", "colour", "shape")
VALUES = {"size": SIZES, "texture": TEXTURES, "colour": COLORS, "shape": SHAPES}

GRID = 4
SPLITS = ("iid", "A", "B")

_ALL = tuple(range(len(COLORS)))
_WARM, _COLD = _ALL[:4], _ALL[4:]
# split -> shape -> allowed colors
_PALETTES = {
    "iid": (_ALL, _ALL, _ALL, _ALL),
    "A": (_ALL, _WARM, _COLD, _ALL),
    "B": (_ALL, _COLD, _WARM, _ALL),
}


class Thing(NamedTuple):
    """A thing: indices into SIZES, TEXTURES, COLORS and SHAPES, its grid cell, and its jitter in [-1, 1] of the free
    space.

    The cell is a whole number, except while a thing moves in a clip.
    """

    size: int
    texture: int
    colour: int
    shape: int
    row: float
    column: float
    jitter_y: float
    jitter_x: float


class Scene(NamedTuple):
    """Three to six things in different cells, and the seed of the background."""

    things: tuple[Thing, ...]
    background: int

    def boxes(self, size: int) -> list[tuple[float, float, float, float]]:
        """(left, top, right, bottom) of each thing, in pixels of an image of ``size`` x ``size``."""
        boxes = []
        for thing in self.things:
            y, x, radius = place(thing)
            boxes.append(((x - radius) * size, (y - radius) * size, (x + radius) * size, (y + radius) * size))
        return boxes


# Radius of a thing as a share of the image, by size index; a cell is 0.25 wide.
RADII = (0.0625, 0.109375)


def place(thing: Thing) -> tuple[float, float, float]:
    """Center y, center x and radius of a thing, as shares of the image."""
    radius = RADII[thing.size]
    free = 0.5 / GRID - radius
    y = (thing.row + 0.5) / GRID + thing.jitter_y * free
    x = (thing.column + 0.5) / GRID + thing.jitter_x * free
    return y, x, radius


def check_split(split: str) -> str:
    """``split`` itself. Raise :class:`UsageError`, naming the choices, if it is unknown."""
    if split not in SPLITS:
        raise UsageError(f"unknown split {split!r}", fix=f"choose one of {', '.join(SPLITS)}")
    return split


def sample_scene(random: Random, split: str = "iid") -> Scene:
    """A random scene.

    A third of the colors and shapes are drawn from two favorites of the scene. So several things often share a color or
    shape, which counting and comparing need.
    """
    count = 3 + int(random.random() * 4)
    palettes = _PALETTES[split]
    colors = (int(random.random() * 8), int(random.random() * 8))
    shapes = (int(random.random() * 4), int(random.random() * 4))
    things = []
    for cell in random.sample(range(GRID * GRID), count):
        shape = shapes[random.random() < 0.5] if random.random() < 1 / 3 else int(random.random() * 4)
        allowed = palettes[shape]
        color = colors[random.random() < 0.5]
        if random.random() > 1 / 3 or color not in allowed:
            color = allowed[int(random.random() * len(allowed))]
        things.append(
            Thing(
                int(random.random() * 2),
                int(random.random() * 2),
                color,
                shape,
                cell // GRID,
                cell % GRID,
                random.uniform(-1, 1),
                random.uniform(-1, 1),
            )
        )
    return Scene(tuple(things), random.getrandbits(32))
