"""The pass for the variant int8-u8, for CPU engines: calibrated convolutions, matrix products by token, all else unchanged.

Weights have 7 bits: processors without VNNI add pairs of U8 x S8 products in 16 bits, and 2 * 255 * 63 fits. With the option
``full_range`` they have 8 bits, with which engines on such processors saturate or take slower kernels.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from simmim_export.errors import GateFailed
from simmim_export.precision.base import Pass
from simmim_export.precision.convolutions import quantizable, quantize_convolutions
from simmim_export.precision.surgery import array_of
from simmim_export.precision.tokens import quantize_products
from simmim_export.precision.weights import products
from simmim_export.spec import Variant


class QuantizedPass(Pass):
    """An INT8 pass. Ensures that every scale is positive and finite, and that every weight is symmetric."""

    def ensures(self, before: onnx.ModelProto, after: onnx.ModelProto) -> None:
        super().ensures(before, after)
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
        for node in after.graph.node:
            if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
                continue
            scale = constants[node.input[1]]
            if not (np.isfinite(scale).all() and (scale > 0).all()):
                fix = "check the calibration"
                raise GateFailed(f"{node.name} has a scale that is not positive and finite", fix=fix)
            zero = constants[node.input[2]] if len(node.input) > 2 and node.input[2] else np.zeros(1, np.int8)
            is_weight = node.op_type == "DequantizeLinear" and node.input[0] in constants
            if is_weight and zero.any():
                raise GateFailed(
                    f"{node.name}: a weight has the zero point {zero[zero != 0].flat[0]}", fix="report this"
                )


class Int8ForCpu(QuantizedPass):
    """Requires an FP32 graph, and real feeds if the graph has convolutions, or products behind a LayerNormalization."""

    variant = Variant.INT8_U8

    def call(self, model: onnx.ModelProto) -> onnx.ModelProto:
        full_range, keep_float = self.options.full_range, self.options.keep_float
        result = model
        if convolutions := [name for name in quantizable(model) if name not in keep_float]:
            result = quantize_convolutions(model, self.feeds, names=convolutions, reduce_range=not full_range)
        return quantize_products(result, self.feeds, keep_float=keep_float, half=127 if full_range else 63)


def touched(model: onnx.ModelProto) -> list[str]:
    """The names of the nodes that :class:`Int8ForCpu` quantizes in an FP32 graph."""
    return quantizable(model) + [str(node.name) for node in products(ir.from_proto(model).graph)]


def saturates(model: onnx.ModelProto) -> bool:
    """Whether an INT8 graph has weights so large that two products with U8 do not fit into 16 bits."""
    dequantized = (node.inputs[0] for node in ir.from_proto(model).graph if node.op_type == "DequantizeLinear")
    weights = (array_of(value) for value in dequantized if value is not None and value.const_value is not None)
    return any(levels.dtype == np.int8 and np.abs(levels.astype(np.int16)).max(initial=0) > 64 for levels in weights)
