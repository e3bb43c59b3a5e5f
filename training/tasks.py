"""What is fine-tuned: a task turns a numbered batch into a loss. Knows a model and its data; must not know optimisation.

Each is a stage for :func:`simmim_export.training.loop.train`, and an entry of :data:`STAGES`. Shapes: b images or clips, q
questions an image, c classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from simmim_export.errors import DataError
from simmim_export.models.simmim.model import SimMIM
from simmim_export.training.data.base import Want
from simmim_export.training.objectives import answer_loss, soft_answer_loss
from simmim_export.training.options import Plan
from simmim_export.training.pretrain import Pretrain
from simmim_export.training.processes import gather
from simmim_export.training.source import Source
from simmim_export.training.tokenizer import encode

# (accuracy, share, families): what is asked until the running accuracy on it is reached, or the share of training is
# over; then the next; then every family. Masked words have taught the model to look things up, so look-ups come first, in
# seconds; then places; and only then what needs several things at once. A mixture of all families from the start stays at
# 49 % in the time in which this order comes to 78 % (question only: 41 %): what nothing has prepared drowns the gradient
# of what could be learned. For data without these families there is no curriculum.
CURRICULUM: tuple[tuple[float, float, tuple[str, ...]], ...] = (
    (0.76, 0.20, ("spatial", "colour", "shape", "size", "texture", "exist")),
    (0.80, 0.35, ("spatial",)),
)


class Stage(nn.Module):
    """A model and where its batches come from."""

    def __init__(self, head: str, model: SimMIM, tokenizer: Tokenizer, source: Source, plan: Plan) -> None:
        """Raise :class:`DataError` for data with a single class, which a model names without looking."""
        super().__init__()
        classes = source.data.labels[head]
        if len(classes) < 2:
            what = (
                f"the data set {source.data.name} has one class for {head}, {classes[0]!r}: there is nothing to learn"
            )
            raise DataError(what, fix="give data of two classes or more")
        self.head, self.model, self.tokenizer, self.source, self.plan = head, model, tokenizer, source, plan

    def encode(self, texts: Sequence[Sequence[str]]) -> dict[str, Tensor]:
        """input_ids, attention_mask int64 [b q, s]."""
        return encode(self.tokenizer, [text for row in texts for text in row], self.model.config.max_length)

    def logits(self, batch: Mapping[str, Any]) -> Tensor:
        """Of the head, [b q, c]: each image encoded once for all of its texts."""
        model = self.model
        image_tokens = model.see(batch["pixels"])
        text_tokens, _ = model.encode_text(batch["input_ids"], batch["attention_mask"])
        repeats = len(text_tokens) // len(image_tokens)
        return model.classify(self.head, model.fuse(image_tokens, text_tokens, batch["attention_mask"], repeats))


class Answers(Stage):
    """Questions about images or clips.

    With the curriculum the first batches ask what :data:`CURRICULUM` says; a model that can answer already passes
    through it in a few. The level and the running accuracy are buffers, so that they are saved with the trainer's state.
    """

    level: Tensor
    accuracy: Tensor

    def __init__(self, head: str, model: SimMIM, tokenizer: Tokenizer, source: Source, plan: Plan) -> None:
        super().__init__(head, model, tokenizer, source, plan)
        asked = {family for _, _, families in CURRICULUM for family in families}
        ordered = plan.curriculum and asked <= set(source.data.families)
        self.register_buffer("level", torch.tensor(0 if ordered else len(CURRICULUM)))
        self.register_buffer("accuracy", torch.tensor(0.0))
        self.pretrain: Pretrain | None = None
        if plan.rehearse and "match" in source.data.labels:
            data = source.data.on(f"{source.data.stream}-rehearsal")
            weights = {"itc": 1.0, "itm": 1.0}
            self.pretrain = Pretrain(model, tokenizer, replace(source, data=data), weights)

    def batch(self, index: int, done: float) -> dict[str, Any]:
        """pixels; input_ids, attention_mask [b q, s]; answers int64 [b q], or scores float32 [b q, c]. Every so often a batch of
        pretraining, with ``rehearsal`` true."""
        if int(self.level) < len(CURRICULUM) and done >= CURRICULUM[int(self.level)][1]:
            self._next_level()
        level = int(self.level)
        if self.pretrain is not None and level == len(CURRICULUM) and (index + 1) % self.plan.rehearse == 0:
            return self.pretrain.batch(index, done) | {"rehearsal": True}
        families = None if level == len(CURRICULUM) else CURRICULUM[level][2]
        number, images = self.source.number(index), self.source.images
        found = self.source.data.batch(number, images, Want(captions=False, families=families))
        batch = {"pixels": torch.from_numpy(found.pixels), **self.encode(found.questions)}
        if found.scores is None:
            return batch | {"answers": torch.from_numpy(found.answers).flatten()}
        return batch | {"scores": torch.from_numpy(found.scores).flatten(0, 1)}

    def samples(self, batch: Mapping[str, Any]) -> int:
        """Questions (or captions) in a batch."""
        return len(batch["input_ids"])

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """The mean loss of all questions, or that of a pretraining batch."""
        if "rehearsal" in batch:
            assert self.pretrain is not None
            loss: Tensor = self.pretrain(batch)
            return loss
        logits = self.logits(batch)
        if "scores" in batch:
            return soft_answer_loss(logits, batch["scores"])
        self._advance(logits, batch["answers"])
        return answer_loss(logits, batch["answers"])

    @torch.no_grad()
    def _advance(self, logits: Tensor, answers: Tensor) -> None:
        """Follow the accuracy (a mean over some 20 batches) and go to the next level where it is high enough.

        It is that of all processes: one that went by its own would be alone in what it does next, and wait for ever.
        """
        if not self.training or int(self.level) == len(CURRICULUM):
            return
        right = (logits.argmax(dim=1) == answers).float().mean()
        self.accuracy.lerp_(gather(right[None]).mean(), 0.05)
        if float(self.accuracy) >= CURRICULUM[int(self.level)][0]:
            self._next_level()

    def _next_level(self) -> None:
        self.level += 1
        self.accuracy.zero_()


class Statements(Stage):
    """Texts of which each is true of the image, or not: the article's text classification."""

    def batch(self, index: int, done: float) -> dict[str, Any]:
        """pixels; input_ids, attention_mask [b q, s]; labels int64 [b q]."""
        found = self.source.data.stated(self.source.number(index), self.source.images)
        labels = torch.from_numpy(found.labels).flatten()
        return {"pixels": torch.from_numpy(found.pixels), "labels": labels, **self.encode(found.texts)}

    def samples(self, batch: Mapping[str, Any]) -> int:
        """Statements in a batch."""
        return len(batch["labels"])

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """Cross-entropy."""
        return answer_loss(self.logits(batch), batch["labels"])


