"""Batches of scenes with captions and questions, addressed by number.

Knows seeds and streams; must not know tensors. Batch ``i`` of a stream is always the same, so the number of the next
batch is all that a resumed run needs. The streams (train, val, test, ...) share no random numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from simmim_export.training.data.shapes.captions import captions
from simmim_export.training.data.shapes.draw import draw_scene
from simmim_export.training.data.shapes.questions import ANSWERS, FAMILIES, Balance, questions
from simmim_export.training.data.shapes.scene import Scene, check_split, sample_scene
from simmim_export.training.data.shapes.words import phrases, visual_words

_ANSWER_INDEX = {answer: index for index, answer in enumerate(ANSWERS)}
_FAMILY_INDEX = {family: index for index, family in enumerate(FAMILIES)}


@dataclass(frozen=True)
class ShapesBatch:
    """n scenes: ``pixels`` uint8 [n, size, size, 3]; five captions and q questions a scene; ``answers`` and ``families``
    int64 [n, q], indices into ANSWERS and FAMILIES. What was not asked for is empty.
    """

    scenes: list[Scene]
    pixels: np.ndarray
    captions: list[list[str]]
    questions: list[list[str]]
    answers: np.ndarray
    families: np.ndarray


@dataclass(frozen=True)
class Shapes:
    """The data set for one seed, stream and CoGenT split. ``size`` is in pixels."""

    seed: int = 0
    stream: str = "train"
    split: str = "iid"
    size: int = 64
    questions_per_scene: int = 8

    def __post_init__(self) -> None:
        check_split(self.split)

    def describe(self) -> dict[str, object]:
        """What a checkpoint records of its data."""
        return {"name": "shapes", "seed": self.seed, "stream": self.stream, "split": self.split, "size": self.size}

    def phrases(self) -> list[str]:
        """What captions call a thing, in one word or two; see :func:`words.phrases`."""
        return phrases()

    def visual_words(self) -> list[str]:
        """The words of captions that speak of what is seen; see :func:`words.visual_words`."""
        return visual_words()

    def batch(
        self,
        index: int,
        scenes: int,
        *,
        with_captions: bool = True,
        with_questions: bool = True,
        families: Sequence[str] = FAMILIES,
    ) -> ShapesBatch:
        """Batch number ``index`` of ``scenes`` scenes, with questions of the given ``families``."""
        key = f"shapes/2/{self.seed}/{self.stream}/{self.split}/{scenes}/{index}"
        random = Random(int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "big"))
        found = [sample_scene(random, self.split) for _ in range(scenes)]
        pixels = np.stack([draw_scene(scene, self.size) for scene in found])
        texts = [captions(scene, random) for scene in found] if with_captions else []
        count = self.questions_per_scene if with_questions else 0
        balance = Balance()
        asked = [questions(scene, random, count, balance, families) for scene in found] if count else []
        answers = np.array([[_ANSWER_INDEX[q.answer] for q in row] for row in asked], np.int64).reshape(
            len(asked), count
        )
        kinds = np.array([[_FAMILY_INDEX[q.family] for q in row] for row in asked], np.int64).reshape(len(asked), count)
        return ShapesBatch(found, pixels, texts, [[q.text for q in row] for row in asked], answers, kinds)
