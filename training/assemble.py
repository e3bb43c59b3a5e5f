"""A new model, and a trained one as a checkpoint. Knows what a checkpoint holds; must not know how a model is trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from simmim_export.errors import InputError
from simmim_export.models.checkpoint import Checkpoint
from simmim_export.models.presets import PRESETS, ModelConfig, preset
from simmim_export.models.simmim import SimMIM
from simmim_export.training.data.base import Data
from simmim_export.training.data.shapes import Shapes
from simmim_export.training.evaluation import untrained
from simmim_export.training.tokenizer import SPECIALS, word_tokenizer
from simmim_export.version import __version__

# The heads of a new model: what the demo trains, and what a reference for benchmarks needs.
HEADS = ("match", "vqa")
SAMPLES = 256
PACKAGES = ("torch", "torchvision", "transformers", "accelerate")


@dataclass(frozen=True)
class NewModel:
    """What to change of a preset: None leaves it. ``image_encoder`` names a trunk; ``text_encoder`` is a folder in Hugging
    Face's layout whose weights, configuration and tokenizer are taken; ``frames`` is the most that a clip may have."""

    preset: str = "tiny"
    fusion: str | None = None
    interaction: str | None = None
    frames: int | None = None
    image_encoder: str | None = None
    text_encoder: Path | None = None


def new_checkpoint(new: NewModel, *, seed: int, data: Data | None = None) -> Checkpoint:
    """An untrained checkpoint: random weights from ``seed``, vocabulary and samples of ``data`` (`shapes` without it).

    Raises :class:`UsageError` for an unknown name or a pair that makes no sense, and :class:`InputError` for a folder that
    does not load.
    """
    config = preset(new.preset)
    wanted = {"fusion": new.fusion, "interaction": new.interaction, "frames": new.frames}
    wanted |= {"image_trunk": new.image_encoder}
    config = replace(config, **{name: value for name, value in wanted.items() if value is not None})  # type: ignore[arg-type]
    shapes = Shapes(seed, "samples", size=config.image_size)
    data = data or shapes
    labels = {name: list(data.labels[name]) for name in HEADS if name in data.labels}
    config = replace(config, heads={name: len(classes) for name, classes in labels.items()})
    tokenizer, config = _word_tokenizer(data.words() or shapes.words(), config)
    text, loaded = tokenizer.to_str(), None
    if new.text_encoder is not None:
        config, text, loaded = _pretrained_text(config, new.text_encoder)
    torch.manual_seed(seed)
    model = SimMIM(config)
    if loaded is not None:
        model.text_encoder.encoder.load_state_dict(loaded)
    metrics = {head: untrained() for head in labels}
    provenance = {"seed": seed, "stage": "init"}
    return as_checkpoint(model, text, labels, samples(data, shapes.samples(SAMPLES)[1]), metrics, provenance)


def _word_tokenizer(words: Sequence[str], config: ModelConfig) -> tuple[Tokenizer, ModelConfig]:
    """A tokenizer of the most frequent words; the vocabulary of preset tiny, made for shapes, grows with its data."""
    size = int(config.text["vocab_size"])
    if config.preset == "tiny" and len(words) + len(SPECIALS) > size:
        size = min(len(words) + len(SPECIALS), PRESETS["base"].text["vocab_size"])
        config = replace(config, text=dict(config.text) | {"vocab_size": size})
    return word_tokenizer(words[: size - len(SPECIALS)]), config


def with_head(checkpoint: Checkpoint, head: str, labels: Sequence[str], frames: int, seed: int) -> Checkpoint:
    """``checkpoint`` with a ``head`` for ``labels``, fresh unless it has one for exactly these, and ``frames`` for clips.

    Everything else keeps its weights.
    """
    known = checkpoint.labels.get(head) == list(labels)
    if known and (checkpoint.config.frames or not frames):
        return checkpoint
    heads = dict(checkpoint.config.heads) | {head: len(labels)}
    config = replace(checkpoint.config, heads=heads, frames=checkpoint.config.frames or frames)
    torch.manual_seed(seed)
    fresh = SimMIM(config).state_dict()
    old = {key: value for key, value in checkpoint.state.items() if known or not key.startswith(f"heads.{head}.")}
    every = dict(checkpoint.labels) | {head: list(labels)}
    return replace(checkpoint, config=config, labels=every, state=fresh | old)


def _pretrained_text(config: ModelConfig, folder: Path) -> tuple[ModelConfig, str, dict[str, torch.Tensor]]:
    """The configuration with the folder's encoder, its tokenizer.json, and its weights without a pooler."""
    from transformers import AutoConfig, AutoModel

    fix = "give a local folder with config.json, model.safetensors and tokenizer.json"
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise InputError(f"the text encoder's folder has no {name}", where=folder, fix=fix)
    try:
        found = AutoConfig.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True, config=found)
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise InputError(f"the text encoder does not load: {error}", where=folder, fix=fix) from error
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("pooler.")}
    limit = min(config.max_length, found.max_position_embeddings)
    text = {key: value for key, value in json.loads(found.to_json_string(use_diff=False)).items() if value is not None}
    text = {key: value for key, value in text.items() if not key.startswith("_") and key != "dtype"}
    text["hidden_dropout_prob"] = text["attention_probs_dropout_prob"] = 0.0
    return replace(config, text=text, max_length=limit), (folder / "tokenizer.json").read_text(encoding="utf-8"), state


def as_checkpoint(
    model: SimMIM,
    tokenizer: str,
    labels: Mapping[str, Sequence[str]],
    samples: Mapping[str, Any],
    metrics: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> Checkpoint:
    """``model`` with all that deployment and judgement need: tokenizer, labels, preprocessing, samples, evidence."""
    size = model.config.image_size
    return Checkpoint(
        config=model.config,
        state=model.state_dict(),
        tokenizer=tokenizer,
        labels={head: list(labels[head]) for head in model.config.heads},
        preprocessing={
            "image": {"height": size, "width": size, "resize": "squash", "interpolation": "bilinear"},
            "text": {"max_length": model.config.max_length},
        },
        samples=dict(samples),
        metrics=dict(metrics),
        provenance=dict(provenance) | {"simmim_export": __version__, "packages": {p: version(p) for p in PACKAGES}},
    )


def samples(data: Data, texts: Sequence[str]) -> dict[str, Any]:
    """Up to ``SAMPLES`` held-out pictures with as many texts, from a stream of their own; ``texts`` where it has none."""
    pixels, own = data.on("samples").samples(SAMPLES)
    found = list(own or texts)
    return {"pixels": torch.from_numpy(pixels), "texts": [found[row % len(found)] for row in range(len(pixels))]}
