"""Evidence: held-out, labeled examples that travel with a model, so that a device can measure how well it still answers.

A checkpoint carries them as the bytes of :meth:`Evidence.save`; a bundle as ``evidence.npz``, with PyTorch's FP32 outputs for
them (the references). Everything that is read is checked before it is used (:mod:`simmim_export.proof.fitting`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from simmim_export.errors import BundleError
from simmim_export.system.npz import DAMAGED, pack, unpack

FILE = "evidence.npz"
# The task that ranks images by captions; every other task is named by the labels of its pipeline.
RETRIEVAL = "retrieval"
# What a budget calls the choice of each image among the plain texts. No task may have its name.
ZERO_SHOT = "zero-shot"
# The names of sources that are not a data set: samples without labels that come with a model, and a folder of the user's.
SAMPLES, FOLDER = "samples", "folder"
# The most bytes and values of the JSON that holds the texts and the source. A thousand images with eight questions for each of
# six heads take 50,000 values and 3 MB. A list of three bytes takes twenty times as many in memory.
MOST_WORDS, MOST_VALUES = 32 << 20, 1 << 20
# A training run takes along 1,024 images with 8 texts each. A hostile file must not keep a device busy for days.
MOST_SETS, MOST_IMAGES, MOST_EACH, MOST_TEXTS, LONGEST_TEXT = 64, 1 << 16, 4096, 1 << 17, 1 << 16
PARTS = ("images", "labels", "scores", "reference")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is asked about a set of n images or clips, k times each.

    ``images`` names the set. ``texts`` has n rows of k texts, or is empty if the head reads the image alone. ``labels`` int64
    [n, k] are the right classes (zeros for retrieval, which does not use them). ``scores`` float32 [n, k, classes] in [0, 1] says
    how right each class is, where several are partly right.
    """

    images: str
    texts: tuple[tuple[str, ...], ...]
    labels: np.ndarray
    scores: np.ndarray | None = None

    def right(self, chosen: np.ndarray) -> np.ndarray:
        """float64 [n, k]: 1 or 0 for each ``chosen`` class (int [n, k]), or its score if there are any; 0 for -1, no answer."""
        if self.scores is None:
            return (chosen == self.labels).astype(np.float64)
        scored = np.take_along_axis(self.scores, np.maximum(chosen, 0)[..., None], axis=2)[..., 0].astype(np.float64)
        return np.where(chosen < 0, 0.0, scored)


class _Asked(msgspec.Struct, forbid_unknown_fields=True):
    images: str
    texts: list[list[str]]


