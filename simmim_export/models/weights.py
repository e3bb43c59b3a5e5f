"""Weights from strangers: made plain (dense, float32 or integers), compared with what a model expects, or refused by name."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from simmim_export.errors import CheckpointError

# Converted to float32, in which every model here computes.
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
# Tied weights are several tensors over one storage. More than this many times the storage is an attack on memory.
MOST_SHARED = 8
# A pickle can refer to one list a billion times, or to itself.
MOST_VALUES, DEEPEST = 200_000, 50
_RESAVE = (
    "save dense tensors of real numbers on the CPU: tensor.to_dense(), .dequantize(), .float() or .clone() makes one"
)
# How many lines one message has.
_SHOWN = 20


class ConvertedWeights(UserWarning):
    """Weights were stored in another floating-point format and converted to float32. The message counts them."""


def _oddity(value: Tensor) -> str | None:
    """Why ``value`` cannot be a weight, or None. The order matters: odd tensors lack the properties that are read later."""
    if type(value) not in (Tensor, nn.Parameter, nn.Buffer):
        return f"a tensor of the class {type(value).__name__}"
    if value.is_nested:
        return "a nested tensor"
    if value.is_quantized:
        return "a quantized tensor"
    if value.layout != torch.strided:
        return f"a sparse tensor ({value.layout})"
    if value.device.type != "cpu":
        return f"a tensor on the device {value.device.type!r}, without values here"
    if value.is_complex():
        return f"complex ({value.dtype}); its imaginary part would be lost"
    if value.dtype not in (*_FLOATS, *_INTEGERS, torch.bool):
        return f"a tensor of {value.dtype}"
    needed, stored = value.numel() * value.element_size(), value.untyped_storage().nbytes()
    if needed > stored:
        return f"expanded: its {list(value.shape)} elements take {needed:,} bytes, but {stored:,} are stored"
    return None


def plain_tensors(content: Any, where: Path) -> Any:
    """``content``, read from the file or folder ``where``, with plain tensors: dense, contiguous, on the CPU, without gradient,
    floats as float32, and parameters as tensors.

    Warn once with :class:`ConvertedWeights` if floats were stored in another format. Raise :class:`CheckpointError`, naming the
    place, for an odd tensor: a subclass; a sparse, quantized, nested or meta tensor; a tensor on another device; elements that
    are neither integers nor real floats of at least 16 bits; an expanded tensor, whose elements take more memory than its
    storage. Raise it also if all tensors together take more than ``MOST_SHARED`` times what is stored, if the storages are larger
    than the file, and for more than ``MOST_VALUES`` values or ``DEEPEST`` levels.
    """
    tensors = {name: value for name, value in _walk(content, where) if isinstance(value, Tensor)}
    # Check everything before copying anything: copies take memory.
    for name, value in tensors.items():
        if (odd := _oddity(value)) is not None:
            raise CheckpointError(f"{name} is {odd}", where=where, fix=_RESAVE)
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in tensors.values()}
    needed, stored = sum(value.numel() * value.element_size() for value in tensors.values()), sum(storages.values())
    if where.is_file() and stored > where.stat().st_size:
        what = f"the tensors have {stored:,} bytes, but the file has {where.stat().st_size:,}"
        raise CheckpointError(what, where=where, fix="copy it again, whole")
    if needed > MOST_SHARED * stored:
        what = f"the tensors take {needed:,} bytes, but only {stored:,} are stored: they share their memory"
        raise CheckpointError(what, where=where, fix=_RESAVE)
    formats = [value.dtype for value in tensors.values() if value.is_floating_point() and value.dtype != torch.float32]
    if formats:
        names = ", ".join(sorted({str(dtype).removeprefix("torch.") for dtype in formats}))
        what = f"{where}: {len(formats)} of {len(tensors)} tensors are stored as {names}; they are converted to float32"
        warnings.warn(what, ConvertedWeights, stacklevel=3)
    return _converted(content)


def require_data(content: Any, where: object) -> None:
    """Raise :class:`CheckpointError` unless JSON can hold ``content``: dicts with texts as keys, lists, texts, numbers, None."""
    for name, value in _walk(content, where):
        odd = f"is {type(value).__name__}"
        good = value is None or isinstance(value, str | int | float | list | tuple | dict)
        if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
            good, odd = False, "has a key that is not a text"
        elif isinstance(value, int) and not -(2**63) <= value < 2**64:
            good, odd = False, "is an integer of more than 64 bits"
        elif isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
            good, odd = False, "is a text that is not Unicode"
        if not good:
            what = f"{name} {odd}, and a checkpoint describes its model with texts and numbers"
            raise CheckpointError(what, where=where, fix="give the ckpt.pt that simmim-train wrote")


def _walk(content: Any, where: object) -> list[tuple[str, Any]]:
    """Every value in ``content``, containers included, with its place as a dotted name."""
    values: list[tuple[str, Any]] = []
    waiting: list[tuple[str, Any, int]] = [("", content, 0)]
    while waiting:
        name, value, depth = waiting.pop()
        values.append((name or "the content", value))
        inside: list[tuple[Any, Any]] = []
        if isinstance(value, Mapping):
            inside = list(value.items())
        elif isinstance(value, list | tuple):
            inside = list(enumerate(value))
        if depth == DEEPEST or len(values) + len(waiting) + len(inside) > MOST_VALUES:
            what = f"the checkpoint holds more than {MOST_VALUES:,} values or {DEEPEST} levels"
            raise CheckpointError(what, where=where, fix="give a file with the weights alone")
        waiting += [(f"{name}.{key}" if name else str(key), part, depth + 1) for key, part in reversed(inside)]
    return values


def _converted(value: Any) -> Any:
    if isinstance(value, Tensor):
        dense = value.detach().resolve_neg().contiguous()
        return dense.float() if dense.is_floating_point() else dense
    if isinstance(value, Mapping):
        return {key: _converted(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        parts = [_converted(part) for part in value]
        return tuple(parts) if isinstance(value, tuple) else parts
    return value


def check_state(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, where: object, fix: str) -> None:
    """Raise :class:`CheckpointError` unless ``state`` has the names, shapes and kinds of numbers of ``expected``, and no NaN or
    infinity.

    ``expected`` may be on the meta device: only its shapes and types are read.
    """
    problems = [f"missing: {key}" for key in expected if key not in state]
    problems += [f"unexpected: {key}" for key in state if key not in expected]
    both = [(key, state[key], tensor) for key, tensor in expected.items() if key in state]
    problems += [problem for key, value, tensor in both if (problem := _misfit(key, value, tensor))]
    if problems:
        more = f"\n  ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        what = "the weights do not fit the configuration:\n  " + "\n  ".join(problems[:_SHOWN]) + more
        raise CheckpointError(what, where=where, fix=fix)
    for key, value in state.items():
        # A sum is quick, and not finite if any value is not.
        if value.is_floating_point() and not math.isfinite(float(value.sum())):
            bad = int((~torch.isfinite(value)).sum())
            if bad:
                what = f"{key} holds {bad} NaN or Inf values of {value.numel()}"
                raise CheckpointError(what, where=where, fix="train again from an earlier checkpoint")


def _misfit(key: str, value: Tensor, expected: Tensor) -> str | None:
    """How ``value`` differs from ``expected`` in shape or in kind (floats, integers, truth values), or None."""
    if value.shape != expected.shape:
        return f"misshapen: {key} is {list(value.shape)}, the configuration says {list(expected.shape)}"
    if _kind(value) != _kind(expected):
        return f"mistyped: {key} holds {value.dtype}, the model {expected.dtype}"
    return None


def _kind(value: Tensor) -> str:
    if value.is_floating_point():
        return "floats"
    return "truth values" if value.dtype == torch.bool else "integers"