class Classes(Stage):
    """Images or clips with one class each."""

    def batch(self, index: int, done: float) -> dict[str, Any]:
        """pixels; labels int64 [b]."""
        found = self.source.data.labelled(self.source.number(index), self.source.images)
        return {"pixels": torch.from_numpy(found.pixels), "labels": torch.from_numpy(found.labels)}

    def samples(self, batch: Mapping[str, Any]) -> int:
        """Images in a batch."""
        return len(batch["labels"])

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """Cross-entropy."""
        return answer_loss(self.model.classify(self.head, self.model.see(batch["pixels"])), batch["labels"])


class Retrieval(Stage):
    """Images and captions: contrast for the first stage of retrieval, matching with hard negatives for the second."""

    def __init__(self, head: str, model: SimMIM, tokenizer: Tokenizer, source: Source, plan: Plan) -> None:
        super().__init__(head, model, tokenizer, source, plan)
        self.pretrain = Pretrain(model, tokenizer, source, {"itc": 1.0, "itm": 1.0})

    def batch(self, index: int, done: float) -> dict[str, Any]:
        """As :meth:`Pretrain.batch`."""
        return self.pretrain.batch(index, done)

    def samples(self, batch: Mapping[str, Any]) -> int:
        """Images in a batch."""
        return self.pretrain.samples(batch)

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """As :meth:`Pretrain.forward`."""
        loss: Tensor = self.pretrain(batch)
        return loss


STAGES: Mapping[str, type[Stage]] = {
    "vqa": Answers,
    "retrieval": Retrieval,
    "text_class": Statements,
    "image_class": Classes,
    "video_class": Classes,
    "video_qa": Answers,
}
