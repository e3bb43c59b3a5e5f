"""What a data set on disk says about its images.

The readers in :mod:`simmim_export.training.data.readers` return records; :mod:`simmim_export.training.data.files` turns
them into batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from simmim_export.errors import UsageError


class NoSplit(UsageError):
    """A split that is not on disk. The message names the splits that are."""


@dataclass(frozen=True)
class Question:
    """A question and its acceptable answers, each with a score in (0, 1]. ``answers`` is empty if the split withholds
    them. ``family`` is the type of the question; figures are also reported by family."""

    text: str
    answers: Mapping[str, float]
    _: KW_ONLY
    family: str = "all"


@dataclass(frozen=True)
class Statement:
    """A text about the image and its label: entailment, neutral or contradiction."""

    text: str
    label: str


@dataclass(frozen=True)
class Record:
    """One image, or the frames of one clip in order, and everything that is said about it.

    ``key`` is unique in its data set (an image id, a relative path). An image is a path, or the bytes of an encoded
    file (a member of a tar). ``label`` is the class of the image or clip.
    """

    key: str
    images: tuple[Path | bytes, ...]
    _: KW_ONLY
    captions: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    statements: tuple[Statement, ...] = ()
    label: str | None = None


def askable(record: Record) -> list[Question]:
    """The questions whose answers are known."""
    return [question for question in record.questions if question.answers]
