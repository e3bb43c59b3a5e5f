"""What a plan file really computes in, as TensorRT itself says. Does not import TensorRT.

There are two sources: the JSON of the engine inspector, which needs a GPU, and the list of layers in the builder's log, which
does not. A layer that multiplies counts as INT8 if all that it multiplies is INT8; a layer that only quantizes or dequantizes
does not. Other than that, a layer counts as the narrowest floating-point type among its inputs, outputs, constants and the name
of its kernel: a layer that reads FP16 and writes FP32 multiplies in FP16. Layers with integers only (casts of token ids, shapes)
have no precision, and are counted as "other"; layers of unknown type as "unknown". TensorRT 10 writes
``Half`` or ``Row major linear FP16 format`` as ``Format/Datatype``, and ``N/A due to dynamic shapes`` for many tensors of a graph
with dynamic axes; 11 keeps ``Datatype`` and ``Format`` apart (NVIDIA's guide "Migrating IEngineInspector Usage from 10.x to
11.x").
"""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from simmim_export.engines.base import PrecisionProof
from simmim_export.errors import BundleError, Dequantized, GateFailed
from simmim_export.spec import Precision

# The narrowest first.
_FLOATS = {
    "float16": r"half|fp16|(?<!b)f16",
    "bfloat16": r"bf16|bfloat16",
    "float32": r"float|fp32|f32",
}
_INT8 = re.compile("(?<!u)int8")
# In the name of a kernel whose tensors the inspector does not know.
_INT8_KERNEL = re.compile("i8i8|s8s8|i8i32|int8")
# The kinds of layers that multiply: "correlation" is a convolution, and names such as CaskGemmConvolution have a prefix.
_PRODUCT = re.compile("gemm|conv|correlation|matmul|matrixmultiply")
_FLOATING = ("int8", *_FLOATS)
_UNKNOWN = "unknown"
# The names of kernels that are generated for a plan file end in a hash, whose digits may look like a type: 0x...f16...
_HASH = re.compile(r"0x[0-9a-f]+")
# An FP16 graph keeps some layers in FP32, and a strongly typed plan file keeps them too: those around a softmax or a norm, and
# the casts at its ends. They are never more than three layers of four.
LEAST_SHARE = 0.25
# TensorRT may dequantize the operands of a product and compute it in floating point, to fuse it with the operator that follows.
# It does so with one of four in the tiny video encoder. More than half would mean that the graph is not computed in INT8.
MOST_DEQUANTIZED = 0.5
# TensorRT may fuse a small graph into one or two layers. Then only their ends are visible, which are FP32 in all our graphs.
LEAST_LAYERS = 4
_NAMES = {Precision.FP32: "float32", Precision.FP16: "float16", Precision.INT8: "int8"}
_REPORT = "report this with the versions that simmim-export doctor prints"

# A line of the builder's list: the parts of a layer in this order, separated by ", Part: ".
_LINE = re.compile(
    r"Name: (?P<Name>.*?), LayerType: (?P<LayerType>.*?), Inputs: \[(?P<Inputs>.*?)\], Constants: \[(?P<Constants>.*?)\], "
    r"Outputs: \[(?P<Outputs>.*?)\], TacticName: (?P<TacticName>.*?), StreamId: \d+.*?, Metadata: ?(?P<Metadata>.*)"
)
_TENSOR = re.compile(r"\{ Name: .*?, Dimensions: \[[^\]]*\].*?, Datatype: (?P<Datatype>\w+), .*?\}")
# After the layers, the list names the tensors of the graph.
_END = ("I/O Tensors:", "Bindings:")


def read_inspector(text: str) -> tuple[PrecisionProof, frozenset[str] | None]:
    """The number of layers by type, and the ONNX nodes that are multiplied in INT8; None for these if no layer names its nodes.

    Raise :class:`BundleError` for a text that is not the inspector's JSON with details.
    """
    try:
        layers = json.loads(text)["Layers"]
        return _read(layers, "TensorRT's engine inspector: layers by their type")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"the engine inspector's text is not understood: {error}", fix=_REPORT) from error


def read_layer_list(text: str | None) -> tuple[PrecisionProof, frozenset[str] | None]:
    """As :func:`read_inspector`, for the list of layers in the builder's log. Raise :class:`BundleError` for another text."""
    lines = (text or "").strip().splitlines()
    end = next((index for index, line in enumerate(lines) if line.startswith(_END)), len(lines))
    layers: list[dict[str, Any]] = []
    for line in lines[1:end]:
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise BundleError(f"the builder's list of layers is not understood: {line[:200]}", fix=_REPORT)
        layer: dict[str, Any] = match.groupdict()
        for part in ("Inputs", "Outputs", "Constants"):
            layer[part] = [{"Datatype": tensor["Datatype"]} for tensor in _TENSOR.finditer(layer[part])]
        layers.append(layer)
    if not layers:
        raise BundleError("the builder listed no layers", fix=_REPORT)
    return _read(layers, "TensorRT's builder: layers by their type")


