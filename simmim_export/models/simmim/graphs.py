"""A SimMIM model as graphs: a small wrapper module and a GraphSpec for each.

The exporter traces these wrappers and the PyTorch engine runs them, so the two can differ only in arithmetic.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from simmim_export.errors import UsageError
from simmim_export.models.family import Graph
from simmim_export.models.simmim.heads import HEADS
from simmim_export.models.simmim.model import SimMIM
from simmim_export.spec import Axis, GraphSpec, Kind, Pipeline, TensorSpec, Verb

# The tensor that the host stacks over the frames of a clip.
STACKED = "image_tokens"


class ImageEncoderGraph(nn.Module):
    """pixels -> image_tokens, image_embed."""

    def __init__(self, model: SimMIM) -> None:
        super().__init__()
        self.encoder = model.image_encoder

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder(pixels)


class TextEncoderGraph(nn.Module):
    """input_ids, attention_mask -> text_tokens, text_embed."""

    def __init__(self, model: SimMIM) -> None:
        super().__init__()
        self.encoder = model.text_encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.encoder(input_ids, attention_mask)


class VideoEncoderGraph(nn.Module):
    """frame_tokens, frame_mask -> image_tokens."""

    def __init__(self, model: SimMIM) -> None:
        super().__init__()
        self.encoder = model.video_encoder

    def forward(self, frame_tokens: Tensor, frame_mask: Tensor) -> Tensor:
        assert self.encoder is not None
        image_tokens: Tensor = self.encoder(frame_tokens, frame_mask)
        return image_tokens


class FusionGraph(nn.Module):
    """image_tokens, text_tokens, attention_mask -> fused, and with ``attention`` also attention [batch, sequence, tokens]."""

    def __init__(self, model: SimMIM, *, attention: bool) -> None:
        super().__init__()
        self.fusion, self.interaction, self.attention = model.fusion, model.interaction, attention

    def forward(
        self, image_tokens: Tensor, text_tokens: Tensor, attention_mask: Tensor
    ) -> Tensor | tuple[Tensor, Tensor]:
        joint = self.fusion(image_tokens, text_tokens, attention_mask)
        fused: Tensor = self.interaction(joint)
        return (fused, self.interaction.attend(joint)) if self.attention else fused


def graphs(model: SimMIM, max_batch: int, *, attention: bool = False) -> dict[str, Graph]:
    """Every graph of ``model`` by name, in the order in which pipelines run them. Puts the model in eval mode.

    The graphs take 1 to ``max_batch`` rows. With ``attention``, the fusion also gives where each word looked; raise
    :class:`UsageError` for a model that cannot say it.
    """
    if attention and not (model.config.fusion == "concat_sequence" and model.config.interaction == "attention"):
        what = f"{model.config.fusion} with {model.config.interaction} has no attention of words over the image"
        raise UsageError(what, fix="leave out --attention, or train concat_sequence with attention")
    config = model.eval().config
    batch = Axis("batch", 1, max_batch)
    # [CLS], at least one word, [SEP].
    sequence = Axis("sequence", 3, config.max_length)
    pixels = TensorSpec("pixels", "uint8", ("batch", config.image_size, config.image_size, 3), Kind.IMAGE)
    ids = TensorSpec("input_ids", "int64", ("batch", "sequence"), Kind.TOKEN_IDS)
    mask = TensorSpec("attention_mask", "int64", ("batch", "sequence"), Kind.TEXT_MASK)
    image_tokens = TensorSpec(STACKED, "float32", ("batch", model.image_encoder.tokens, config.width))
    text_tokens = TensorSpec("text_tokens", "float32", ("batch", "sequence", config.width))
    fused = TensorSpec("fused", "float32", ("batch", config.width))
    image_embed, text_embed = (
        TensorSpec(name, "float32", ("batch", config.embed_dim), Kind.EMBEDDING)
        for name in ("image_embed", "text_embed")
    )
    modules: list[tuple[nn.Module, GraphSpec]] = [
        (ImageEncoderGraph(model), GraphSpec("image_encoder", (pixels,), (image_tokens, image_embed), (batch,))),
        (TextEncoderGraph(model), GraphSpec("text_encoder", (ids, mask), (text_tokens, text_embed), (batch, sequence))),
    ]
    if config.frames:
        shape = ("batch", "frames", model.image_encoder.tokens, config.width)
        frame_tokens = TensorSpec("frame_tokens", "float32", shape, Kind.FRAMES)
        frame_mask = TensorSpec("frame_mask", "int64", ("batch", "frames"), Kind.FRAME_MASK)
        axes = (batch, Axis("frames", 2, config.frames))
        spec = GraphSpec("video_encoder", (frame_tokens, frame_mask), (image_tokens,), axes)
        modules.append((VideoEncoderGraph(model), spec))
    outputs: tuple[TensorSpec, ...] = (fused,)
    if attention:
        looked = ("batch", "sequence", model.image_encoder.tokens)
        outputs += (TensorSpec("attention", "float32", looked, Kind.ATTENTION),)
    # If only the keys and values of an image are read, one image serves all texts of a batch, and they are computed once.
    shared = not model.fusion.single and not model.interaction.updates_image and model.fusion.keeps_words
    spec = GraphSpec("fusion", (replace(image_tokens, shared=shared), text_tokens, mask), outputs, (batch, sequence))
    modules.append((FusionGraph(model, attention=attention), spec))
    readable = {"fused": fused, STACKED: image_tokens}
    for name, classes in config.heads.items():
        logits = TensorSpec("logits", "float32", ("batch", classes), Kind.LOGITS)
        spec = GraphSpec(f"head.{name}", (readable[HEADS[name].reads],), (logits,), (batch,))
        modules.append((model.heads[name], spec))
    return {spec.name: Graph(module, spec) for module, spec in modules}


def pipelines(model: SimMIM) -> tuple[Pipeline, ...]:
    """What a user can ask of ``model``: embed_image, embed_text, and one pipeline for each head."""
    rows = [
        Pipeline("embed_image", ("image_encoder",), ("image_embed",), Verb.EMBED_IMAGE),
        Pipeline("embed_text", ("text_encoder",), ("text_embed",), Verb.EMBED_TEXT),
    ]
    for name in model.config.heads:
        head = HEADS[name]
        # The host runs the frames of a clip through image_encoder as a batch and stacks them to frame_tokens.
        before: tuple[str, ...] = ("video_encoder",) if head.video else ("image_encoder",)
        if head.reads == "fused":
            before += ("text_encoder", "fusion")
        rows.append(Pipeline(head.pipeline, (*before, f"head.{name}"), ("logits",), head.verb, name))
    return tuple(rows)
