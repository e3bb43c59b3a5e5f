"""Real images and texts to measure ranges on. Knows samples and digests; must not know graphs or quantisers.

Never random and never one sample repeated: ranges of noise or of one picture fit nothing else.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simmim_export.errors import DataError, FewSamples
from simmim_export.runtime.clips import SUFFIXES, natural
from simmim_export.runtime.images import ImagePreprocessing, load_pixels
from simmim_export.runtime.text import check_text

LEAST, ENOUGH = 8, 32
# So many of each are used: more moved no range on real weights, and every graph runs all of them.
MOST = 128
TEXTS = "texts.txt"
_FIX = f"give a folder of {ENOUGH} or more pictures ({', '.join(SUFFIXES)}) and {TEXTS}, a text a line"


@dataclass(frozen=True)
class Calibration:
    """``pixels`` uint8 [n, height, width, 3] and m ``texts``, n and m >= 8, each all distinct; ``source`` says where they
    are from.

    Raise :class:`DataError` for fewer, for another type or rank, or for two that are the same; warn
    :class:`FewSamples` for fewer than 32.
    """

    pixels: np.ndarray
    texts: tuple[str, ...]
    source: str

    def __post_init__(self) -> None:
        pixels = self.pixels
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
            what = f"calibration takes images uint8 [n, height, width, 3], got {pixels.dtype} {list(pixels.shape)}"
            raise DataError(
                what, where=self.source, fix=f"give {ENOUGH} or more different images with --calibration DIR"
            )
        self._enough("images", "picture", [image.tobytes() for image in pixels])
        self._enough("texts", "text", [text.encode() for text in self.texts])

    def _enough(self, many: str, one: str, samples: Sequence[bytes]) -> None:
        fix = f"give {ENOUGH} or more different {many} with --calibration DIR"
        if len(samples) < LEAST:
            raise DataError(f"{len(samples)} {many} are too few to calibrate on", where=self.source, fix=fix)
        first: dict[bytes, int] = {}
        for index, sample in enumerate(samples):
            other = first.setdefault(hashlib.sha256(sample).digest(), index)
            if other != index:
                what = f"calibration {many} {other} and {index} are the same {one}"
                raise DataError(what, where=self.source, fix="remove one of them")
        if len(samples) < ENOUGH:
            what = f"calibrated on {len(samples)} {many} of {self.source}; {ENOUGH} or more are better"
            warnings.warn(what, FewSamples, stacklevel=4)

    @property
    def digest(self) -> str:
        """SHA-256 over shape, pixels and texts."""
        found = hashlib.sha256(repr(self.pixels.shape).encode() + self.pixels.tobytes())
        found.update("\n".join(self.texts).encode())
        return found.hexdigest()


def calibrate(
    pixels: np.ndarray, texts: Sequence[str], folder: Path | None, preprocessing: Mapping[str, Any]
) -> Calibration:
    """The samples of ``folder``, prepared as the manifest's ``preprocessing`` says, or else the checkpoint's own ``pixels``
    and ``texts``, distinct ones, at most 128 of each.

    A folder without texts.txt takes the checkpoint's texts, one without pictures the checkpoint's pictures, with a
    :class:`FewSamples` warning.
    """
    pixels, own = distinct_images(pixels)[:MOST], distinct_texts(texts)[:MOST]
    if folder is None:
        return Calibration(pixels, own, "the checkpoint's samples")
    return from_folder(folder, ImagePreprocessing.from_json(preprocessing), pixels, own)


def distinct_texts(texts: Sequence[str]) -> tuple[str, ...]:
    """Each of ``texts`` once: a data set of few texts repeats them beside its images."""
    return tuple(dict.fromkeys(texts))


def distinct_images(pixels: np.ndarray) -> np.ndarray:
    """Each image of ``pixels`` [n, H, W, 3] once: the frames of a clip in which nothing moves are one picture."""
    first: dict[bytes, int] = {}
    for index, image in enumerate(pixels):
        first.setdefault(hashlib.sha256(image.tobytes()).digest(), index)
    return pixels[list(first.values())]


def require_folder(folder: Path) -> None:
    """Raise :class:`DataError` if there is no such folder."""
    if not folder.is_dir():
        raise DataError("no such folder of calibration samples", where=folder, fix=_FIX)


def from_folder(
    folder: Path, preprocessing: ImagePreprocessing, pixels: np.ndarray, texts: Sequence[str]
) -> Calibration:
    """Every picture directly in ``folder``, prepared as the runtime prepares it, and the lines of its texts.txt; ``pixels`` or
    ``texts`` in place of what it lacks.

    Raise :class:`DataError` for a folder that is missing or has too few, :class:`ImageError` for a damaged picture,
    :class:`TextError` for a line that is not UTF-8.
    """
    require_folder(folder)
    found = sorted((p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES), key=lambda p: natural(p.name))
    if not found and not (folder / TEXTS).is_file():
        raise DataError("no calibration images, and no texts", where=folder, fix=_FIX)
    if (folder / TEXTS).is_file():
        lines = (folder / TEXTS).read_bytes().splitlines()
        named = ((f"{folder / TEXTS}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip())
        texts = [check_text(line, where) for where, line in named]
    else:
        warnings.warn(f"{folder} has no {TEXTS}: the checkpoint's own texts are used", FewSamples, stacklevel=3)
    for kind, count in (("images", len(found)), ("texts", len(texts))):
        if count > MOST:
            warnings.warn(f"{folder} has {count} {kind}: the first {MOST} are used", FewSamples, stacklevel=3)
    if found:
        pixels = load_pixels(found[:MOST], preprocessing)
    else:
        warnings.warn(f"{folder} has no pictures: the checkpoint's own are used", FewSamples, stacklevel=3)
    return Calibration(pixels, tuple(texts[:MOST]), str(folder))
