"""What a checkpoint takes along to be judged by on a device: held-out examples of every task that it was trained for.

The stream is `val`, which neither training nor a checkpoint's own figures use. Where
a data set has no third split it is the figures' own, from its other end: figures on half a public split could be compared
with nobody's, while a device is only ever compared with PyTorch on the same images, whichever they are.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from simmim_export.errors import UsageError
from simmim_export.proof.evidence import RETRIEVAL, Evidence, Task, matching
from simmim_export.training.data.base import CAPTIONS, ONCE, Data

# With 1,024 images of 8 questions a loss of answers is known to about 0.3 points, one of retrieval to about 0.5.
IMAGES = 1024
# A clip weighs as much as its frames.
FRAMES = 8
# Captions of an image that look for it, and the most questions, or statements, about one.
CAPTIONS_EACH, TEXTS_EACH = 5, 8


def gather_evidence(data: Data, trained: Collection[str], count: int = IMAGES) -> Evidence | None:
    """Up to ``count`` images (clips: an eighth) with what ``data`` knows of them for the ``trained`` heads and "retrieval";
    None where that is nothing."""
    if count == 0:
        return None
    held_out, shared = _held_out(data)
    images: dict[str, np.ndarray] = {}
    tasks: dict[str, Task] = {}
    clips = any(head.startswith("video") for head in data.labels)
    count = max(1, count // FRAMES) if clips else count

    def part(kind: str) -> tuple[int, int]:
        """(number of a batch, images in it)."""
        limit = held_out.limit(kind)
        if limit is None:
            return 0, count
        # Figures begin with the first batch of a stream; of the same stream the last is as far from them as there is.
        return max(0, limit // count - 1) if shared else 0, min(count, limit)

    def keep(name: str, pixels: np.ndarray) -> str:
        for known, array in images.items():
            if np.array_equal(array, pixels):
                return known
        images[name] = pixels
        return name

    if "match" in trained and "match" in data.labels and part("captions")[1] > 1:
        found = held_out.batch(*part("captions"), CAPTIONS)
        each = min(CAPTIONS_EACH, *(len(row) for row in found.captions))
        captions = tuple(tuple(row[:each]) for row in found.captions)
        name = keep("captioned", found.pixels)
        tasks[RETRIEVAL] = Task(images=name, texts=captions, labels=np.zeros((len(captions), each), np.int64))
        pairs = matching(found.captions, name)
        tasks |= {} if pairs is None else {"match": pairs}
    for head in ("vqa", "video_qa"):
        if head in trained and head in data.labels and part("questions")[1]:
            found = held_out.batch(*part("questions"), ONCE)
            rows, each = _most([len(row) for row in found.questions])
            texts = tuple(tuple(found.questions[row][:each]) for row in rows)
            scores = None if found.scores is None else found.scores[rows, :each]
            answers = found.answers[rows, :each].astype(np.int64)
            tasks[head] = Task(images=keep("asked", found.pixels[rows]), texts=texts, labels=answers, scores=scores)
    for head in ("image_class", "video_class"):
        if head in trained and head in data.labels and part("classes")[1]:
            pixels, labels = held_out.labelled(*part("classes"))
            tasks[head] = Task(images=keep("classed", pixels), texts=(), labels=labels[:, None])
    if "text_class" in trained and "text_class" in data.labels and part("statements")[1]:
        pixels, stated, labels = held_out.stated(*part("statements"), ONCE)
        rows, each = _most([len(row) for row in stated])
        texts = tuple(tuple(stated[row][:each]) for row in rows)
        tasks["text_class"] = Task(images=keep("stated", pixels[rows]), texts=texts, labels=labels[rows, :each])
    return Evidence(images=images, tasks=tasks, source=held_out.describe()) if tasks else None


def _most(lengths: Sequence[int]) -> tuple[np.ndarray, int]:
    """(rows, texts of each): so many of a row, and all the rows that have them, that the most texts are asked, none twice."""
    counts = np.array(lengths)
    each = max(range(1, min(TEXTS_EACH, int(counts.max())) + 1), key=lambda each: each * int((counts >= each).sum()))
    return np.flatnonzero(counts >= each), each


def _held_out(data: Data) -> tuple[Data, bool]:
    """The stream, and whether a checkpoint's own figures are of it too."""
    found, test = data.on("val"), data.on("test")
    try:
        found.open()
    except UsageError:
        return test, True
    # On disk val may stand in for test.
    return found, found.describe() == test.describe()
