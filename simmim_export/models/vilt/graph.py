"""ViLT (Kim et al., 2021) as one module that reads pixels and a text, over the parts of transformers' ``ViltModel``.

Transformers' ``visual_embed`` samples the patches in random order, which changes nothing but the order of summation, and scales
the positions to the size of each image. Here the size is fixed, so that this is done once.

Shapes: b batch, s tokens of the text, n patches, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from simmim_export.models.huggingface.image_processor import ImageProcessor, Normalized
from simmim_export.models.huggingface.masks import padding_mask


class ViltGraph(nn.Module):
    """pixels uint8 [b, height, width, 3], input_ids and attention_mask int64 [b, s] -> logits [b, classes].

    ``head`` reads the pooled token [b, D] of ``model``. ``size`` is (height, width) in pixels.
    """

    first: Tensor
    positions: Tensor

    def __init__(self, model: Any, head: nn.Module, processor: ImageProcessor, *, size: tuple[int, int]) -> None:
        super().__init__()
        self.normalized, self.model, self.head = Normalized(processor), model, head
        embeddings, config = model.embeddings, model.config
        side = config.image_size // config.patch_size
        rows, columns = (length // config.patch_size for length in size)
        with torch.no_grad():
            own = embeddings.position_embeddings
            grid = own[:, 1:].transpose(1, 2).unflatten(2, (side, side))
            scaled = interpolate(grid, size=(rows, columns), mode="bilinear", align_corners=True)
            # The type of patches.
            kind = embeddings.token_type_embeddings.weight[1]
            self.register_buffer("first", embeddings.cls_token + own[:, :1] + kind, persistent=False)
            self.register_buffer("positions", scaled.flatten(2).transpose(1, 2) + kind, persistent=False)

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        embeddings = self.model.embeddings
        text = embeddings.text_embeddings(input_ids) + embeddings.token_type_embeddings.weight[0]
        patches = embeddings.patch_embeddings(self.normalized(pixels)).flatten(2).transpose(1, 2)  # b n D
        first = self.first.expand(patches.shape[0], -1, -1)
        hidden = torch.cat([text, first, patches + self.positions], dim=1)
        # No patch is padding.
        mask = pad(padding_mask(attention_mask), (0, 1 + self.positions.shape[1]))
        hidden = self.model.encoder(hidden, attention_mask=mask).last_hidden_state
        logits: Tensor = self.head(self.model.pooler(self.model.layernorm(hidden[:, :1])))
        return logits


class YesOrNo(nn.Module):
    """A ``head`` with one logit x -> logits [b, 2]: 0 and x, so that the softmax of the second is the sigmoid of x."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, pooled: Tensor) -> Tensor:
        logit = self.head(pooled)
        return torch.cat([torch.zeros_like(logit), logit], dim=1)
