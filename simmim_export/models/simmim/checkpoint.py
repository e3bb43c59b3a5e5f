"""The checkpoint: one file (or folder) that holds a model and what is needed to deploy and judge it.

``ckpt.pt`` is read with ``torch.load(weights_only=True)``: tensors and primitives, never code. A path without a suffix
``.pt`` is the folder form: ``checkpoint.json`` and ``model.safetensors`` with the same content. Loading is strict.

``SCHEMA`` is the version of that content. Bump it when a reader of the old version would misread the new one; then teach
:func:`_parse` to read both, and keep a file of the old version among the tests.
"""

from __future__ import annotations

import json
import pickle  # noqa: TID251 - for the name of its error alone
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from pickletools import genops
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from simmim_export.bundle.vocabulary import parse, rows_needed
from simmim_export.errors import CheckpointError
from simmim_export.models.simmim.model import SimMIM
from simmim_export.models.simmim.parts import require_checkpoint, require_weights
from simmim_export.models.simmim.presets import ModelConfig
from simmim_export.models.simmim.weights import misfit, plain_tensors, require_data, require_finite
from simmim_export.system.files import parse_json
from simmim_export.system.outputs import destination, replacing

SCHEMA = 1
KIND = "simmim-checkpoint"
# Tensors beside the weights in the folder form.
_SAMPLE_PIXELS, _EVIDENCE = "samples.pixels", "evidence"

# What zipfile and torch's restricted unpickler raise on damaged or hostile bytes: the unpickler is a stack machine that
# indexes and calls before it checks, so nonsense opcodes surface as any of these.
_DAMAGE = (
    RuntimeError,
    EOFError,
    OSError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    NotImplementedError,
    MemoryError,
    RecursionError,
    zipfile.BadZipFile,
    zlib.error,
)
_CODE = "the checkpoint holds pickled code or objects, which are never executed"


