"""How many images, clips and statements about images a model classifies correctly, and how many its controls do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from simmim_export.models.simmim.model import SimMIM
from simmim_export.system.watch import Watch
from simmim_export.training.data.base import ONCE, UNSEEN, Data
from simmim_export.training.evaluation.answers import Asked, seen, would_be_right
from simmim_export.training.evaluation.statistics import BATCH, Hits, batches

# Number of training images whose labels the majority control counts.
_MAJORITY_IMAGES = 1024


@torch.inference_mode()
def evaluate_classes(
    head: str, model: SimMIM, *, tokenizer: Tokenizer, data: Data, scenes: int, watch: Watch
) -> dict[str, Any]:
    """Accuracy on images or clips, with the majority class; for clips also with frames shuffled and with a single
    frame."""
    model.eval()
    training, hits = data.on("train"), Hits()
    majority = _majority(
        lambda index, count: training.labeled(index, BATCH, want=UNSEEN).labels[:count].tolist(),
        training.limit("classes"),
        watch,
    )
    for index, count in batches(scenes, data.limit("classes"), what=head, watch=watch):
        pixels, classes = (part[:count] for part in data.labeled(index, BATCH))
        views, moving = seen(model, torch.from_numpy(pixels))
        for name, tokens in views.items():
            right = model.classify(head, tokens).argmax(dim=1).numpy() == classes
            hits.add(name, right, None if name == "model" else moving)
        hits.add("majority", classes == majority)
    return {**hits.figures(), "data": data.describe()}


@torch.inference_mode()
def evaluate_statements(
    head: str, model: SimMIM, *, tokenizer: Tokenizer, data: Data, scenes: int, watch: Watch
) -> dict[str, Any]:
    """Accuracy on every statement about ``scenes`` images, with the majority class and with the same statements about
    another image."""
    model.eval()
    training, hits = data.on("train"), Hits()

    def labels(index: int, count: int) -> list[int]:
        _, texts, classes = training.stated(index, BATCH, want=UNSEEN)
        return [
            int(place) for row, own in zip(classes[:count], texts[:count], strict=True) for place in row[: len(own)]
        ]

    majority = _majority(labels, training.limit("statements"), watch)
    for index, count in batches(scenes, data.limit("statements"), what=head, watch=watch):
        pixels, texts, classes = data.stated(index, BATCH, want=ONCE)
        asked = Asked.of(texts[:count], tokenizer, max_length=model.config.max_length)
        wanted = asked.flat(classes[:count])
        images = model.see(torch.from_numpy(pixels[:count]))
        text_tokens, _ = model.encode_text(**asked.tokens)
        fused = asked.fuse(model, images, texts=text_tokens, mask=asked.tokens["attention_mask"])
        hits.add("model", model.classify(head, fused).argmax(dim=1).numpy() == wanted)
        everything = np.ones(len(wanted), bool)
        chosen, possible = asked.elsewhere(
            wanted, known=everything, would_be_right=partial(would_be_right, wanted, None)
        )
        fused = asked.fuse_with(model, images, texts=text_tokens, chosen=chosen)
        hits.add("shuffled_image", model.classify(head, fused).argmax(dim=1).numpy() == wanted, possible)
        hits.add("majority", wanted == majority)
    return {**hits.figures(), "data": data.describe()}


def _majority(labels: Callable[[int, int], list[int]], limit: int | None, watch: Watch) -> int:
    """The most frequent class in the training data. ``labels(index, count)`` gives the labels of the first ``count``
    images of batch ``index``; ``limit`` is the number of images that have any."""
    counts: Counter[int] = Counter()
    for index, count in batches(_MAJORITY_IMAGES, limit, what="majority", watch=watch):
        counts.update(labels(index, count))
    return counts.most_common(1)[0][0]
