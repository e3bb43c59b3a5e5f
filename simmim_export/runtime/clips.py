"""A clip on disk to its frames. Knows folders and animations; must not know graphs or how a frame is resized."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

from simmim_export.errors import ImageError
from simmim_export.runtime.images import ImageSource, opened

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


class SampledFrames(UserWarning):
    """A clip with more frames than the model takes, of which some were chosen; the message says how many of how many."""


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts frame2 before frame10; a digit that is no decimal, such as ², is a letter."""
    return [(int(part), "") if part.isdecimal() else (-1, part.lower()) for part in re.split(r"(\d+)", name) if part]


def is_animation(path: Path) -> bool:
    """Whether the file is a picture of several frames, whatever its name. The second picture of an MPO is a thumbnail or the
    other eye. Raise :class:`ImageError` for a file that is no picture."""
    if not path.is_file():  # a pipe can be read once only
        return False
    with opened(path) as image:
        return getattr(image, "n_frames", 1) > 1 and image.format != "MPO"


def read_clip(path: str | os.PathLike[str]) -> list[ImageSource]:
    """The frames of a folder of pictures, in natural order of their names, or of an animated picture (GIF, WebP, PNG).

    Raise :class:`ImageError` if there is no such path, or fewer than two frames.
    """
    source = Path(path)
    found: list[ImageSource]
    if source.is_dir():
        names = (child for child in source.iterdir() if child.suffix.lower() in SUFFIXES)
        found = [*sorted(names, key=lambda child: natural(child.name))]
        what = f"a folder with {len(found)} pictures is no clip"
    else:
        with opened(source) as image:
            found = [frame.convert("RGBA" if frame.has_transparency_data else "RGB") for frame in _frames(image)]
        what = f"a picture with {len(found)} frame is no clip"
    if len(found) < 2:
        fix = f"give a folder of 2 or more frames ({', '.join(SUFFIXES)}) or an animation"
        raise ImageError(what, where=source, fix=fix)
    return found


def _frames(image: Image.Image) -> list[Image.Image]:
    return [frame.copy() for frame in ImageSequence.Iterator(image)]


def choose_frames(frames: Sequence[ImageSource], least: int, most: int) -> list[ImageSource]:
    """``frames`` themselves, or ``most`` of them at even distances with a :class:`SampledFrames` warning.

    Raise :class:`ImageError` for fewer than ``least``.
    """
    if len(frames) < least:
        raise ImageError(f"a clip of {len(frames)} frames", where="clip", fix=f"give {least} to {most} frames")
    if len(frames) <= most:
        return list(frames)
    chosen = np.linspace(0, len(frames) - 1, most).round().astype(int)
    warnings.warn(f"{most} of the clip's {len(frames)} frames are used", SampledFrames, stacklevel=3)
    return [frames[index] for index in chosen]
