"""The variant int8-u8 of a graph, for CPU engines: convolutions calibrated, matrix products by token, all else as it was.

requires: a graph of ours at FP32. ensures: the same inputs and outputs, no operator outside ONNX's own, every scale positive
and finite, every weight symmetric; or :class:`GateFailed`.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from simmim_export.errors import GateFailed
from simmim_export.precision.convolutions import quantisable, quantize_convolutions
from simmim_export.precision.tokens import quantize_products
from simmim_export.precision.weights import products

VARIANT = "int8-u8"


@dataclass(frozen=True)
class Quantised:
    """What became of a graph: the names of the nodes that compute in INT8, by kind."""

    convolutions: tuple[str, ...]
    products: tuple[str, ...]


def to_int8(
    source: Path,
    target: Path,
    feeds: Sequence[Mapping[str, np.ndarray]],
    keep_float: Collection[str] = (),
    full_range: bool = False,
) -> Quantised:
    """Write the INT8 form of the graph ``source`` to ``target``. A graph with nothing to quantise is copied as it is.

    ``feeds`` are real inputs of the graph at batch 1; ``keep_float`` names nodes to leave alone.

    Weights have 7 bits: processors without VNNI add pairs of U8 x S8 products in 16 bits, and 2 * 255 * 63 fits. With
    ``full_range`` they have 8, of which engines there saturate or take slower kernels.
    """
    before = onnx.load(source)
    convolutions = [name for name in quantisable(before) if name not in keep_float]
    if convolutions:
        quantize_convolutions(source, target, feeds, convolutions, not full_range)
    else:
        shutil.copyfile(source, target)
    after = onnx.load(target)
    multiplied = quantize_products(after, feeds, keep_float, 127 if full_range else 63)
    onnx.save(after, target)
    check(before, after)
    return Quantised(tuple(convolutions), tuple(multiplied))


def touched(model: onnx.ModelProto) -> list[str]:
    """The names of the nodes that :func:`to_int8` would quantise in an FP32 graph."""
    return quantisable(model) + [node.name for node in products(model)]


def saturates(model: onnx.ModelProto) -> bool:
    """Whether an INT8 graph has weights of which two products with U8 do not fit into 16 bits."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    weights = [n.input[0] for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants]
    found = (numpy_helper.to_array(constants[name]) for name in weights)
    return any(levels.dtype == np.int8 and np.abs(levels.astype(np.int16)).max(initial=0) > 64 for levels in found)


def check(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Raise :class:`GateFailed` unless ``after`` is what this module promises."""
    onnx.checker.check_model(after, full_check=True)
    for side in ("input", "output"):
        names = [[value.name for value in getattr(model.graph, side)] for model in (before, after)]
        if names[0] != names[1]:
            raise GateFailed(f"quantising changed the {side}s from {names[0]} to {names[1]}", fix="report this")
    foreign = {node.op_type for node in after.graph.node if node.domain not in ("", "ai.onnx")}
    if foreign:
        raise GateFailed(f"operators outside ONNX: {sorted(foreign)}", fix="report this")
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    for node in after.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale = constants[node.input[1]]
        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise GateFailed(f"{node.name} has a scale that is not positive and finite", fix="check the calibration")
        zero = constants[node.input[2]] if len(node.input) > 2 and node.input[2] else np.zeros(1, np.int8)
        is_weight = node.op_type == "DequantizeLinear" and node.input[0] in constants
        if is_weight and zero.any():
            raise GateFailed(f"{node.name}: a weight with the zero point {zero.ravel()[0]}", fix="report this")
