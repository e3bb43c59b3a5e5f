"""The two encoders of SigLIP and SigLIP 2, from transformers' parts: each gives an embedding of unit length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from simmim_export.models.huggingface.image_processor import ImageProcessor, Normalized


class ImageTower(nn.Module):
    """pixels uint8 [batch, height, width, 3] -> image_embed float32 [batch, channels]."""

    positions: Tensor

    def __init__(self, vision: Any, processor: ImageProcessor) -> None:
        """``vision`` is a SiglipVisionModel, or a Siglip2VisionModel for images of the size that ``processor`` makes."""
        super().__init__()
        self.normalized = Normalized(processor)
        patches, table = vision.embeddings.patch_embedding, vision.embeddings.position_embedding.weight.detach()
        if isinstance(patches, nn.Linear):
            side = vision.embeddings.patch_size
            grid = processor.preprocessing["height"] // side, processor.preprocessing["width"] // side
            patches, table = _convolution(patches, side), _resized(table, grid)
        self.patches = patches
        self.register_buffer("positions", table[None].clone())
        self.encoder, self.norm, self.head = vision.encoder, vision.post_layernorm, AttentionPooling(vision.head)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patches(self.normalized(pixels)).flatten(2).transpose(1, 2) + self.positions
        tokens = self.norm(self.encoder(inputs_embeds=x, attention_mask=None).last_hidden_state)
        return normalize(self.head(tokens), dim=-1)


class AttentionPooling(nn.Module):
    """tokens float32 [batch, n, channels] -> float32 [batch, channels]: SiglipMultiheadAttentionPoolingHead.

    That has one learned query. What its projection makes of the query is a constant here; transformers' own code repeats the
    query over the batch with an operator (Tile) that is not in :data:`simmim_export.bundle.onnx_file.OPERATORS`.
    """

    query: Tensor

    def __init__(self, head: Any) -> None:
        super().__init__()
        attention, channels = head.attention, head.attention.embed_dim
        self.heads = attention.num_heads
        weights = attention.in_proj_weight.detach().chunk(3)
        biases = attention.in_proj_bias.detach().chunk(3)
        query = (head.probe.detach()[0] @ weights[0].T + biases[0]) * attention.head_dim**-0.5
        self.register_buffer("query", query.reshape(1, self.heads, 1, attention.head_dim))
        self.key, self.value = nn.Linear(channels, channels), nn.Linear(channels, channels)
        for linear, weight, bias in zip((self.key, self.value), weights[1:], biases[1:], strict=True):
            linear.weight, linear.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
        self.out, self.norm, self.mlp = attention.out_proj, head.layernorm, head.mlp

    def forward(self, tokens: Tensor) -> Tensor:
        keys, values = (
            part(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.key, self.value)
        )  # b h n c/h
        shares = torch.softmax(self.query @ keys.transpose(2, 3), dim=-1)  # b h 1 n
        pooled = self.out((shares @ values).squeeze(2).flatten(1))
        return pooled + self.mlp(self.norm(pooled))


class TextTower(nn.Module):
    """input_ids int64 [batch, sequence], of the model's one length, -> text_embed float32 [batch, channels], without a mask."""

    def __init__(self, text: Any) -> None:
        super().__init__()
        self.embeddings, self.encoder, self.norm = text.embeddings, text.encoder, text.final_layer_norm
        self.head = text.head

    def forward(self, input_ids: Tensor) -> Tensor:
        tokens = self.encoder(inputs_embeds=self.embeddings(input_ids), attention_mask=None).last_hidden_state
        return normalize(self.head(self.norm(tokens[:, -1])), dim=-1)


def _convolution(linear: nn.Linear, side: int) -> nn.Conv2d:
    """``linear`` reads a patch as a row (height, width, channel); the same as a convolution."""
    convolution = nn.Conv2d(3, linear.out_features, side, side)
    weight = linear.weight.detach().reshape(linear.out_features, side, side, 3)
    convolution.weight = nn.Parameter(weight.permute(0, 3, 1, 2).contiguous())
    convolution.bias = nn.Parameter(linear.bias.detach().clone())
    return convolution


def _resized(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """The positions ``table`` [rows * rows, channels] for a ``grid`` of rows and columns, resized as Siglip2VisionEmbeddings
    does."""
    rows = int(table.shape[0] ** 0.5)
    square = table.reshape(rows, rows, -1).permute(2, 0, 1)[None]
    with torch.no_grad():
        resized = interpolate(square, size=grid, mode="bilinear", align_corners=False, antialias=True)
    return resized[0].flatten(1).T.contiguous()
