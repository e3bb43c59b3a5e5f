"""How many questions about images and clips a model answers correctly, and how many its controls do."""

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
from simmim_export.system.watch import Watch, unwatched
from simmim_export.training.data.base import ONCE, UNSEEN, Data
from simmim_export.training.evaluation.controls import (
    WouldBeRight,
    different_text,
    identities,
    other_image,
    other_order,
)
from simmim_export.training.evaluation.statistics import BATCH, CONTROL_SCENES, Hits, accuracy, batches
from simmim_export.training.tokenizer import encode


class Asked(NamedTuple):
    """The m texts of a batch of n images, one after the other: the image that each belongs to, int64 [m], and the
    ``tokens``."""

    texts: list[str]
    image: np.ndarray
    tokens: dict[str, Tensor]

    @classmethod
    def of(cls, rows: Sequence[Sequence[str]], tokenizer: Tokenizer, *, max_length: int) -> Self:
        """From n rows of texts, of any lengths."""
        texts = [text for row in rows for text in row]
        image = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        return cls(texts, image, encode(tokenizer, texts, max_length=max_length))

    def flat(self, values: np.ndarray) -> np.ndarray:
        """[m, ...]: ``values`` [n, longest, ...] without the filling at the ends of shorter rows."""
        counts = np.bincount(self.image, minlength=len(values))
        flat: np.ndarray = values[np.arange(values.shape[1]) < counts[:, None]]
        return flat

    def replaced(self) -> tuple[np.ndarray, np.ndarray]:
        """For each text the position of a different one (int64 [m]), and whether there is one (bool [m]).

        It is the text at the same place of the previous image; if that is the same, the next text of any image that
        differs.
        """
        counts = np.bincount(self.image)
        starts = np.cumsum(counts) - counts
        before = (self.image - 1) % len(counts)
        place = starts[before] + (np.arange(len(self.image)) - starts[self.image]) % counts[before]
        return different_text(identities(self.tokens["input_ids"]), place)

    def elsewhere(
        self, answers: np.ndarray, *, known: np.ndarray, would_be_right: WouldBeRight
    ) -> tuple[np.ndarray, np.ndarray]:
        """For each text another image (int64 [m]), and whether there is one (bool [m]); see :func:`other_image`."""
        return other_image(
            identities(self.tokens["input_ids"]),
            self.image,
            answers=answers,
            known=known,
            would_be_right=would_be_right,
        )

    def fuse_with(self, model: SimMIM, images: Tensor, *, texts: Tensor, chosen: np.ndarray) -> Tensor:
        """[m, D]: each text fused with the image that is ``chosen`` (int64 [m]) for it from image_tokens [n, t, D]."""
        before, mask = (self.image - 1) % len(images), self.tokens["attention_mask"]
        fused = self.fuse(model, images.roll(1, dims=0), texts=texts, mask=mask)
        apart = torch.from_numpy(np.flatnonzero(chosen != before))
        if len(apart):
            fused[apart] = model.fuse(images[torch.from_numpy(chosen)[apart]], texts[apart], mask[apart])
        return fused

    def fuse(self, model: SimMIM, images: Tensor, *, texts: Tensor, mask: Tensor) -> Tensor:
        """[m, D]: each text (text_tokens and attention_mask [m, s]) fused with its own image of image_tokens [n, t, D]."""
        repeats = len(self.image) // len(images)
        if np.array_equal(self.image, np.repeat(np.arange(len(images)), repeats)):
            return model.fuse(images, texts, mask, repeats)  # each image is processed once
        return model.fuse(images[torch.from_numpy(self.image)], texts, mask)


