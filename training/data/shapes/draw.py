"""Scenes to pixels, at any size."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from simmim_export.training.data.shapes.scene import RADII, Scene, place

if TYPE_CHECKING:
    from PIL import Image

# sRGB of COLORS, chosen to differ from each other and from the dark background, with stripes or without.
RGB = np.array(
    [
        (150, 150, 150),
        (50, 90, 235),
        (245, 130, 20),
        (245, 225, 50),
        (225, 35, 40),
        (35, 165, 60),
        (165, 60, 205),
        (45, 205, 215),
    ],
    np.float32,
)
_SUBPIXELS = 4
_STRIPE = 0.35  # brightness of the dark stripes


@cache
def _noise() -> np.ndarray:
    """Fixed noise, float32 [512, 512, 1] with standard deviation 8; backgrounds are cut from it at random offsets."""
    return np.random.default_rng(0).normal(0, 8, (512, 512, 1)).astype(np.float32)


@cache
def _stamp(
    shape: int, size_index: int, *, texture: int, size: int, phase_y: int, phase_x: int
) -> tuple[np.ndarray, ...]:
    """A thing at a quarter-pixel position: its coverage, float32 [k, k, 1] in [0, 1], and coverage times brightness."""
    radius = RADII[size_index] * size
    k = int(np.ceil(2 * radius)) + 2
    steps = (np.arange(k * _SUBPIXELS) + 0.5) / _SUBPIXELS
    center = k / 2
    y = (steps - center - phase_y / _SUBPIXELS)[:, None] / radius
    x = (steps - center - phase_x / _SUBPIXELS)[None, :] / radius
    if shape == 0:
        inside = y * y + x * x <= 1
    elif shape == 1:
        inside = np.maximum(np.abs(y), np.abs(x)) <= 0.88
    elif shape == 2:
        inside = (y <= 0.85) & (np.abs(x) <= (y + 1) / 1.85)
    else:
        inside = (np.maximum(np.abs(y), np.abs(x)) <= 1) & (np.minimum(np.abs(y), np.abs(x)) <= 0.36)
    bright = np.ones_like(inside, dtype=np.float32)
    if texture == 1:
        # At 64 pixels two bright rows follow two dark ones, for things of any size.
        stripes = np.floor((y * radius + 100 * size) / (size / 32)) % 2
        bright = np.broadcast_to(np.where(stripes == 0, 1.0, _STRIPE), inside.shape).astype(np.float32)

    def shrink(values: np.ndarray) -> np.ndarray:
        return values.reshape(k, _SUBPIXELS, k, _SUBPIXELS).mean(axis=(1, 3))[:, :, None].astype(np.float32)

    return shrink(inside.astype(np.float32)), shrink(inside * bright)


def draw_scene(scene: Scene, size: int = 64) -> np.ndarray:
    """The scene as uint8 [size, size, 3] RGB. It looks the same at every size, except for the noise."""
    y, x = scene.background % 397, scene.background // 397 % 397
    noise = _noise()
    if size > 512 - 397:
        repeats = size // 115 + 1
        noise = np.tile(noise, (repeats, repeats, 1))
    base = 25 + scene.background // 157609 % 40
    image = noise[y : y + size, x : x + size] + np.float32(base)
    image = np.repeat(image, 3, axis=2)
    for thing in scene.things:
        center_y, center_x, _ = place(thing)
        # Position in quarter pixels, split into whole pixels and a phase.
        quarter_y, quarter_x = int(center_y * size * _SUBPIXELS), int(center_x * size * _SUBPIXELS)
        phase_y, phase_x = quarter_y % _SUBPIXELS, quarter_x % _SUBPIXELS
        cover, light = _stamp(
            thing.shape, thing.size, texture=thing.texture, size=size, phase_y=phase_y, phase_x=phase_x
        )
        k = len(cover)
        top, left = quarter_y // _SUBPIXELS - k // 2, quarter_x // _SUBPIXELS - k // 2
        a, b = max(top, 0), max(left, 0)
        c, d = min(top + k, size), min(left + k, size)
        part = (slice(a - top, c - top), slice(b - left, d - left))
        patch = image[a:c, b:d]
        patch *= 1 - cover[part]
        patch += light[part] * RGB[thing.colour]
    return np.clip(image, 0, 255).astype(np.uint8)


def contact_sheet(
    scenes: Sequence[Scene], texts: Sequence[Sequence[str]], *, size: int = 64, zoom: int = 3
) -> Image.Image:
    """A picture of scenes with their texts beside them, in two columns."""
    from PIL import Image, ImageDraw

    side = size * zoom
    rows = (len(scenes) + 1) // 2
    sheet = Image.new("RGB", (2 * (side + 420), rows * (side + 8)), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (scene, lines) in enumerate(zip(scenes, texts, strict=True)):
        left, top = (index % 2) * (side + 420), index // 2 * (side + 8)
        picture = Image.fromarray(draw_scene(scene, size)).resize((side, side), Image.Resampling.NEAREST)
        sheet.paste(picture, (left, top))
        for row, line in enumerate(lines):
            pen.text((left + side + 6, top + 4 + row * 15), line, fill="black")
    return sheet
