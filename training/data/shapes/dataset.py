"""Batches of scenes with captions and questions, addressed by number.

Knows seeds and streams; must not know tensors. Batch ``i`` of a stream is always the same, so the number of the next
batch is all that a resumed run needs. The streams (train, val, test, ...) share no random numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random

import numpy as np

from simmim_export.training.data.base import EVERYTHING, LEARNED, Batch, Data, Labelled, Stated, Want
from simmim_export.training.data.shapes.captions import captions
from simmim_export.training.data.shapes.draw import draw_scene
from simmim_export.training.data.shapes.questions import ANSWERS, FAMILIES, Balance, questions
from simmim_export.training.data.shapes.scene import Scene, Thing, check_split, sample_scene
from simmim_export.training.data.shapes.truth import foil, parse
from simmim_export.training.data.shapes.words import phrases, visual_words, vocabulary

STATEMENTS = ("contradiction", "entailment")
COUNTS = ("3", "4", "5", "6")

_ANSWER_INDEX = {answer: index for index, answer in enumerate(ANSWERS)}
_FAMILY_INDEX = {family: index for index, family in enumerate(FAMILIES)}


@dataclass(frozen=True)
class ShapesBatch(Batch):
    """A :class:`Batch` with the ``scenes`` that were drawn, and the one thing that each question is ``about`` (None where
    it is about several)."""

    scenes: list[Scene] = field(default_factory=list)
    about: list[list[Thing | None]] = field(default_factory=list)


@dataclass(frozen=True)
class Shapes(Data):
    """The data set for one seed, stream and CoGenT split. ``size`` is in pixels.

    ``examples`` makes the stream repeat after so many scenes (rounded to whole batches), for training with few labels.
    """

    seed: int = 0
    stream: str = "train"
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
        """match, vqa, text_class (is a caption true?) and image_class (how many things are there?)."""
        return {"match": ("no", "yes"), "vqa": ANSWERS, "text_class": STATEMENTS, "image_class": COUNTS}

    def on(self, stream: str) -> Shapes:
        """The same data set, another stream, of any length; rehearsal on few examples repeats the very same scenes."""
        if self.examples is not None and stream in LEARNED:
            return replace(self, stream="train")
        return replace(self, stream=stream, examples=None)

    def describe(self) -> dict[str, object]:
        """What a checkpoint records of its data."""
        found = {"name": self.name, "seed": self.seed, "stream": self.stream, "split": self.split, "size": self.size}
        return found | ({} if self.examples is None else {"examples": self.examples})

    def phrases(self) -> list[str]:
        """What captions call a thing, in one word or two; see :func:`words.phrases`."""
        return phrases()

    def visual_words(self) -> list[str]:
        """The words of captions that speak of what is seen; see :func:`words.visual_words`."""
        return visual_words()

    def _scenes(self, what: str, index: int, count: int) -> tuple[Random, list[Scene]]:
        if self.examples is not None:
            index %= max(1, self.examples // count)
        key = f"shapes/2/{self.seed}/{self.stream}/{self.split}/{count}/{index}{what}"
        random = Random(int.from_bytes(hashlib.sha256(key.encode()).digest()[:16], "big"))
        return random, [sample_scene(random, self.split) for _ in range(count)]

    def _draw(self, scenes: Sequence[Scene]) -> np.ndarray:
        return np.stack([draw_scene(scene, self.size) for scene in scenes])

    def batch(self, index: int, images: int, want: Want = EVERYTHING) -> ShapesBatch:
        """Batch number ``index`` of ``images`` scenes, with questions of the given ``families``, of all by default."""
        random, found = self._scenes("", index, images)
        pixels = self._draw(found)
        texts = [captions(scene, random) for scene in found] if want.captions else []
        count = self.questions_per_scene if want.questions else 0
        balance = Balance()
        asked = (
            [questions(scene, random, count, balance, want.families or FAMILIES) for scene in found] if count else []
        )
        answers = np.array([[_ANSWER_INDEX[q.answer] for q in row] for row in asked], np.int64).reshape(
            len(asked), count
        )
        kinds = np.array([[_FAMILY_INDEX[q.family] for q in row] for row in asked], np.int64).reshape(len(asked), count)
        texts_asked = [[q.text for q in row] for row in asked]
        about = [[q.about for q in row] for row in asked]
        return ShapesBatch(pixels, texts, texts_asked, answers, kinds, scenes=found, about=about)

    def labelled(self, index: int, images: int) -> Labelled:
        """Scenes with the number of their things."""
        _, found = self._scenes("", index, images)
        labels = [COUNTS.index(str(len(scene.things))) for scene in found]
        return Labelled(self._draw(found), np.array(labels, np.int64))

    def stated(self, index: int, images: int) -> Stated:
        """Scenes with four statements: two captions, and two of which one word was changed so that they are false."""
        random, found = self._scenes("/stated", index, images)
        texts, labels = [], []
        for scene in found:
            own = captions(scene, random)
            random.shuffle(own)
            false = [text for caption in own if (text := foil(caption, scene, random)) is not None]
            texts.append([*own[:2], *false[:2]])
            labels.append([1, 1, 0, 0])
        return Stated(self._draw(found), texts, np.array(labels, np.int64))

    def truth(self, batch: Batch) -> np.ndarray:
        """bool [captions of the batch, images]: of which scenes each caption is true."""
        assert isinstance(batch, ShapesBatch)
        tests = [parse(caption) for row in batch.captions for caption in row]
        return np.array([[test(scene) for scene in batch.scenes] for test in tests])

    def words(self) -> list[str]:
        """See :func:`words.vocabulary`."""
        return vocabulary()

    def samples(self, count: int) -> tuple[np.ndarray, list[str]]:
        """``count`` scenes with a text each, questions and captions in turn."""
        found = self.batch(0, count)
        texts = [
            found.questions[row][row % len(found.questions[row])] if row % 2 else found.captions[row][row % 5]
            for row in range(count)
        ]
        return found.pixels, texts
