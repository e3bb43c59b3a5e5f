"""The parts of BLIP (Li et al., 2022) that a bundle runs, as modules over those of transformers.

BlipForImageTextRetrieval has an image encoder, a text encoder, and the same text encoder with cross-attention to the image, on
which a head says whether the two match. BlipForQuestionAnswering reads the image and the question with such an encoder, and a
decoder gives the probability of each answer.

Transformers' own cross-attention loses its mask (``BlipTextAttention.forward`` does not pass ``encoder_attention_mask`` on), so
that padding a question changes its answer there. :func:`cross_attend` applies the mask. Without padding both agree.

Shapes: b batch, n image tokens, s tokens of a text, N prefixes of answers, A answers, D width of the text, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, normalize

from simmim_export.models.blip.prefixes import Prefixes
from simmim_export.models.huggingface.image_processor import ImageProcessor, Normalized
from simmim_export.models.huggingface.masks import MASKED, padding_mask


def cross_attend(attention: Any, hidden: Tensor, memory: Tensor, *, mask: Tensor | None) -> Tensor:
    """A ``BlipTextAttention`` from ``hidden`` [b, q, D] to ``memory`` [b or 1, k, width], whose ``mask`` [b, 1, 1, k] is added to
    the scores: [b, q, D]."""
    heads = attention.self
    shape = (heads.num_attention_heads, heads.attention_head_size)
    query, key, value = (
        project(states).unflatten(-1, shape).transpose(1, 2)
        for project, states in ((heads.query, hidden), (heads.key, memory), (heads.value, memory))
    )
    scores = query @ key.transpose(-1, -2) / heads.attention_head_size**0.5
    if mask is not None:
        scores = scores + mask
    context = (scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)
    attended: Tensor = attention.output(context, hidden)
    return attended


def run_layers(
    layers: Any, hidden: Tensor, *, mask: Tensor, memory: Tensor | None = None, memory_mask: Tensor | None = None
) -> Tensor:
    """The ``BlipTextLayer`` s one after another over ``hidden`` [b, q, D], with ``mask`` added to the scores of
    self-attention, and with cross-attention to ``memory`` if there is one."""
    for layer in layers:
        hidden = layer.attention(hidden, attention_mask=mask)[0]
        if memory is not None:
            hidden = cross_attend(layer.crossattention, hidden, memory, mask=memory_mask)
        hidden = layer.feed_forward_chunk(hidden)
    return hidden


class ImageEncoderGraph(nn.Module):
    """pixels uint8 [b, height, width, 3] -> image_tokens [b, n, width] and, with ``projection``, image_embed [b, channels]."""

    def __init__(self, vision: Any, processor: ImageProcessor, *, projection: nn.Module | None = None) -> None:
        super().__init__()
        self.normalized = Normalized(processor)
        self.vision, self.projection = vision, projection

    def forward(self, pixels: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        tokens = self.vision.embeddings(self.normalized(pixels))
        for layer in self.vision.encoder.layers:
            tokens = layer(tokens)
        tokens = self.vision.post_layernorm(tokens)
        return tokens if self.projection is None else (tokens, normalize(self.projection(tokens[:, 0]), dim=-1))


class TextEncoderGraph(nn.Module):
    """input_ids, attention_mask int64 [b, s] -> text_embed [b, channels], without an image."""

    def __init__(self, encoder: Any, projection: nn.Module) -> None:
        super().__init__()
        self.embeddings, self.layers, self.projection = encoder.embeddings, encoder.encoder.layer, projection

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = run_layers(self.layers, self.embeddings(input_ids), mask=padding_mask(attention_mask))
        return normalize(self.projection(hidden[:, 0]), dim=-1)


class QuestionEncoderGraph(nn.Module):
    """image_tokens [b or 1, n, width], input_ids and attention_mask int64 [b, s] -> question_states [b, s, D]."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.embeddings, self.layers = encoder.embeddings, encoder.encoder.layer

    def forward(self, image_tokens: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = padding_mask(attention_mask)
        return run_layers(self.layers, self.embeddings(input_ids), mask=mask, memory=image_tokens)


class MatchGraph(nn.Module):
    """image_tokens [b or 1, n, width], input_ids and attention_mask int64 [b, s] -> logits [b, 2]: no, yes."""

    def __init__(self, encoder: Any, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = QuestionEncoderGraph(encoder), head

    def forward(self, image_tokens: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder(image_tokens, input_ids, attention_mask)[:, 0])
        return logits


class RankGraph(nn.Module):
    """question_states [b, s, D], attention_mask int64 [b, s] -> logits [b, A]: the log-probability of each answer.

    It is the sum of the log-probabilities that the decoder gives to the tokens of the answer and to the end after them (Li et
    al., 2022, section 4.4; ``rank_answer`` in the authors' code). Answers with a common beginning share it: the decoder reads
    every different prefix once, as one sequence, in which a prefix attends to those that it extends, and has the position of its
    last token.
    """

    prefixes: Tensor
    mask: Tensor
    index: Tensor
    weight: Tensor

    def __init__(self, decoder: Any, prefixes: Prefixes) -> None:
        super().__init__()
        self.layers, self.scores, self.shape = decoder.bert.encoder.layer, decoder.cls, prefixes.mask.shape
        ids, positions, sees = (torch.from_numpy(a)[None] for a in (prefixes.ids, prefixes.positions, prefixes.sees))
        index = torch.from_numpy(prefixes.prefix * decoder.config.vocab_size + prefixes.token).flatten()
        with torch.no_grad():
            embedded = decoder.bert.embeddings(ids, position_ids=positions)
        self.register_buffer("prefixes", embedded, persistent=False)  # 1 N D
        self.register_buffer("mask", torch.where(sees, 0.0, MASKED)[:, None], persistent=False)  # 1 1 N N
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("weight", torch.from_numpy(prefixes.mask), persistent=False)

    def forward(self, question_states: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.prefixes.expand(question_states.shape[0], -1, -1)
        hidden = run_layers(
            self.layers, hidden, mask=self.mask, memory=question_states, memory_mask=padding_mask(attention_mask)
        )
        chances = log_softmax(self.scores(hidden), dim=-1).flatten(1)  # b N*V
        # b A steps: of each answer its tokens and the end.
        steps = chances.index_select(1, self.index).unflatten(1, self.shape)
        return (steps * self.weight).sum(dim=-1)
