"""One class for an image, a clip, or a statement about an image. Knows a model and held-out data; must not know optimisation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer

from simmim_export.models.simmim import SimMIM
from simmim_export.training.data.base import Data, Labelled, Stated
from simmim_export.training.evaluation.answers import seen
from simmim_export.training.evaluation.statistics import BATCH, Hits, Watch, batches
from simmim_export.training.tokenizer import encode

# Images of training whose labels the majority control counts.
_MAJORITY_IMAGES = 1024


@torch.inference_mode()
def evaluate_classes(
    head: str, model: SimMIM, tokenizer: Tokenizer, data: Data, scenes: int, watch: Watch
) -> dict[str, Any]:
    """Accuracy on images or clips, with the majority class, and of clips with frames shuffled and single."""
    model.eval()
    training, hits = data.on("train"), Hits()
    majority = _majority(training.labelled, training.limit("classes"), watch)
    for index, count in batches(scenes, data.limit("classes"), head, watch):
        pixels, classes = data.labelled(index, BATCH)
        found = Labelled(pixels[:count], classes[:count])
        for name, tokens in seen(model, torch.from_numpy(found.pixels)).items():
            hits.add(name, model.classify(head, tokens).argmax(dim=1).numpy() == found.labels)
        hits.add("majority", found.labels == majority)
    return {**hits.figures(), "data": data.describe()}


@torch.inference_mode()
def evaluate_statements(
    head: str, model: SimMIM, tokenizer: Tokenizer, data: Data, scenes: int, watch: Watch
) -> dict[str, Any]:
    """Accuracy on statements, with the majority class, and the same statements about another image."""
    model.eval()
    training, hits = data.on("train"), Hits()
    majority = _majority(training.stated, training.limit("statements"), watch)
    for index, count in batches(scenes, data.limit("statements"), head, watch):
        pixels, texts, classes = data.stated(index, BATCH)
        found = Stated(pixels[:count], texts[:count], classes[:count])
        tokens = encode(tokenizer, [text for row in found.texts for text in row], model.config.max_length)
        images = model.see(torch.from_numpy(found.pixels))
        text_tokens, _ = model.encode_text(**tokens)
        wanted, repeats = found.labels.ravel(), found.labels.shape[1]
        views = {"model": images}
        if count > 1:  # one alone has no other
            views["shuffled_image"] = images.roll(1, dims=0)
        for name, shown in views.items():
            fused = model.fuse(shown, text_tokens, tokens["attention_mask"], repeats)
            hits.add(name, model.classify(head, fused).argmax(dim=1).numpy() == wanted)
        hits.add("majority", wanted == majority)
    return {**hits.figures(), "data": data.describe()}


def _majority(batch: Callable[[int, int], Labelled | Stated], limit: int | None, watch: Watch) -> int:
    """The class that is most frequent in the batches ``batch(index, images)`` of a set of ``limit`` images."""
    counts: Counter[int] = Counter()
    for index, count in batches(_MAJORITY_IMAGES, limit, "majority", watch):
        counts.update(batch(index, BATCH).labels[:count].ravel().tolist())
    return counts.most_common(1)[0][0]
