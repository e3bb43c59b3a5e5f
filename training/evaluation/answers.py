"""Questions about images and clips. Knows a model and held-out questions; must not know optimisation."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from simmim_export.models.simmim import SimMIM
from simmim_export.training.data.base import QUESTIONS, Batch, Data
from simmim_export.training.evaluation.statistics import BATCH, CONTROL_SCENES, Hits, Watch, accuracy, batches
from simmim_export.training.tokenizer import encode


@torch.inference_mode()
def evaluate_answers(
    head: str, model: SimMIM, tokenizer: Tokenizer, data: Data, scenes: int, watch: Watch
) -> dict[str, Any]:
    """Accuracy (the official soft score where answers have scores), overall and by family, with the controls."""
    model.eval()
    table, hits, families = question_only(data.on("train")), Hits(), []
    for index, count in batches(scenes, data.limit("questions"), head, watch):
        found = data.batch(index, BATCH, QUESTIONS).first(count)
        texts = [text for row in found.questions for text in row]
        tokens = encode(tokenizer, texts, model.config.max_length)
        text_tokens, _ = model.encode_text(**tokens)
        per_image = found.answers.shape[1]

        def score(images: Tensor, texts: Tensor, mask: Tensor, found: Batch = found) -> np.ndarray:
            fused = model.fuse(images, texts, mask, found.answers.shape[1])
            return _scores(found, model.classify(head, fused).argmax(dim=1).numpy())

        mask = tokens["attention_mask"]
        views = seen(model, torch.from_numpy(found.pixels))
        for name, images in views.items():
            hits.add(name, score(images, text_tokens, mask))
        if count > 1:
            # Rolled by one image: a derangement, so no question meets its own image. One alone has no other.
            hits.add("shuffled_image", score(views["model"].roll(1, dims=0), text_tokens, mask))
            others = (text_tokens.roll(per_image, dims=0), mask.roll(per_image, dims=0))
            hits.add("image_only", score(views["model"], *others))
        guesses = [table(text, data.families[f]) for text, f in zip(texts, found.families.ravel(), strict=True)]
        hits.add("question_only", _scores(found, np.array(guesses)))
        families.append(found.families.ravel())
    family, right = np.concatenate(families), hits.of("model")
    present = [i for i in range(len(data.families)) if (family == i).any()]
    return {
        **hits.figures(),
        "by_family": {data.families[i]: accuracy(right[family == i]) for i in present},
        "data": data.describe(),
    }


def seen(model: SimMIM, pixels: Tensor) -> dict[str, Tensor]:
    """image_tokens [b, n, D] as the model sees images, or clips; of clips also as the controls show them."""
    found = {"model": model.see(pixels)}
    if pixels.ndim == 5:
        random = torch.Generator().manual_seed(0)
        order = torch.stack([torch.randperm(pixels.shape[1], generator=random) for _ in pixels])
        found["shuffled_frames"] = model.see(pixels[torch.arange(len(pixels))[:, None], order])
        middle = pixels[:, pixels.shape[1] // 2, None].expand_as(pixels)
        found["single_frame"] = model.see(middle)
    return found


def _scores(found: Batch, guesses: np.ndarray) -> np.ndarray:
    """1 or 0 for each guess [b q], or the score of the answer that was guessed."""
    if found.scores is None:
        return guesses == found.answers.ravel()
    flat = found.scores.reshape(len(guesses), -1)
    return np.asarray(flat[np.arange(len(guesses)), guesses])


def question_only(data: Data, scenes: int = CONTROL_SCENES) -> Callable[[str, str], int]:
    """A predictor (text, family) -> answer index that has seen questions and answers of ``data`` but no image.

    A question whose answer is none of the classes teaches it nothing.
    """
    by_text: defaultdict[str, Counter[int]] = defaultdict(Counter)
    by_family: defaultdict[str, Counter[int]] = defaultdict(Counter)
    limit = data.limit("questions")
    for index in range(math.ceil((scenes if limit is None else min(scenes, limit)) / BATCH)):
        found = data.batch(index, BATCH, QUESTIONS)
        answered = np.ones(found.answers.shape, bool) if found.scores is None else found.scores.sum(axis=2) > 0
        for texts, *rows in zip(found.questions, found.answers, found.families, answered, strict=True):
            for text, answer, family, has_answer in zip(texts, *rows, strict=True):
                if has_answer:
                    by_text[text][int(answer)] += 1
                    by_family[data.families[family]][int(answer)] += 1

    def predict(text: str, family: str) -> int:
        counts = by_text.get(text) or by_family[family]
        return counts.most_common(1)[0][0] if counts else 0

    return predict
