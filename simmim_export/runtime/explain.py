"""Draws a model's answers: each question with the answer and where the model looked for it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from simmim_export.runtime.scores import Answer
from simmim_export.system.printing import printable

# In pixels: the longer side of a picture, the space around it, and the sizes of the two fonts.
SIDE, MARGIN = 368, 24
QUESTION_SIZE, ANSWER_SIZE = 24, 32
# Panels in a row; more continue below it.
ACROSS = 4
# A text of more characters is cut, so that the drawing stays small.
LONGEST = 160
GRAY, BLACK, YELLOW = (80, 80, 80), (0, 0, 0), (255, 220, 0)


class Panel(NamedTuple):
    """A question, the best answer to it, and where the model looked: float [rows, columns] over the image."""

    question: str
    answer: Answer
    attention: np.ndarray


def sheet(image: Image.Image, panels: Sequence[Panel]) -> Image.Image:
    """``image`` itself, then for each of ``panels`` its :func:`overlay` above the question and the answer."""
    drawn = [_resized(image)]
    for question, answer, attention in panels:
        percent = f"{answer.label}  {answer.score:.0%}"
        texts = ((question, QUESTION_SIZE, GRAY), (percent, ANSWER_SIZE, BLACK))
        drawn.append(_captioned(overlay(image, attention), texts))
    across = min(len(drawn), ACROSS)
    width, height = SIDE + MARGIN, max(panel.height for panel in drawn) + MARGIN
    page = Image.new("RGB", (across * width + MARGIN, ceil(len(drawn) / across) * height + MARGIN), "white")
    for index, panel in enumerate(drawn):
        row, column = divmod(index, across)
        page.paste(panel, (MARGIN + column * width, MARGIN + row * height))
    return page


def overlay(image: Image.Image, attention: np.ndarray) -> Image.Image:
    """``image``, dark where ``attention`` float [rows, columns] is low, with a frame around its hottest cell.

    The map is scaled to its own maximum: it shows where the model looked, not how much.
    """
    picture = _resized(image)
    scale = np.clip(attention / max(float(attention.max()), 1e-12), 0, 1)
    glow = Image.fromarray((scale * 255).astype(np.uint8)).resize(picture.size, Image.Resampling.BICUBIC)
    dark = Image.blend(picture, Image.new("RGB", picture.size, "black"), 0.75)
    drawn = Image.composite(picture, dark, glow)
    row, column = np.unravel_index(int(attention.argmax()), attention.shape)
    height, width = np.divide((picture.height, picture.width), attention.shape)
    box = (column * width, row * height, (column + 1) * width - 1, (row + 1) * height - 1)
    ImageDraw.Draw(drawn).rectangle(box, outline=YELLOW, width=4)
    return drawn


def _resized(image: Image.Image) -> Image.Image:
    """``image`` with its longer side at SIDE."""
    scale = SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def _captioned(picture: Image.Image, texts: Sequence[tuple[str, int, tuple[int, int, int]]]) -> Image.Image:
    """``picture`` above ``texts``, each with the size of its font and its color."""
    lines = []
    for text, size, color in texts:
        font = ImageFont.load_default(size)
        lines += [(line, font, size * 5 // 4, color) for line in _wrapped(text, font)]
    top = picture.height + MARGIN // 2
    panel = Image.new("RGB", (SIDE, top + sum(height for _, _, height, _ in lines)), "white")
    panel.paste(picture)
    pen = ImageDraw.Draw(panel)
    for line, font, height, color in lines:
        pen.text((0, top), line, fill=color, font=font)
        top += height
    return panel


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """The lines of ``text``, none wider than a picture."""
    text = printable(text if len(text) <= LONGEST else f"{text[:LONGEST]}...")
    lines, most = [text], len(text)
    while max(map(font.getlength, lines)) > SIDE:
        most -= 1
        lines = textwrap.wrap(text, most)
    return lines
