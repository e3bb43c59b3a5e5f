"""How good a model is, and how good it would be blind. Knows a model and held-out data; must not know optimisation.

A figure without its controls says nothing: questions can be answered from their text alone, and a model may do just that.
``question_only`` is the best that a predictor of the exact text can do: the majority answer of that text (of its family,
for a text never seen) in a large training sample. ``shuffled_image`` is the model itself with every question asked about
another image; a model that looks must fall to about the same figure.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from simmim_export.models.simmim import SimMIM
from simmim_export.training.data.shapes import ANSWERS, FAMILIES, Shapes
from simmim_export.training.tokenizer import encode

SCENES = 1024
# Scenes whose questions the question-only control learns from.
CONTROL_SCENES = 8192
_BATCH = 64

# What each control is, for whoever reads the checkpoint.
CONTROLS = {
    "question_only": f"majority answer of the exact text (else of its family) among the questions of {CONTROL_SCENES} "
    "training scenes",
    "shuffled_image": "the model itself, every question asked about another image of its batch of 64",
}

Watch = Callable[[str, int, int], None]


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % interval of a proportion in [0, 1]; Wilson, 1927."""
    z = 1.959964
    p, scale = successes / n, 1 + z * z / n
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / scale
    centre = (p + z * z / (2 * n)) / scale
    return centre - half, centre + half


def accuracy(right: np.ndarray) -> dict[str, Any]:
    """``accuracy``, ``n`` and the 95 % ``interval`` of an array of hits."""
    low, high = wilson(int(right.sum()), right.size)
    return {"accuracy": float(right.mean()), "n": int(right.size), "interval": [low, high]}


@torch.inference_mode()
def evaluate_vqa(
    model: SimMIM, tokenizer: Tokenizer, data: Shapes, scenes: int = SCENES, watch: Watch = lambda *_: None
) -> dict[str, Any]:
    """Accuracy on ``scenes`` scenes of ``data``, overall and by family, with both controls."""
    model.eval()
    table = question_only(Shapes(data.seed, "train", data.split, data.size))
    hits: dict[str, list[np.ndarray]] = {"model": [], "shuffled_image": [], "question_only": []}
    families = []
    batches = math.ceil(scenes / _BATCH)
    for index in range(batches):
        watch("evaluate vqa", index, batches)
        found = data.batch(index, _BATCH, with_captions=False)
        texts = [q for row in found.questions for q in row]
        tokens = encode(tokenizer, texts, model.config.max_length)
        image_tokens, _ = model.encode_image(torch.from_numpy(found.pixels))
        text_tokens, _ = model.encode_text(**tokens)
        answers, q = found.answers.ravel(), found.answers.shape[1]
        # Rolled by one: a derangement, so no question meets its own image.
        for name, images in (("model", image_tokens), ("shuffled_image", image_tokens.roll(1, dims=0))):
            logits = model.classify("vqa", model.fuse(images, text_tokens, tokens["attention_mask"], q))
            hits[name].append(logits.argmax(dim=1).numpy() == answers)
        guesses = [table(text, FAMILIES[f]) for text, f in zip(texts, found.families.ravel(), strict=True)]
        hits["question_only"].append(np.array(guesses) == answers)
        families.append(found.families.ravel())
    right = {name: np.concatenate(parts) for name, parts in hits.items()}
    family = np.concatenate(families)
    return {
        **accuracy(right["model"]),
        "by_family": {name: accuracy(right["model"][family == i]) for i, name in enumerate(FAMILIES)},
        "controls": {name: accuracy(right[name]) | {"is": CONTROLS[name]} for name in CONTROLS},
        "data": data.describe(),
    }


def question_only(data: Shapes, scenes: int = CONTROL_SCENES) -> Callable[[str, str], int]:
    """A predictor (text, family) -> answer index that has seen questions and answers of ``data`` but no image."""
    by_text: defaultdict[str, Counter[int]] = defaultdict(Counter)
    by_family: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for index in range(math.ceil(scenes / _BATCH)):
        found = data.batch(index, _BATCH, with_captions=False)
        for texts, answers, families in zip(found.questions, found.answers, found.families, strict=True):
            for text, answer, family in zip(texts, answers, families, strict=True):
                by_text[text][int(answer)] += 1
                by_family[FAMILIES[family]][int(answer)] += 1

    def predict(text: str, family: str) -> int:
        counts = by_text.get(text) or by_family[family]
        return counts.most_common(1)[0][0]

    return predict


@torch.inference_mode()
def evaluate_match(
    model: SimMIM, tokenizer: Tokenizer, data: Shapes, scenes: int = SCENES, watch: Watch = lambda *_: None
) -> dict[str, Any]:
    """Matching and retrieval with one caption an image.

    Matching: each image with its own caption and with that of another scene, half and half, so that no blind answer
    beats 50 %. Retrieval: recall at 1 from text to image among 64 scenes, by embeddings; chance is 1/64, and captions that
    fit several scenes keep even a perfect model below 100 %.
    """
    model.eval()
    matched, recalled = [], []
    batches = math.ceil(scenes / _BATCH)
    for index in range(batches):
        watch("evaluate match", index, batches)
        found = data.batch(index, _BATCH, with_questions=False)
        tokens = encode(tokenizer, [captions[0] for captions in found.captions], model.config.max_length)
        image_tokens, image_embed = model.encode_image(torch.from_numpy(found.pixels))
        text_tokens, text_embed = model.encode_text(**tokens)
        for images, wanted in ((image_tokens, 1), (image_tokens.roll(1, dims=0), 0)):
            logits = model.classify("match", model.fuse(images, text_tokens, tokens["attention_mask"]))
            matched.append(logits.argmax(dim=1).numpy() == wanted)
        best = (text_embed @ image_embed.T).argmax(dim=1).numpy()
        recalled.append(best == np.arange(_BATCH))
    return {
        **accuracy(np.concatenate(matched)),
        "controls": {"blind": {"accuracy": 0.5}},
        "text_to_image_recall_at_1": {**accuracy(np.concatenate(recalled)), "among": _BATCH, "chance": 1 / _BATCH},
        "data": data.describe(),
    }


def untrained() -> dict[str, Any]:
    """The metrics of a head that was never trained."""
    return {"untrained": True, "answers": len(ANSWERS)}
