"""What a task asks of a data set. Knows arrays and texts; must not know where they come from, tensors or models.

Batches are addressed by number: the same number is the same batch, in every process and after every resume.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, NamedTuple, Self

import numpy as np

from simmim_export.errors import UsageError


@dataclass(frozen=True)
class Batch:
    """n images: ``pixels`` uint8 [n, H, W, 3], or of clips [n, f, H, W, 3]; captions; q questions an image.

    ``answers`` and ``families`` are int64 [n, q], indices into the labels of ``vqa`` and into the data's families;
    ``scores`` float32 [n, q, labels] where several answers are right in part. ``keys`` name the images: equal for the same
    one, in whatever batch. What was not asked for is empty. With :attr:`Want.every` the rows of ``questions`` may differ in
    length: q is that of the longest, and the arrays hold zeros where a row has ended.
    """

    pixels: np.ndarray
    captions: list[list[str]]
    questions: list[list[str]]
    answers: np.ndarray
    families: np.ndarray
    scores: np.ndarray | None = None
    keys: Sequence[str] = ()

    def first(self, count: int) -> Self:
        """The first ``count`` images with what belongs to them."""
        parts: dict[str, Any] = {part.name: getattr(self, part.name) for part in fields(self)}
        kept: dict[str, Any] = {name: None if part is None else part[:count] for name, part in parts.items()}
        return replace(self, **kept)


class Labelled(NamedTuple):
    """``pixels`` as in :class:`Batch`, and the class of each: int64 [n]."""

    pixels: np.ndarray
    labels: np.ndarray


class Stated(NamedTuple):
    """``pixels`` as in :class:`Batch`; k texts an image; what holds of each: int64 [n, k]. With :attr:`Want.every` as there."""

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


def nothing(size: int) -> np.ndarray:
    """Pixels of no image: uint8 [0, size, size, 3]."""
    return np.zeros((0, size, size, 3), np.uint8)


def filled(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """int64 [n, longest]: ``rows`` with zeros behind those that are shorter."""
    found = np.zeros((len(rows), max(map(len, rows), default=0)), np.int64)
    for place, row in enumerate(rows):
        found[place, : len(row)] = row
    return found


class Want(NamedTuple):
    """What of a batch to make; questions of the given families, of all without.

    ``every``: each question (or statement) of an image once, for figures, instead of a fixed number of which some may come
    twice. Without ``pixels`` none are drawn or decoded, for whoever counts labels.
    """

    captions: bool = True
    questions: bool = True
    families: tuple[str, ...] | None = None
    every: bool = False
    pixels: bool = True


EVERYTHING = Want()
CAPTIONS, QUESTIONS = Want(questions=False), Want(captions=False)
# What figures are measured on, and what their controls count.
ONCE = QUESTIONS._replace(every=True)
UNSEEN = ONCE._replace(pixels=False)
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

    def open(self) -> None:
        """Read what is to be read, so that what is missing or malformed is said now; nothing for what is made."""

    def limit(self, kind: str) -> int | None:
        """How many images of this stream have captions, questions, classes or statements (``kind``); None: endless."""
        return None

    def texts(self, kind: str) -> Sequence[str]:
        """Every text of this stream's captions, questions or statements (``kind``), to be checked before training; none of what
        is made."""
        return ()

    def describe(self) -> dict[str, object]:
        """What a checkpoint records of its data."""
        raise NotImplementedError

    def batch(self, index: int, images: int, want: Want = EVERYTHING) -> Batch:
        """Batch number ``index``."""
        raise self._has_no("captions or questions")

    def labelled(self, index: int, images: int, want: Want = EVERYTHING) -> Labelled:
        """Batch number ``index`` of images or clips with a class each."""
        raise self._has_no("classes")

    def stated(self, index: int, images: int, want: Want = EVERYTHING) -> Stated:
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
        """``count`` different pictures uint8 [count, H, W, 3] of this stream, or all where it has fewer, and at most ``count``
        texts; no texts where it has none."""
        raise NotImplementedError

    def _has_no(self, what: str) -> UsageError:
        return UsageError(f"the data set {self.name} has no {what}", fix=f"choose --data {self.instead}")