class _Words(msgspec.Struct, forbid_unknown_fields=True):
    """The part of the evidence that is not arrays."""

    source: dict[str, Any]
    tasks: dict[str, _Asked]
    plain: list[str]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Sets of images and what is asked about them.

    ``images`` has sets uint8 [n, H, W, 3] of images and [n, f, H, W, 3] of clips. ``tasks`` has each task by its name: the labels
    of the pipeline that answers it, or :data:`RETRIEVAL`. ``source`` says where the examples are from. ``plain`` has texts that
    no task asks; if the model embeds images and texts, each image chooses the nearest of them (:data:`ZERO_SHOT`). ``reference``
    has PyTorch's outputs by the names of :mod:`simmim_export.proof.asked`; a checkpoint has none.
    """

    images: Mapping[str, np.ndarray]
    tasks: Mapping[str, Task]
    source: Mapping[str, Any]
    plain: tuple[str, ...] = ()
    reference: Mapping[str, np.ndarray] = field(default_factory=dict)

    def save(self) -> bytes:
        """The evidence as bytes; the same evidence always gives the same bytes."""
        words: dict[str, Any] = {"source": dict(self.source), "tasks": {}, "plain": self.plain}
        arrays = {f"images/{name}": array for name, array in self.images.items()}
        for name, task in self.tasks.items():
            words["tasks"][name] = {"images": task.images, "texts": task.texts}
            arrays[f"labels/{name}"] = task.labels
            if task.scores is not None:
                arrays[f"scores/{name}"] = task.scores
        arrays |= {f"reference/{name}": array for name, array in self.reference.items()}
        return pack({"words": np.frombuffer(json.dumps(words, ensure_ascii=False).encode(), np.uint8)} | arrays)

    @classmethod
    def load(cls, source: Path | bytes, where: object = None) -> Evidence:
        """The inverse of :meth:`save`.

        Raise :class:`BundleError` for bytes that are not evidence, hold anything else, or do not fit together.
        :func:`simmim_export.proof.fitting.require_fit` checks that they fit a model.
        """
        where = where or (source if isinstance(source, Path) else None)
        try:
            evidence = cls._parse(unpack(source))
            evidence.check()
        except (*DAMAGED, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise BundleError(f"the evidence cannot be read: {error}", where=where, fix="export it again") from error
        return evidence

    @classmethod
    def _parse(cls, arrays: dict[str, np.ndarray]) -> Evidence:
        """Raise ValueError naming what is missing or not known."""
        if "words" not in arrays:
            raise ValueError("it lacks 'words'")
        text = arrays.pop("words")
        if text.dtype != np.uint8 or text.ndim != 1:
            raise ValueError(f"'words' is {text.dtype} {list(text.shape)}")
        if text.nbytes > MOST_WORDS:
            raise ValueError(f"'words' has {text.nbytes:,} bytes; the limit is {MOST_WORDS:,}")
        # Each value follows a comma or a bracket. Commas and brackets inside of texts count too.
        values = sum(int((text == ord(mark)).sum()) for mark in ",[{")
        if values > MOST_VALUES:
            raise ValueError(f"'words' has {values:,} commas and brackets; the limit is {MOST_VALUES:,}")
        words = msgspec.json.decode(text.tobytes(), type=_Words)
        parts: dict[str, dict[str, np.ndarray]] = {part: {} for part in PARTS}
        for key, array in arrays.items():
            part, _, name = key.partition("/")
            if part not in parts or not name:
                raise ValueError(f"it holds {key!r}, which is not a part of evidence")
            parts[part][name] = array
        labels, scores = parts["labels"], parts["scores"]
        for part in ("labels", "scores"):
            if strange := set(parts[part]) - set(words.tasks):
                raise ValueError(f"it holds {part} of unknown tasks: {', '.join(sorted(map(repr, strange)))}")
        if lacking := set(words.tasks) - set(labels):
            raise ValueError(f"it lacks the labels of {', '.join(sorted(map(repr, lacking)))}")
        tasks = {
            name: Task(
                images=row.images,
                texts=tuple(map(tuple, row.texts)),
                labels=labels[name],
                scores=scores.get(name),
            )
            for name, row in words.tasks.items()
        }
        return cls(
            images=parts["images"],
            tasks=tasks,
            source=words.source,
            plain=tuple(words.plain),
            reference=parts["reference"],
        )

    def check(self) -> None:
        """Raise ValueError naming a tensor or text that is empty, not finite or of a wrong type, or that contradicts another."""
        if not self.images and not self.texts():
            raise ValueError("it holds neither images nor texts")
        if max(len(self.images), len(self.tasks), len(self.reference)) > MOST_SETS:
            raise ValueError(f"it has more than {MOST_SETS} sets of images, tasks or references")
        for name, images in self.images.items():
            fits = images.dtype == np.uint8 and images.ndim in (4, 5) and images.shape[-1] == 3
            if not fits or not images.size or len(images) > MOST_IMAGES:
                raise ValueError(f"images {name!r} are {described(images)}")
        if ZERO_SHOT in self.tasks:
            raise ValueError(f"a task has the name {ZERO_SHOT!r}, which stands for choices among its plain texts")
        for name, task in self.tasks.items():
            self._check_task(name, task)
        texts = self.texts()
        if len(texts) > MOST_TEXTS:
            raise ValueError(f"it has {len(texts)} texts, at most {MOST_TEXTS} are read")
        for text in texts:
            if not text.strip() or len(text) > LONGEST_TEXT:
                raise ValueError(f"it has a text of {len(text)} characters: {text[:40]!r}")
        for name, values in self.reference.items():
            if values.dtype != np.float32 or not values.size:
                raise ValueError(f"the reference {name!r} is {described(values)}, not float32 with values")
            if broken := int((~np.isfinite(values)).sum()):
                raise ValueError(f"the reference {name!r} has {broken} values that are not finite")

    def _check_task(self, name: str, task: Task) -> None:
        if task.images not in self.images:
            raise ValueError(f"task {name!r} asks about images {task.images!r}, which it does not hold")
        count, labels = len(self.images[task.images]), task.labels
        fits = (
            labels.dtype == np.int64 and labels.ndim == 2 and len(labels) == count and 1 <= labels.shape[1] <= MOST_EACH
        )
        if not fits or labels.min() < 0:
            raise ValueError(f"labels of {name!r} are {described(labels)} for {count} images")
        if task.texts and [len(row) for row in task.texts] != [labels.shape[1]] * count:
            raise ValueError(f"texts of {name!r} are not {list(labels.shape)}")
        scores = task.scores
        if scores is None:
            return
        fits = scores.dtype == np.float32 and scores.ndim == 3 and scores.shape[:2] == labels.shape and scores.size > 0
        if not fits or not ((scores >= 0) & (scores <= 1)).all():
            raise ValueError(f"scores of {name!r} are {described(scores)}")

    def with_reference(self, reference: Mapping[str, np.ndarray]) -> Evidence:
        """The same evidence with PyTorch's outputs."""
        return replace(self, reference=dict(reference))

    def texts(self) -> list[str]:
        """Every distinct text, in order of first use."""
        asked = (text for task in self.tasks.values() for row in task.texts for text in row)
        return list(dict.fromkeys((*asked, *self.plain)))


def described(array: np.ndarray) -> str:
    """The dtype and shape of ``array``, for a message."""
    return f"{array.dtype} {list(array.shape)}"


def matching(captions: Sequence[Sequence[str]], images: str) -> Task | None:
    """A task that pairs each image with its own first caption (class 1) and with that of another image (class 0), so that a
    model that ignores the image is right half of the time.

    The other image is the next one whose first caption is not a caption of this image. None if an image has no such other.
    """
    count, texts = len(captions), []
    for row, own in enumerate(captions):
        following = (captions[(row + step) % count][0] for step in range(1, count))
        other = next((text for text in following if text not in own), None)
        if other is None:
            return None
        texts.append((own[0], other))
    return Task(images=images, texts=tuple(texts), labels=np.tile(np.array([1, 0], np.int64), (count, 1)))