@dataclass
class Checkpoint:
    """``tokenizer`` is the text of a tokenizer.json; ``labels`` names each head's classes in order; ``samples`` holds
    ``pixels`` uint8 [n, H, W, 3] and ``texts``, n strings, for calibration and golden tensors; ``metrics`` holds each
    figure beside its blind controls; ``provenance`` holds versions, seed and the digests of data and parent; ``evidence``
    uint8 [bytes] holds labelled examples that were kept out of training (:mod:`simmim_export.proof.evidence`), or nothing.
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

    Raise :class:`UsageError` where nothing can be written there, and where the disk is full.
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


def save_tensors(content: Any, path: Path) -> None:
    """Write ``content`` with ``torch.save``, atomically.

    Raise :class:`UsageError` where nothing can be written at ``path``, and where the disk is full.
    """
    with replacing(path) as temporary:
        try:
            # To a file of Python's: torch's own says only "iostream error" where the disk is full.
            with temporary.open("wb") as stream:
                torch.save(content, stream)
        except RuntimeError as error:
            # torch fails once more while it closes the archive; what the system had said came before.
            before: BaseException | None = error
            while before is not None and not isinstance(before, OSError):
                before = before.__context__
            if before is None:
                raise
            raise before from None


def load(path: Path) -> Checkpoint:
    """Read and check a checkpoint. Raise :class:`CheckpointError` saying what is wrong and where; code is never executed."""
    require_checkpoint(path)
    return _parse(_read_folder(path) if path.is_dir() else _read_file(path), path)


def read_tensors(path: Path) -> Any:
    """What a ``.pt`` or ``.safetensors`` file holds: tensors, floats among them as float32, and primitives in dicts and lists.

    Raise :class:`CheckpointError` as :func:`load` does, and for odd tensors (:func:`plain_tensors`); code is never executed.
    """
    require_weights(path)
    if path.suffix != ".safetensors":
        return plain_tensors(_read_file(path), path)
    return plain_tensors(_read_safetensors(path), path)


def build(checkpoint: Checkpoint, where: object = "checkpoint") -> SimMIM:
    """The model with the checkpoint's weights, in eval mode.

    Raise :class:`CheckpointError` naming every missing, unexpected or misfit key, or the first with NaN or Inf.
    """
    with torch.device("meta"):
        expected = _model(checkpoint.config, where).state_dict()
    check_state(checkpoint.state, expected, where)
    model = _model(checkpoint.config, where)
    model.load_state_dict(checkpoint.state, strict=True)
    return model.eval()


def _model(config: ModelConfig, where: object) -> SimMIM:
    try:
        return SimMIM(config)
    # Whatever transformers and torch raise over nonsense, it means the same to the user.
    except Exception as error:
        raise CheckpointError(
            f"the configuration describes no model: {error}",
            where=where,
            fix="retrain or re-export it with simmim-train",
        ) from error


def check_tokenizer(
    text: str, rows: Any, where: object, fix: str = "copy the checkpoint again, whole, or train it again"
) -> Tokenizer:
    """The tokenizer whose tokenizer.json is ``text``, for an encoder of ``rows`` embeddings.

    Raise :class:`CheckpointError` for what is no tokenizer.json, has no token, or has one without an embedding.
    """
    try:
        tokenizer = parse(text)
    except ValueError as error:
        raise CheckpointError(f"not a tokenizer.json: {error}", where=where, fix=fix) from error
    needed = rows_needed(tokenizer)
    if needed == 0:
        raise CheckpointError("the tokenizer.json has no tokens", where=where, fix=fix)
    if not isinstance(rows, int) or needed > rows:
        what = f"the tokenizer has {needed} tokens, the text encoder {rows!r} embeddings"
        raise CheckpointError(what, where=where, fix=fix)
    return tokenizer


def check_state(
    state: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    where: object,
    fix: str = "give the checkpoint that simmim-train wrote; nothing is loaded in part",
) -> None:
    """Raise :class:`CheckpointError` unless ``state`` has the names, shapes and kinds of numbers of ``expected``, all finite.

    Only the shapes and types of ``expected`` are read, so that its tensors may be on the meta device.
    """
    problems = [f"missing: {key}" for key in expected if key not in state]
    problems += [f"unexpected: {key}" for key in state if key not in expected]
    pairs = ((key, state[key], wanted) for key, wanted in expected.items() if key in state)
    problems += [problem for pair in pairs if (problem := misfit(*pair))]
    if problems:
        shown = "\n  ".join(problems[:20]) + (f"\n  ... and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise CheckpointError(f"the weights do not fit the configuration:\n  {shown}", where=where, fix=fix)
    require_finite(state, where, "train again from an earlier one")


def _read_file(path: Path) -> Any:
    with path.open("rb") as stream:
        start = stream.read(4)
    if start != b"PK\x03\x04":
        what = "the checkpoint is empty" if not start else "not a checkpoint (torch.save writes a zip archive)"
        raise CheckpointError(what, where=path, fix="give the ckpt.pt that simmim-train wrote")
    try:
        if not zipfile.is_zipfile(path):
            raise CheckpointError("the checkpoint is truncated", where=path, fix="copy it again, whole")
        with zipfile.ZipFile(path) as archive:
            _check_archive(archive, path)
        with warnings.catch_warnings():
            # For developers, about kinds of tensors that are refused by name below.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch raises this for everything that is not tensors and primitives; nothing of it has been executed.
        raise CheckpointError(
            _CODE, where=path, fix="save tensors and primitives only, as simmim-train does"
        ) from error
    except _DAMAGE as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"the checkpoint is damaged: {first}", where=path, fix="copy it again, whole") from error


def _check_archive(archive: zipfile.ZipFile, path: Path) -> None:
    """Raise :class:`CheckpointError` for a file that would take much more memory than it has bytes, or whose checksums differ."""
    unpacked, size = sum(part.file_size for part in archive.infolist()), path.stat().st_size
    if unpacked > size or any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
        # A bomb, or packed again by something else than torch.save.
        what = f"the checkpoint unpacks from {size:,} bytes to {unpacked:,}, and torch.save never compresses"
        raise CheckpointError(what, where=path, fix="save it again with torch.save")
    # torch does not compare the checksums of tensors: a flipped bit would load as another weight.
    if (damaged := archive.testzip()) is not None:
        raise CheckpointError(f"the checkpoint is damaged: {damaged}", where=path, fix="copy it again, whole")
    for name in archive.namelist():
        # torch's unpickler makes a bytearray of any length that a few bytes ask for.
        if name.endswith("/data.pkl") and any("bytearray" in str(word) for _, word, _ in genops(archive.read(name))):
            raise CheckpointError(_CODE, where=path, fix="save tensors and primitives only, as simmim-train does")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (*_DAMAGE, SafetensorError) as error:
        raise CheckpointError(f"the checkpoint is damaged: {error}", where=path, fix="copy it again, whole") from error


def _read_folder(path: Path) -> Any:
    for name in ("checkpoint.json", "model.safetensors"):
        if not (path / name).is_file():
            raise CheckpointError(
                f"the checkpoint folder has no {name}", where=path, fix="copy the folder again, whole"
            )
    try:
        content = parse_json((path / "checkpoint.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"the checkpoint is damaged: {error}", where=path, fix="copy it again, whole") from error
    state = _read_safetensors(path / "model.safetensors")
    if isinstance(content, dict) and isinstance(content.get("samples"), dict) and _SAMPLE_PIXELS in state:
        content["samples"]["pixels"] = state.pop(_SAMPLE_PIXELS)
        content |= {"evidence": state.pop(_EVIDENCE)} if _EVIDENCE in state else {}
        content["state"] = state
    return content


def _odd_field(config: ModelConfig) -> str | None:
    """What of ``config`` is of another type than its field; None if nothing."""
    for f in fields(ModelConfig):
        value, wanted = getattr(config, f.name), {"str": str, "int": int}.get(str(f.type), dict)
        # To Python, True is a number.
        if not isinstance(value, wanted) or isinstance(value, bool):
            return f"{f.name} is {value!r}"
    odd = [name for name, count in config.heads.items() if not isinstance(count, int) or isinstance(count, bool)]
    return f"the classes of head {odd[0]!r} are {config.heads[odd[0]]!r}" if odd else None


def _parse(content: Any, path: Path) -> Checkpoint:
    def refuse(what: str, fix: str = "give the ckpt.pt that simmim-train wrote") -> CheckpointError:
        return CheckpointError(what, where=path, fix=fix)

    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise refuse(f"not a SimMIM checkpoint (no kind = {KIND!r} in it)")
    schema = content.get("schema")
    if not isinstance(schema, int) or schema < 1:
        raise refuse(f"the checkpoint's schema is {schema!r}, not a number from 1")
    if schema > SCHEMA:
        raise refuse(
            f"the checkpoint has schema {schema}; this version reads up to {SCHEMA}",
            fix="pip install -U simmim-export",
        )
    # Tensors are made plain; whatever else is here ends in a manifest, which is JSON.
    content = plain_tensors(content, path)
    samples = content.get("samples")
    described = {name: value for name, value in content.items() if name not in ("state", "evidence", "samples")}
    if isinstance(samples, dict):
        described["samples"] = {name: value for name, value in samples.items() if name != "pixels"}
    require_data(described, path)
    types: dict[str, type] = {f.name: dict for f in fields(Checkpoint)} | {"tokenizer": str, "evidence": Tensor}
    # Checkpoints from before there was evidence have none.
    content = {"evidence": torch.zeros(0, dtype=torch.uint8)} | content
    for name, wanted in types.items():
        if not isinstance(content.get(name), wanted):
            raise refuse(f"the checkpoint's {name!r} is missing or no {wanted.__name__}")
    try:
        config = ModelConfig(**content["config"])
    except TypeError as error:
        raise refuse(f"the checkpoint's configuration does not parse: {error}") from error
    if odd := _odd_field(config):
        raise refuse(f"the checkpoint's configuration does not parse: {odd}")
    loaded = Checkpoint(config=config, **{name: content[name] for name in types if name != "config"})
    for key, value in loaded.state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise refuse(f"the checkpoint's state holds something that is no tensor: {key!r} is {type(value).__name__}")
    # A number of layers is built before it is compared: one that is damaged would be built for ever.
    layers = {name: n for name, n in config.text.items() if "layers" in name} | {
        "interaction": config.interaction_layers
    }
    if any(isinstance(number, int) and number > len(loaded.state) for number in layers.values()):
        raise refuse(f"the checkpoint's configuration has more layers than there are tensors: {layers}")
    for name, found in loaded.labels.items():
        if not isinstance(found, list) or not all(isinstance(label, str) for label in found):
            raise refuse(f"the labels of head {name!r} are no list of names")
    for name, count in config.heads.items():
        if len(loaded.labels.get(name, ())) != count:
            raise refuse(f"head {name!r} has {count} classes but {len(loaded.labels.get(name, ()))} labels")
    for name, rows in (("metrics", loaded.metrics), ("preprocessing", loaded.preprocessing)):
        if not all(isinstance(row, dict) for row in rows.values()):
            raise refuse(f"the checkpoint's {name!r} holds something that is no dict")
    if not {"image", "text"} <= set(loaded.preprocessing):
        raise refuse("the checkpoint's 'preprocessing' lacks that of images or that of texts")
    check_tokenizer(loaded.tokenizer, config.text.get("vocab_size"), path)
    pixels, texts = loaded.samples.get("pixels"), loaded.samples.get("texts")
    size = config.image_size
    good = isinstance(pixels, Tensor) and pixels.dtype == torch.uint8 and tuple(pixels.shape[1:]) == (size, size, 3)
    said = len(texts) if isinstance(texts, list) and all(isinstance(text, str) for text in texts) else 0
    if not good or not isinstance(pixels, Tensor) or not 0 < said == len(pixels):
        raise refuse(f"the checkpoint's samples are not n images uint8 [n, {size}, {size}, 3] with n texts, n >= 1")
    return loaded
