"""What a checkpoint takes along to be judged by on a device: held-out examples of every task that it was trained for.

Knows data sets; must not know models. The stream is `val`, which neither training nor a checkpoint's own figures use, or
`test` where a data set has no third split.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from simmim_export.errors import UsageError
from simmim_export.proof.evidence import RETRIEVAL, Evidence, Task, matching
from simmim_export.training.data.base import CAPTIONS, QUESTIONS, Data

# With 1,024 images of 8 questions a loss of answers is known to about 0.3 points, one of retrieval to about 0.5.
IMAGES = 1024
# A clip weighs as much as its frames.
FRAMES = 8
# Captions of an image that look for it.
CAPTIONS_EACH = 5


def gather_evidence(data: Data, trained: Collection[str], count: int = IMAGES) -> Evidence | None:
    """Up to ``count`` images (clips: an eighth) with what ``data`` knows of them for the ``trained`` heads and "retrieval";
    None where that is nothing."""
    if count == 0:
        return None
    held_out = _held_out(data)
    images: dict[str, np.ndarray] = {}
    tasks: dict[str, Task] = {}
    clips = any(head.startswith("video") for head in data.labels)
    count = max(1, count // FRAMES) if clips else count

    def size(kind: str) -> int:
        limit = held_out.limit(kind)
        return count if limit is None else min(count, limit)

    def keep(name: str, pixels: np.ndarray) -> str:
        for known, array in images.items():
            if np.array_equal(array, pixels):
                return known
        images[name] = pixels
        return name

    if "match" in trained and "match" in data.labels and size("captions") > 1:
        found = held_out.batch(0, size("captions"), CAPTIONS)
        each = min(CAPTIONS_EACH, *(len(row) for row in found.captions))
        captions = tuple(tuple(row[:each]) for row in found.captions)
        name = keep("captioned", found.pixels)
        tasks[RETRIEVAL] = Task(name, captions, np.zeros((len(captions), each), np.int64))
        tasks["match"] = matching(captions, name)
    for head in ("vqa", "video_qa"):
        if head in trained and head in data.labels and size("questions"):
            found = held_out.batch(0, size("questions"), QUESTIONS)
            texts = tuple(tuple(row) for row in found.questions)
            tasks[head] = Task(keep("asked", found.pixels), texts, found.answers.astype(np.int64), found.scores)
    for head in ("image_class", "video_class"):
        if head in trained and head in data.labels and size("classes"):
            pixels, labels = held_out.labelled(0, size("classes"))
            tasks[head] = Task(keep("classed", pixels), (), labels[:, None])
    if "text_class" in trained and "text_class" in data.labels and size("statements"):
        pixels, stated, labels = held_out.stated(0, size("statements"))
        tasks["text_class"] = Task(keep("stated", pixels), tuple(tuple(row) for row in stated), labels)
    return Evidence(images, tasks, held_out.describe()) if tasks else None


def _held_out(data: Data) -> Data:
    found = data.on("val")
    try:
        found.limit("captions")
    except UsageError:
        return data.on("test")
    return found
