"""The pass for the variant int8-u8, for every CPU.

Convolutions get static ranges, matrix products one range per token, and large embedding tables become INT8. Everything else is
unchanged.

Weights have 7 bits: processors without VNNI add pairs of U8 x S8 products in 16 bits, and 2 * 255 * 64 fits.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from simmim_export.errors import GateFailed
from simmim_export.precision.base import Pass
from simmim_export.precision.convolutions import quantizable, quantize_convolutions
from simmim_export.precision.surgery import array_of, remove_unused_constants
from simmim_export.precision.tables import quantize_tables
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


class Int8OnCpu(QuantizedPass):
    """An INT8 pass for CPUs: convolutions with static ranges, and matrix products."""

    # Weights within 7 bits; see :func:`quantize_convolutions`.
    reduce_range: ClassVar[bool] = False

    @classmethod
    def touched(cls, model: onnx.ModelProto) -> list[str]:
        return quantizable(model) + [str(node.name) for node in products(ir.from_proto(model).graph)]

    def with_convolutions(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """``model`` with its convolutions in INT8, except those that stay float; ``model`` itself if that is none."""
        names = [name for name in quantizable(model) if name not in self.options.keep_float]
        if not names:
            return model
        return quantize_convolutions(model, self.feeds, names=names, reduce_range=self.reduce_range)


class Int8ForCpu(Int8OnCpu):
    """Requires an FP32 graph, and real feeds if the graph has convolutions, or products after a LayerNormalization. Ensures
    that no sum of two products exceeds 16 bits."""

    variant = Variant.INT8_U8
    reduce_range = True

    def call(self, model: onnx.ModelProto) -> onnx.ModelProto:
        result, record = self.with_convolutions(model), self.record(model)
        result = quantize_products(result, record, half=63, keep_float=self.options.keep_float, watch=self.watch)
        edited = ir.from_proto(result)
        if not quantize_tables(edited.graph):
            return result
        remove_unused_constants(edited.graph)
        return ir.to_proto(edited)

    def ensures(self, before: onnx.ModelProto, after: onnx.ModelProto) -> None:
        super().ensures(before, after)
        if saturates(after):
            raise GateFailed("a weight needs more than 7 bits, so products would saturate", fix="report this")


def saturates(model: onnx.ModelProto) -> bool:
    """Whether an INT8 graph has weights so large that two products with U8 do not fit into 16 bits."""
    dequantized = (node.inputs[0] for node in ir.from_proto(model).graph if node.op_type == "DequantizeLinear")
    weights = (array_of(value) for value in dequantized if value is not None and value.const_value is not None)
    return any(levels.dtype == np.int8 and np.abs(levels.astype(np.int16)).max(initial=0) > 64 for levels in weights)
