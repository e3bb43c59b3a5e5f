"""Real images and texts on which the passes measure ranges.

They are never random, and never one sample repeated: ranges of noise or of a single picture fit no other input.
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
# At most so many of each are used, because every graph runs all of them. On real weights, more samples changed no range.
MOST = 128
TEXTS = "texts.txt"
_FIX = f"give a folder of {ENOUGH} or more pictures ({', '.join(SUFFIXES)}) and {TEXTS} with one text per line"


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """At least 8 different ``images``, uint8 [n, height, width, 3], and at least 8 different ``texts``; ``source`` says where
    they come from.

    Raise :class:`DataError` for fewer samples, another type or rank, or two equal samples; warn with :class:`FewSamples` for
    fewer than 32.
    """

    images: np.ndarray
    texts: tuple[str, ...]
    source: str

    def __post_init__(self) -> None:
        images = self.images
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            what = f"calibration takes images uint8 [n, height, width, 3], got {images.dtype} {list(images.shape)}"
            fix = f"give {ENOUGH} or more different images with --calibration DIR"
            raise DataError(what, where=self.source, fix=fix)
        self._require_enough("images", [image.tobytes() for image in images])
        self._require_enough("texts", [text.encode() for text in self.texts])

    def _require_enough(self, many: str, samples: Sequence[bytes]) -> None:
        fix = f"give {ENOUGH} or more different {many} with --calibration DIR"
        if len(samples) < LEAST:
            raise DataError(f"{len(samples)} {many} are too few to calibrate on", where=self.source, fix=fix)
        first: dict[bytes, int] = {}
        for index, sample in enumerate(samples):
            other = first.setdefault(hashlib.sha256(sample).digest(), index)
            if other != index:
                what = f"calibration {many} {other} and {index} are the same"
                raise DataError(what, where=self.source, fix="remove one of them")
        if len(samples) < ENOUGH:
            what = f"calibrated on {len(samples)} {many} of {self.source}; {ENOUGH} or more are better"
            warnings.warn(what, FewSamples, stacklevel=4)

    @property
    def digest(self) -> str:
        """SHA-256 over the images with their shape and the texts."""
        content = hashlib.sha256(repr(self.images.shape).encode() + self.images.tobytes())
        content.update("\n".join(self.texts).encode())
        return content.hexdigest()


def calibrate(
    images: np.ndarray, texts: Sequence[str], *, folder: Path | None, preprocessing: Mapping[str, Any]
) -> Calibration:
    """The samples in ``folder``, or if it is None the model's own ``images`` uint8 [n, H, W, 3] and ``texts``: each once, at most
    128 of each.

    Pictures in ``folder`` are prepared as ``preprocessing``, the manifest's for images, says. If it lacks texts.txt or pictures,
    the model's own stand in, with a :class:`FewSamples` warning. Raise :class:`DataError` for a folder that is missing or has too
    few samples, :class:`ImageError` for a damaged picture and :class:`TextError` for a line that is not UTF-8.
    """
    images, texts = distinct_images(images)[:MOST], distinct_texts(texts)[:MOST]
    if folder is None:
        return Calibration(images=images, texts=texts, source="the checkpoint's samples")
    require_folder(folder)
    pictures = sorted((p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES), key=lambda p: natural(p.name))
    lines = _lines(folder / TEXTS)
    if not pictures and lines is None:
        raise DataError("no calibration images, and no texts", where=folder, fix=_FIX)
    for name, count in (("images", len(pictures)), ("texts", len(lines or ()))):
        if count > MOST:
            warnings.warn(f"{folder} has {count} {name}: the first {MOST} are used", FewSamples, stacklevel=2)
    if pictures:
        images = load_pixels(pictures[:MOST], ImagePreprocessing.from_json(preprocessing))
    else:
        warnings.warn(f"{folder} has no pictures: the checkpoint's own are used", FewSamples, stacklevel=2)
    if lines is not None:
        texts = tuple(lines[:MOST])
    else:
        warnings.warn(f"{folder} has no {TEXTS}: the checkpoint's own texts are used", FewSamples, stacklevel=2)
    return Calibration(images=images, texts=texts, source=str(folder))


def _lines(path: Path) -> list[str] | None:
    """The lines of ``path`` that are not blank; None if there is no such file."""
    if not path.is_file():
        return None
    lines = enumerate(path.read_bytes().splitlines(), start=1)
    return [check_text(line, f"{path}, line {number}") for number, line in lines if line.strip()]


def distinct_texts(texts: Sequence[str]) -> tuple[str, ...]:
    """Each of ``texts`` once. A small data set repeats its texts for many images."""
    return tuple(dict.fromkeys(texts))


def distinct_images(images: np.ndarray) -> np.ndarray:
    """Each image of ``images`` [n, H, W, 3] once. The frames of a clip in which nothing moves are all the same."""
    return images[distinct_rows(images)]


def distinct_rows(images: np.ndarray) -> list[int]:
    """The rows of ``images`` [n, H, W, 3] that have no copy before them, in order."""
    first: dict[bytes, int] = {}
    for index, image in enumerate(images):
        first.setdefault(hashlib.sha256(image.tobytes()).digest(), index)
    return list(first.values())


def require_folder(folder: Path) -> None:
    """Raise :class:`DataError` unless ``folder`` is a directory."""
    if not folder.is_dir():
        raise DataError("no such folder of calibration samples", where=folder, fix=_FIX)
