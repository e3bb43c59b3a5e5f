"""What a data set on disk says of its images. Knows paths, texts and labels; must not know pixels, tensors or file formats.

Every reader in :mod:`simmim_export.training.data.readers` yields these; :mod:`simmim_export.training.data.files` turns
them into batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from simmim_export.errors import UsageError


class NoSplit(UsageError):
    """A split that is not on disk; the message names those that are."""


@dataclass(frozen=True)
class Question:
    """``answers`` maps each acceptable answer to its score in (0, 1]; empty where the split withholds them. ``family`` is
    the question's type, for figures by type."""

    text: str
    answers: Mapping[str, float]
    family: str = "all"


@dataclass(frozen=True)
class Statement:
    """A text about the image and what holds of it: entailment, neutral or contradiction."""

    text: str
    label: str


@dataclass(frozen=True)
class Record:
    """One image, or the frames of one clip in order, and all that is said of it.

    ``key`` is unique in its data set (an image id, a relative path). An image is a path, or the bytes of an encoded file
    (a member of a tar). ``label`` is the class of the image or clip.
    """

    key: str
    images: tuple[Path | bytes, ...]
    captions: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    statements: tuple[Statement, ...] = ()
    label: str | None = None
