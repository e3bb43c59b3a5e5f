"""How well a model matches images with captions, and finds one from the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from simmim_export.models.simmim.model import SimMIM
from simmim_export.system.watch import Watch
from simmim_export.training.data.base import CAPTIONS, Batch, Data
from simmim_export.training.evaluation.statistics import BATCH, accuracy, batches
from simmim_export.training.progress import Countdown
from simmim_export.training.tokenizer import encode

CUTS = (1, 5, 10)
# How many of the best of the first stage are reranked by the second.
RERANK = 16
# Number of images that retrieval searches.
GALLERY = 256


@torch.inference_mode()
def evaluate_match(
    head: str, model: SimMIM, *, tokenizer: Tokenizer, data: Data, scenes: int, watch: Watch
) -> dict[str, Any]:
    """Matching, and retrieval with one caption per image.

    Matching: each caption is paired with its own image and with one that it does not describe, half and half, so a
    blind model gets 50 %. A caption that describes every image of its batch is ``left_out``. Retrieval: recall at 1
    from text to image by embeddings, among the images of a batch. ``galleries`` are the sizes of the batches and
    ``among`` the largest. ``chance`` is the mean over all captions. ``oracle`` is the recall of a perfect model, given
    if captions that describe several images keep it below 100 %. A batch of a single image is left out.
    """
    model.eval()
    matched, recalled, perfect, left_out = [], [], [], 0
    for index, count in batches(scenes, data.limit("captions"), what=head, watch=watch):
        if count < 2:
            continue
        batch = data.batch(index, BATCH, want=CAPTIONS).first(count)
        tokens = encode(tokenizer, [captions[0] for captions in batch.captions], max_length=model.config.max_length)
        image_tokens, image_embed = model.encode_image(torch.from_numpy(batch.pixels))
        text_tokens, text_embed = model.encode_text(**tokens)
        fits = _fits(data, replace(batch, captions=[row[:1] for row in batch.captions]), batch.captions)
        other, possible = apart(fits)
        left_out += int((~possible).sum())
        for images, wanted in ((image_tokens, 1), (image_tokens[torch.from_numpy(other)], 0)):
            logits = model.classify("match", model.fuse(images, text_tokens, tokens["attention_mask"]))
            matched.append((logits.argmax(dim=1).numpy() == wanted)[possible])
        scores = text_embed @ image_embed.T
        recalled.append(recall(scores, torch.eye(count, dtype=torch.bool), cut=1))
        perfect.append(recall(torch.from_numpy(fits).float(), torch.eye(count, dtype=torch.bool), cut=1))
    if not recalled:
        return {"not_measured": "matching needs two images or more"}
    if not sum(map(len, matched)):
        what = f"matching needs different captions: each of {left_out} captions describes every image of its batch"
        return {"not_measured": what}
    galleries = [len(part) for part in recalled]
    # By chance a caption finds its own image in a gallery of g once in g times, so each gallery adds one hit.
    figures = {**accuracy(np.concatenate(recalled)), "among": max(galleries), "galleries": galleries}
    oracle = float(np.concatenate(perfect).mean())
    figures |= {"oracle": oracle} if oracle < 1 else {}
    return {
        **accuracy(np.concatenate(matched)),
        "controls": {"blind": {"accuracy": 0.5}},
        **({"left_out": left_out} if left_out else {}),
        "text_to_image_recall_at_1": figures | {"chance": len(galleries) / sum(galleries)},
        "data": data.describe(),
    }


def _fits(data: Data, batch: Batch, captions: Sequence[Sequence[str]]) -> np.ndarray:
    """bool [t, b]: which of the t captions of ``batch`` is true of which of its b images.

    If the data set cannot say, a caption is true of the images whose ``captions`` contain the same text.
    """
    true = data.truth(batch)
    if true is not None:
        return true
    known = [set(row) for row in captions]
    return np.array([[text in own for own in known] for row in batch.captions for text in row])


def apart(fits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each caption of b images an image that it does not describe (int64 [b]), and whether there is one (bool [b]).

    It is the previous image if possible, else the nearest before that. ``fits``: bool [b, b], captions by images.
    """
    count = len(fits)
    before = (np.arange(count)[:, None] - np.arange(1, count)) % count
    usable = ~np.take_along_axis(fits, before, axis=1)
    return before[np.arange(count), usable.argmax(axis=1)], np.asarray(usable.any(axis=1))


