"""How many images, clips and statements about images a model classifies, and how many it would classify blind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from simmim_export.models.simmim.model import SimMIM
from simmim_export.training.data.base import ONCE, UNSEEN, Data
from simmim_export.training.evaluation.answers import Asked, seen, would_be_right
from simmim_export.training.evaluation.statistics import BATCH, Hits, Watch, batches

# Images of training whose labels the majority control counts.
_MAJORITY_IMAGES = 1024


@torch.inference_mode()
def evaluate_classes(
    head: str, model: SimMIM, tokenizer: Tokenizer, data: Data, scenes: int, watch: Watch
) -> dict[str, Any]:
    """Accuracy on images or clips, with the majority class, and of clips with frames shuffled and single."""
    model.eval()
    training, hits = data.on("train"), Hits()
    majority = _majority(
        lambda index, count: training.labelled(index, BATCH, UNSEEN).labels[:count].tolist(),
        training.limit("classes"),
        watch,
    )
    for index, count in batches(scenes, data.limit("classes"), head, watch):
        pixels, classes = (part[:count] for part in data.labelled(index, BATCH))
        views, moving = seen(model, torch.from_numpy(pixels))
        for name, tokens in views.items():
            right = model.classify(head, tokens).argmax(dim=1).numpy() == classes
            hits.add(name, right, None if name == "model" else moving)
        hits.add("majority", classes == majority)
    return {**hits.figures(), "data": data.describe()}


@torch.inference_mode()
def evaluate_statements(
    head: str, model: SimMIM, tokenizer: Tokenizer, data: Data, scenes: int, watch: Watch
) -> dict[str, Any]:
    """Accuracy on every statement about ``scenes`` images, with the majority class and the same statements about another
    image."""
    model.eval()
    training, hits = data.on("train"), Hits()

    def labels(index: int, count: int) -> list[int]:
        _, texts, classes = training.stated(index, BATCH, UNSEEN)
        return [
            int(place) for row, own in zip(classes[:count], texts[:count], strict=True) for place in row[: len(own)]
        ]

    majority = _majority(labels, training.limit("statements"), watch)
    for index, count in batches(scenes, data.limit("statements"), head, watch):
        pixels, texts, classes = data.stated(index, BATCH, ONCE)
        asked = Asked.of(texts[:count], tokenizer, model.config.max_length)
        wanted = asked.flat(classes[:count])
        images = model.see(torch.from_numpy(pixels[:count]))
        text_tokens, _ = model.encode_text(**asked.tokens)
        fused = asked.fuse(model, images, text_tokens, asked.tokens["attention_mask"])
        hits.add("model", model.classify(head, fused).argmax(dim=1).numpy() == wanted)
        everything = np.ones(len(wanted), bool)
        chosen, possible = asked.elsewhere(wanted, everything, partial(would_be_right, wanted, None))
        fused = asked.fuse_with(model, images, text_tokens, chosen)
        hits.add("shuffled_image", model.classify(head, fused).argmax(dim=1).numpy() == wanted, possible)
        hits.add("majority", wanted == majority)
    return {**hits.figures(), "data": data.describe()}


def _majority(labels: Callable[[int, int], list[int]], limit: int | None, watch: Watch) -> int:
    """The class that is most frequent among the ``labels(index, count)`` of the first images of batches, of ``limit``."""
    counts: Counter[int] = Counter()
    for index, count in batches(_MAJORITY_IMAGES, limit, "majority", watch):
        counts.update(labels(index, count))
    return counts.most_common(1)[0][0]
