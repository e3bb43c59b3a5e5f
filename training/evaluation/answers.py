"""How many questions about images and clips a model answers, and how many it would answer blind."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from simmim_export.models.simmim.model import SimMIM
from simmim_export.training.data.base import ONCE, UNSEEN, Data
from simmim_export.training.evaluation.controls import (
    WouldBeRight,
    different_text,
    identities,
    other_image,
    other_order,
)
from simmim_export.training.evaluation.statistics import BATCH, CONTROL_SCENES, Hits, Watch, accuracy, batches
from simmim_export.training.tokenizer import encode


class Asked(NamedTuple):
    """m texts of a batch of n images, one after the other: of which image each is, int64 [m], and as ``tokens``."""

    texts: list[str]
    image: np.ndarray
    tokens: dict[str, Tensor]

    @classmethod
    def of(cls, rows: Sequence[Sequence[str]], tokenizer: Tokenizer, max_length: int) -> Self:
        """From n rows of texts, of any lengths."""
        texts = [text for row in rows for text in row]
        image = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        return cls(texts, image, encode(tokenizer, texts, max_length))

    def flat(self, values: np.ndarray) -> np.ndarray:
        """[m, ...]: ``values`` [n, longest, ...] without what fills up the rows that are shorter."""
        counts = np.bincount(self.image, minlength=len(values))
        found: np.ndarray = values[np.arange(values.shape[1]) < counts[:, None]]
        return found

    def replaced(self) -> tuple[np.ndarray, np.ndarray]:
        """For each text the position of a different one (int64 [m]), and whether there is one (bool [m]): that of the image
        before in the same place, else the next that differs, of whatever image."""
        counts = np.bincount(self.image)
        starts = np.cumsum(counts) - counts
        before = (self.image - 1) % len(counts)
        place = starts[before] + (np.arange(len(self.image)) - starts[self.image]) % counts[before]
        return different_text(identities(self.tokens["input_ids"]), place)

    def elsewhere(
        self, answers: np.ndarray, known: np.ndarray, would_be_right: WouldBeRight
    ) -> tuple[np.ndarray, np.ndarray]:
        """For each text another image (int64 [m]), and whether there is one (bool [m]); see :func:`other_image`."""
        return other_image(identities(self.tokens["input_ids"]), self.image, answers, known, would_be_right)

    def fuse_with(self, model: SimMIM, images: Tensor, texts: Tensor, chosen: np.ndarray) -> Tensor:
        """[m, D] of each text with the image of image_tokens [n, t, D] that is ``chosen`` (int64 [m]) for it."""
        before, mask = (self.image - 1) % len(images), self.tokens["attention_mask"]
        fused = self.fuse(model, images.roll(1, dims=0), texts, mask)
        apart = torch.from_numpy(np.flatnonzero(chosen != before))
        if len(apart):
            fused[apart] = model.fuse(images[torch.from_numpy(chosen)[apart]], texts[apart], mask[apart])
        return fused

    def fuse(self, model: SimMIM, images: Tensor, texts: Tensor, mask: Tensor) -> Tensor:
        """[m, D] of image_tokens [n, t, D], each with its own of text_tokens and attention_mask [m, s]."""
        repeats = len(self.image) // len(images)
        if np.array_equal(self.image, np.repeat(np.arange(len(images)), repeats)):
            return model.fuse(images, texts, mask, repeats)  # what an interaction makes of an image is made once
        return model.fuse(images[torch.from_numpy(self.image)], texts, mask)


@torch.inference_mode()
def evaluate_answers(
    head: str, model: SimMIM, tokenizer: Tokenizer, data: Data, scenes: int, watch: Watch
) -> dict[str, Any]:
    """Accuracy (the official soft score where answers have scores) on every question of ``scenes`` images, overall and by
    family, with the controls."""
    model.eval()
    table, hits, families = question_only(data.on("train")), Hits(), []
    for index, count in batches(scenes, data.limit("questions"), head, watch):
        found = data.batch(index, BATCH, ONCE).first(count)
        asked = Asked.of(found.questions, tokenizer, model.config.max_length)
        text_tokens, _ = model.encode_text(**asked.tokens)
        scores = None if found.scores is None else asked.flat(found.scores)
        answers, mask = asked.flat(found.answers), asked.tokens["attention_mask"]
        right = partial(_right, answers, scores)

        def score(fused: Tensor, right: Callable[[np.ndarray], np.ndarray] = right) -> np.ndarray:
            return right(model.classify(head, fused).argmax(dim=1).numpy())

        views, moving = seen(model, torch.from_numpy(found.pixels))
        for name, images in views.items():
            possible = None if name == "model" else moving[asked.image]
            hits.add(name, score(asked.fuse(model, images, text_tokens, mask)), possible)
        known = np.ones(len(answers), bool) if scores is None else np.asarray(scores.any(axis=1))
        chosen, possible = asked.elsewhere(answers, known, partial(would_be_right, answers, scores))
        hits.add("shuffled_image", score(asked.fuse_with(model, views["model"], text_tokens, chosen)), possible)
        place, possible = asked.replaced()
        other = torch.from_numpy(place)
        hits.add("image_only", score(asked.fuse(model, views["model"], text_tokens[other], mask[other])), possible)
        family = asked.flat(found.families)
        guesses = [table(text, data.families[f]) for text, f in zip(asked.texts, family, strict=True)]
        hits.add("question_only", right(np.array(guesses)))
        families.append(family)
    every, hit = np.concatenate(families), hits.of("model")
    present = [i for i in range(len(data.families)) if (every == i).any()]
    return {
        **hits.figures(),
        "by_family": {data.families[i]: accuracy(hit[every == i]) for i in present},
        "data": data.describe(),
    }


def seen(model: SimMIM, pixels: Tensor) -> tuple[dict[str, Tensor], np.ndarray]:
    """image_tokens [b, n, D] as the model sees images, or clips; of clips also as the controls show them, and which clips
    move (bool [b]), so that a control can show something else."""
    views = {"model": model.see(pixels)}
    if pixels.ndim != 5:
        return views, np.zeros(len(pixels), bool)
    mixed, moving = other_order(pixels, torch.Generator().manual_seed(0))
    views["shuffled_frames"] = model.see(mixed)
    views["single_frame"] = model.see(pixels[:, pixels.shape[1] // 2, None].expand_as(pixels))
    return views, moving


def _right(answers: np.ndarray, scores: np.ndarray | None, guesses: np.ndarray) -> np.ndarray:
    """1 or 0 for each of m guesses, or the score of the answer that was guessed."""
    return guesses == answers if scores is None else np.asarray(scores[np.arange(len(guesses)), guesses])


def would_be_right(answers: np.ndarray, scores: np.ndarray | None, text: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """bool [t, g]: whether the answer ``guess`` [g] is right, if only in part, for the texts at the positions ``text`` [t]."""
    return answers[text, None] == guess if scores is None else scores[text][:, guess] > 0


def question_only(data: Data, scenes: int = CONTROL_SCENES) -> Callable[[str, str], int]:
    """A predictor (text, family) -> answer index that has seen questions and answers of ``data`` but no image.

    A question whose answer is none of the classes teaches it nothing.
    """
    by_text: defaultdict[str, Counter[int]] = defaultdict(Counter)
    by_family: defaultdict[str, Counter[int]] = defaultdict(Counter)
    overall: Counter[int] = Counter()
    for index, count in batches(scenes, data.limit("questions"), "question only", lambda *_: None):
        found = data.batch(index, BATCH, UNSEEN).first(count)
        answered = np.ones(found.answers.shape, bool) if found.scores is None else found.scores.sum(axis=2) > 0
        for texts, *rows in zip(found.questions, found.answers, found.families, answered, strict=True):
            for text, answer, family, has_answer in zip(texts, *rows, strict=False):  # rows are filled up
                if has_answer:
                    for counts in (by_text[text], by_family[data.families[family]], overall):
                        counts[int(answer)] += 1

    def predict(text: str, family: str) -> int:
        counts = by_text.get(text) or by_family.get(family) or overall
        return counts.most_common(1)[0][0] if counts else 0

    return predict
