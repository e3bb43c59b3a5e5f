"""Makes new models, and turns trained ones into checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from simmim_export.errors import GateFailed, UsageError
from simmim_export.models.simmim.checkpoint import Checkpoint
from simmim_export.models.simmim.model import SimMIM
from simmim_export.models.simmim.parts import require_encoder
from simmim_export.models.simmim.presets import PRESETS, ModelConfig, preset
from simmim_export.models.weights import check_state
from simmim_export.training.data.base import Data
from simmim_export.training.data.shapes import Shapes
from simmim_export.training.options import NewModel
from simmim_export.training.pretrained import pretrained_image, pretrained_text
from simmim_export.training.tokenizer import SPECIALS, word_tokenizer
from simmim_export.version import __version__

# The heads of a new model: what the demo trains, and what the reference of the benchmarks needs.
HEADS = ("match", "vqa")
SAMPLES = 256


def new_checkpoint(new: NewModel, *, seed: int, data: Data | None = None) -> Checkpoint:
    """An untrained checkpoint: random weights from ``seed``, vocabulary and samples of ``data`` (None: `shapes`).

    Without ``max_length``, texts may be as long as in the preset, or as a pretrained encoder has positions for. Raise
    :class:`UsageError` for an unknown name, parts that do not go together, or texts that a pretrained encoder has too
    few positions for, and :class:`InputError` for a folder that does not load.
    """
    config = preset(new.preset)
    wanted = {"fusion": new.fusion, "interaction": new.interaction, "frames": new.frames}
    wanted |= {"image_trunk": new.image_encoder, "image_size": new.image_size, "max_length": new.max_length}
    config = replace(config, **{name: value for name, value in wanted.items() if value is not None})  # type: ignore[arg-type]
    shapes = Shapes(seed, "samples", size=config.image_size)
    data = data or shapes
    labels = {name: list(data.labels[name]) for name in HEADS if name in data.labels}
    config = replace(config, heads={name: len(classes) for name, classes in labels.items()})
    tokenizer, config = _word_tokenizer(data.words() or shapes.words(), config)
    text, loaded = tokenizer.to_str(), None
    if new.text_encoder is not None:
        loaded = pretrained_text(new.text_encoder)
        config, text = replace(config, text=loaded.config), loaded.tokenizer
        if new.max_length is None and loaded.positions is not None:
            config = replace(config, max_length=min(config.max_length, loaded.positions))
    else:
        positions = max(config.text["max_position_embeddings"], config.max_length)
        config = replace(config, text=dict(config.text) | {"max_position_embeddings": positions})
    torch.manual_seed(seed)
    model = SimMIM(config)
    fix = "give weights of the encoder that was chosen"
    if loaded is not None:
        load_encoder(model.text_encoder.encoder, loaded.state, where=new.text_encoder, fix=fix)
    if new.image_weights is not None:
        state = pretrained_image(config.image_trunk, new.image_weights)
        load_encoder(model.image_encoder.trunk, state, where=new.image_weights, fix=fix)
    return as_checkpoint(
        model,
        text,
        labels=labels,
        samples=samples(data, shapes.samples(SAMPLES)[1]),
        metrics={head: {"untrained": True} for head in labels},
        provenance={"seed": seed, "stage": "init"},
    )


def load_encoder(
    encoder: nn.Module, state: Mapping[str, torch.Tensor], *, where: object, fix: str, root: str = ""
) -> None:
    """Load pretrained weights completely, or raise :class:`CheckpointError` with every key that does not fit, after ``root``."""
    given = {f"{root}{key}": value for key, value in state.items()}
    expected = {f"{root}{key}": value for key, value in encoder.state_dict().items()}
    check_state(given, expected, where=where, fix=fix)
    encoder.load_state_dict(dict(state), strict=True)


def _word_tokenizer(words: Sequence[str], config: ModelConfig) -> tuple[Tokenizer, ModelConfig]:
    """A tokenizer of the most frequent words. The vocabulary of preset tiny, made for shapes, grows with its data."""
    size = int(config.text["vocab_size"])
    if config.preset == "tiny" and len(words) + len(SPECIALS) > size:
        size = min(len(words) + len(SPECIALS), PRESETS["base"].text["vocab_size"])
        config = replace(config, text=dict(config.text) | {"vocab_size": size})
    return word_tokenizer(words[: size - len(SPECIALS)]), config


def with_head(checkpoint: Checkpoint, head: str, *, labels: Sequence[str], frames: int, seed: int) -> Checkpoint:
    """``checkpoint`` with a ``head`` for ``labels`` (a new one unless it has one for exactly these) and ``frames`` for
    clips.

    Everything else keeps its weights. Raise :class:`UsageError` for a checkpoint whose clips have fewer frames, because
    what it learned about time depends on their number.
    """
    if 0 < checkpoint.config.frames < frames:
        what = f"the checkpoint takes clips of up to {checkpoint.config.frames} frames, and the data have clips of {frames}"
        raise UsageError(what, fix=f"start from a new model: simmim-train init --frames {frames} -o NEW.pt")
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


def resized(checkpoint: Checkpoint, *, image_size: int | None = None, max_length: int | None = None) -> Checkpoint:
    """``checkpoint`` with its weights, for images of ``image_size`` pixels and texts of up to ``max_length`` tokens
    (None: unchanged).

    This works because a trunk is convolutional and the positions of images are computed. Training first at a low
    resolution and last at the final one costs a fraction of training at the final one throughout (Touvron et al., 2019,
    "Fixing the train-test resolution discrepancy"). Raise :class:`UsageError` if the interaction's weights belong to
    one number of image tokens or words, or if the text encoder has too few positions.
    """
    old = checkpoint.config
    config = replace(old, image_size=image_size or old.image_size, max_length=max_length or old.max_length)
    with torch.device("meta"):
        expected = {key: value.shape for key, value in SimMIM(config).state_dict().items()}
    odd = [key for key, shape in expected.items() if key in checkpoint.state and checkpoint.state[key].shape != shape]
    if odd:
        what = (
            f"the weights of {odd[0]} belong to images of {old.image_size} pixels and texts of {old.max_length} tokens"
        )
        raise UsageError(what, fix="drop --image-size and --max-length, or start from a new model")
    return replace(checkpoint, config=config)


def freeze(model: SimMIM, encoder: str) -> None:
    """Do not train the pretrained body of ``encoder`` (``image`` or ``text``); the layers after it still learn.

    A step is cheaper, and what the encoder learned from far more data is kept (Zhai et al., 2022, "LiT").
    """
    require_encoder(encoder)
    bodies: dict[str, nn.Module] = {"image": model.image_encoder.trunk, "text": model.text_encoder.encoder}
    bodies[encoder].requires_grad_(False)


def check_batch(model: SimMIM, images: int) -> None:
    """Raise :class:`UsageError` if a batch of ``images`` (each frame counts) would leave batch norm a single value per
    channel in a trunk that is trained."""
    trained = any(parameter.requires_grad for parameter in model.image_encoder.trunk.parameters())
    if trained and images * model.image_encoder.tokens == 1:
        size = model.config.image_size
        what = f"batch norm cannot train on one image of {size} pixels, which this encoder turns into a single token"
        raise UsageError(what, fix=f"give --batch-size 2 or more, or --image-size {2 * size}")


def check_finite(model: SimMIM, fix: str) -> None:
    """Raise :class:`GateFailed` with ``fix`` if one of the model's tensors holds NaN or Inf, naming the first."""
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise GateFailed(f"training ended with NaN or Inf in {name}, so no checkpoint is written", fix=fix)


def as_checkpoint(
    model: SimMIM,
    tokenizer: str,
    *,
    labels: Mapping[str, Sequence[str]],
    samples: Mapping[str, Any],
    metrics: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> Checkpoint:
    """``model`` with everything that deployment needs: tokenizer, labels, preprocessing, samples, metrics and
    provenance."""
    size = model.config.image_size
    packages = {name: version(name) for name in ("torch", "torchvision", "transformers", "accelerate")}
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
        provenance=dict(provenance) | {"simmim_export": __version__, "packages": packages},
    )


def samples(data: Data, texts: Sequence[str]) -> dict[str, Any]:
    """Up to ``SAMPLES`` pictures, each with a text, from a stream that nothing is measured on. ``texts`` is used if the
    data have none."""
    pixels, own = data.on("samples").samples(SAMPLES)
    used = list(own or texts)
    return {"pixels": torch.from_numpy(pixels), "texts": [used[row % len(used)] for row in range(len(pixels))]}
