"""Real images to measure ranges on. Knows images and digests; must not know graphs or quantisers.

Never random and never one sample repeated: ranges of noise or of one picture fit nothing else.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simmim_export.errors import DataError, FewSamples
from simmim_export.runtime.clips import SUFFIXES, natural
from simmim_export.runtime.images import ImagePreprocessing, load_pixels

LEAST, ENOUGH = 8, 32


@dataclass(frozen=True)
class Calibration:
    """``pixels`` uint8 [n, height, width, 3], n >= 8, all distinct; ``digest`` is the SHA-256 of them; ``source`` says
    where they are from.

    Raise :class:`DataError` for fewer, for another type or rank, or for two that are the same; warn
    :class:`FewSamples` for fewer than 32.
    """

    pixels: np.ndarray
    source: str

    def __post_init__(self) -> None:
        fix = f"give {ENOUGH} or more different images with --calibration DIR"
        pixels = self.pixels
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
            what = f"calibration takes images uint8 [n, height, width, 3], got {pixels.dtype} {list(pixels.shape)}"
            raise DataError(what, where=self.source, fix=fix)
        if len(pixels) < LEAST:
            raise DataError(f"{len(pixels)} images are too few to calibrate on", where=self.source, fix=fix)
        first: dict[bytes, int] = {}
        for index, image in enumerate(pixels):
            other = first.setdefault(hashlib.sha256(image.tobytes()).digest(), index)
            if other != index:
                what = f"calibration images {other} and {index} are the same picture"
                raise DataError(what, where=self.source, fix="remove one of them")
        if len(pixels) < ENOUGH:
            what = f"calibrated on {len(pixels)} images of {self.source}; {ENOUGH} or more are better"
            warnings.warn(what, FewSamples, stacklevel=3)

    @property
    def digest(self) -> str:
        """SHA-256 over shape and pixels."""
        return hashlib.sha256(repr(self.pixels.shape).encode() + self.pixels.tobytes()).hexdigest()


def calibrate(samples: np.ndarray, folder: Path | None, preprocessing: Mapping[str, Any]) -> Calibration:
    """The pictures of ``folder``, prepared as the manifest's ``preprocessing`` says, or else the checkpoint's ``samples``."""
    if folder is None:
        return Calibration(samples, "the checkpoint's samples")
    return from_folder(folder, ImagePreprocessing.from_json(preprocessing))


def from_folder(folder: Path, preprocessing: ImagePreprocessing) -> Calibration:
    """Every picture directly in ``folder``, prepared as the runtime prepares it.

    Raise :class:`DataError` for a folder that is missing or has too few, :class:`ImageError` for a damaged picture.
    """
    fix = f"give a folder of {ENOUGH} or more pictures ({', '.join(SUFFIXES)})"
    if not folder.is_dir():
        raise DataError("no such folder of calibration images", where=folder, fix=fix)
    found = sorted((p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES), key=lambda p: natural(p.name))
    if not found:
        raise DataError("no calibration images", where=folder, fix=fix)
    return Calibration(load_pixels(found, preprocessing), str(folder))
