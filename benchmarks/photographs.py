"""What the suites that start from files and texts are fed: generated photographs, and questions about them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

# Width and height in pixels, by megapixels: a small picture, one of a video, and that of a telephone.
SIZES = {0.3: (640, 480), 2.0: (1632, 1224), 12.0: (4000, 3000)}
QUALITY = 90
STATEMENT = "a small red circle is left of a large blue square"
QUESTIONS = (
    "what colour is the circle?",
    "how many squares are there?",
    "is there a red triangle?",
    "which shape is left of the blue square?",
    "what is above the green circle?",
    "is the large square blue?",
    "how many small shapes are there?",
    "what colour is the largest shape?",
    "is there a circle below the triangle?",
    "which shape is in the middle?",
    "what shape is red?",
    "are there more circles than squares?",
    "is the triangle right of the circle?",
    "what colour is the smallest square?",
    "how many shapes are yellow?",
    "is anything above the red square?",
)


def photograph(folder: Path, megapixels: float) -> Path:
    """The photograph of that size in ``folder``, made on first use: a JPEG whose detail costs a decoder as much as a real one's.

    It is noise with a spectrum near 1/f, as photographs have (Field, 1987), drawn with a fixed seed. ``megapixels`` is a key of
    :data:`SIZES`; KeyError for another.
    """
    width, height = SIZES[megapixels]
    path = folder / f"{megapixels:g}.jpg"
    if path.is_file():
        return path
    random = np.random.default_rng(0)
    picture = np.zeros((height, width, 3), np.float32)
    cells = 2
    while cells < max(width, height):
        # Each octave has half the size and a little less contrast: 2 to 3 bits a pixel at this quality, as a camera's.
        coarse = random.normal(0, cells**-0.25, (cells * height // width + 1, cells, 3)).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(coarse[:, :, channel], mode="F").resize((width, height), Image.Resampling.BILINEAR)
            picture[:, :, channel] += np.asarray(layer)
        cells *= 2
    picture = 128 + 48 * picture / picture.std()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path, quality=QUALITY)
    return path
