"""The pass for the variant int8-dot, for CPUs with integer dot products: as int8-u8, with weights of 8 bits.

Such a processor adds U8 x S8 products in 32 bits, so full-range weights are exact and cost no time.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from simmim_export.precision.convolutions import quantizable, quantize_convolutions
from simmim_export.precision.int8_u8 import QuantizedPass
from simmim_export.precision.tokens import quantize_products
from simmim_export.precision.weights import products
from simmim_export.spec import Variant


class Int8ForDotProducts(QuantizedPass):
    """Requires an FP32 graph, and real feeds if the graph has convolutions, or products behind a LayerNormalization."""

    variant = Variant.INT8_DOT
    # The first opset in which DequantizeLinear has blocks.
    raises_opset_to = 21

    @classmethod
    def touched(cls, model: onnx.ModelProto) -> list[str]:
        return quantizable(model) + [str(node.name) for node in products(ir.from_proto(model).graph)]

    def call(self, model: onnx.ModelProto) -> onnx.ModelProto:
        keep_float, result = self.options.keep_float, model
        if convolutions := [name for name in quantizable(model) if name not in keep_float]:
            result = quantize_convolutions(model, self.feeds, names=convolutions)
        return quantize_products(result, self.record(model), half=127, keep_float=keep_float, watch=self.watch)