def recall(scores: Tensor, own: Tensor, *, cut: int) -> np.ndarray:
    """For each query, a row of ``scores`` [q, g], the probability in [0, 1] that one of its own candidates (bool [q,
    g]) is among the best ``cut``, with ties broken at random.

    Let m candidates score above the best of the query's own, and t tie with it, o of them the query's own. Then ``cut``
    - m places are left for the t tied ones, and the probability is 1 - C(t - o, places) / C(t, places).
    """
    best = scores.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)
    above, tied = (scores > best).sum(dim=1), scores == best
    probabilities = []
    for m, t, o in zip(above.tolist(), tied.sum(dim=1).tolist(), (tied & own).sum(dim=1).tolist(), strict=True):
        places, missed = min(max(cut - m, 0), t), 1.0
        for drawn in range(places):
            missed *= max(t - o - drawn, 0) / (t - drawn)
        probabilities.append(1.0 - missed)
    return np.array(probabilities)


@torch.inference_mode()
def evaluate_retrieval(
    head: str, model: SimMIM, *, tokenizer: Tokenizer, data: Data, scenes: int, watch: Watch
) -> dict[str, Any]:
    """Recall at 1, 5 and 10 among 256 images with all their captions (five each in `shapes`), both ways, in two stages.

    The first stage ranks by embeddings; the second reranks the best 16 with the match head. ``oracle`` is the recall of
    a perfect model, to compare with; it is given if the data set knows which caption is true of which image, or if
    images share a caption. Retrieval among a single image is not measured.
    """
    model.eval()
    limit = data.limit("captions")
    batch = data.batch(0, min(GALLERY, scenes, limit or scenes), want=CAPTIONS)
    if len(batch.pixels) < 2:
        return {"not_measured": "retrieval needs two images or more"}
    captions = [text for row in batch.captions for text in row]
    owner = torch.tensor([image for image, row in enumerate(batch.captions) for _ in row])
    own = owner[:, None] == torch.arange(len(batch.pixels))  # captions, images
    tokens = encode(tokenizer, captions, max_length=model.config.max_length)
    parts = [model.encode_image(part) for part in torch.from_numpy(batch.pixels).split(BATCH)]
    images, image_embed = (torch.cat(kind) for kind in zip(*parts, strict=True))
    texts, text_embed = model.encode_text(**tokens)
    first = text_embed @ image_embed.T
    figures: dict[str, Any] = {"images": len(images), "captions": len(captions)}
    ways = {"text_to_image": (first, own, True), "image_to_text": (first.T, own.T, False)}
    for way, (scores, mine, by_text) in ways.items():
        mask = tokens["attention_mask"]
        again = _rerank(model, scores, images=images, texts=texts, mask=mask, by_text=by_text, way=way, watch=watch)
        figures[way] = {
            stage: {f"recall_at_{cut}": accuracy(recall(values, mine, cut=cut)) for cut in CUTS}
            for stage, values in (("embeddings", scores), ("reranked", again))
        }
        figures[way]["chance"] = float(mine.sum(dim=1).float().mean() / mine.shape[1])
    true = _fits(data, batch, batch.captions)
    if not np.array_equal(true, own.numpy()):
        perfect = torch.from_numpy(true).float()
        figures["text_to_image"]["oracle"] = float(recall(perfect, own, cut=1).mean())
        figures["image_to_text"]["oracle"] = float(recall(perfect.T, own.T, cut=1).mean())
    return figures | {"data": data.describe()}


def _rerank(
    model: SimMIM, scores: Tensor, *, images: Tensor, texts: Tensor, mask: Tensor, by_text: bool, way: str, watch: Watch
) -> Tensor:
    """``scores`` [q, g] with the RERANK best of each row raised above all others, in the order of the match head."""
    keep = min(RERANK, scores.shape[1])
    best = scores.topk(keep, dim=1).indices  # q keep
    reranked, countdown = scores.clone(), Countdown(len(scores))
    for start in range(0, len(scores), BATCH):
        step = f"rerank {way.replace('_', ' ')}, query {start} of {len(scores)}{countdown.left(start)}"
        watch(step, start, len(scores))
        part = best[start : start + BATCH]
        queries = torch.arange(start, start + len(part)).repeat_interleave(keep)
        text, image = (queries, part.flatten()) if by_text else (part.flatten(), queries)
        logits = model.classify("match", model.fuse(images[image], texts[text], mask[text]))
        # A cosine is at most 1, so 2 and more puts these first.
        reranked[queries, part.flatten()] = 2 + logits.softmax(dim=1)[:, 1]
    return reranked
