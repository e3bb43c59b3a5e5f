"""Reads the frames of a clip from a folder of pictures or an animated picture.

An animation is decoded frame by frame, and only the frames asked for are kept: a longer one takes more time, not more memory.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from simmim_export.errors import ImageError
from simmim_export.runtime.images import ImageSource
from simmim_export.runtime.picture_files import opened

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


class Animation(Sequence[ImageSource]):
    """The ``count`` frames of the animated picture at ``path``, as RGB or RGBA, decoded each time they are taken.

    Taking frames raises :class:`ImageError` for damaged ones, and for more pixels at once than are safe to decode.
    """

    def __init__(self, path: Path, count: int) -> None:
        self._path, self._count = path, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        wanted = range(self._count)[index]
        return self.take(wanted) if isinstance(index, slice) else self.take([wanted])[0]

    def __iter__(self) -> Iterator[ImageSource]:
        return iter(self.take(range(self._count)))

    def take(self, indices: Sequence[int]) -> list[ImageSource]:
        """The frames ``indices``, in one pass over the file if they ascend."""
        with opened(self._path, len(indices)) as image:
            return [_frame(image, index) for index in indices]


def _frame(image: Image.Image, index: int) -> Image.Image:
    image.seek(index)
    # In either mode this is a copy: Pillow draws the next frame over this one.
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


class SampledFrames(UserWarning):
    """A clip has more frames than the model takes, and some were chosen; the message says how many of how many."""


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts frame2 before frame10. A digit that is not decimal, such as ², counts as a letter."""
    return [(int(part), "") if part.isdecimal() else (-1, part.lower()) for part in re.split(r"(\d+)", name) if part]


def is_animation(path: Path) -> bool:
    """Whether the file is a picture of several frames, whatever its name; raise :class:`ImageError` if it is not a picture.

    An MPO does not count: its second picture is a thumbnail, or the same scene for the other eye.
    """
    if not path.is_file():  # A pipe can be read only once.
        return False
    with opened(path) as image:
        return getattr(image, "n_frames", 1) > 1 and image.format != "MPO"


def read_clip(path: str | os.PathLike[str]) -> Sequence[ImageSource]:
    """The frames of a folder of pictures, in natural order of their names, or of an animated picture (GIF, WebP, PNG), which are
    decoded when they are used.

    Raise :class:`ImageError` for a path that does not exist and for fewer than two frames.
    """
    source = Path(path)
    frames: Sequence[ImageSource]
    if source.is_dir():
        names = (child for child in source.iterdir() if child.suffix.lower() in SUFFIXES)
        frames = [*sorted(names, key=lambda child: natural(child.name))]
        what = f"a folder with {len(frames)} pictures is not a clip"
    else:
        with opened(source) as image:
            frames = Animation(source, getattr(image, "n_frames", 1))
        what = f"a picture with {len(frames)} frame is not a clip"
    if len(frames) < 2:
        fix = f"give a folder of 2 or more frames ({', '.join(SUFFIXES)}) or an animation"
        raise ImageError(what, where=source, fix=fix)
    return frames


def choose_frames(frames: Sequence[ImageSource], *, least: int, most: int) -> list[ImageSource]:
    """All ``frames``, or ``most`` of them at even distances with a :class:`SampledFrames` warning.

    Raise :class:`ImageError` for fewer than ``least``.
    """
    if len(frames) < least:
        raise ImageError(f"a clip of {len(frames)} frames", where="clip", fix=f"give {least} to {most} frames")
    if len(frames) <= most:
        return list(frames)
    chosen = np.linspace(0, len(frames) - 1, most).round().astype(int)
    warnings.warn(f"{most} of the clip's {len(frames)} frames are used", SampledFrames, stacklevel=4)
    return frames.take(chosen.tolist()) if isinstance(frames, Animation) else [frames[index] for index in chosen]
