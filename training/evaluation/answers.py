"""Questions about images and clips. Knows a model and held-out questions; must not know optimisation."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from simmim_export.models.simmim import SimMIM
from simmim_export.training.data.base import ONCE, UNSEEN, Data
from simmim_export.training.evaluation.statistics import BATCH, CONTROL_SCENES, Hits, Watch, accuracy, batches
from simmim_export.training.tokenizer import encode

Score = Callable[[np.ndarray], np.ndarray]


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

    def other(self) -> np.ndarray:
        """int64 [m]: for each text one of the image before, in the place that it has."""
        counts = np.bincount(self.image)
        starts = np.cumsum(counts) - counts
        before = (self.image - 1) % len(counts)
        return starts[before] + (np.arange(len(self.image)) - starts[self.image]) % counts[before]

    def fuse(self, model: SimMIM, images: Tensor, texts: Tensor, mask: Tensor) -> Tensor:
        """[m, D] of image_tokens [n, t, D] with text_tokens and attention_mask [m, s]."""
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
        right = partial(_right, asked.flat(found.answers), scores)

        def score(
            images: Tensor, texts: Tensor, mask: Tensor, asked: Asked = asked, right: Score = right
        ) -> np.ndarray:
            logits = model.classify(head, asked.fuse(model, images, texts, mask))
            return right(logits.argmax(dim=1).numpy())

        mask = asked.tokens["attention_mask"]
        views = seen(model, torch.from_numpy(found.pixels))
        for name, images in views.items():
            hits.add(name, score(images, text_tokens, mask))
        if count > 1:
            # Rolled by one image: a derangement, so no question meets its own image. One alone has no other.
            hits.add("shuffled_image", score(views["model"].roll(1, dims=0), text_tokens, mask))
            other = torch.from_numpy(asked.other())
            hits.add("image_only", score(views["model"], text_tokens[other], mask[other]))
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


def _right(answers: np.ndarray, scores: np.ndarray | None, guesses: np.ndarray) -> np.ndarray:
    """1 or 0 for each of m guesses, or the score of the answer that was guessed."""
    return guesses == answers if scores is None else np.asarray(scores[np.arange(len(guesses)), guesses])


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
