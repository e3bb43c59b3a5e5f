"""Turns the records of a data set on disk into batches.

The runtime's own code decodes and resizes the pictures, so training sees what a device will see. A stream is a split on
disk; records are not split any further.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np

from simmim_export.errors import DataError, UsageError
from simmim_export.runtime.images import ImagePreprocessing, load_pixels
from simmim_export.training.data.augment import augmented
from simmim_export.training.data.base import (
    EVERYTHING,
    LEARNED,
    REHEARSAL,
    Batch,
    Data,
    Labeled,
    Stated,
    Want,
    filled,
    in_turn,
    nothing,
)
from simmim_export.training.data.records import NoSplit, Record, Statement, askable

# Like VQAv2's usual 3,129 classes: the most frequent answers, if they are given at least so often.
MOST_ANSWERS, LEAST_COUNT = 3129, 9
READ = Callable[[str, Path, str], list[Record]]
# Statements per image in a batch; SNLI-VE has one of each label on average.
STATEMENTS = 3
T = TypeVar("T")


class UnknownAnswers(UserWarning):
    """Questions whose answer is not one of the classes, because it is rare in training or does not occur there. The
    message counts them."""


class NoTestSplit(UserWarning):
    """A data set without a test split is measured on its val split instead; the message says so."""


_HAS: Mapping[str, Callable[[Record], object]] = {
    "pictures": lambda record: True,
    "captions": lambda record: record.captions,
    "questions": askable,
    "statements": lambda record: record.statements,
    "classes": lambda record: record.label is not None,
}
_TEXTS: Mapping[str, Callable[[Record], Sequence[str]]] = {
    "captions": lambda record: record.captions,
    "questions": lambda record: [question.text for question in askable(record)],
    "statements": lambda record: [statement.text for statement in record.statements],
}


@dataclass(frozen=True)
class Files(Data):
    """One stream of the data set that ``read(name, root, split)`` reads; ``splits`` maps a stream to its split on disk.

    If there is no split for ``test`` on disk, that of ``val`` is used, with a :class:`NoTestSplit` warning. The classes
    of each head are those of the whole training split, even if only a few ``examples`` of it are used. Questions whose
    answer is not a class stay and count as wrong, with an :class:`UnknownAnswers` warning. Clips are sampled at
    ``frames`` evenly spaced frames. ``augment`` changes training images at random (see :func:`augmented`).
    """

    name: str
    root: Path
    _: KW_ONLY
    read: READ
    splits: Mapping[str, str]
    seed: int = 0
    stream: str = "train"
    size: int = 64
    frames: int = 8
    questions_per_image: int = 4
    examples: int | None = None
    augment: bool = False
    # The records of each split that was read, shared by all streams of a data set because reading a large file takes a
    # while.
    known: dict[str, list[Record]] = field(default_factory=dict, repr=False, compare=False)

    def on(self, stream: str) -> Files:
        return replace(self, stream=stream, examples=self.examples if stream in LEARNED else None)

    def open(self) -> None:
        """See :meth:`Data.open`; also warns about questions whose answer is not a class."""
        _ = self._members

    def limit(self, kind: str) -> int | None:
        """The number of records that have ``kind``."""
        return len(self._members[kind])

    def texts(self, kind: str) -> Sequence[str]:
        return [text for record in self.records for text in _TEXTS.get(kind, lambda record: ())(record)]

    def describe(self) -> dict[str, object]:
        return {
            "name": self.name,
            "root": str(self.root),
            "split": self.split,
            "size": self.size,
            "records": len(self.records),
            "examples": self.examples,
            "augment": self.augment,
        }

    @cached_property
    def split(self) -> str:
        """The split on disk that this stream is read from. Raise :class:`UsageError` if there is none."""
        # Rehearsal and samples (for calibration) come from the training split; no other stream may.
        stream = "train" if self.stream in (REHEARSAL, "samples") else self.stream
        if stream not in self.splits:
            fix = f"choose one of {', '.join(self.splits)}"
            raise UsageError(f"the data set {self.name} has no stream {stream!r}", where=self.root, fix=fix)
        try:
            self._read(self.splits[stream])
        except NoSplit as missing:
            val = self.splits.get("val")
            if stream != "test" or val is None:
                raise
            try:
                self._read(val)
            except NoSplit:
                raise missing from None
            what = f"{self.root}: split {self.splits[stream]!r} is missing, so {val!r} is used instead"
            warnings.warn(what, NoTestSplit, stacklevel=2)
            return val
        return self.splits[stream]

    def _read(self, split: str) -> list[Record]:
        if split not in self.known:
            self.known[split] = self.read(self.name, self.root, split)
        return self.known[split]

    @property
    def _all(self) -> list[Record]:
        return self._read(self.split)

    @cached_property
    def records(self) -> list[Record]:
        """The records of the split, or so many ``examples`` of it. Raise :class:`DataError` if it is malformed or
        empty."""
        order = np.random.default_rng(self.seed).permutation(len(self._all))[: self.examples]
        return [self._all[index] for index in order]

    @property
    def _training(self) -> list[Record]:
        """The whole training split in its own order, so that every stream sees the same classes."""
        return self._read(self.splits["train"])

    @cached_property
    def labels(self) -> Mapping[str, Sequence[str]]:
        """The classes of every head that the data can train, taken from the whole training split."""
        labels: dict[str, Sequence[str]] = {}
        records = self._training
        if any(record.captions for record in records):
            labels["match"] = ("no", "yes")
        answers = Counter(max(q.answers, key=lambda a: q.answers[a]) for r in records for q in r.questions if q.answers)
        if answers:
            least = LEAST_COUNT if len(answers) > MOST_ANSWERS else 1
            common = [answer for answer, count in answers.most_common(MOST_ANSWERS) if count >= least]
            labels["vqa"] = tuple(sorted(common))
        if statements := {s.label for record in records for s in record.statements}:
            labels["text_class"] = tuple(sorted(statements))
        if classes := {record.label for record in records if record.label is not None}:
            clips = any(len(record.images) > 1 for record in records)
            labels["video_class" if clips else "image_class"] = tuple(sorted(classes))
        return labels

    @cached_property
    def families(self) -> Sequence[str]:
        """The families of this split's questions and of those of training."""
        both = (*self._training, *self._all)
        return tuple(sorted({question.family for record in both for question in record.questions}))

    def words(self) -> list[str]:
        """Every word of the training split's texts, the most frequent first."""
        counts: Counter[str] = Counter()
        for record in self._training:
            for text in (*record.captions, *(q.text for q in record.questions), *(s.text for s in record.statements)):
                counts.update(re.findall(r"\w+|[^\w\s]", text.lower()))
        return [word for word, _ in counts.most_common()]

    def visual_words(self) -> list[str]:
        """All words, because nothing says which of them are visible."""
        return self.words()

    def phrases(self) -> list[str]:
        """The 500 most frequent words of four letters and more."""
        return [word for word in self.words() if len(word) > 3][:500]

    def _chosen(self, index: int, images: int, kind: str) -> list[Record]:
        """Batch number ``index`` of the records that have ``kind``: each once before any comes again."""
        members = self._members[kind]
        if not members:
            raise DataError(f"no record has {kind}", where=f"{self.root}, {self.split}", fix="choose another --task")
        return [members[place] for place in in_turn(index, images, count=len(members), seed=self.seed)]

    @cached_property
    def _members(self) -> Mapping[str, list[Record]]:
        members = {kind: [record for record in self.records if has(record)] for kind, has in _HAS.items()}
        asked = [question for record in members["questions"] for question in askable(record)]
        known = set(self.labels.get("vqa", ()))
        unknown = sum(not known & set(question.answers) for question in asked)
        if unknown:
            what = (
                f"{unknown} of the {len(asked)} questions of {self.split} have no answer among the {len(known)} classes"
            )
            warnings.warn(f"{self.root}: {what}: whatever the model says is wrong", UnknownAnswers, stacklevel=2)
        return members

    def _pixels(self, records: Sequence[Record], want: Want, index: int) -> np.ndarray:
        """The images or clips of batch number ``index``."""
        if not want.pixels:
            return nothing(self.size)
        pixels, learns = self._decoded(records), self.stream in LEARNED and not want.every
        return augmented(pixels, seed=(self.seed, index)) if self.augment and learns else pixels

    def _decoded(self, records: Sequence[Record]) -> np.ndarray:
        preprocessing = ImagePreprocessing(self.size, self.size)
        if all(len(record.images) == 1 for record in records):
            return load_pixels([record.images[0] for record in records], preprocessing)
        clips = []
        for record in records:
            if len(record.images) < 2:
                raise DataError("a clip of fewer than 2 frames", where=record.key, fix="leave it out")
            # With fewer frames than that, some are repeated.
            places = np.linspace(0, len(record.images) - 1, self.frames).round().astype(int)
            clips.append(load_pixels([record.images[place] for place in places], preprocessing))
        return np.stack(clips)

    def _some(self, items: Sequence[T], count: int, *, index: int, row: int, want: Want) -> list[T]:
        """``count`` of ``items`` for the image in ``row`` of batch number ``index``, shuffled anew for each batch, with
        repeats if there are fewer. With ``want.every``: all of them once."""
        if want.every:
            return list(items)
        order = np.random.default_rng((self.seed, index, row)).permutation(len(items))
        return [items[order[place % len(items)]] for place in range(count)]

    def batch(self, index: int, images: int, *, want: Want = EVERYTHING) -> Batch:
        """See :class:`Batch`. If an image has fewer questions than asked for, some come twice."""
        asks = want.questions and not want.captions
        records = self._chosen(index, images, "questions" if asks else "captions")
        pixels, keys = self._pixels(records, want, index), [record.key for record in records]
        if not asks:
            empty = np.zeros((len(records), 0), np.int64)
            captions = [list(record.captions) for record in records]
            return Batch(pixels=pixels, captions=captions, answers=empty, families=empty, keys=keys)
        count = self.questions_per_image
        asked = [
            self._some(askable(record), count, index=index, row=row, want=want) for row, record in enumerate(records)
        ]
        kinds = filled([[self._family[question.family] for question in row] for row in asked])
        scores = np.zeros((*kinds.shape, len(self._answer)), np.float32)
        for row, chosen in enumerate(asked):
            for column, question in enumerate(chosen):
                for answer, score in question.answers.items():
                    if answer in self._answer:
                        scores[row, column, self._answer[answer]] = score
        texts = [[question.text for question in row] for row in asked]
        answers = scores.argmax(axis=2)
        return Batch(pixels=pixels, questions=texts, answers=answers, families=kinds, scores=scores, keys=keys)

    @cached_property
    def _answer(self) -> Mapping[str, int]:
        return {answer: place for place, answer in enumerate(self.labels["vqa"])}

    @cached_property
    def _family(self) -> Mapping[str, int]:
        return {family: place for place, family in enumerate(self.families)}

    def labeled(self, index: int, images: int, *, want: Want = EVERYTHING) -> Labeled:
        """See :class:`Labeled`. Raise :class:`DataError` for a class that does not occur in training."""
        head = next((name for name in ("image_class", "video_class") if name in self.labels), None)
        if head is None:
            raise UsageError(f"the data set {self.name} has no classes", fix="choose another --task")
        records = self._chosen(index, images, "classes")
        return Labeled(
            self._pixels(records, want, index), self._places(head, [(r.key, r.label or "") for r in records])
        )

    def stated(self, index: int, images: int, *, want: Want = EVERYTHING) -> Stated:
        """See :class:`Stated`: three statements per image, with repeats if there are fewer."""
        records = self._chosen(index, images, "statements")
        chosen: list[list[Statement]] = [
            self._some(record.statements, STATEMENTS, index=index, row=row, want=want)
            for row, record in enumerate(records)
        ]
        labels = [
            self._places("text_class", [(record.key, statement.label) for statement in row]).tolist()
            for record, row in zip(records, chosen, strict=True)
        ]
        return Stated(self._pixels(records, want, index), [[s.text for s in row] for row in chosen], filled(labels))

    def _places(self, head: str, labels: Sequence[tuple[str, str]]) -> np.ndarray:
        classes = {name: place for place, name in enumerate(self.labels[head])}
        for key, label in labels:
            if label not in classes:
                what = f"the class {label!r} does not occur in training"
                raise DataError(what, where=f"{self.root}, {key}", fix="correct the label, or leave the record out")
        return np.array([classes[label] for _, label in labels], np.int64)

    def samples(self, count: int) -> tuple[np.ndarray, list[str]]:
        """See :meth:`Data.samples`; the frames of clips are separate images."""
        records = self._chosen(0, min(count, len(self._members["pictures"])), "pictures")
        pictures = [image for record in records for image in record.images][:count]
        texts = [text for r in records for text in (*r.captions, *(q.text for q in r.questions)) if text.strip()]
        return load_pixels(pictures, ImagePreprocessing(self.size, self.size)), texts[:count]
