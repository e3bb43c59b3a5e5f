"""The variant int8-u8 of a graph, for CPU engines: convolutions calibrated, matrix products by blocks, all else as it was.

requires: a graph of ours at FP32. ensures: the same inputs and outputs, no operator outside ONNX's own, every scale positive
and finite, every weight symmetric; or :class:`GateFailed`.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from simmim_export.errors import GateFailed
from simmim_export.precision.calibration import Calibration
from simmim_export.precision.convolutions import quantize_convolutions
from simmim_export.precision.weights import quantize_weights

VARIANT = "int8-u8"
QUANTISED_INPUT = "pixels"


@dataclass(frozen=True)
class Quantised:
    """What became of a graph: the names of the nodes that compute in INT8, by kind."""

    convolutions: tuple[str, ...]
    products: tuple[str, ...]


def to_int8(source: Path, target: Path, calibration: Calibration) -> Quantised:
    """Write the INT8 form of the graph ``source`` to ``target``. A graph with nothing to quantise is copied as it is."""
    before = onnx.load(source)
    convolutions: list[str] = []
    if any(node.op_type == "Conv" for node in before.graph.node):
        convolutions = quantize_convolutions(source, target, calibration.pixels)
    else:
        shutil.copyfile(source, target)
    after = onnx.load(target)
    products = quantize_weights(after)
    onnx.save(after, target)
    check(before, after)
    return Quantised(tuple(convolutions), tuple(products))


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
