"""What tasks ask of a data set.

Batches are addressed by number: the same number is the same batch, in every process and after every resume.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from functools import lru_cache
from typing import Any, NamedTuple, Self

import numpy as np

from simmim_export.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Batch:
    """n images with their texts.

    ``pixels`` is uint8 [n, H, W, 3], or [n, f, H, W, 3] for clips. ``captions`` and ``questions`` have one row for each
    image. ``answers`` and ``families`` are int64 [n, q]: indices into the labels of ``vqa`` and into the data's
    families. ``scores`` is float32 [n, q, labels], for questions with several answers that are partly right. ``keys``
    identify the images: the same image has the same key in every batch. Parts that were not asked for are empty.

    With :attr:`Want.every`, rows of ``questions`` may differ in length; then q is the length of the longest, and the
    arrays are filled up with zeros.
    """

    pixels: np.ndarray
    captions: list[list[str]] = field(default_factory=list)
    questions: list[list[str]] = field(default_factory=list)
    answers: np.ndarray
    families: np.ndarray
    scores: np.ndarray | None = None
    keys: Sequence[str] = ()

    def first(self, count: int) -> Self:
        """The first ``count`` images with everything that belongs to them."""
        parts: dict[str, Any] = {part.name: getattr(self, part.name) for part in fields(self)}
        return replace(self, **{name: part[:count] for name, part in parts.items() if part is not None})


class Labeled(NamedTuple):
    """``pixels`` as in :class:`Batch`, and the class of each image or clip, int64 [n]."""

    pixels: np.ndarray
    labels: np.ndarray


class Stated(NamedTuple):
    """``pixels`` as in :class:`Batch`, k texts for each image, and the label of each text, int64 [n, k].

    With :attr:`Want.every`, rows may differ in length, as in :class:`Batch`.
    """

    pixels: np.ndarray
    texts: list[list[str]]
    labels: np.ndarray


@lru_cache(maxsize=8)
def _order(seed: int, epoch: int, count: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng((seed, epoch)).permutation(count).tolist())


def in_turn(index: int, images: int, *, count: int, seed: int) -> list[int]:
    """The members of batch number ``index`` of a set of ``count``: shuffled, and each once before any comes again."""
    places = range(index * images, (index + 1) * images)
    return [_order(seed, place // count, count)[place % count] for place in places]


def nothing(size: int) -> np.ndarray:
    """The pixels of zero images: uint8 [0, size, size, 3]."""
    return np.zeros((0, size, size, 3), np.uint8)


def filled(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """int64 [n, longest]: ``rows``, filled up with zeros."""
    array = np.zeros((len(rows), max(map(len, rows), default=0)), np.int64)
    for place, row in enumerate(rows):
        array[place, : len(row)] = row
    return array


class Want(NamedTuple):
    """What to put into a batch. ``families``: only questions of these families (None: of all).

    ``every``: each question (or statement) about an image exactly once, for evaluation, instead of a fixed number with
    repeats. ``pixels`` false: do not draw or decode images, to count labels.
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
# The streams that a model learns from. --examples limits both.
REHEARSAL = "train-rehearsal"
LEARNED = ("train", REHEARSAL)


class Data:
    """One stream of a data set. What a data set does not have is empty, or raises :class:`UsageError`."""

    # Its name on the command line.
    name: str
    # train, val, test or samples.
    stream: str

    @property
    def families(self) -> Sequence[str]:
        """The kinds of its questions."""
        return ()

    @property
    def labels(self) -> Mapping[str, Sequence[str]]:
        """The classes of each head that it can train."""
        return {}

    def on(self, stream: str) -> Self:
        """The same data set, another stream. A limit on examples applies only to the streams that a model learns from."""
        raise NotImplementedError

    def open(self) -> None:
        """Read what has to be read, so that problems show now; does nothing for generated data."""

    def limit(self, kind: str) -> int | None:
        """How many images of this stream have captions, questions, classes or statements (``kind``); None: without end."""
        return None

    def texts(self, kind: str) -> Sequence[str]:
        """Every caption, question or statement (``kind``) of this stream, to check their lengths before training; empty
        for generated data."""
        return ()

    def describe(self) -> dict[str, object]:
        """What a checkpoint records about its data."""
        raise NotImplementedError

    def batch(self, index: int, images: int, *, want: Want = EVERYTHING) -> Batch:
        """Batch number ``index`` of ``images`` images."""
        raise self._has_no("captions or questions")

    def labeled(self, index: int, images: int, *, want: Want = EVERYTHING) -> Labeled:
        """Batch number ``index`` of images or clips with one class each."""
        raise self._has_no("classes")

    def stated(self, index: int, images: int, *, want: Want = EVERYTHING) -> Stated:
        """Batch number ``index`` of images with statements about them."""
        raise self._has_no("statements")

    def truth(self, batch: Batch) -> np.ndarray | None:
        """bool [captions of the batch, images]: which caption is true of which image; None if the data set does not
        know."""
        return None

    def words(self) -> list[str]:
        """Every word that its texts may use."""
        return []

    def visual_words(self) -> list[str]:
        """The words of captions that describe what is visible."""
        return []

    def phrases(self) -> list[str]:
        """Names that captions give to a thing, of one or two words."""
        return []

    def samples(self, count: int) -> tuple[np.ndarray, list[str]]:
        """Up to ``count`` different images, uint8 [n, H, W, 3], and up to ``count`` texts of this stream (none if it
        has no texts)."""
        raise NotImplementedError

    def _has_no(self, what: str) -> UsageError:
        return UsageError(f"the data set {self.name} has no {what}", fix="choose --data shapes")


@dataclass(frozen=True)
class Source:
    """A data set, the number of ``images`` in a batch, and this process's number among ``processes``."""

    data: Data
    images: int
    _: KW_ONLY
    process: int = 0
    processes: int = 1

    def number(self, index: int) -> int:
        """The number, in the data set's stream, of this process's part of batch ``index``."""
        return index * self.processes + self.process
