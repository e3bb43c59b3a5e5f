"""Random changes to training images that leave what their captions say true."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

# The most that an image is turned (degrees), stretched (factor) and moved (share of its side), and the most that
# brightness, contrast and saturation change (share). Images are never mirrored: captions say left and right.
TURN, STRETCH, MOVE, RECOLOR = 12.0, 1.2, 0.08, 0.25
# Pixels of the image per pixel of the result: mostly smaller, because what is cut off may be what a caption is about.
SCALE = (0.85, 1.4)
# One image in so many loses its color.
GRAY = 10


def augmented(pixels: np.ndarray, *, seed: tuple[int, ...]) -> np.ndarray:
    """Images uint8 [n, H, W, 3] or clips [n, f, H, W, 3], each turned, scaled, moved and recolored at random.

    All frames of a clip change alike. What an image lacks at its edges repeats the edge. The same ``seed`` gives the same
    changes.
    """
    random = np.random.default_rng(seed)
    changed = np.empty_like(pixels)
    for images, target in zip(pixels, changed, strict=True):
        place, color = _placing(random, images.shape[-3:-1]), _coloring(random)
        # A single image is a clip of one frame.
        for image, into in zip(
            images.reshape(-1, *images.shape[-3:]), target.reshape(-1, *images.shape[-3:]), strict=True
        ):
            into[:] = _recolored(_placed(image, place), color)
    return changed


def _placing(random: np.random.Generator, size: tuple[int, ...]) -> tuple[float, ...]:
    """A map from pixels of the result to those of the image, in Pillow's order: x' = a x + b y + c, y' = d x + e y + f."""
    height, width = size
    turn = math.radians(random.uniform(-TURN, TURN))
    scale = random.uniform(*SCALE)
    stretch = STRETCH ** random.uniform(-0.5, 0.5)
    a, b = math.cos(turn) * scale * stretch, math.sin(turn) * scale
    d, e = -math.sin(turn) * scale, math.cos(turn) * scale / stretch
    x, y = random.uniform(-MOVE, MOVE) * width, random.uniform(-MOVE, MOVE) * height
    middle_x, middle_y = width / 2, height / 2
    return a, b, middle_x + x - a * middle_x - b * middle_y, d, e, middle_y + y - d * middle_x - e * middle_y


def _placed(image: np.ndarray, place: tuple[float, ...]) -> np.ndarray:
    """``image`` uint8 [H, W, 3] through the map ``place``."""
    height, width = image.shape[:2]
    border = max(height, width) // 2
    a, b, c, d, e, f = place
    wide = Image.fromarray(np.pad(image, ((border, border), (border, border), (0, 0)), mode="edge"))
    moved = (a, b, c + border, d, e, f + border)
    return np.asarray(wide.transform((width, height), Image.Transform.AFFINE, moved, Image.Resampling.BILINEAR))


def _coloring(random: np.random.Generator) -> tuple[float, float, float]:
    """The factors of brightness, contrast and saturation; a saturation of 0 is gray."""
    brightness, contrast, saturation = random.uniform(1 - RECOLOR, 1 + RECOLOR, 3)
    return brightness, contrast, 0.0 if random.integers(GRAY) == 0 else saturation


def _recolored(image: np.ndarray, color: tuple[float, float, float]) -> np.ndarray:
    """``image`` uint8 [H, W, 3] with its brightness, contrast and saturation multiplied."""
    brightness, contrast, saturation = color
    x = image.astype(np.float32) * brightness
    x = (x - x.mean()) * contrast + x.mean()
    gray = x @ np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
    x = gray[..., None] + (x - gray[..., None]) * saturation
    return x.clip(0, 255).round().astype(np.uint8)
