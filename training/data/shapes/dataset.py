"""Batches of scenes with captions and questions, addressed by number.

Batch ``i`` of a stream is always the same, so a resumed run needs only the number of the next batch. The streams
(train, val, test, ...) share no random numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import lru_cache
from random import Random
from typing import NamedTuple

import numpy as np

from simmim_export.training.data.base import (
    EVERYTHING,
    LEARNED,
    Batch,
    Data,
    Labeled,
    Stated,
    Want,
    filled,
    in_turn,
    nothing,
)
from simmim_export.training.data.shapes.captions import captions
from simmim_export.training.data.shapes.draw import draw_scene
from simmim_export.training.data.shapes.questions import ANSWERS, FAMILIES, Balance, Question, questions
from simmim_export.training.data.shapes.scene import Scene, Thing, check_split, sample_scene
from simmim_export.training.data.shapes.truth import foil, parse
from simmim_export.training.data.shapes.words import phrases, visual_words, vocabulary

STATEMENTS = ("contradiction", "entailment")
COUNTS = ("3", "4", "5", "6")

_ANSWER_INDEX = {answer: index for index, answer in enumerate(ANSWERS)}
_FAMILY_INDEX = {family: index for index, family in enumerate(FAMILIES)}


# With --examples, scenes are made in blocks of so many, with answers balanced within a block; so many blocks are
# cached.
BLOCK, KEPT = 32, 2048


class Told(NamedTuple):
    """A scene and what is said about it: captions and questions, or statements, each with its index in ``STATEMENTS``."""

    scene: Scene
    captions: list[str]
    questions: list[Question]
    statements: list[tuple[str, int]]


@dataclass(frozen=True, kw_only=True)
class ShapesBatch(Batch):
    """A :class:`Batch` with the ``scenes`` that were drawn, and the thing that each question is ``about`` (None if
    several)."""

    scenes: list[Scene] = field(default_factory=list)
    about: list[list[Thing | None]] = field(default_factory=list)


@dataclass(frozen=True)
class Shapes(Data):
    """The data set for one seed, stream and CoGenT split. ``size`` is in pixels.

    With ``examples``, the stream consists of so many scenes, shuffled, each once before any comes again; for training
    with few labels.
    """

    seed: int = 0
    stream: str = "train"
    _: KW_ONLY
    split: str = "iid"
    size: int = 64
    questions_per_scene: int = 8
    examples: int | None = None

    name = "shapes"

    def __post_init__(self) -> None:
        check_split(self.split)

    @property
    def families(self) -> Sequence[str]:
        """The ten kinds of questions."""
        return FAMILIES

    @property
    def labels(self) -> Mapping[str, Sequence[str]]:
        """match, vqa, text_class (is a caption true?) and image_class (how many things?)."""
        return {"match": ("no", "yes"), "vqa": ANSWERS, "text_class": STATEMENTS, "image_class": COUNTS}

    def on(self, stream: str) -> Shapes:
        """See :meth:`Data.on`. Rehearsal on few examples uses the same scenes as training."""
        if self.examples is not None and stream in LEARNED:
            return replace(self, stream="train")
        return replace(self, stream=stream, examples=None)

    def limit(self, kind: str) -> int | None:
        """The number of examples; None if the stream has no end."""
        return self.examples

    def describe(self) -> dict[str, object]:
        description = {
            "name": self.name,
            "seed": self.seed,
            "stream": self.stream,
            "split": self.split,
            "size": self.size,
        }
        return description | ({} if self.examples is None else {"examples": self.examples})

    def phrases(self) -> list[str]:
        return phrases()

    def visual_words(self) -> list[str]:
        return visual_words()

    def _random(self, what: str, index: int, count: int) -> Random:
        key = f"shapes/2/{self.seed}/{self.stream}/{self.split}/{count}/{index}{what}"
        return Random(int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "big"))

    def tell(self, index: int, count: int, want: Want) -> list[Told]:
        """Block number ``index`` of ``count`` scenes, with captions and questions."""
        random = self._random("", index, count)
        scenes = [sample_scene(random, self.split) for _ in range(count)]
        texts = [captions(scene, random) if want.captions else [] for scene in scenes]
        number, balance = self.questions_per_scene if want.questions else 0, Balance()
        families = want.families or FAMILIES
        asked = [questions(scene, random, count=number, balance=balance, families=families) for scene in scenes]
        return [Told(*parts, []) for parts in zip(scenes, texts, asked, strict=True)]

    def state(self, index: int, count: int) -> list[Told]:
        """Block number ``index`` of ``count`` scenes with four statements each: two captions, and two captions with one
        word changed so that they are false."""
        random = self._random("/stated", index, count)
        told = []
        for scene in [sample_scene(random, self.split) for _ in range(count)]:
            own = captions(scene, random)
            random.shuffle(own)
            false = [text for caption in own if (text := foil(caption, scene, random)) is not None]
            told.append(Told(scene, [], [], [*((text, 1) for text in own[:2]), *((text, 0) for text in false[:2])]))
        return told

    def _told(self, index: int, images: int, want: Want | None) -> tuple[list[str], list[Told]]:
        """The keys of the scenes of batch number ``index``, and what is said about them; statements if ``want`` is
        None."""
        if self.examples is None:
            made = self.state(index, images) if want is None else self.tell(index, images, want)
            return [str(number) for number in range(index * images, (index + 1) * images)], made
        places = in_turn(index, images, count=self.examples, seed=self.seed)
        return [str(place) for place in places], [_block(self, place // BLOCK, want)[place % BLOCK] for place in places]

    def _draw(self, told: Sequence[Told], want: Want) -> np.ndarray:
        return np.stack([draw_scene(one.scene, self.size) for one in told]) if want.pixels else nothing(self.size)

    def batch(self, index: int, images: int, *, want: Want = EVERYTHING) -> ShapesBatch:
        """Batch number ``index`` of ``images`` scenes; see :class:`Batch`."""
        keys, told = self._told(index, images, want._replace(every=False, pixels=True))
        asked = [one.questions for one in told]
        if want.every:
            asked = [list({question.text: question for question in row}.values()) for row in asked]
        return ShapesBatch(
            pixels=self._draw(told, want),
            captions=[one.captions for one in told] if want.captions else [],
            questions=[[question.text for question in row] for row in asked] if want.questions else [],
            answers=filled([[_ANSWER_INDEX[question.answer] for question in row] for row in asked]),
            families=filled([[_FAMILY_INDEX[question.family] for question in row] for row in asked]),
            keys=keys,
            scenes=[one.scene for one in told],
            about=[[question.about for question in row] for row in asked],
        )

    def labeled(self, index: int, images: int, *, want: Want = EVERYTHING) -> Labeled:
        """Scenes with their number of things."""
        _, told = self._told(index, images, Want(captions=False, questions=False))
        labels = [COUNTS.index(str(len(one.scene.things))) for one in told]
        return Labeled(self._draw(told, want), np.array(labels, np.int64))

    def stated(self, index: int, images: int, *, want: Want = EVERYTHING) -> Stated:
        """Scenes with four statements, two of which are true."""
        _, told = self._told(index, images, None)
        rows = [one.statements for one in told]
        texts = [[text for text, _ in row] for row in rows]
        return Stated(self._draw(told, want), texts, np.array([[label for _, label in row] for row in rows], np.int64))

    def truth(self, batch: Batch) -> np.ndarray:
        """bool [captions of the batch, images]: which caption is true of which scene."""
        assert isinstance(batch, ShapesBatch)
        tests = [parse(caption) for row in batch.captions for caption in row]
        return np.array([[test(scene) for scene in batch.scenes] for test in tests])

    def words(self) -> list[str]:
        return vocabulary()

    def samples(self, count: int) -> tuple[np.ndarray, list[str]]:
        """``count`` scenes, each with one text: questions and captions alternate."""
        batch = self.batch(0, count)
        texts = [
            batch.questions[row][row % len(batch.questions[row])] if row % 2 else batch.captions[row][row % 5]
            for row in range(count)
        ]
        return batch.pixels, texts


@lru_cache(KEPT)
def _block(data: Shapes, number: int, want: Want | None) -> list[Told]:
    """Block number ``number`` of few examples; the last block may be shorter."""
    count = min(BLOCK, (data.examples or 0) - number * BLOCK)
    return data.state(number, count) if want is None else data.tell(number, count, want)
