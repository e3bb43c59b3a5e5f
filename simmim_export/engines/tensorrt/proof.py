"""What a plan file really computes in, from the JSON of TensorRT's engine inspector. Does not import TensorRT.

A layer counts as the narrowest type among its inputs, outputs, weights and the name of its kernel: a layer that reads FP16 and
writes FP32 multiplies in FP16. Layers with integers only (casts of token ids, shapes) have no precision, and are counted as
"other"; layers about which the inspector says nothing are counted as "unknown". TensorRT 10 writes ``Half`` or ``Row major linear
FP16 format`` as ``Format/Datatype``, and ``N/A due to dynamic shapes`` for many tensors of a graph with dynamic axes; 11 keeps
``Datatype`` and ``Format`` apart (NVIDIA's guide "Migrating IEngineInspector Usage from 10.x to 11.x").
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
# The names of kernels that are generated for a plan file end in a hash, whose digits may look like a type: 0x...f16...
_HASH = re.compile(r"0x[0-9a-f]+")
# An FP16 graph keeps some layers in FP32, and a strongly typed plan file keeps them too: those around a softmax or a norm, and
# the casts at its ends. They are never more than three layers of four.
LEAST_SHARE = 0.25
# TensorRT may fuse a small graph into one or two layers. Then only their ends are visible, which are FP32 in all our graphs.
LEAST_LAYERS = 4
_NAMES = {Precision.FP32: "float32", Precision.FP16: "float16", Precision.INT8: "int8"}


def read_layers(text: str) -> PrecisionProof:
    """The number of layers by type. Raise :class:`BundleError` for a text that is not the inspector's JSON with details."""
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
    narrowest = next((name for name, pattern in _TYPES.items() if re.search(pattern, words)), None)
    return narrowest or (_UNKNOWN if None in tensors else "other")


def _of_tensor(tensor: Mapping[str, str]) -> str | None:
    """The type of a tensor in the inspector's words; None if the inspector does not know it."""
    text = tensor["Datatype"] if "Datatype" in tensor else tensor["Format/Datatype"]
    return None if text.startswith("N/A") else text


def _words(layer: Mapping[str, Any]) -> Iterator[str]:
    for part in ("Weights", "Bias"):
        if isinstance(layer.get(part), dict):
            yield str(layer[part].get("Type", ""))
    yield _HASH.sub("", str(layer.get("TacticName", "")).lower())


def require_precision(
    proof: PrecisionProof, precision: Precision, *, quantized: bool, graph: str, where: object
) -> None:
    """Raise :class:`GateFailed` if a plan file does not compute in the ``precision`` that was asked for.

    FP16: at least a quarter of its floating-point layers must, if there are four or more. INT8: at least one layer must, if the
    graph is ``quantized`` at all (a small head is not). FP32: every layer must. If the inspector does not know the type of any
    layer, nothing is proven, and that fails too.
    """
    floating = {name: count for name, count in proof.executed.items() if name in _FLOATING}
    total, mine = sum(floating.values()), floating.get(_NAMES[precision], 0)
    wrong = {
        Precision.FP32: mine < total,
        Precision.FP16: total >= LEAST_LAYERS and mine < LEAST_SHARE * total,
        Precision.INT8: quantized and mine == 0,
    }[precision]
    unknown = proof.executed.get(_UNKNOWN, 0)
    if unknown and not total:
        built = f"TensorRT's inspector does not say what any of {unknown} layers computes in"
    elif wrong:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(floating.items()))
        built = f"TensorRT built {mine} of {total} layers so: {counts}"
    else:
        return
    fix = "report this with the versions that simmim-export doctor prints"
    raise GateFailed(f"{graph} was asked for at {precision}, and {built}", where=where, fix=fix)
