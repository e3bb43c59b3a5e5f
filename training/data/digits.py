"""`digits`: scikit-learn's 1,797 real handwritten digits, a small labeled data set for image_class.

Every fifth digit is held out, alternately for val and test; the rest is train.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cache

import numpy as np

from simmim_export.errors import EngineUnavailable, UsageError
from simmim_export.training.data.base import EVERYTHING, Data, Labeled, Want, in_turn, nothing

CLASSES = tuple(str(digit) for digit in range(10))
# INT8 is calibrated on samples. They come from train, so that INT8 is judged on digits it has not seen.
_PARTS = {"train": "train", "samples": "train", "val": "val", "test": "test"}


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [1797, 8, 8] and labels int64 [1797]."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise EngineUnavailable(
            "the data set digits comes with scikit-learn, which is not installed", fix="pip install scikit-learn"
        ) from error
    bunch = load_digits()
    return (bunch.images * (255 / 16)).round().astype(np.uint8), bunch.target.astype(np.int64)


@cache
def _parts() -> Mapping[str, np.ndarray]:
    """Indices of the digits of train, val and test; they do not overlap, and the seed does not change them."""
    _, labels = _digits()
    every = np.arange(len(labels))
    held_out = every[every % 5 == 4]
    # The digits of one class go to val and to test alternately. Taking every second of all digits would split classes
    # unevenly.
    turn = _ranks(labels[held_out]) % 2
    return {"train": every[every % 5 != 4], "val": held_out[turn == 0], "test": held_out[turn == 1]}


def _ranks(labels: np.ndarray) -> np.ndarray:
    """int64 [n]: how many earlier labels are the same as this one."""
    ranks = np.empty(len(labels), np.int64)
    for digit in range(10):
        same = labels == digit
        ranks[same] = np.arange(same.sum())
    return ranks


@dataclass(frozen=True)
class Digits(Data):
    """One stream: train, samples (also from train), val or test. ``examples`` uses only so many digits, taking the
    classes in turn, for training with few labels."""

    seed: int = 0
    stream: str = "train"
    _: KW_ONLY
    size: int = 64
    examples: int | None = None

    name = "digits"

    @property
    def labels(self) -> Mapping[str, Sequence[str]]:
        """The classes of image_class."""
        return {"image_class": CLASSES}

    def on(self, stream: str) -> Digits:
        return replace(self, stream=stream, examples=self.examples if stream == "train" else None)

    def open(self) -> None:
        self._members()

    def limit(self, kind: str) -> int | None:
        """The number of digits in this stream."""
        return len(self._members())

    def describe(self) -> dict[str, object]:
        return {
            "name": self.name,
            "seed": self.seed,
            "stream": self.stream,
            "size": self.size,
            "examples": self.examples,
        }

    def _members(self) -> np.ndarray:
        """Indices of this stream's digits, shuffled by the seed, classes in turn. Raise :class:`UsageError` for an
        unknown stream."""
        if self.stream not in _PARTS:
            fix = f"choose one of {', '.join(_PARTS)}"
            raise UsageError(f"the data set {self.name} has no stream {self.stream!r}", fix=fix)
        _, labels = _digits()
        members = np.random.default_rng(self.seed).permutation(_parts()[_PARTS[self.stream]])
        return members[np.argsort(_ranks(labels[members]), kind="stable")][: self.examples]

    def labeled(self, index: int, images: int, *, want: Want = EVERYTHING) -> Labeled:
        members = self._members()
        chosen = members[in_turn(index, images, count=len(members), seed=self.seed)]
        gray, labels = _digits()
        if not want.pixels:
            return Labeled(nothing(self.size), labels[chosen])
        # Nearest-neighbor scaling of the 8 x 8 pixels: whole blocks at multiples of 8, and nothing is cut off at other
        # sizes.
        places = np.arange(self.size) * 8 // self.size
        large = gray[chosen][:, places[:, None], places]
        return Labeled(np.ascontiguousarray(large[..., None].repeat(3, axis=3)), labels[chosen])

    def samples(self, count: int) -> tuple[np.ndarray, list[str]]:
        """See :meth:`Data.samples`; there are no texts."""
        return self.labeled(0, min(count, len(self._members()))).pixels, []
