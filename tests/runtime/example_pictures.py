"""Pictures that tests make, and the check that one is refused."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simmim_export.errors import ImageError
from simmim_export.runtime.images import ImagePreprocessing, load_pixels

SMALL = ImagePreprocessing(32, 48)
RNG = np.random.default_rng(0)


def encoded(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def smooth(height: int = 40, width: int = 60) -> np.ndarray:
    """A picture in which every corner differs: uint8 [height, width, 3]."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * y / height, 255 * x / width, 128 + 0 * x], axis=2).astype(np.uint8)


def photographs() -> list[Path]:
    import sklearn.datasets

    folder = Path(sklearn.datasets.__file__).parent / "images"
    return [folder / "china.jpg", folder / "flower.jpg"]


def refused(source, where: object = "bytes", *, names: str = "") -> None:
    """Loading ``source`` is an ImageError at ``where`` (None: any place) whose message ``names`` this."""
    with pytest.raises(ImageError) as caught:
        load_pixels([source], SMALL)
    assert caught.value.exit_code == 5 and caught.value.fix
    assert where is None or caught.value.where == str(where)
    assert names in str(caught.value)


def animation(form: str) -> bytes:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "green")]
    return encoded(frames[0], form, save_all=True, append_images=frames[1:])


def tiff_of_pages(count: int) -> bytes:
    """A TIFF of so many pages of one pixel."""
    tags = ((256, 1), (257, 1), (258, 8), (259, 1), (262, 1), (273, 4), (277, 1), (278, 1), (279, 1))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    size, pages = 2 + len(entries) + 4, [b"II*\0" + struct.pack("<I", 8)]
    for number in range(1, count + 1):
        following = 8 + number * size if number < count else 0
        pages.append(struct.pack("<H", len(tags)) + entries + struct.pack("<I", following))
    return b"".join(pages)
