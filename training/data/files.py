"""Records of a data set on disk to batches. Knows records and how a device decodes a picture; must not know file formats.

Pictures are decoded and resized by the runtime's own code, so that training sees what a device will. The records are split
no further: a stream is a split on disk.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from simmim_export.errors import DataError, UsageError
from simmim_export.runtime.images import ImagePreprocessing, load_pixels
from simmim_export.training.data.base import (
    EVERYTHING,
    LEARNED,
    REHEARSAL,
    Batch,
    Data,
    Labelled,
    Stated,
    Want,
    in_turn,
)
from simmim_export.training.data.records import Question, Record

# Answers that become classes, after VQAv2's usual 3,129: those that are given at least so often, the most frequent first.
MOST_ANSWERS, LEAST_COUNT = 3129, 9
READ = Callable[[str, Path, str], list[Record]]


class UnknownAnswers(UserWarning):
    """Questions that no class answers: the answers are rare in training, or do not occur there. The message counts them."""


def askable(record: Record) -> list[Question]:
    """The questions whose answers are known."""
    return [question for question in record.questions if question.answers]


_HAS: Mapping[str, Callable[[Record], object]] = {
    "pictures": lambda record: True,
    "captions": lambda record: record.captions,
    "questions": askable,
    "statements": lambda record: record.statements,
    "classes": lambda record: record.label is not None,
}


@dataclass(frozen=True)
class Files(Data):
    """One stream of the data set that ``read(name, root, split)`` reads; ``splits`` maps a stream to its split on disk.

    The classes of each head are those of the whole training split, however few ``examples`` of it are trained on;
    questions that none of them answers stay and count as wrong, with a :class:`UnknownAnswers` warning. ``frames``: clips
    are taken at so many frames, at even distances.
    """

    name: str
    root: Path
    read: READ
    splits: Mapping[str, str]
    seed: int = 0
    stream: str = "train"
    size: int = 64
    frames: int = 8
    questions_per_image: int = 4
    examples: int | None = None

    def on(self, stream: str) -> Files:
        """The same data set, another stream; see :meth:`Data.on`."""
        return replace(self, stream=stream, examples=self.examples if stream in LEARNED else None)

    def limit(self, kind: str) -> int | None:
        """The records that have what is asked for."""
        return len(self._members[kind])

    def describe(self) -> dict[str, object]:
        """What a checkpoint records of its data."""
        found: dict[str, object] = {
            "name": self.name,
            "root": str(self.root),
            "split": self._split(),
            "size": self.size,
        }
        return found | {"records": len(self.records), "examples": self.examples}

    def _split(self) -> str:
        # Rehearsal and the samples for calibration are of training; nothing else may be, least of all in silence.
        stream = "train" if self.stream in (REHEARSAL, "samples") else self.stream
        if stream not in self.splits:
            fix = f"choose one of {', '.join(self.splits)}"
            raise UsageError(f"the data set {self.name} has no stream {stream!r}", where=self.root, fix=fix)
        return self.splits[stream]

    @cached_property
    def _all(self) -> list[Record]:
        return self.read(self.name, self.root, self._split())

    @cached_property
    def records(self) -> list[Record]:
        """The split's records, or so many ``examples``. Raise :class:`DataError` if it is malformed or empty."""
        order = np.random.default_rng(self.seed).permutation(len(self._all))[: self.examples]
        return [self._all[index] for index in order]

    @cached_property
    def _training(self) -> list[Record]:
        """The whole training split in its own order, so that every stream finds the same classes in it."""
        train = self.splits["train"]
        return self._all if self._split() == train else self.read(self.name, self.root, train)

    @cached_property
    def labels(self) -> Mapping[str, Sequence[str]]:
        """The classes of every head that the data can train: of the whole training split, whatever the stream."""
        found: dict[str, Sequence[str]] = {}
        records = self._training
        if any(record.captions for record in records):
            found["match"] = ("no", "yes")
        answers = Counter(max(q.answers, key=lambda a: q.answers[a]) for r in records for q in r.questions if q.answers)
        if answers:
            least = LEAST_COUNT if len(answers) > MOST_ANSWERS else 1
            common = [answer for answer, count in answers.most_common(MOST_ANSWERS) if count >= least]
            found["vqa"] = tuple(sorted(common))
        if statements := {s.label for record in records for s in record.statements}:
            found["text_class"] = tuple(sorted(statements))
        if classes := {record.label for record in records if record.label is not None}:
            clips = any(len(record.images) > 1 for record in records)
            found["video_class" if clips else "image_class"] = tuple(sorted(classes))
        return found

    @cached_property
    def families(self) -> Sequence[str]:
        """The kinds of the training split's questions."""
        return tuple(sorted({q.family for record in self._training for q in record.questions})) or ("all",)

    def words(self) -> list[str]:
        """Every word of the training split's texts, the most frequent first."""
        counts: Counter[str] = Counter()
        for record in self._training:
            for text in (*record.captions, *(q.text for q in record.questions), *(s.text for s in record.statements)):
                counts.update(re.findall(r"\w+|[^\w\s]", text.lower()))
        return [word for word, _ in counts.most_common()]

    def visual_words(self) -> list[str]:
        """All words: nothing says which of them are seen."""
        return self.words()

    def phrases(self) -> list[str]:
        """The 500 most frequent words of four letters and more."""
        return [word for word in self.words() if len(word) > 3][:500]

    def _chosen(self, index: int, images: int, kind: str) -> list[Record]:
        """Batch number ``index`` of the records that have ``kind``: each once before any comes again."""
        members = self._members[kind]
        if not members:
            raise DataError(f"no record has {kind}", where=f"{self.root}, {self._split()}", fix="choose another --task")
        return [members[place] for place in in_turn(self.seed, index, images, len(members))]

    @cached_property
    def _members(self) -> Mapping[str, list[Record]]:
        found = {kind: [record for record in self.records if has(record)] for kind, has in _HAS.items()}
        asked = [question for record in found["questions"] for question in askable(record)]
        known = set(self.labels.get("vqa", ()))
        unknown = sum(not known & set(question.answers) for question in asked)
        if unknown:
            what = f"{unknown} of the {len(asked)} questions of {self._split()} have no answer among the {len(known)} classes"
            warnings.warn(f"{self.root}: {what}: whatever the model says is wrong", UnknownAnswers, stacklevel=2)
        return found

    def _pixels(self, records: Sequence[Record]) -> np.ndarray:
        preprocessing = ImagePreprocessing(self.size, self.size)
        if all(len(record.images) == 1 for record in records):
            return load_pixels([record.images[0] for record in records], preprocessing)
        clips = []
        for record in records:
            if len(record.images) < 2:
                raise DataError("a clip of fewer than 2 frames", where=record.key, fix="leave it out")
            # Fewer frames than asked: some stand still for two.
            places = np.linspace(0, len(record.images) - 1, self.frames).round().astype(int)
            clips.append(load_pixels([record.images[place] for place in places], preprocessing))
        return np.stack(clips)

    def batch(self, index: int, images: int, want: Want = EVERYTHING) -> Batch:
        """See :class:`Batch`; of an image with fewer questions than are asked for, some are asked twice."""
        asks = want.questions and not want.captions
        records = self._chosen(index, images, "questions" if asks else "captions")
        pixels, captions = self._pixels(records), [list(r.captions) for r in records] if want.captions else []
        if not asks:
            empty = np.zeros((len(records), 0), np.int64)
            return Batch(pixels, captions, [], empty, empty)
        answers = {answer: place for place, answer in enumerate(self.labels["vqa"])}
        count = self.questions_per_image
        scores = np.zeros((len(records), count, len(answers)), np.float32)
        kinds, texts = np.zeros((len(records), count), np.int64), []
        for row, record in enumerate(records):
            asked = askable(record)
            order = np.random.default_rng((self.seed, index, row)).permutation(len(asked))
            chosen = [asked[order[place % len(asked)]] for place in range(count)]
            texts.append([question.text for question in chosen])
            for column, question in enumerate(chosen):
                kinds[row, column] = self.families.index(question.family) if question.family in self.families else 0
                for answer, score in question.answers.items():
                    if answer in answers:
                        scores[row, column, answers[answer]] = score
        return Batch(pixels, captions, texts, scores.argmax(axis=2), kinds, scores)

    def labelled(self, index: int, images: int) -> Labelled:
        """See :class:`Labelled`. Raise :class:`DataError` for a class that training has not."""
        head = next((name for name in ("image_class", "video_class") if name in self.labels), None)
        if head is None:
            raise UsageError(f"the data set {self.name} has no classes", fix="choose another --task")
        records = self._chosen(index, images, "classes")
        return Labelled(self._pixels(records), self._places(head, [(r.key, r.label or "") for r in records]))

    def stated(self, index: int, images: int) -> Stated:
        """See :class:`Stated`: three statements an image, of one with fewer some twice."""
        records = self._chosen(index, images, "statements")
        chosen = [[r.statements[place % len(r.statements)] for place in range(3)] for r in records]
        flat = [(r.key, statement.label) for r, row in zip(records, chosen, strict=True) for statement in row]
        labels = self._places("text_class", flat).reshape(len(records), 3)
        return Stated(self._pixels(records), [[s.text for s in row] for row in chosen], labels)

    def _places(self, head: str, found: Sequence[tuple[str, str]]) -> np.ndarray:
        classes = {name: place for place, name in enumerate(self.labels[head])}
        for key, label in found:
            if label not in classes:
                what = f"the class {label!r} does not occur in training"
                raise DataError(what, where=f"{self.root}, {key}", fix="correct the label, or leave the record out")
        return np.array([classes[label] for _, label in found], np.int64)

    def samples(self, count: int) -> tuple[np.ndarray, list[str]]:
        """``count`` pictures uint8 [count, H, W, 3], frames of clips one by one, and their texts (none where it has none)."""
        records = self._chosen(0, count, "pictures")
        pictures = [image for record in records for image in record.images][:count]
        texts = [text for r in records for text in (*r.captions, *(q.text for q in r.questions)) if text.strip()]
        return load_pixels(pictures, ImagePreprocessing(self.size, self.size)), texts[:count]
