"""The checkpoint: one file or folder that holds a model and what is needed to deploy and judge it.

``ckpt.pt`` is read with ``torch.load(weights_only=True)``: tensors and primitives, never code. A path without the suffix ``.pt``
is the folder form: ``checkpoint.json`` and ``model.safetensors`` with the same content. Loading is strict.

``SCHEMA`` is the version of that content. Raise it when a reader of the old version would misread the new one; then teach
:func:`_parse` to read both, and keep a file of the old version among the tests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor

from simmim_export.errors import CheckpointError
from simmim_export.models.files import COPY_AGAIN, read_archive, read_safetensors, save_tensors
from simmim_export.models.simmim.model import SimMIM
from simmim_export.models.simmim.parts import require_checkpoint
from simmim_export.models.simmim.presets import ModelConfig
from simmim_export.models.tokenizer import check_tokenizer
from simmim_export.models.weights import check_state, plain_tensors, require_data
from simmim_export.system.files import parse_json
from simmim_export.system.outputs import destination, replacing

SCHEMA = 1
KIND = "simmim-checkpoint"
# Tensors beside the weights in the folder form.
_SAMPLE_PIXELS, _EVIDENCE = "samples.pixels", "evidence"
_THE_ONE_WRITTEN = "give the checkpoint that simmim-train wrote"


@dataclass
class Checkpoint:
    """A model and what belongs to it.

    ``tokenizer`` is the text of a tokenizer.json; ``labels`` names each head's classes in order; ``samples`` holds ``pixels``
    uint8 [n, H, W, 3] and n ``texts``, for calibration and golden tensors; ``metrics`` holds each figure beside its blind
    controls; ``provenance`` holds versions, seed and the digests of data and parent; ``evidence`` uint8 [bytes] holds labeled
    examples that were kept out of training (:mod:`simmim_export.proof.evidence`), or nothing.
    """

    config: ModelConfig
    state: dict[str, Tensor]
    tokenizer: str
    labels: dict[str, list[str]]
    preprocessing: dict[str, Any]
    samples: dict[str, Any]
    metrics: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    evidence: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.uint8))


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Write ``checkpoint`` to a ``.pt`` file or, without that suffix, to a folder. Each file is replaced atomically.

    Raise :class:`UsageError` if ``path`` cannot be written or the disk is full.
    """
    content: dict[str, Any] = {"kind": KIND, "schema": SCHEMA}
    content |= {f.name: getattr(checkpoint, f.name) for f in fields(Checkpoint)}
    content["config"] = asdict(checkpoint.config)
    state = {key: value.detach().cpu().contiguous() for key, value in checkpoint.state.items()}
    if path.suffix == ".pt":
        save_tensors(content | {"state": state}, destination(path))
        return
    from safetensors.torch import save as packed

    beside = {_SAMPLE_PIXELS: checkpoint.samples["pixels"].contiguous(), _EVIDENCE: checkpoint.evidence.contiguous()}
    with replacing(path / "model.safetensors") as temporary:
        temporary.write_bytes(packed(state | beside))
    del content["state"], content["evidence"]
    content["samples"] = {"texts": checkpoint.samples["texts"]}
    with replacing(path / "checkpoint.json") as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def load(path: Path) -> Checkpoint:
    """Read and check a checkpoint. Raise :class:`CheckpointError` saying what is wrong and where; no code in it is executed."""
    require_checkpoint(path)
    return _parse(_read_folder(path) if path.is_dir() else read_archive(path), path)


def build(checkpoint: Checkpoint, where: object = "checkpoint") -> SimMIM:
    """The model with the checkpoint's weights, in eval mode.

    Raise :class:`CheckpointError` naming every key that is missing, unexpected or of another shape, or the first with NaN or Inf.
    """
    with torch.device("meta"):
        expected = _model(checkpoint.config, where).state_dict()
    check_state(checkpoint.state, expected, where=where, fix=f"{_THE_ONE_WRITTEN}; nothing is loaded in part")
    model = _model(checkpoint.config, where)
    model.load_state_dict(checkpoint.state, strict=True)
    return model.eval()


def _model(config: ModelConfig, where: object) -> SimMIM:
    try:
        return SimMIM(config)
    # transformers and torch raise all kinds of errors over a nonsensical configuration.
    except Exception as error:
        what = f"no model can be built from the configuration: {error}"
        raise CheckpointError(what, where=where, fix="retrain or re-export it with simmim-train") from error


