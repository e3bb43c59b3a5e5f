"""Checks evidence by itself: every part has values of the right type, is finite, and agrees with the other parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from simmim_export.proof.evidence import Evidence, Task

# More than training takes along (1,024 images, 8 texts each); a hostile file must not keep a device busy for days.
MOST_SETS, MOST_IMAGES, MOST_EACH, MOST_TEXTS, LONGEST_TEXT = 64, 1 << 16, 4096, 1 << 17, 1 << 16


def check(evidence: Evidence) -> None:
    """Raise ValueError naming the first tensor or text that is empty, not finite, of a wrong type, or does not fit the others."""
    if not evidence.images and not evidence.texts():
        raise ValueError("it holds neither images nor texts")
    if max(len(evidence.images), len(evidence.tasks), len(evidence.reference)) > MOST_SETS:
        raise ValueError(f"it has more than {MOST_SETS} sets of images, tasks or references")
    for name, images in evidence.images.items():
        fits = images.dtype == np.uint8 and images.ndim in (4, 5) and images.shape[-1] == 3
        if not fits or not images.size or len(images) > MOST_IMAGES:
            raise ValueError(f"images {name!r} are {described(images)}")
    for name, task in evidence.tasks.items():
        _check_task(name, task, evidence)
    texts = evidence.texts()
    if len(texts) > MOST_TEXTS:
        raise ValueError(f"it has {len(texts)} texts, at most {MOST_TEXTS} are read")
    for text in texts:
        if not text.strip() or len(text) > LONGEST_TEXT:
            raise ValueError(f"it has a text of {len(text)} characters: {text[:40]!r}")
    for name, values in evidence.reference.items():
        if values.dtype != np.float32 or not values.size:
            raise ValueError(f"the reference {name!r} is {described(values)}, not float32 with values")
        if broken := int((~np.isfinite(values)).sum()):
            raise ValueError(f"the reference {name!r} has {broken} values that are not finite")


def _check_task(name: str, task: Task, evidence: Evidence) -> None:
    if task.images not in evidence.images:
        raise ValueError(f"task {name!r} asks about images {task.images!r}, which it does not hold")
    count, labels = len(evidence.images[task.images]), task.labels
    fits = labels.dtype == np.int64 and labels.ndim == 2 and len(labels) == count and 1 <= labels.shape[1] <= MOST_EACH
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


def described(array: np.ndarray) -> str:
    """The dtype and shape of ``array``, for a message."""
    return f"{array.dtype} {list(array.shape)}"
