"""Turns a state dict of the article's own class into a checkpoint of ours.

The class has roots ``visual_encoder.*`` (a torchvision ResNet, named or as the children of a Sequential),
``text_encoder.*`` (a BERT) and ``projector.*``. Sizes are read from the shapes of the weights, and what shapes cannot
tell is asked for. Everything that is dropped is noted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models import get_model, list_models

from simmim_export.bundle.vocabulary import rows_needed
from simmim_export.errors import CheckpointError, UsageError
from simmim_export.models.files import read_tensors
from simmim_export.models.simmim.checkpoint import Checkpoint
from simmim_export.models.simmim.model import SimMIM
from simmim_export.models.simmim.presets import ModelConfig
from simmim_export.models.tokenizer import check_tokenizer
from simmim_export.system.files import digest
from simmim_export.training.assemble import as_checkpoint, load_encoder, samples
from simmim_export.training.data.shapes import Shapes

_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+")
_NESTED = ("state_dict", "model", "model_state_dict")
# Children of nn.Sequential(*list(resnet.children())[:-1 or -2]): conv1, bn1, relu, maxpool, layer1 to layer4.
_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
# What the projector's number of inputs tells about the encoders.
_PROJECTORS = {
    1768: "the ResNet kept its fc: 1000 class logits beside 768 text channels",
    1280: "512 image channels beside 768 text channels",
    2816: "2048 image channels beside 768 text channels",
    768: "the encoders alone: it never saw the image",
}


def import_article(
    path: Path, *, tokenizer: Path | None, text_heads: int | None, max_length: int | None = None, image_size: int = 224
) -> tuple[Checkpoint, list[str]]:
    """The checkpoint, and notes on what was dropped, assumed, or starts untrained.

    ``tokenizer`` is the encoder's tokenizer.json and ``text_heads`` its number of attention heads; a state dict holds
    neither. Raise :class:`UsageError` if one of them is missing, if the heads do not divide the width, or if
    ``max_length`` exceeds the encoder's positions. Raise :class:`CheckpointError`, naming every key, for a file that is
    not such a state dict (those of ALBEF and BLIP share its roots), and for a tokenizer that does not fit.
    """
    notes: list[str] = []
    state = _state(path)
    image = {key.removeprefix("visual_encoder."): v for key, v in state.items() if key.startswith("visual_encoder.")}
    text = {key.removeprefix("text_encoder."): v for key, v in state.items() if key.startswith("text_encoder.")}
    projector = {key: v for key, v in state.items() if key.startswith("projector.")}
    trunk, image = _image(image, path, notes=notes)
    if projector:
        _note_projector(projector, notes)
    text_config, text = _text(text, path, heads=text_heads, notes=notes)
    source = _tokenizer(tokenizer, rows=text_config["vocab_size"], notes=notes)
    length = max_length or min(32, text_config["max_position_embeddings"])
    config = ModelConfig(
        preset="imported",
        image_trunk=trunk,
        image_size=image_size,
        text=text_config,
        max_length=length,
        width=text_config["hidden_size"],
        embed_dim=256,
        interaction_layers=3,
        attention_heads=text_config["num_attention_heads"],
    )
    torch.manual_seed(0)
    model = SimMIM(config)
    fix = "save the whole state dict of the article's class"
    load_encoder(model.image_encoder.trunk, image, where=path, fix=fix, root="visual_encoder.")
    load_encoder(model.text_encoder.encoder, text, where=path, fix=fix, root="text_encoder.")
    notes.append("projections, embeddings and interaction start untrained: pretrain before you embed or ask")
    data = Shapes(0, "samples", size=image_size)
    provenance = {"stage": "import", "sha256": digest(path), "notes": notes}
    checkpoint = as_checkpoint(model, source, labels={}, samples=samples(data, ()), metrics={}, provenance=provenance)
    return checkpoint, notes


def _state(path: Path) -> dict[str, Tensor]:
    """The tensors by their names in the class, without the prefixes of wrappers."""
    content = read_tensors(path)
    for name in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    fix = "give torch.save(model.state_dict(), ...) of the article's class"
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError("not a state dict (names to tensors)", where=path, fix=fix)
    state: dict[str, Tensor] = {}
    for key, value in content.items():
        name = _WRAPPERS.sub("", str(key))
        if name in state:
            raise CheckpointError(f"two tensors are called {name}", where=path, fix=fix)
        state[name] = value
    foreign = next((k for k in state if k.startswith("visual_encoder.blocks.") or "image_queue" in k), None)
    if foreign is not None:
        what = f"this is a checkpoint of ALBEF or BLIP ({foreign}), which shares the article's roots but not its model"
        raise CheckpointError(what, where=path, fix=fix)
    strange = [key for key in state if not key.startswith(("visual_encoder.", "text_encoder.", "projector."))]
    if strange:
        raise CheckpointError(f"unexpected: {_few(strange)}", where=path, fix=fix)
    for root in ("visual_encoder.", "text_encoder."):
        if not any(key.startswith(root) for key in state):
            raise CheckpointError(f"missing: everything under {root}*", where=path, fix=fix)
    for key, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(f"{key} holds NaN or Inf", where=path, fix="save an earlier state")
    return {key: value for key, value in state.items() if not key.endswith("position_ids")}


def _image(state: dict[str, Tensor], path: Path, *, notes: list[str]) -> tuple[str, dict[str, Tensor]]:
    """torchvision's name of the ResNet, and its state without fc."""
    if not any(key.startswith("conv1.") for key in state):
        parts = ((*key.partition(".")[::2], value) for key, value in state.items())
        state = {f"{_CHILDREN.get(child, child)}.{rest}": value for child, rest, value in parts}
    dropped = [key for key in state if key.startswith("fc.")]
    if dropped:
        notes.append("visual_encoder.fc is dropped: it gives ImageNet's class logits, not features")
    state = {key: value for key, value in state.items() if key not in dropped}
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    names = list_models(include=["resnet*", "wide_resnet*", "resnext*"])
    differences = {name: _differences(shapes, name) for name in names}
    best = min(names, key=lambda name: len(differences[name]))
    if problems := differences[best]:
        what = f"visual_encoder is not a torchvision ResNet; the nearest is {best}: {_few(problems)}"
        raise CheckpointError(what, where=path, fix="save the whole state dict of the article's class")
    notes.append(f"visual_encoder is {best}")
    return best, state


