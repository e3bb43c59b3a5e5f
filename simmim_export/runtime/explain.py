"""Draws where the model looked over the picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

SIDE = 448


def overlay(image: Image.Image, attention: np.ndarray) -> Image.Image:
    """``image`` at SIDE x SIDE pixels, dark where ``attention`` float [rows, columns] is low, with a frame around its hottest
    cell.

    The map is scaled to its own maximum: it shows where the model looked, not how much.
    """
    scale = np.clip(attention / max(float(attention.max()), 1e-12), 0, 1)
    glow = Image.fromarray((scale * 255).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    picture = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    dark = Image.blend(picture, Image.new("RGB", picture.size, "black"), 0.75)
    drawn = Image.composite(picture, dark, glow)
    rows, columns = attention.shape
    row, column = np.unravel_index(int(attention.argmax()), attention.shape)
    box = (column * SIDE / columns, row * SIDE / rows, (column + 1) * SIDE / columns - 1, (row + 1) * SIDE / rows - 1)
    ImageDraw.Draw(drawn).rectangle(box, outline=(255, 220, 0), width=3)
    return drawn


def sheet(image: Image.Image, maps: Sequence[np.ndarray], lines: Sequence[str]) -> Image.Image:
    """The picture itself, then one :func:`overlay` for each of ``maps`` with its line of text below."""
    cells = [image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC), *(overlay(image, m) for m in maps)]
    page = Image.new("RGB", (len(cells) * (SIDE + 8) - 8, SIDE + 28), "white")
    pen = ImageDraw.Draw(page)
    for index, (cell, line) in enumerate(zip(cells, ["", *lines], strict=True)):
        page.paste(cell, (index * (SIDE + 8), 0))
        pen.text((index * (SIDE + 8) + 4, SIDE + 8), line, fill="black")
    return page
