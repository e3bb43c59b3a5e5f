"""What a plan really computes in, from the JSON that TensorRT's engine inspector gives. Knows that text; must not import
TensorRT.

A layer counts as the narrowest type among its inputs, outputs, weights and the name of its kernel: one that reads FP16 and
writes FP32 multiplies in FP16. Layers of whole numbers only (casts of token numbers, shapes) compute nothing that precision
means, and are counted apart, as "other"; those of which the inspector says nothing, as "unknown". TensorRT 10 writes ``Half`` or
``Row major linear FP16 format`` as ``Format/Datatype``, and ``N/A due to dynamic shapes`` for many tensors of a graph with
dynamic axes; 11 has ``Datatype`` and ``Format`` apart (NVIDIA's guide "Migrating IEngineInspector Usage from 10.x to 11.x").
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from simmim_export.engines.base import PrecisionProof
from simmim_export.errors import BundleError, GateFailed
from simmim_export.spec import Precision

# The narrowest first.
_TYPES = {
    "int8": r"(?<!u)int8|i8i8|s8s8|i8i32",
    "float16": r"half|fp16|(?<!b)f16",
    "bfloat16": r"bf16|bfloat16",
    "float32": r"float|fp32|f32",
}
_FLOATING = tuple(_TYPES)
_UNKNOWN = "unknown"
# Names of kernels that are made for a plan end in a hash, whose digits may read like a type: 0x...f16....
_HASH = re.compile(r"0x[0-9a-f]+")
# What a strongly typed plan of an FP16 graph leaves in FP32 is what the graph says: what surrounds a softmax or a norm, and the
# casts at its ends. That is never three layers of four.
LEAST_SHARE = 0.25
# TensorRT may fuse a small graph into a layer or two, of which only the ends show, and those are FP32 in every graph of ours.
LEAST_LAYERS = 4
_NAMES = {Precision.FP32: "float32", Precision.FP16: "float16", Precision.INT8: "int8"}


def read_layers(text: str) -> PrecisionProof:
    """Layers by type. Raise :class:`BundleError` for what is not an inspector's JSON with details."""
    try:
        layers = json.loads(text)["Layers"]
        counts = Counter(_type(layer) for layer in layers)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        fix = "report this with the versions that simmim-export doctor prints"
        raise BundleError(f"the engine inspector's text is not understood: {error}", fix=fix) from error
    return PrecisionProof(dict(counts), "TensorRT's engine inspector: layers by their narrowest type")


def _type(layer: Mapping[str, Any]) -> str:
    tensors = [_of_tensor(tensor) for tensor in (*layer.get("Inputs", ()), *layer.get("Outputs", ()))]
    words = " ".join((*(text for text in tensors if text), *_words(layer))).lower()
    found = next((name for name, pattern in _TYPES.items() if re.search(pattern, words)), None)
    return found or (_UNKNOWN if None in tensors else "other")


def _of_tensor(tensor: Mapping[str, str]) -> str | None:
    """The type of a tensor in the inspector's words; None where it does not know."""
    text = tensor["Datatype"] if "Datatype" in tensor else tensor["Format/Datatype"]
    return None if text.startswith("N/A") else text


def _words(layer: Mapping[str, Any]) -> Iterator[str]:
    for part in ("Weights", "Bias"):
        if isinstance(layer.get(part), dict):
            yield str(layer[part].get("Type", ""))
    yield _HASH.sub("", str(layer.get("TacticName", "")).lower())


def require_precision(proof: PrecisionProof, precision: Precision, quantised: bool, graph: str, where: object) -> None:
    """Raise :class:`GateFailed` if a plan does not compute in what was asked for.

    FP16: at least a quarter of its floating-point layers, where there are four or more. INT8: at least one layer of a graph
    that is ``quantised`` at all (a small head is not). FP32: no layer of another type. Raise it too if the inspector knows the
    type of no layer, though there are some: that would prove anything.
    """
    if proof.executed.get(_UNKNOWN) and not any(proof.executed.get(name) for name in _FLOATING):
        raise GateFailed(
            f"{graph} was asked for at {precision}, and TensorRT's inspector does not say what any of "
            f"{proof.executed[_UNKNOWN]} layers computes in",
            where=where,
            fix="report this with the versions that simmim-export doctor prints",
        )
    floating = {name: count for name, count in proof.executed.items() if name in _FLOATING}
    total, mine = sum(floating.values()), floating.get(_NAMES[precision], 0)
    wrong = {
        Precision.FP32: mine < total,
        Precision.FP16: total >= LEAST_LAYERS and mine < LEAST_SHARE * total,
        Precision.INT8: quantised and mine == 0,
    }[precision]
    if wrong:
        found = ", ".join(f"{count} {name}" for name, count in sorted(floating.items()))
        raise GateFailed(
            f"{graph} was asked for at {precision}, and TensorRT built {mine} of {total} layers so: {found}",
            where=where,
            fix="report this with the versions that simmim-export doctor prints",
        )
