"""Real images and texts to measure ranges on.

They are never random and never one sample repeated: ranges of noise or of one picture fit nothing else.
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
# At most this many of each are used. More did not change a range on real weights, and every graph runs all of them.
MOST = 128
TEXTS = "texts.txt"
_FIX = f"give a folder of {ENOUGH} or more pictures ({', '.join(SUFFIXES)}) and a {TEXTS} with one text per line"


@dataclass(frozen=True)
class Calibration:
    """``pixels`` uint8 [n, height, width, 3] and m ``texts``, with n and m >= 8; ``source`` says where they come from.

    Raise :class:`DataError` for fewer, for another type or rank, and for equal samples. Warn :class:`FewSamples` below 32.
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
        hashed = hashlib.sha256(repr(self.pixels.shape).encode() + self.pixels.tobytes())
        hashed.update("\n".join(self.texts).encode())
        return hashed.hexdigest()


def calibrate(
    pixels: np.ndarray, texts: Sequence[str], folder: Path | None, preprocessing: Mapping[str, Any]
) -> Calibration:
    """The samples in ``folder``, prepared as the manifest's ``preprocessing`` says; without a folder, the checkpoint's own
    ``pixels`` and ``texts``. Each sample is taken once, and at most 128 of each kind.

    If the folder has no texts.txt or no pictures, the checkpoint's are used instead, with a :class:`FewSamples` warning.
    """
    pixels, own = distinct_images(pixels)[:MOST], distinct_texts(texts)[:MOST]
    if folder is None:
        return Calibration(pixels, own, "the checkpoint's samples")
    return from_folder(folder, ImagePreprocessing.from_json(preprocessing), pixels=pixels, texts=own)


def distinct_texts(texts: Sequence[str]) -> tuple[str, ...]:
    """Each of ``texts`` once: a data set with few texts repeats them for its images."""
    return tuple(dict.fromkeys(texts))


def distinct_images(pixels: np.ndarray) -> np.ndarray:
    """Each image of ``pixels`` [n, H, W, 3] once: if nothing moves in a clip, all its frames are the same."""
    first: dict[bytes, int] = {}
    for index, image in enumerate(pixels):
        first.setdefault(hashlib.sha256(image.tobytes()).digest(), index)
    return pixels[list(first.values())]


def require_folder(folder: Path) -> None:
    """Raise :class:`DataError` if ``folder`` is not a directory."""
    if not folder.is_dir():
        raise DataError("the calibration folder does not exist", where=folder, fix=_FIX)


def from_folder(
    folder: Path, preprocessing: ImagePreprocessing, *, pixels: np.ndarray, texts: Sequence[str]
) -> Calibration:
    """Every picture directly in ``folder``, prepared as the runtime prepares it, and the lines of its texts.txt. ``pixels`` and
    ``texts`` replace what it lacks.

    Raise :class:`DataError` for a folder that is missing or has too few samples, :class:`ImageError` for a damaged picture, and
    :class:`TextError` for a line that is not UTF-8.
    """
    require_folder(folder)
    pictures = sorted((p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES), key=lambda p: natural(p.name))
    if not pictures and not (folder / TEXTS).is_file():
        raise DataError("the calibration folder has neither pictures nor texts", where=folder, fix=_FIX)
    if (folder / TEXTS).is_file():
        lines = (folder / TEXTS).read_bytes().splitlines()
        named = ((f"{folder / TEXTS}, line {number}", line) for number, line in enumerate(lines, 1) if line.strip())
        texts = [check_text(line, where) for where, line in named]
    else:
        _warn(f"{folder} has no {TEXTS}: the checkpoint's own texts are used")
    for kind, count in (("images", len(pictures)), ("texts", len(texts))):
        if count > MOST:
            _warn(f"{folder} has {count} {kind}: the first {MOST} are used")
    if pictures:
        pixels = load_pixels(pictures[:MOST], preprocessing)
    else:
        _warn(f"{folder} has no pictures: the checkpoint's own are used")
    return Calibration(pixels, tuple(texts[:MOST]), str(folder))


def _warn(what: str) -> None:
    warnings.warn(what, FewSamples, stacklevel=4)
