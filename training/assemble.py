"""A new model, and a trained one as a checkpoint. Knows what a checkpoint holds; must not know how a model is trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from simmim_export.errors import InputError, UsageError
from simmim_export.models.checkpoint import Checkpoint
from simmim_export.models.presets import ModelConfig, preset
from simmim_export.models.simmim import SimMIM
from simmim_export.training.data.shapes import ANSWERS, Shapes, vocabulary
from simmim_export.training.evaluate import untrained
from simmim_export.training.tokenizer import word_tokenizer
from simmim_export.version import __version__

LABELS = {"match": ["no", "yes"], "vqa": list(ANSWERS)}
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


def new_checkpoint(new: NewModel, *, seed: int) -> Checkpoint:
    """An untrained checkpoint: random weights from ``seed``, vocabulary and samples of `shapes`.

    Raises :class:`UsageError` for an unknown name or a pair that makes no sense, and :class:`InputError` for a folder that
    does not load.
    """
    config = replace(preset(new.preset), heads={head: len(classes) for head, classes in LABELS.items()})
    wanted = {"fusion": new.fusion, "interaction": new.interaction, "frames": new.frames}
    wanted |= {"image_trunk": new.image_encoder}
    config = replace(config, **{name: value for name, value in wanted.items() if value is not None})  # type: ignore[arg-type]
    tokenizer = word_tokenizer(vocabulary())
    if tokenizer.get_vocab_size() > config.text["vocab_size"]:
        raise UsageError(f"preset {new.preset!r} has too small a vocabulary for the data", fix="choose another preset")
    text, loaded = tokenizer.to_str(), None
    if new.text_encoder is not None:
        config, text, loaded = _pretrained_text(config, new.text_encoder)
    torch.manual_seed(seed)
    model = SimMIM(config)
    if loaded is not None:
        model.text_encoder.encoder.load_state_dict(loaded)
    data = Shapes(seed, "init", size=config.image_size)
    metrics = {head: untrained() for head in LABELS}
    return as_checkpoint(model, text, data, metrics, {"seed": seed, "stage": "init"})


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
    model: SimMIM, tokenizer: str, data: Shapes, metrics: Mapping[str, Any], provenance: Mapping[str, Any]
) -> Checkpoint:
    """``model`` with all that deployment and judgement need: tokenizer, labels, preprocessing, samples, evidence."""
    size = model.config.image_size
    return Checkpoint(
        config=model.config,
        state=model.state_dict(),
        tokenizer=tokenizer,
        labels={head: LABELS[head] for head in model.config.heads},
        preprocessing={
            "image": {"height": size, "width": size, "resize": "squash", "interpolation": "bilinear"},
            "text": {"max_length": model.config.max_length},
        },
        samples=samples(data),
        metrics=dict(metrics),
        provenance=dict(provenance) | {"simmim_export": __version__, "packages": {p: version(p) for p in PACKAGES}},
    )


def samples(data: Shapes) -> dict[str, Any]:
    """``SAMPLES`` held-out images with a text each, questions and captions in turn, from a stream of their own."""
    found = Shapes(data.seed, "samples", data.split, data.size).batch(0, SAMPLES)
    texts = [
        found.questions[row][row % len(found.questions[row])] if row % 2 else found.captions[row][row % 5]
        for row in range(SAMPLES)
    ]
    return {"pixels": torch.from_numpy(found.pixels), "texts": texts}
