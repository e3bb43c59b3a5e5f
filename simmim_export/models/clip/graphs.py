"""CLIP's two towers as graphs.

The wrappers call the parts of transformers' CLIPModel, because its own forward builds a mask and pools with operators that no
engine fuses.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import normalize

from simmim_export.models.family import Graph
from simmim_export.models.huggingface.image_processor import ImageProcessor, Normalized
from simmim_export.models.huggingface.masks import CausalMask
from simmim_export.spec import Axis, GraphSpec, Kind, TensorSpec


class ImageEncoderGraph(nn.Module):
    """pixels uint8 [batch, side, side, 3] -> image_embed float32 [batch, channels], each row of unit length."""

    def __init__(self, model: Any, processor: ImageProcessor) -> None:
        super().__init__()
        self.normalized = Normalized(processor)
        self.vision, self.projection = model.vision_model, model.visual_projection

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.vision.pre_layrnorm(self.vision.embeddings(self.normalized(pixels)))
        encoded = self.vision.encoder(inputs_embeds=patches).last_hidden_state
        return normalize(self.projection(self.vision.post_layernorm(encoded[:, 0])), dim=-1)


class TextEncoderGraph(nn.Module):
    """input_ids int64 [batch, sequence] -> text_embed float32 [batch, channels], each row of unit length.

    It takes no mask: a token does not see a later one, and padding comes after the token ``end``, where a text is pooled.
    """

    def __init__(self, model: Any, end: int) -> None:
        super().__init__()
        self.text, self.projection, self.end = model.text_model, model.text_projection, end
        self.mask = CausalMask(model.config.text_config.max_position_embeddings)

    def forward(self, input_ids: Tensor) -> Tensor:
        words = self.text.embeddings(input_ids=input_ids)
        encoded = self.text.encoder(inputs_embeds=words, attention_mask=self.mask(input_ids)).last_hidden_state
        # Padding may be the same token, so only the first one counts.
        ends = (input_ids == self.end).float()
        first = ends * (ends.cumsum(1) == 1).float()
        pooled = (first[:, None, :] @ self.text.final_layer_norm(encoded))[:, 0]
        return normalize(self.projection(pooled), dim=-1)


def graphs(model: Any, processor: ImageProcessor, *, end: int, shortest: int, max_batch: int) -> dict[str, Graph]:
    """The graphs of ``model``, a CLIPModel of transformers in eval mode, for 1 to ``max_batch`` rows and texts from ``shortest``
    tokens to as many as the model has positions. A text is pooled at its first token ``end``."""
    batch = Axis("batch", 1, max_batch)
    sequence = Axis("sequence", shortest, model.config.text_config.max_position_embeddings)
    height, width = processor.preprocessing["height"], processor.preprocessing["width"]
    pixels = TensorSpec("pixels", "uint8", ("batch", height, width, 3), Kind.IMAGE)
    ids = TensorSpec("input_ids", "int64", ("batch", "sequence"), Kind.TOKEN_IDS)
    image_embed, text_embed = (
        TensorSpec(name, "float32", ("batch", model.config.projection_dim), Kind.EMBEDDING)
        for name in ("image_embed", "text_embed")
    )
    image = GraphSpec("image_encoder", (pixels,), (image_embed,), (batch,))
    text = GraphSpec("text_encoder", (ids,), (text_embed,), (batch, sequence))
    return {
        image.name: Graph(ImageEncoderGraph(model, processor).eval(), image),
        text.name: Graph(TextEncoderGraph(model, end).eval(), text),
    }
