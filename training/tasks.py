"""What is trained: a task turns a numbered batch into a loss. Knows a model and its data; must not know optimisation.

Each is a stage for :func:`simmim_export.training.loop.train`. Shapes: b images, q questions an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from simmim_export.errors import UsageError
from simmim_export.models.simmim import SimMIM
from simmim_export.training.data.shapes import FAMILIES, Shapes
from simmim_export.training.objectives import (
    answer_loss,
    contrastive_loss,
    hard_negatives,
    match_loss,
    similarities,
)
from simmim_export.training.tokenizer import encode


@dataclass(frozen=True)
class Source:
    """Where batches come from: a data set, ``images`` of them a batch, and this process's place among ``processes``."""

    data: Shapes
    images: int
    process: int = 0
    processes: int = 1

    def number(self, index: int) -> int:
        """The number, in the data set's stream, of this process's part of batch ``index``."""
        return index * self.processes + self.process


class Pretrain(nn.Module):
    """Images and captions: contrastive (itc) and matching with hard negatives (itm), each with its weight."""

    def __init__(self, model: SimMIM, tokenizer: Tokenizer, source: Source, itc: float = 1.0, itm: float = 1.0) -> None:
        """Raise :class:`UsageError` for a batch of 1: there is nothing to contrast an image with."""
        super().__init__()
        if source.images < 2:
            raise UsageError("pretraining needs 2 images or more in a batch", fix="raise --batch-size")
        self.model, self.tokenizer, self.source, self.itc, self.itm = model, tokenizer, source, itc, itm

    def batch(self, index: int, done: float) -> dict[str, Any]:
        """pixels uint8 [b, H, W, 3]; input_ids, attention_mask [b, s]: a caption each; same bool [b, b]: equal captions."""
        found = self.source.data.batch(self.source.number(index), self.source.images, with_questions=False)
        texts = [captions[(index + row) % len(captions)] for row, captions in enumerate(found.captions)]
        same = torch.tensor([[a == b for b in texts] for a in texts])
        tokens = encode(self.tokenizer, texts, self.model.config.max_length)
        return {"pixels": torch.from_numpy(found.pixels), "same": same, **tokens}

    def samples(self, batch: Mapping[str, Tensor]) -> int:
        """Captions in a batch."""
        return len(batch["input_ids"])

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of both losses."""
        model, mask, same = self.model, batch["attention_mask"], batch["same"]
        image_tokens, image_embed = model.encode_image(batch["pixels"])
        text_tokens, text_embed = model.encode_text(batch["input_ids"], mask)
        scores = similarities(image_embed, text_embed, model.logit_scale)
        # An equal caption of another image is a positive too: the first of its kind gives all of them their id.
        loss = self.itc * contrastive_loss(scores, same.float().argmax(dim=1))
        other_text, other_image = hard_negatives(scores, same), hard_negatives(scores.T, same)
        fused = model.fuse(
            torch.cat([image_tokens, image_tokens, image_tokens[other_image]]),
            torch.cat([text_tokens, text_tokens[other_text], text_tokens]),
            torch.cat([mask, mask[other_text], mask]),
        )
        return loss + self.itm * match_loss(model.classify("match", fused))


# (accuracy, share, families): what is asked until the running accuracy on it is reached, or the share of training is
# over; then the next; then every family. Looking something up by content needs features of colour and shape that nothing
# has taught yet, and a mixture of all families from the start stays on that plateau: 47 % after 100 s, where this
# curriculum came to 63 % after 240 s (question only: 39 %). Asking what is at a place teaches the features first.
CURRICULUM: tuple[tuple[float, float, tuple[str, ...]], ...] = (
    (0.70, 0.25, ("spatial",)),
    (0.68, 0.60, ("spatial", "colour", "shape", "size", "texture", "exist")),
)


class Vqa(nn.Module):
    """Questions about images, each image encoded once for all of its questions.

    With ``curriculum`` the first batches ask what :data:`CURRICULUM` says; a model that can answer already passes
    through it in a few. The level and the running accuracy are buffers, so that they are saved with the trainer's state.
    After the curriculum every ``rehearse``-th batch is one of pretraining instead, so that embeddings and matching do
    not drift away while the towers learn to answer; 0 never does.
    """

    level: Tensor
    accuracy: Tensor

    def __init__(
        self, model: SimMIM, tokenizer: Tokenizer, source: Source, rehearse: int = 0, curriculum: bool = True
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.source, self.rehearse = model, tokenizer, source, rehearse
        self.register_buffer("level", torch.tensor(0 if curriculum else len(CURRICULUM)))
        self.register_buffer("accuracy", torch.tensor(0.0))
        data = replace(source.data, stream=f"{source.data.stream}-rehearsal")
        self.pretrain = Pretrain(model, tokenizer, replace(source, data=data)) if rehearse else None

    def batch(self, index: int, done: float) -> dict[str, Any]:
        """pixels uint8 [b, H, W, 3]; input_ids, attention_mask [b q, s]; answers int64 [b q]; questions: q."""
        if int(self.level) < len(CURRICULUM) and done >= CURRICULUM[int(self.level)][1]:
            self._next_level()
        level = int(self.level)
        if self.pretrain is not None and level == len(CURRICULUM) and index % self.rehearse == self.rehearse - 1:
            return self.pretrain.batch(index, done)
        families = FAMILIES if level == len(CURRICULUM) else CURRICULUM[level][2]
        found = self.source.data.batch(
            self.source.number(index), self.source.images, with_captions=False, families=families
        )
        tokens = encode(self.tokenizer, [q for row in found.questions for q in row], self.model.config.max_length)
        answers = torch.from_numpy(found.answers)
        return {
            "pixels": torch.from_numpy(found.pixels),
            "answers": answers.flatten(),
            "questions": answers.shape[1],
            **tokens,
        }

    def samples(self, batch: Mapping[str, Any]) -> int:
        """Questions (or captions) in a batch."""
        return len(batch["input_ids"])

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """The mean loss of all questions, or that of a pretraining batch."""
        if self.pretrain is not None and "same" in batch:
            return self.pretrain(batch)
        model = self.model
        image_tokens, _ = model.encode_image(batch["pixels"])
        text_tokens, _ = model.encode_text(batch["input_ids"], batch["attention_mask"])
        fused = model.fuse(image_tokens, text_tokens, batch["attention_mask"], repeats=batch["questions"])
        logits = model.classify("vqa", fused)
        self._advance(logits, batch["answers"])
        return answer_loss(logits, batch["answers"])

    @torch.no_grad()
    def _advance(self, logits: Tensor, answers: Tensor) -> None:
        """Follow the accuracy (a mean over some 20 batches) and go to the next level where it is high enough."""
        if not self.training or int(self.level) == len(CURRICULUM):
            return
        self.accuracy.lerp_((logits.argmax(dim=1) == answers).float().mean(), 0.05)
        if float(self.accuracy) >= CURRICULUM[int(self.level)][0]:
            self._next_level()

    def _next_level(self) -> None:
        self.level += 1
        self.accuracy.zero_()
