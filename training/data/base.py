"""What a task asks of a data set. Knows arrays and texts; must not know where they come from, tensors or models.

Batches are addressed by number: the same number is the same batch, in every process and after every resume.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Self

import numpy as np

from simmim_export.errors import UsageError


@dataclass(frozen=True)
class Batch:
    """n images: ``pixels`` uint8 [n, H, W, 3], or of clips [n, f, H, W, 3]; captions; q questions an image.

    ``answers`` and ``families`` are int64 [n, q], indices into the labels of ``vqa`` and into the data's families;
    ``scores`` float32 [n, q, labels] where several answers are right in part. What was not asked for is empty.
    """

    pixels: np.ndarray
    captions: list[list[str]]
    questions: list[list[str]]
    answers: np.ndarray
    families: np.ndarray
    scores: np.ndarray | None = None

    def first(self, count: int) -> Batch:
        """The first ``count`` images with what belongs to them."""
        scores = None if self.scores is None else self.scores[:count]
        texts = (self.captions[:count], self.questions[:count])
        return Batch(self.pixels[:count], *texts, self.answers[:count], self.families[:count], scores)


class Labelled(NamedTuple):
    """``pixels`` as in :class:`Batch`, and the class of each: int64 [n]."""

    pixels: np.ndarray
    labels: np.ndarray


class Stated(NamedTuple):
    """``pixels`` as in :class:`Batch`; k texts an image; what holds of each: int64 [n, k]."""

    pixels: np.ndarray
    texts: list[list[str]]
    labels: np.ndarray


@lru_cache(maxsize=8)
def _order(seed: int, epoch: int, count: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng((seed, epoch)).permutation(count).tolist())


def in_turn(seed: int, index: int, images: int, count: int) -> list[int]:
    """The members of batch number ``index`` of a set of ``count``: each once, in mixed order, before any comes again."""
    places = range(index * images, (index + 1) * images)
    return [_order(seed, place // count, count)[place % count] for place in places]


class Want(NamedTuple):
    """What of a batch to make; questions of the given families, of all without."""

    captions: bool = True
    questions: bool = True
    families: Sequence[str] | None = None


EVERYTHING = Want()
CAPTIONS, QUESTIONS = Want(questions=False), Want(captions=False)
# The streams that a model learns from: a number of examples holds for both.
REHEARSAL = "train-rehearsal"
LEARNED = ("train", REHEARSAL)


class Data:
    """One stream of a data set. What a data set does not have raises :class:`UsageError`, or is empty."""

    # As on the command line.
    name: str
    # train, val, test, samples.
    stream: str
    # Where to find what this one lacks, for the message.
    instead = "shapes"

    @property
    def families(self) -> Sequence[str]:
        """The kinds of its questions."""
        return ()

    @property
    def labels(self) -> Mapping[str, Sequence[str]]:
        """The classes of each head that it can train."""
        return {}

    def on(self, stream: str) -> Self:
        """The same data set, another stream; a limited number of examples holds for what is learned from alone."""
        raise NotImplementedError

    def limit(self, kind: str) -> int | None:
        """How many images of this stream have captions, questions, classes or statements (``kind``); None: endless."""
        return None

    def describe(self) -> dict[str, object]:
        """What a checkpoint records of its data."""
        raise NotImplementedError

    def batch(self, index: int, images: int, want: Want = EVERYTHING) -> Batch:
        """Batch number ``index``."""
        raise self._has_no("captions or questions")

    def labelled(self, index: int, images: int) -> Labelled:
        """Batch number ``index`` of images or clips with a class each."""
        raise self._has_no("classes")

    def stated(self, index: int, images: int) -> Stated:
        """Batch number ``index`` of images with statements."""
        raise self._has_no("statements")

    def truth(self, batch: Batch) -> np.ndarray | None:
        """bool [captions of the batch, images]: of which images each caption is true; None where nobody knows."""
        return None

    def words(self) -> list[str]:
        """Every word that its texts may use."""
        return []

    def visual_words(self) -> list[str]:
        """The words of captions that speak of what is seen."""
        return []

    def phrases(self) -> list[str]:
        """What captions call a thing, in one word or two."""
        return []

    def samples(self, count: int) -> tuple[np.ndarray, list[str]]:
        """``count`` pictures uint8 [count, H, W, 3] of this stream and as many texts; no texts where it has none."""
        raise NotImplementedError

    def _has_no(self, what: str) -> UsageError:
        return UsageError(f"the data set {self.name} has no {what}", fix=f"choose --data {self.instead}")
