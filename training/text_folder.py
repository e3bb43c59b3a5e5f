"""Checks whether a folder in Hugging Face's layout holds a text encoder that we can use, from its config.json."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simmim_export.errors import InputError
from simmim_export.models.simmim.parts import TEXT_FAMILIES
from simmim_export.system.files import parse_json

ACCEPTED = f"give the folder of a text encoder of one of these model types: {', '.join(TEXT_FAMILIES)}"
FILES = "give a folder with config.json, model.safetensors and tokenizer.json"
# Files that tell what a folder without config.json is.
_OTHERS = {
    "checkpoint.json": ("a checkpoint of simmim-train", "start from it with --from"),
    "manifest.json": ("a bundle of simmim-export", FILES),
    "adapter_config.json": ("an adapter without its base model", "merge it into its model, and give that"),
    "open_clip_config.json": ("an OpenCLIP model, which has both an image encoder and a text encoder", ACCEPTED),
    "model_index.json": ("a diffusion pipeline", ACCEPTED),
}
# A name on Hugging Face's hub: "name" or "owner/name".
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
# Names of decoders, and of models with encoder and decoder, whose config.json does not say so.
_DECODERS = ("gpt", "llama", "mistral", "mixtral", "qwen", "gemma", "phi", "opt", "bloom", "falcon", "olmo", "smollm")
_BOTH = ("t5", "mt5", "umt5", "bart", "mbart", "pegasus", "marian", "m2m_100", "longt5", "led", "switch_transformers")


def is_local(source: str) -> bool:
    """Whether ``source`` is a path, and cannot be a name on Hugging Face's hub."""
    return Path(source).exists() or _HUB_NAME.fullmatch(source) is None


def check_text_folder(folder: Path) -> None:
    """Raise :class:`InputError` unless ``folder`` holds a text encoder of a family in TEXT_FAMILIES, with its
    tokenizer.

    The error says what the folder holds instead, and what to give. The weights are not read.
    """
    if folder.is_file():
        raise InputError("the text encoder is a file, not a folder", where=folder, fix=FILES)
    path = folder / "config.json"
    if not path.is_file():
        raise _without_config(folder)
    try:
        config = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"the text encoder's config.json cannot be read: {error}", where=path, fix=FILES) from error
    if not isinstance(config, dict):
        raise InputError("the text encoder's config.json is not an object", where=path, fix=FILES)
    check_text_config(config, folder)
    if not (folder / "tokenizer.json").is_file():
        raise InputError("the text encoder's folder has no tokenizer.json", where=folder, fix=_make_tokenizer(folder))


def check_text_config(config: Mapping[str, Any], where: object) -> None:
    """Raise :class:`InputError` unless the config.json of ``where`` describes a text encoder that we can use. The error
    says what it describes instead."""
    name, classes = config.get("model_type"), config.get("architectures")
    if not isinstance(name, str):
        what = "the text encoder's config.json has no model_type, so it is not one of Hugging Face's transformers"
        raise InputError(what, where=where, fix=ACCEPTED)
    kind = _kind(config, name, [str(c) for c in classes] if isinstance(classes, list) else [])
    if kind is not None:
        named = f"model_type {name!r}" + (f", {', '.join(map(str, classes))}" if isinstance(classes, list) else "")
        raise InputError(f"this is {kind} ({named}); a text encoder is needed", where=where, fix=ACCEPTED)


def _kind(config: Mapping[str, Any], name: str, classes: list[str]) -> str | None:
    """What the model is, in words; None if it is a text encoder that we can use."""
    if "vision_config" in config or ("encoder" in config and "decoder" not in config):
        return "a model with both an image encoder and a text encoder"
    if config.get("is_encoder_decoder") or "decoder" in config or name in _BOTH:
        return "a model with an encoder and a decoder"
    decoding = any(c.endswith(("ForCausalLM", "LMHeadModel")) for c in classes) or name.startswith(_DECODERS)
    if config.get("is_decoder") or (decoding and name not in TEXT_FAMILIES):
        return "a decoder, in which a word sees only the words before it"
    if name in TEXT_FAMILIES:
        return None
    if "image_size" in config or "num_channels" in config:
        return "an image encoder"
    if "feat_extract_norm" in config or "num_mel_bins" in config:
        return "an audio encoder"
    return "a model that would give other results here than in transformers, or none"


def _without_config(folder: Path) -> InputError:
    """The error for a folder without config.json; it says what the folder is, if that can be told."""
    for name, (what, fix) in _OTHERS.items():
        if (folder / name).is_file():
            return InputError(f"this is {what}; a text encoder is needed", where=folder, fix=fix)
    inside = sorted(path.parent for path in folder.glob("*/config.json") if (path.parent / "tokenizer.json").is_file())
    inside += sorted(path.parent for path in folder.glob("*Transformer*/config.json") if path.parent not in inside)
    fix = f"give the folder inside that holds it: --text-encoder {inside[0]}" if inside else FILES
    if (folder / "modules.json").is_file():
        what = "this is a model of sentence-transformers; its text encoder is in a folder inside it"
        return InputError(what, where=folder, fix=fix)
    if not folder.is_dir():
        return InputError("the text encoder's folder does not exist", where=folder, fix=FILES)
    return InputError("the text encoder's folder has no config.json", where=folder, fix=fix)


def _make_tokenizer(folder: Path) -> str:
    if not any(
        (folder / name).is_file() for name in ("vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model")
    ):
        return FILES
    code = f"from transformers import AutoTokenizer; d = {str(folder)!r}; AutoTokenizer.from_pretrained(d).save_pretrained(d)"
    return f'make it from the vocabulary in the folder: python -c "{code}"'