def _differences(shapes: Mapping[str, tuple[int, ...]], name: str) -> list[str]:
    """How ``shapes`` differ from torchvision's ResNet ``name`` without fc, in words."""
    with torch.device("meta"):
        wanted = {k: tuple(v.shape) for k, v in get_model(name, weights=None).state_dict().items()}
    wanted = {key: shape for key, shape in wanted.items() if not key.startswith("fc.")}
    differences = [f"missing: {key}" for key in wanted if key not in shapes]
    differences += [f"unexpected: {key}" for key in shapes if key not in wanted]
    return differences + [
        f"misshapen: {k} is {list(shapes[k])}, not {list(s)}" for k, s in wanted.items() if shapes.get(k, s) != s
    ]


def _text(
    state: dict[str, Tensor], path: Path, *, heads: int | None, notes: list[str]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A Hugging Face configuration of a BERT, read from the shapes, and the state without the pooler."""
    if any(key.startswith("pooler.") for key in state):
        notes.append("text_encoder.pooler is dropped: the embedding is the mean of the tokens")
    state = {key: value for key, value in state.items() if not key.startswith("pooler.")}
    names = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    tables = [state.get(f"embeddings.{name}.weight") for name in names]
    layers = {int(m[1]) for key in state if (m := re.match(r"encoder\.layer\.(\d+)\.", key))}
    inner = state.get("encoder.layer.0.intermediate.dense.weight")
    if any(t is None or t.ndim != 2 for t in (*tables, inner)) or layers != set(range(len(layers))):
        lacking = [f"embeddings.{n}.weight" for n, t in zip(names, tables, strict=True) if t is None or t.ndim != 2]
        gaps = sorted(set(range(max(layers, default=0) + 1)) - layers)
        lacking += [f"encoder.layer.{n}" for n in gaps]
        lacking += ["encoder.layer.0.intermediate.dense.weight"] if inner is None and 0 in layers else []
        what = f"text_encoder is not a BERT: missing: {_few([f'text_encoder.{name}' for name in lacking])}"
        raise CheckpointError(what, where=path, fix="save the whole state dict of the article's class")
    words, positions, kinds = (table.shape for table in tables if table is not None)
    width = words[1]
    if heads is None:
        usual = f"--text-heads {width // 64}" if width % 64 == 0 else "--text-heads"
        raise UsageError("a state dict does not say how many attention heads the text encoder has", fix=f"give {usual}")
    if heads < 1 or width % heads:
        raise UsageError(f"{heads} attention heads do not divide a width of {width}", fix="choose a divisor")
    assert inner is not None
    config = {
        "model_type": "bert",
        "vocab_size": words[0],
        "hidden_size": width,
        "num_hidden_layers": len(layers),
        "num_attention_heads": heads,
        "intermediate_size": inner.shape[0],
        "max_position_embeddings": positions[0],
        "type_vocab_size": kinds[0],
    }
    notes.append(f"text_encoder is a BERT of {len(layers)} layers, width {width}, {heads} heads (from --text-heads)")
    return config, state


def _note_projector(state: Mapping[str, Tensor], notes: list[str]) -> None:
    wide = next((value.shape[1] for value in state.values() if value.ndim == 2), 0)
    kind = _PROJECTORS.get(wide, f"an input of {wide} channels")
    notes.append(f"projector is dropped ({kind}): our fusion works on tokens that were projected to one width")


def _tokenizer(path: Path | None, *, rows: int, notes: list[str]) -> str:
    if path is None:
        raise UsageError("a state dict holds no tokenizer", fix="give --tokenizer tokenizer.json of its text encoder")
    fix = "give the tokenizer.json that the encoder was trained with"
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"not a tokenizer.json: {error}", where=path, fix=fix) from error
    size = rows_needed(check_tokenizer(source, rows, where=path, fix=fix))
    if size < rows:
        notes.append(f"the tokenizer has {size} tokens for {rows} embeddings: the rest are never used")
    return source


def _few(items: list[str]) -> str:
    return ", ".join(items[:20]) + (f" and {len(items) - 20} more" if len(items) > 20 else "")
