"""The two encoders of a dual encoder of transformers, each with its projection to an embedding of unit length."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from simmim_export.models.huggingface.image_processor import ImageProcessor, Normalized
from simmim_export.models.huggingface.masks import padding_mask


class ImageTower(nn.Module):
    """pixels uint8 [batch, height, width, 3] -> image_embed float32 [batch, channels], through the model's pooler."""

    def __init__(self, encoder: Any, projection: nn.Module, *, processor: ImageProcessor) -> None:
        super().__init__()
        encoder.set_attn_implementation("eager")
        self.normalized, self.encoder, self.projection = Normalized(processor), encoder, projection

    def forward(self, pixels: Tensor) -> Tensor:
        pooled = self.encoder(pixel_values=self.normalized(pixels)).pooler_output
        return normalize(self.projection(pooled), dim=-1)


class TextTower(nn.Module):
    """input_ids and attention_mask, int64 [batch, sequence], -> text_embed float32 [batch, channels].

    With ``pools_first`` the first token is projected as it is; else what the model's pooler makes of it.
    """

    segment: Tensor

    def __init__(self, encoder: Any, projection: nn.Module, *, pools_first: bool) -> None:
        super().__init__()
        encoder.set_attn_implementation("eager")
        self.encoder, self.projection, self.pools_first = encoder, projection, pools_first
        takes_segments = "token_type_ids" in inspect.signature(encoder.forward).parameters
        self.segment_names = ("token_type_ids",) if takes_segments else ()
        # One segment: a zero of shape [1, 1] broadcasts over batch and sequence, and stays a constant in the exported graph.
        self.register_buffer("segment", torch.zeros(1, 1, dtype=torch.int64), persistent=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        segments = dict.fromkeys(self.segment_names, self.segment)
        output = self.encoder(input_ids=input_ids, attention_mask=padding_mask(attention_mask), **segments)
        pooled = output.last_hidden_state[:, 0] if self.pools_first else output.pooler_output
        return normalize(self.projection(pooled), dim=-1)
