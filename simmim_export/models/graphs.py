"""The model as graphs: one small wrapper module and one GraphSpec for each.

Both the exporter and the PyTorch reference engine run exactly these wrappers, so they can only agree or disagree about
arithmetic. Knows names, tensors and axes. Must not know ONNX or files.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from simmim_export.models.heads import HEADS
from simmim_export.models.simmim import SimMIM
from simmim_export.spec import Axis, GraphSpec, Pipeline, TensorSpec


class ImageEncoderGraph(nn.Module):
    """pixels to image_tokens, image_embed."""

    def __init__(self, model: SimMIM) -> None:
        super().__init__()
        self.encoder = model.image_encoder

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder(pixels)


class TextEncoderGraph(nn.Module):
    """input_ids, attention_mask to text_tokens, text_embed."""

    def __init__(self, model: SimMIM) -> None:
        super().__init__()
        self.encoder = model.text_encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder(input_ids, attention_mask)


class FusionGraph(nn.Module):
    """image_tokens, text_tokens, attention_mask to fused."""

    def __init__(self, model: SimMIM) -> None:
        super().__init__()
        self.fusion, self.interaction = model.fusion, model.interaction

    def forward(self, image_tokens: Tensor, text_tokens: Tensor, attention_mask: Tensor) -> Tensor:
        return self.interaction(self.fusion(image_tokens, text_tokens, attention_mask))


@dataclass(frozen=True)
class Graph:
    """A module ready to be run or traced (in eval mode), and what it takes and gives."""

    module: nn.Module
    spec: GraphSpec


def graphs(model: SimMIM, max_batch: int) -> dict[str, Graph]:
    """Every graph of ``model`` by name, in the order in which a pipeline would run them. Puts the model in eval mode."""
    config = model.eval().config
    batch = Axis("batch", 1, max_batch)
    # [CLS], at least one word, [SEP].
    sequence = Axis("sequence", 3, config.max_length)
    image_tokens = TensorSpec("image_tokens", "float32", ("batch", model.image_encoder.tokens, config.width))
    text_tokens = TensorSpec("text_tokens", "float32", ("batch", "sequence", config.width))
    mask = TensorSpec("attention_mask", "int64", ("batch", "sequence"))
    ids = TensorSpec("input_ids", "int64", ("batch", "sequence"))
    pixels = TensorSpec("pixels", "uint8", ("batch", config.image_size, config.image_size, 3))
    fused = TensorSpec("fused", "float32", ("batch", config.width))

    def embed(name: str) -> TensorSpec:
        return TensorSpec(name, "float32", ("batch", config.embed_dim))

    both = (batch, sequence)
    found = [
        Graph(
            ImageEncoderGraph(model),
            GraphSpec("image_encoder", (pixels,), (image_tokens, embed("image_embed")), (batch,)),
        ),
        Graph(
            TextEncoderGraph(model),
            GraphSpec("text_encoder", (ids, mask), (text_tokens, embed("text_embed")), both),
        ),
        Graph(FusionGraph(model), GraphSpec("fusion", (image_tokens, text_tokens, mask), (fused,), both)),
    ]
    readable = {"fused": fused, "image_tokens": image_tokens}
    for name, classes in config.heads.items():
        logits = TensorSpec("logits", "float32", ("batch", classes))
        spec = GraphSpec(f"head.{name}", (readable[HEADS[name].reads],), (logits,), (batch,))
        found.append(Graph(model.heads[name], spec))
    return {graph.spec.name: graph for graph in found}


def pipelines(model: SimMIM) -> tuple[Pipeline, ...]:
    """What can be asked of ``model``: embed_image, embed_text, and one pipeline for each head."""
    found = [
        Pipeline("embed_image", ("image_encoder",), ("image_embed",)),
        Pipeline("embed_text", ("text_encoder",), ("text_embed",)),
    ]
    for name in model.config.heads:
        row = HEADS[name]
        before = ("image_encoder", "text_encoder", "fusion") if row.reads == "fused" else ("image_encoder",)
        found.append(Pipeline(row.pipeline, (*before, f"head.{name}"), ("logits",)))
    return tuple(found)
