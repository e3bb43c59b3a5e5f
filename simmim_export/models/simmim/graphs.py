"""The model as graphs: one small wrapper module and one GraphSpec for each.

Both the exporter and the PyTorch reference engine run exactly these wrappers, so they can only agree or disagree about
arithmetic. Knows names, tensors and axes. Must not know ONNX or files.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from simmim_export.errors import UsageError
from simmim_export.models.simmim.heads import HEADS
from simmim_export.models.simmim.model import SimMIM
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


class VideoEncoderGraph(nn.Module):
    """frame_tokens, frame_mask to image_tokens."""

    def __init__(self, model: SimMIM) -> None:
        super().__init__()
        self.encoder = model.video_encoder

    def forward(self, frame_tokens: Tensor, frame_mask: Tensor) -> Tensor:
        assert self.encoder is not None
        found: Tensor = self.encoder(frame_tokens, frame_mask)
        return found


class FusionGraph(nn.Module):
    """image_tokens, text_tokens, attention_mask to fused, and with ``maps`` to attention [batch, sequence, tokens]."""

    def __init__(self, model: SimMIM, maps: bool) -> None:
        super().__init__()
        self.fusion, self.interaction, self.maps = model.fusion, model.interaction, maps

    def forward(
        self, image_tokens: Tensor, text_tokens: Tensor, attention_mask: Tensor
    ) -> Tensor | tuple[Tensor, Tensor]:
        joint = self.fusion(image_tokens, text_tokens, attention_mask)
        fused: Tensor = self.interaction(joint)
        return (fused, self.interaction.attend(joint)) if self.maps else fused


@dataclass(frozen=True)
class Graph:
    """A module ready to be run or traced (in eval mode), and what it takes and gives."""

    module: nn.Module
    spec: GraphSpec


def graphs(model: SimMIM, max_batch: int, maps: bool = False) -> dict[str, Graph]:
    """Every graph of ``model`` by name, in the order in which a pipeline would run them. Puts the model in eval mode.

    With ``maps`` the fusion also tells where each word looked; :class:`UsageError` for an interaction without attention.
    """
    if maps and not (model.config.fusion == "concat_sequence" and model.config.interaction == "attention"):
        what = f"{model.config.fusion} with {model.config.interaction} has no attention of words over the image"
        raise UsageError(what, fix="leave out --attention, or train concat_sequence with attention")
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
    fusion_outputs: tuple[TensorSpec, ...] = (fused,)
    if maps:
        fusion_outputs += (TensorSpec("attention", "float32", ("batch", "sequence", model.image_encoder.tokens)),)
    found = [
        Graph(
            ImageEncoderGraph(model),
            GraphSpec("image_encoder", (pixels,), (image_tokens, embed("image_embed")), (batch,)),
        ),
        Graph(
            TextEncoderGraph(model),
            GraphSpec("text_encoder", (ids, mask), (text_tokens, embed("text_embed")), both),
        ),
    ]
    if config.frames:
        frames = Axis("frames", 2, config.frames)
        frame_tokens = TensorSpec(
            "frame_tokens", "float32", ("batch", "frames", model.image_encoder.tokens, config.width)
        )
        frame_mask = TensorSpec("frame_mask", "int64", ("batch", "frames"))
        spec = GraphSpec("video_encoder", (frame_tokens, frame_mask), (image_tokens,), (batch, frames))
        found.append(Graph(VideoEncoderGraph(model), spec))
    spec = GraphSpec("fusion", (image_tokens, text_tokens, mask), fusion_outputs, both)
    found.append(Graph(FusionGraph(model, maps), spec))
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
        # A clip's frames go through image_encoder as a batch; the host stacks them into frame_tokens.
        before: tuple[str, ...] = ("video_encoder",) if row.video else ("image_encoder",)
        if row.reads == "fused":
            before += ("text_encoder", "fusion")
        found.append(Pipeline(row.pipeline, (*before, f"head.{name}"), ("logits",)))
    return tuple(found)
