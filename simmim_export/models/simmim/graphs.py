"""The model as graphs: one small wrapper module and one GraphSpec for each.

The exporter and the PyTorch engine run exactly these wrappers, so they can differ only in arithmetic.
"""

from __future__ import annotations

from torch import Tensor, nn

from simmim_export.errors import UsageError
from simmim_export.models.family import Graph
from simmim_export.models.simmim.heads import HEADS
from simmim_export.models.simmim.model import SimMIM
from simmim_export.spec import Axis, GraphSpec, Kind, Pipeline, TensorSpec, Verb

# What the host stacks over the frames of a clip.
STACKED = "image_tokens"


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
        image_tokens: Tensor = self.encoder(frame_tokens, frame_mask)
        return image_tokens


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


def graphs(model: SimMIM, max_batch: int, *, maps: bool = False) -> dict[str, Graph]:
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
    image_tokens = TensorSpec(STACKED, "float32", ("batch", model.image_encoder.tokens, config.width))
    text_tokens = TensorSpec("text_tokens", "float32", ("batch", "sequence", config.width))
    mask = TensorSpec("attention_mask", "int64", ("batch", "sequence"), Kind.TEXT_MASK)
    ids = TensorSpec("input_ids", "int64", ("batch", "sequence"), Kind.TOKEN_IDS)
    pixels = TensorSpec("pixels", "uint8", ("batch", config.image_size, config.image_size, 3), Kind.IMAGE)
    fused = TensorSpec("fused", "float32", ("batch", config.width))

    def embed(name: str) -> TensorSpec:
        return TensorSpec(name, "float32", ("batch", config.embed_dim), Kind.EMBEDDING)

    both = (batch, sequence)
    fusion_outputs: tuple[TensorSpec, ...] = (fused,)
    if maps:
        shape = ("batch", "sequence", model.image_encoder.tokens)
        fusion_outputs += (TensorSpec("attention", "float32", shape, Kind.ATTENTION),)
    rows = [
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
        of_frames = ("batch", "frames", model.image_encoder.tokens, config.width)
        frame_tokens = TensorSpec("frame_tokens", "float32", of_frames, Kind.FRAMES)
        frame_mask = TensorSpec("frame_mask", "int64", ("batch", "frames"), Kind.FRAME_MASK)
        spec = GraphSpec("video_encoder", (frame_tokens, frame_mask), (image_tokens,), (batch, frames))
        rows.append(Graph(VideoEncoderGraph(model), spec))
    spec = GraphSpec("fusion", (image_tokens, text_tokens, mask), fusion_outputs, both)
    rows.append(Graph(FusionGraph(model, maps), spec))
    readable = {"fused": fused, STACKED: image_tokens}
    for name, classes in config.heads.items():
        logits = TensorSpec("logits", "float32", ("batch", classes), Kind.LOGITS)
        spec = GraphSpec(f"head.{name}", (readable[HEADS[name].reads],), (logits,), (batch,))
        rows.append(Graph(model.heads[name], spec))
    return {graph.spec.name: graph for graph in rows}


def pipelines(model: SimMIM) -> tuple[Pipeline, ...]:
    """What can be asked of ``model``: embed_image, embed_text, and one pipeline for each head."""
    rows = [
        Pipeline("embed_image", ("image_encoder",), ("image_embed",), Verb.EMBED_IMAGE),
        Pipeline("embed_text", ("text_encoder",), ("text_embed",), Verb.EMBED_TEXT),
    ]
    for name in model.config.heads:
        row = HEADS[name]
        # A clip's frames go through image_encoder as a batch; the host stacks them into frame_tokens.
        before: tuple[str, ...] = ("video_encoder",) if row.video else ("image_encoder",)
        if row.reads == "fused":
            before += ("text_encoder", "fusion")
        rows.append(Pipeline(row.pipeline, (*before, f"head.{name}"), ("logits",), row.verb, name))
    return tuple(rows)
