"""Fine-tuning tasks: each turns a numbered batch into a loss.

Each is a stage for :func:`simmim_export.training.loop.train`, and an entry of :data:`STAGES`. Shapes: b images or
clips, q questions per image, c classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from simmim_export.errors import DataError
from simmim_export.models.simmim.model import SimMIM
from simmim_export.training.data.base import Source, Want
from simmim_export.training.objectives import answer_loss, soft_answer_loss
from simmim_export.training.pretrain import Pretrain
from simmim_export.training.processes import gather
from simmim_export.training.recipe import FinetuneSettings
from simmim_export.training.tokenizer import encode

# The objectives of retrieval and rehearsal.
MATCHING = {"itc": 1.0, "itm": 1.0}
# The order of questions, as (accuracy, share, families): ask only these families until the running accuracy is reached
# or the share of training is over, then take the next row; after the last row ask everything. Masked words have already
# taught the model to look things up, so look-ups come first and take seconds; then places; then questions that need
# several things at once. Asking everything from the start reached 49 % in the time in which this order reached 78 %
# (question only: 41 %): questions that the model is not ready for drown the gradient of those that it could learn. Data
# without these families have no curriculum.
CURRICULUM: tuple[tuple[float, float, tuple[str, ...]], ...] = (
    (0.76, 0.20, ("spatial", "colour", "shape", "size", "texture", "exist")),
    (0.80, 0.35, ("spatial",)),
)


class Stage(nn.Module):
    """A model, and the source of its batches."""

    def __init__(
        self, head: str, model: SimMIM, *, tokenizer: Tokenizer, source: Source, settings: FinetuneSettings
    ) -> None:
        """Raise :class:`DataError` for data with a single class, which teach nothing."""
        super().__init__()
        classes = source.data.labels[head]
        if len(classes) < 2:
            what = (
                f"the data set {source.data.name} has one class for {head}, {classes[0]!r}: there is nothing to learn"
            )
            raise DataError(what, fix="give data of two classes or more")
        self.head, self.model, self.tokenizer, self.source, self.settings = head, model, tokenizer, source, settings

    def samples(self, batch: Mapping[str, Any]) -> int:
        """Number of labels in a batch."""
        return len(batch["labels"])

    def encode(self, texts: Sequence[Sequence[str]]) -> dict[str, Tensor]:
        """input_ids and attention_mask, int64 [b q, s]."""
        flat = [text for row in texts for text in row]
        return encode(self.tokenizer, flat, max_length=self.model.config.max_length)

    def logits(self, batch: Mapping[str, Any]) -> Tensor:
        """Logits of the head, [b q, c]; each image is encoded once for all its texts."""
        model = self.model
        image_tokens = model.see(batch["pixels"])
        text_tokens, _ = model.encode_text(batch["input_ids"], batch["attention_mask"])
        repeats = len(text_tokens) // len(image_tokens)
        return model.classify(self.head, model.fuse(image_tokens, text_tokens, batch["attention_mask"], repeats))


class Answers(Stage):
    """Questions about images or clips.

    With a curriculum, the first batches ask what :data:`CURRICULUM` says; a model that can already answer passes
    through it in a few batches. The level and the running accuracy are buffers, so that they are saved with the
    trainer's state.
    """

    level: Tensor
    accuracy: Tensor

    def __init__(
        self, head: str, model: SimMIM, *, tokenizer: Tokenizer, source: Source, settings: FinetuneSettings
    ) -> None:
        super().__init__(head, model, tokenizer=tokenizer, source=source, settings=settings)
        asked = {family for _, _, families in CURRICULUM for family in families}
        ordered = settings.curriculum and asked <= set(source.data.families)
        self.register_buffer("level", torch.tensor(0 if ordered else len(CURRICULUM)))
        self.register_buffer("accuracy", torch.tensor(0.0))
        self.pretrain: Pretrain | None = None
        if settings.rehearse and "match" in source.data.labels:
            data = source.data.on(f"{source.data.stream}-rehearsal")
            self.pretrain = Pretrain(model, tokenizer, source=replace(source, data=data), weights=MATCHING)

    def batch(self, index: int, done: float) -> dict[str, Any]:
        """pixels; input_ids and attention_mask [b q, s]; answers int64 [b q], or scores float32 [b q, c].

        Every n-th batch (``settings.rehearse``) is one of pretraining instead, with ``rehearsal`` true.
        """
        if int(self.level) < len(CURRICULUM) and done >= CURRICULUM[int(self.level)][1]:
            self._next_level()
        level = int(self.level)
        if self.pretrain is not None and level == len(CURRICULUM) and (index + 1) % self.settings.rehearse == 0:
            return self.pretrain.batch(index, done) | {"rehearsal": True}
        families = None if level == len(CURRICULUM) else CURRICULUM[level][2]
        number, images = self.source.number(index), self.source.images
        asked = self.source.data.batch(number, images, want=Want(captions=False, families=families))
        batch = {"pixels": torch.from_numpy(asked.pixels), **self.encode(asked.questions)}
        if asked.scores is None:
            return batch | {"answers": torch.from_numpy(asked.answers).flatten()}
        return batch | {"scores": torch.from_numpy(asked.scores).flatten(0, 1)}

    def samples(self, batch: Mapping[str, Any]) -> int:
        """Number of questions (or captions) in a batch."""
        return len(batch["input_ids"])

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """The mean loss of all questions, or the loss of a pretraining batch."""
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
        """Follow the accuracy (a mean over about 20 batches), and go to the next level once it is high enough.

        It is the accuracy of all processes: if each followed its own, they would do different things next and wait for
        each other forever.
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
    """Texts that are true of the image, or not: the article's text classification."""

    def batch(self, index: int, done: float) -> dict[str, Any]:
        """pixels; input_ids and attention_mask [b q, s]; labels int64 [b q]."""
        batch = self.source.data.stated(self.source.number(index), self.source.images)
        labels = torch.from_numpy(batch.labels).flatten()
        return {"pixels": torch.from_numpy(batch.pixels), "labels": labels, **self.encode(batch.texts)}

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """Cross-entropy."""
        return answer_loss(self.logits(batch), batch["labels"])


class Classes(Stage):
    """Images or clips with one class each."""

    def batch(self, index: int, done: float) -> dict[str, Any]:
        """pixels; labels int64 [b]."""
        batch = self.source.data.labeled(self.source.number(index), self.source.images)
        return {"pixels": torch.from_numpy(batch.pixels), "labels": torch.from_numpy(batch.labels)}

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """Cross-entropy."""
        return answer_loss(self.model.classify(self.head, self.model.see(batch["pixels"])), batch["labels"])


def retrieval(
    head: str, model: SimMIM, *, tokenizer: Tokenizer, source: Source, settings: FinetuneSettings
) -> Pretrain:
    """Images and captions: contrast for the first stage of retrieval, matching against hard negatives for the second."""
    return Pretrain(model, tokenizer, source=source, weights=MATCHING)


STAGES: Mapping[str, Callable[..., Stage | Pretrain]] = {
    "vqa": Answers,
    "retrieval": retrieval,
    "text_class": Statements,
    "image_class": Classes,
    "video_class": Classes,
    "video_qa": Answers,
}
