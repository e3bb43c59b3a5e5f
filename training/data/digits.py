"""`digits`: scikit-learn's 1,797 real hand-written digits, a small labelled set for image_class.

Knows scikit-learn's loader; must not know tensors. Every fifth digit is held out, in turn for val and for test; the rest is
train.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from simmim_export.errors import EngineUnavailable, UsageError
from simmim_export.training.data.base import EVERYTHING, Data, Labelled, Want, in_turn, nothing

CLASSES = tuple(str(digit) for digit in range(10))
# Samples are what INT8 is calibrated on: of training, so that it is judged on digits which it has not seen.
_PARTS = {"train": "train", "samples": "train", "val": "val", "test": "test"}


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """uint8 [1797, 8, 8] and int64 [1797]."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise EngineUnavailable("the data set digits is scikit-learn's", fix="pip install scikit-learn") from error
    found = load_digits()
    return (found.images * (255 / 16)).round().astype(np.uint8), found.target.astype(np.int64)


@cache
def _parts() -> Mapping[str, np.ndarray]:
    """Indices of the digits of train, val and test, whatever the seed: no digit is in two of them."""
    _, labels = _digits()
    every = np.arange(len(labels))
    held_out = every[every % 5 == 4]
    # The digits of one class go to val and to test in turn: every second of all would split the classes unevenly.
    turn = _ranks(labels[held_out]) % 2
    return {"train": every[every % 5 != 4], "val": held_out[turn == 0], "test": held_out[turn == 1]}


def _ranks(labels: np.ndarray) -> np.ndarray:
    """int64 [n]: how many of the same class stand before each."""
    found = np.empty(len(labels), np.int64)
    for digit in range(10):
        mine = labels == digit
        found[mine] = np.arange(mine.sum())
    return found


@dataclass(frozen=True)
class Digits(Data):
    """One stream: train, samples (of train as well), val or test (half of the held-out fifth each). ``examples`` takes only
    so many, the first of each class in turn, for training with few labels."""

    seed: int = 0
    stream: str = "train"
    size: int = 64
    examples: int | None = None

    name = "digits"

    @property
    def labels(self) -> Mapping[str, Sequence[str]]:
        """image_class."""
        return {"image_class": CLASSES}

    def on(self, stream: str) -> Digits:
        """The same data set, another stream; see :meth:`Data.on`."""
        return replace(self, stream=stream, examples=self.examples if stream == "train" else None)

    def open(self) -> None:
        """See :meth:`Data.open`."""
        self._members()

    def limit(self, kind: str) -> int | None:
        """The digits of this stream."""
        return len(self._members())

    def describe(self) -> dict[str, object]:
        """What a checkpoint records of its data."""
        return {
            "name": self.name,
            "seed": self.seed,
            "stream": self.stream,
            "size": self.size,
            "examples": self.examples,
        }

    def _members(self) -> np.ndarray:
        """Indices of this stream's digits, mixed by the seed, classes in turn. Raise :class:`UsageError` for another stream."""
        if self.stream not in _PARTS:
            fix = f"choose one of {', '.join(_PARTS)}"
            raise UsageError(f"the data set {self.name} has no stream {self.stream!r}", fix=fix)
        _, labels = _digits()
        members = np.random.default_rng(self.seed).permutation(_parts()[_PARTS[self.stream]])
        return members[np.argsort(_ranks(labels[members]), kind="stable")][: self.examples]

    def labelled(self, index: int, images: int, want: Want = EVERYTHING) -> Labelled:
        """Batch number ``index``: every digit once before any comes again."""
        members = self._members()
        chosen = members[in_turn(self.seed, index, images, len(members))]
        grey, labels = _digits()
        if not want.pixels:
            return Labelled(nothing(self.size), labels[chosen])
        # The nearest of the 8 x 8: whole blocks at multiples of 8, and nothing cut off at other sizes.
        places = np.arange(self.size) * 8 // self.size
        large = grey[chosen][:, places[:, None], places]
        return Labelled(np.ascontiguousarray(large[..., None].repeat(3, axis=3)), labels[chosen])

    def samples(self, count: int) -> tuple[np.ndarray, list[str]]:
        """``count`` digits, or all where there are fewer; no texts."""
        return self.labelled(0, min(count, len(self._members()))).pixels, []
