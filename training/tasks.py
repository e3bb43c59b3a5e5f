"""What is fine-tuned: a task turns a numbered batch into a loss. Knows a model and its data; must not know optimisation.

Each is a stage for :func:`simmim_export.training.loop.train`. Shapes: b images, q questions an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from simmim_export.models.simmim import SimMIM
from simmim_export.training.data.shapes import FAMILIES
from simmim_export.training.objectives import answer_loss
from simmim_export.training.pretrain import Pretrain
from simmim_export.training.source import Source
from simmim_export.training.tokenizer import encode

# (accuracy, share, families): what is asked until the running accuracy on it is reached, or the share of training is
# over; then the next; then every family. Masked words have taught the model to look things up, so look-ups come first, in
# seconds; then places; and only then what needs several things at once. A mixture of all families from the start stays at
# 49 % in the time in which this order comes to 78 % (question only: 41 %): what nothing has prepared drowns the gradient
# of what could be learned.
CURRICULUM: tuple[tuple[float, float, tuple[str, ...]], ...] = (
    (0.76, 0.20, ("spatial", "colour", "shape", "size", "texture", "exist")),
    (0.80, 0.35, ("spatial",)),
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
        weights = {"itc": 1.0, "itm": 1.0}
        self.pretrain = Pretrain(model, tokenizer, replace(source, data=data), weights) if rehearse else None

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