def _read(layers: Sequence[Mapping[str, Any]], source: str) -> tuple[PrecisionProof, frozenset[str] | None]:
    types = [_type(layer) for layer in layers]
    nodes = [re.findall(r"\[ONNX Layer: (.*?)\]", str(layer.get("Metadata", ""))) for layer in layers]
    products = {name for kind, names in zip(types, nodes, strict=True) if kind == "int8" for name in names}
    return PrecisionProof(dict(Counter(types)), source), frozenset(products) if any(nodes) else None


def _type(layer: Mapping[str, Any]) -> str:
    inputs, outputs = ([_of_tensor(tensor) for tensor in layer.get(part, ())] for part in ("Inputs", "Outputs"))
    constants = [_of_tensor(tensor) for tensor in _constants(layer)]
    kernel = _HASH.sub("", str(layer.get("TacticName", "")).lower())
    if _multiplies_int8(layer, inputs, constants, kernel):
        return "int8"
    words = " ".join((*(text for text in (*inputs, *outputs, *constants) if text), kernel)).lower()
    narrowest = next((name for name, pattern in _FLOATS.items() if re.search(pattern, words)), None)
    return narrowest or (_UNKNOWN if None in (*inputs, *outputs) else "other")


def _multiplies_int8(
    layer: Mapping[str, Any], inputs: Sequence[str | None], constants: Sequence[str | None], kernel: str
) -> bool:
    if not _PRODUCT.search(str(layer.get("LayerType", "")).lower() or kernel):
        return False
    if not inputs or inputs[0] is None:
        return _INT8_KERNEL.search(kernel) is not None
    # What is multiplied: the first input, and the second input or the first constant. A bias or a scale may be in FP32.
    operands = [inputs[0], *[text for text in (*inputs[1:2], *constants) if text][:1]]
    return all(_INT8.search(text.lower()) for text in operands)


def _of_tensor(tensor: Mapping[str, str]) -> str | None:
    """The type of a tensor in the inspector's words; None if the inspector does not know it."""
    text = tensor["Datatype"] if "Datatype" in tensor else tensor["Format/Datatype"]
    return None if text.startswith("N/A") else text


def _constants(layer: Mapping[str, Any]) -> list[Mapping[str, str]]:
    """The constants of a layer. The inspector has its weights and bias apart, each with a ``Type``."""
    listed = list(layer.get("Constants", ()))
    return listed + [
        {"Datatype": str(w.get("Type", ""))} for part in ("Weights", "Bias") if isinstance(w := layer.get(part), dict)
    ]


def require_precision(
    proof: PrecisionProof,
    precision: Precision,
    *,
    quantized: Collection[str],
    multiplied: Collection[str] | None,
    graph: str,
    where: object,
) -> None:
    """Raise :class:`GateFailed` if a plan file does not compute in the ``precision`` that was asked for.

    FP16: at least a quarter of its floating-point layers must, if there are four or more. INT8: at least half of the products
    that are ``quantized`` in the graph must be among those ``multiplied`` in INT8, and a :class:`Dequantized` warning names the
    others; if layers do not name their nodes (None), at least one layer must (a small head has no quantized product). FP32:
    every layer must. If nobody knows the type of any layer, nothing is proven, and that fails too.
    """
    floating = {name: count for name, count in proof.executed.items() if name in _FLOATING}
    total, mine = sum(floating.values()), floating.get(_NAMES[precision], 0)
    dequantized = [] if multiplied is None else sorted(set(quantized) - set(multiplied))
    too_few = mine == 0 or len(dequantized) > MOST_DEQUANTIZED * len(quantized)
    wrong = {
        Precision.FP32: mine < total,
        Precision.FP16: total >= LEAST_LAYERS and mine < LEAST_SHARE * total,
        Precision.INT8: bool(quantized) and too_few,
    }[precision]
    unknown = proof.executed.get(_UNKNOWN, 0)
    named = ", ".join(dequantized[:5]) + (f" and {len(dequantized) - 5} more" if len(dequantized) > 5 else "")
    if unknown and not total:
        built = f"TensorRT does not say what any of {unknown} layers computes in"
    elif wrong:
        counts = ", ".join(f"{count} {name}" for name, count in sorted(floating.items()))
        built = f"TensorRT built {mine} of {total} layers so: {counts}"
        if precision is Precision.INT8 and dequantized:
            built += f"; not in INT8: {named}"
    else:
        if precision is Precision.INT8 and dequantized:
            share = f"{len(dequantized)} of {len(quantized)} quantized products"
            warnings.warn(f"{graph}: TensorRT computes {share} in floating point: {named}", Dequantized, stacklevel=2)
        return
    raise GateFailed(f"{graph} was asked for at {precision}, and {built}", where=where, fix=_REPORT)
