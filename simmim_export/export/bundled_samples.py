"""Real images and texts for models that bring none: parts of the photographs in samples/, and the lines of its texts.txt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import files
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from simmim_export.models.family import ModelDescription
from simmim_export.runtime.images import ImagePreprocessing, load_pixels

Model = TypeVar("Model", bound=ModelDescription)
FOLDER = files("simmim_export.export") / "samples"
PHOTOGRAPHS = ("temple.jpg", "flower.jpg", "officer.jpg")
# Parts of a photograph as left, upper, right, lower, in shares of its sides: all of it, its quarters, its halves, its middle.
_PARTS = (
    (0, 0, 1, 1),
    (0, 0, 0.5, 0.5),
    (0.5, 0, 1, 0.5),
    (0, 0.5, 0.5, 1),
    (0.5, 0.5, 1, 1),
    (0, 0, 1, 0.5),
    (0, 0.5, 1, 1),
    (0.25, 0.25, 0.75, 0.75),
)


def sample_images(preprocessing: Mapping[str, Any]) -> np.ndarray:
    """48 images, uint8 [48, height, width, 3]: 8 parts of each photograph, and their mirror images. ``preprocessing`` is the
    manifest's for images. The first ones are the whole photographs."""
    pictures = []
    for part in _PARTS:
        for name in PHOTOGRAPHS:
            with (FOLDER / name).open("rb") as stream, Image.open(stream) as photograph:
                width, height = photograph.size
                left, upper, right, lower = part
                cut = photograph.crop((int(left * width), int(upper * height), int(right * width), int(lower * height)))
            pictures += [cut, cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    return load_pixels(pictures, ImagePreprocessing.from_json(preprocessing))


def sample_texts() -> tuple[str, ...]:
    """48 captions and questions."""
    return tuple((FOLDER / "texts.txt").read_text(encoding="utf-8").splitlines())


def with_samples(model: Model) -> Model:
    """``model`` with samples of its own, or with those of this module."""
    return replace(
        model,
        images=model.images if len(model.images) else sample_images(model.preprocessing["image"]),
        texts=model.texts or sample_texts(),
    )
