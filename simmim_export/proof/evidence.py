"""Held-out, labelled examples that travel with a model, so that a device can measure how well it still answers.

Knows arrays, texts and labels. Must not know models, engines or where the examples came from. A checkpoint carries them as
the bytes of :meth:`Evidence.save`; a bundle as ``evidence.npz``, with PyTorch's FP32 outputs for them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from simmim_export.errors import BundleError
from simmim_export.files import DAMAGED, pack, parse_json, unpack

FILE = "evidence.npz"
# The task that ranks images by captions; every other task is named after its head.
RETRIEVAL = "retrieval"


@dataclass(frozen=True)
class Task:
    """What is asked of a set of n images or clips, k times each.

    ``images`` names the set; ``texts`` n rows of k texts, or () where the head reads the image alone; ``labels`` int64 [n, k]
    the right classes (of retrieval: zeros, unused); ``scores`` float32 [n, k, classes] where several are right in part.
    """

    images: str
    texts: tuple[tuple[str, ...], ...]
    labels: np.ndarray
    scores: np.ndarray | None = None

    def right(self, chosen: np.ndarray) -> np.ndarray:
        """float64 [n, k]: 1 or 0 for each chosen class (int [n, k]), or the score of what was chosen."""
        if self.scores is None:
            return (chosen == self.labels).astype(np.float64)
        return np.take_along_axis(self.scores, chosen[..., None], axis=2)[..., 0].astype(np.float64)


@dataclass(frozen=True)
class Evidence:
    """``images``: sets uint8 [n, H, W, 3], or of clips [n, f, H, W, 3]; ``tasks`` by the name of their head, or "retrieval";
    ``source`` says where they are from; ``plain`` texts that no task asks; ``reference`` holds PyTorch's outputs as the
    examiner names them, or nothing yet.
    """

    images: Mapping[str, np.ndarray]
    tasks: Mapping[str, Task]
    source: Mapping[str, Any]
    plain: tuple[str, ...] = ()
    reference: Mapping[str, np.ndarray] = field(default_factory=dict)

    def save(self) -> bytes:
        """As bytes; the same evidence always gives the same."""
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
        """The inverse of :meth:`save`; raise :class:`BundleError` for bytes that are no evidence, or do not fit together."""
        try:
            arrays = unpack(source)
            words = parse_json(arrays.pop("words").tobytes().decode())
            parts: dict[str, dict[str, np.ndarray]] = {"images": {}, "labels": {}, "scores": {}, "reference": {}}
            for key, array in arrays.items():
                part, _, name = key.partition("/")
                parts[part][name] = array
            tasks = {
                name: Task(
                    row["images"],
                    tuple(tuple(str(text) for text in texts) for texts in row["texts"]),
                    parts["labels"][name],
                    parts["scores"].get(name),
                )
                for name, row in words["tasks"].items()
            }
            plain = tuple(str(text) for text in words["plain"])
            found = cls(parts["images"], tasks, dict(words["source"]), plain, parts["reference"])
            found.check()
        except (*DAMAGED, TypeError, AttributeError, IndexError) as error:
            where = where or (source if isinstance(source, Path) else None)
            raise BundleError(f"the evidence cannot be read: {error}", where=where, fix="export it again") from error
        return found

    def check(self) -> None:
        """Raise ValueError naming the first thing that does not fit."""
        for name, array in self.images.items():
            if array.dtype != np.uint8 or array.ndim not in (4, 5) or array.shape[-1] != 3 or not len(array):
                raise ValueError(f"images {name!r} are {array.dtype} {list(array.shape)}")
        for name, task in self.tasks.items():
            count = len(self.images[task.images])
            labels = task.labels
            if labels.dtype != np.int64 or labels.ndim != 2 or len(labels) != count or not labels.size:
                raise ValueError(f"labels of {name!r} are {labels.dtype} {list(labels.shape)} for {count} images")
            if task.texts and [len(row) for row in task.texts] != [labels.shape[1]] * count:
                raise ValueError(f"texts of {name!r} are not {list(labels.shape)}")
            if task.scores is not None and task.scores.shape[:2] != labels.shape:
                raise ValueError(f"scores of {name!r} are {list(task.scores.shape)}")

    def with_reference(self, reference: Mapping[str, np.ndarray]) -> Evidence:
        """The same with PyTorch's outputs."""
        return replace(self, reference=dict(reference))

    def texts(self) -> list[str]:
        """Every distinct text, in order of first use."""
        asked = (text for task in self.tasks.values() for row in task.texts for text in row)
        return list(dict.fromkeys((*asked, *self.plain)))


def matching(captions: Sequence[Sequence[str]], images: str) -> Task | None:
    """Each image with its own first caption (1) and with that of another image (0), so that no blind answer beats a half.

    The other is the next image whose first caption is none of its own; None where an image has no such other.
    """
    count, texts = len(captions), []
    for row, own in enumerate(captions):
        following = (captions[(row + step) % count][0] for step in range(1, count))
        other = next((text for text in following if text not in own), None)
        if other is None:
            return None
        texts.append((own[0], other))
    return Task(images, tuple(texts), np.tile(np.array([1, 0], np.int64), (count, 1)))
