"""Model configurations by name. A configuration holds primitives only, so that a checkpoint can carry it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from simmim_export.errors import UsageError


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides the shapes of a model's weights.

    ``image_size`` is in pixels (square). ``width`` is D, the channels of every token; ``embed_dim`` is E, the channels of
    both embeddings. ``max_length`` is Nt, the most tokens of a text, [CLS] and [SEP] included. ``text`` is a Hugging Face
    configuration as a dict. ``frames`` is the most frames of a clip, 0 for a model without video. ``heads`` maps each head to
    its number of classes.
    """

    preset: str
    image_trunk: str
    image_size: int
    text: Mapping[str, Any]
    max_length: int
    width: int
    embed_dim: int
    interaction_layers: int
    attention_heads: int
    fusion: str = "concat_sequence"
    interaction: str = "attention"
    frames: int = 0
    heads: Mapping[str, int] = field(default_factory=dict)


def _bert(layers: int, width: int, heads: int, vocabulary: int, max_length: int) -> dict[str, Any]:
    return {
        "model_type": "bert",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "max_position_embeddings": max(max_length, 64),
        # BERT's 0.02 suits a width of 768 (it is about 768 ** -0.5 / 2). A narrow encoder needs more to pass signals on.
        "initializer_range": 0.1 if width < 128 else 0.02,
    }


# The entries of BERT's own vocabulary. tiny takes the size of its data's vocabulary when it is built.
_VOCABULARY = 30522

PRESETS: dict[str, ModelConfig] = {
    # One text layer and three interaction layers learned look-ups faster than two and two, with the same number of weights.
    "tiny": ModelConfig("tiny", "tiny", 64, _bert(1, 96, 4, 128, 20), 20, 96, 64, 3, 4),
    "small": ModelConfig("small", "resnet18", 224, _bert(6, 384, 6, _VOCABULARY, 32), 32, 384, 256, 3, 6),
    "base": ModelConfig("base", "resnet18", 224, _bert(12, 768, 12, _VOCABULARY, 32), 32, 768, 256, 6, 12),
    "large": ModelConfig("large", "resnet50", 224, _bert(12, 768, 12, _VOCABULARY, 32), 32, 768, 256, 6, 12),
}


def preset(name: str) -> ModelConfig:
    """The configuration called ``name``; raise :class:`UsageError` naming the choices."""
    if name not in PRESETS:
        raise UsageError(f"unknown preset {name!r}", fix=f"choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