@torch.inference_mode()
def evaluate_answers(
    head: str, model: SimMIM, *, tokenizer: Tokenizer, data: Data, scenes: int, watch: Watch
) -> dict[str, Any]:
    """Accuracy on every question of ``scenes`` images, overall and by family, with the controls.

    If answers have scores, it is the mean score of the chosen answers (VQAv2's official accuracy).
    """
    model.eval()
    table, hits, families = question_only(data.on("train"), watch=watch), Hits(), []
    for index, count in batches(scenes, data.limit("questions"), what=head, watch=watch):
        batch = data.batch(index, BATCH, want=ONCE).first(count)
        asked = Asked.of(batch.questions, tokenizer, max_length=model.config.max_length)
        text_tokens, _ = model.encode_text(**asked.tokens)
        scores = None if batch.scores is None else asked.flat(batch.scores)
        answers, mask = asked.flat(batch.answers), asked.tokens["attention_mask"]
        right = partial(_right, answers, scores)

        def score(fused: Tensor, right: Callable[[np.ndarray], np.ndarray] = right) -> np.ndarray:
            return right(model.classify(head, fused).argmax(dim=1).numpy())

        views, moving = seen(model, torch.from_numpy(batch.pixels))
        for name, images in views.items():
            possible = None if name == "model" else moving[asked.image]
            hits.add(name, score(asked.fuse(model, images, texts=text_tokens, mask=mask)), possible)
        known = np.ones(len(answers), bool) if scores is None else np.asarray(scores.any(axis=1))
        chosen, possible = asked.elsewhere(
            answers, known=known, would_be_right=partial(would_be_right, answers, scores)
        )
        hits.add(
            "shuffled_image", score(asked.fuse_with(model, views["model"], texts=text_tokens, chosen=chosen)), possible
        )
        place, possible = asked.replaced()
        other = torch.from_numpy(place)
        hits.add(
            "image_only", score(asked.fuse(model, views["model"], texts=text_tokens[other], mask=mask[other])), possible
        )
        family = asked.flat(batch.families)
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
    """What the model sees, as image_tokens [b, n, D]: the images or clips and, for clips, what each control shows instead.

    Also which clips move (bool [b]); to the others, these controls show the same.
    """
    views = {"model": model.see(pixels)}
    if pixels.ndim != 5:
        return views, np.zeros(len(pixels), bool)
    mixed, moving = other_order(pixels, torch.Generator().manual_seed(0))
    views["shuffled_frames"] = model.see(mixed)
    views["single_frame"] = model.see(pixels[:, pixels.shape[1] // 2, None].expand_as(pixels))
    return views, moving


def _right(answers: np.ndarray, scores: np.ndarray | None, guesses: np.ndarray) -> np.ndarray:
    """1 or 0 for each of m guesses, or the score of the guessed answer."""
    return guesses == answers if scores is None else np.asarray(scores[np.arange(len(guesses)), guesses])


def would_be_right(answers: np.ndarray, scores: np.ndarray | None, text: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """bool [t, g]: whether the answer ``guess`` [g] is right, at least in part, for the texts at the positions ``text``
    [t]."""
    return answers[text, None] == guess if scores is None else scores[text][:, guess] > 0


def question_only(data: Data, scenes: int = CONTROL_SCENES, *, watch: Watch = unwatched) -> Callable[[str, str], int]:
    """A predictor (text, family) -> answer index that learned from questions and answers of ``data``, but saw no image.

    Questions whose answer is not one of the classes are skipped.
    """
    by_text: defaultdict[str, Counter[int]] = defaultdict(Counter)
    by_family: defaultdict[str, Counter[int]] = defaultdict(Counter)
    overall: Counter[int] = Counter()
    for index, count in batches(scenes, data.limit("questions"), what="question only", watch=watch):
        batch = data.batch(index, BATCH, want=UNSEEN).first(count)
        answered = np.ones(batch.answers.shape, bool) if batch.scores is None else batch.scores.sum(axis=2) > 0
        for texts, *rows in zip(batch.questions, batch.answers, batch.families, answered, strict=True):
            for text, answer, family, has_answer in zip(texts, *rows, strict=False):  # rows end with filling
                if has_answer:
                    for counts in (by_text[text], by_family[data.families[family]], overall):
                        counts[int(answer)] += 1

    def predict(text: str, family: str) -> int:
        counts = by_text.get(text) or by_family.get(family) or overall
        return counts.most_common(1)[0][0] if counts else 0

    return predict
