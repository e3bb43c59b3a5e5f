"""`digits`: scikit-learn's 1,797 real hand-written digits, a small labelled set for image_class.

Knows scikit-learn's loader; must not know tensors. Every fifth digit is held out for test, the rest is train.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from simmim_export.errors import EngineUnavailable
from simmim_export.training.data.base import Data, Labelled, in_turn

CLASSES = tuple(str(digit) for digit in range(10))


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """uint8 [1797, 8, 8] and int64 [1797]."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise EngineUnavailable("the data set digits is scikit-learn's", fix="pip install scikit-learn") from error
    found = load_digits()
    return (found.images * (255 / 16)).round().astype(np.uint8), found.target.astype(np.int64)


@dataclass(frozen=True)
class Digits(Data):
    """One stream (train, val, test, samples; all but train are the held-out fifth). ``examples`` takes only so many, the
    first of each class in turn, for training with few labels."""

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
        """The same data set, another stream."""
        return replace(self, stream=stream, examples=None)

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
        """Indices of this stream's digits, mixed by the seed, classes in turn."""
        _, labels = _digits()
        held_out = np.arange(len(labels)) % 5 == 4
        members = np.flatnonzero(~held_out if self.stream == "train" else held_out)
        members = np.random.default_rng(self.seed).permutation(members)
        rank = np.empty(len(members), np.int64)
        for digit in range(10):
            mine = labels[members] == digit
            rank[mine] = np.arange(mine.sum())
        return members[np.argsort(rank, kind="stable")][: self.examples]

    def labelled(self, index: int, images: int) -> Labelled:
        """Batch number ``index``: every digit once before any comes again."""
        members = self._members()
        chosen = members[in_turn(self.seed, index, images, len(members))]
        grey, labels = _digits()
        factor = -(-self.size // 8)
        large = grey[chosen].repeat(factor, axis=1).repeat(factor, axis=2)[:, : self.size, : self.size]
        return Labelled(np.ascontiguousarray(large[..., None].repeat(3, axis=3)), labels[chosen])

    def samples(self, count: int) -> tuple[np.ndarray, list[str]]:
        """``count`` digits, no texts."""
        return self.labelled(0, count).pixels, []
