"""The held-out examples of every trained task that a checkpoint carries, so that a device can be judged by them.

They come from the stream `val`, which neither training nor the checkpoint's own figures use. If a data set has no third
split, they come from the other end of the split that the figures use: a device is compared only with PyTorch on the
same images, so the overlap does not matter, while figures on half a public split could not be compared with anybody's.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from simmim_export.errors import UsageError
from simmim_export.proof.evidence import RETRIEVAL, Evidence, Task, matching
from simmim_export.training.data.base import CAPTIONS, ONCE, Data

# With 1,024 images of 8 questions, a loss of answers is known to about 0.3 points, and a loss of retrieval to about
# 0.5.
IMAGES = 1024
# A clip counts as so many images.
FRAMES = 8
# Captions used to search for each image, and the most questions or statements about one.
CAPTIONS_EACH, TEXTS_EACH = 5, 8


def gather_evidence(data: Data, trained: Collection[str], *, count: int = IMAGES) -> Evidence | None:
    """Up to ``count`` images (an eighth as many clips) with what ``data`` knows about them, for the ``trained`` heads
    and for "retrieval". None if that is nothing."""
    if count == 0:
        return None
    held_out, shared = _held_out(data)
    images: dict[str, np.ndarray] = {}
    tasks: dict[str, Task] = {}
    clips = any(head.startswith("video") for head in data.labels)
    count = max(1, count // FRAMES) if clips else count

    def part(kind: str) -> tuple[int, int]:
        """The number of a batch, and how many images it has."""
        limit = held_out.limit(kind)
        if limit is None:
            return 0, count
        # Figures use the first batches of a stream. Of the same stream, the last batch is the furthest from them.
        return max(0, limit // count - 1) if shared else 0, min(count, limit)

    def keep(name: str, pixels: np.ndarray) -> str:
        for known, array in images.items():
            if np.array_equal(array, pixels):
                return known
        images[name] = pixels
        return name

    if "match" in trained and "match" in data.labels and part("captions")[1] > 1:
        batch = held_out.batch(*part("captions"), want=CAPTIONS)
        each = min(CAPTIONS_EACH, *(len(row) for row in batch.captions))
        captions = tuple(tuple(row[:each]) for row in batch.captions)
        name = keep("captioned", batch.pixels)
        tasks[RETRIEVAL] = Task(images=name, texts=captions, labels=np.zeros((len(captions), each), np.int64))
        pairs = matching(batch.captions, name)
        tasks |= {} if pairs is None else {"match": pairs}
    for head in ("vqa", "video_qa"):
        if head in trained and head in data.labels and part("questions")[1]:
            batch = held_out.batch(*part("questions"), want=ONCE)
            rows, each = _most([len(row) for row in batch.questions])
            texts = tuple(tuple(batch.questions[row][:each]) for row in rows)
            scores = None if batch.scores is None else batch.scores[rows, :each]
            answers = batch.answers[rows, :each].astype(np.int64)
            tasks[head] = Task(images=keep("asked", batch.pixels[rows]), texts=texts, labels=answers, scores=scores)
    for head in ("image_class", "video_class"):
        if head in trained and head in data.labels and part("classes")[1]:
            pixels, labels = held_out.labeled(*part("classes"))
            tasks[head] = Task(images=keep("classed", pixels), texts=(), labels=labels[:, None])
    if "text_class" in trained and "text_class" in data.labels and part("statements")[1]:
        pixels, stated, labels = held_out.stated(*part("statements"), want=ONCE)
        rows, each = _most([len(row) for row in stated])
        texts = tuple(tuple(stated[row][:each]) for row in rows)
        tasks["text_class"] = Task(images=keep("stated", pixels[rows]), texts=texts, labels=labels[rows, :each])
    return Evidence(images=images, tasks=tasks, source=held_out.describe()) if tasks else None


def _most(lengths: Sequence[int]) -> tuple[np.ndarray, int]:
    """The rows to use and the number of texts of each: the number for which the most texts are asked, none of them
    twice."""
    counts = np.array(lengths)
    each = max(range(1, min(TEXTS_EACH, int(counts.max())) + 1), key=lambda each: each * int((counts >= each).sum()))
    return np.flatnonzero(counts >= each), each


def _held_out(data: Data) -> tuple[Data, bool]:
    """The stream, and whether the checkpoint's own figures come from it too."""
    val, test = data.on("val"), data.on("test")
    try:
        val.open()
    except UsageError:
        return test, True
    # On disk, val may be used in place of test.
    return val, val.describe() == test.describe()