def _read_folder(path: Path) -> Any:
    for name in ("checkpoint.json", "model.safetensors"):
        if not (path / name).is_file():
            what = f"the checkpoint folder has no {name}"
            raise CheckpointError(what, where=path, fix="copy the folder again, whole")
    try:
        content = parse_json((path / "checkpoint.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"the checkpoint is damaged: {error}", where=path, fix=COPY_AGAIN) from error
    state = read_safetensors(path / "model.safetensors")
    if isinstance(content, dict) and isinstance(content.get("samples"), dict) and _SAMPLE_PIXELS in state:
        content["samples"]["pixels"] = state.pop(_SAMPLE_PIXELS)
        content |= {"evidence": state.pop(_EVIDENCE)} if _EVIDENCE in state else {}
        content["state"] = state
    return content


# -- the content, as a stranger may have written it ----------------------------------------------------------------------------


class _Preprocessing(msgspec.Struct):
    image: dict[str, Any]
    text: dict[str, Any]


class _Samples(msgspec.Struct):
    texts: Annotated[list[str], msgspec.Meta(min_length=1)]


class _Described(msgspec.Struct):
    """The types of everything in a checkpoint but its tensors. Its fields are read from the checked content, not from here."""

    config: ModelConfig
    tokenizer: str
    labels: dict[str, list[str]]
    preprocessing: _Preprocessing
    samples: _Samples
    metrics: dict[str, dict[str, Any]]
    provenance: dict[str, Any]


def _parse(content: Any, path: Path) -> Checkpoint:
    """The checkpoint with ``content``. Raise :class:`CheckpointError` for anything that is missing, odd or contradictory."""

    def refuse(what: str, fix: str = _THE_ONE_WRITTEN) -> CheckpointError:
        return CheckpointError(what, where=path, fix=fix)

    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise refuse(f"not a SimMIM checkpoint (no kind = {KIND!r} in it)")
    schema = content.get("schema")
    if not isinstance(schema, int) or schema < 1:
        raise refuse(f"the checkpoint's schema is {schema!r}, not a number from 1")
    if schema > SCHEMA:
        what = f"the checkpoint has schema {schema}; this version reads up to {SCHEMA}"
        raise refuse(what, fix="pip install -U simmim-export")
    # Tensors are made plain. Everything else ends in a manifest, which is JSON.
    content = plain_tensors(content, path)
    described = {name: value for name, value in content.items() if name not in ("state", "evidence")}
    samples = described.get("samples")
    if isinstance(samples, dict):
        described["samples"] = {name: value for name, value in samples.items() if name != "pixels"}
    require_data(described, path)
    config = _typed(described, path).config
    # Checkpoints from before there was evidence have none.
    tensors = {"evidence": torch.zeros(0, dtype=torch.uint8)} | content
    state, evidence, pixels = tensors.get("state"), tensors["evidence"], content["samples"].get("pixels")
    if not isinstance(state, dict) or not isinstance(evidence, Tensor):
        raise refuse("the checkpoint's 'state' is not a dict of tensors, or its 'evidence' is not a tensor")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise refuse(f"the checkpoint's state holds {key!r}, a {type(value).__name__} and not a tensor")
    _check_config(config, len(state), content["labels"], path)
    check_tokenizer(content["tokenizer"], config.text.get("vocab_size"), where=path)
    size, count = config.image_size, len(content["samples"]["texts"])
    if not isinstance(pixels, Tensor) or pixels.dtype != torch.uint8 or pixels.shape != (count, size, size, 3):
        raise refuse(f"the checkpoint's samples are not n images uint8 [n, {size}, {size}, 3] with n texts, n >= 1")
    values = {f.name: content[f.name] for f in fields(Checkpoint) if f.name not in ("config", "evidence")}
    return Checkpoint(config=config, evidence=evidence, **values)


def _typed(described: dict[str, Any], path: Path) -> _Described:
    config = described.get("config")
    unknown = set(config) - {f.name for f in fields(ModelConfig)} if isinstance(config, dict) else set()
    try:
        typed = msgspec.convert(described, _Described)
        if unknown:
            raise msgspec.ValidationError(f"unknown fields - at `$.config`: {', '.join(sorted(unknown))}")
    except msgspec.ValidationError as error:
        what = f"the checkpoint does not parse: {str(error).replace('`', '')}"
        raise CheckpointError(what, where=path, fix=_THE_ONE_WRITTEN) from error
    return typed


def _check_config(config: ModelConfig, tensors: int, labels: Mapping[str, list[str]], path: Path) -> None:
    # A model is built before it is compared with its tensors: with a damaged number of layers that would take forever.
    layers = {name: number for name, number in config.text.items() if "layers" in name}
    layers["interaction"] = config.interaction_layers
    if any(isinstance(number, int) and number > tensors for number in layers.values()):
        what = f"the checkpoint's configuration has more layers than there are tensors: {layers}"
        raise CheckpointError(what, where=path, fix=_THE_ONE_WRITTEN)
    for name, classes in config.heads.items():
        if len(labels.get(name, ())) != classes:
            what = f"head {name!r} has {classes} classes but {len(labels.get(name, ()))} labels"
            raise CheckpointError(what, where=path, fix=_THE_ONE_WRITTEN)
