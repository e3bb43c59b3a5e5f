"""The pass for the variant int8-s8-fp16, for TensorRT: the products of int8-s8 in INT8, and everything else in FP16.

TensorRT's networks are strongly typed, so what int8-s8 leaves in FP32 stays in FP32, and takes more kernels than FP16 does. On
the text encoder of the preset small, TensorRT for RTX builds 117 kernels of fp32, 68 of fp16, 135 of int8-s8, and 80 of this
variant, with all products still in INT8.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from simmim_export.precision.base import Feeds, Options
from simmim_export.precision.fp16 import Fp16
from simmim_export.precision.halve import halve
from simmim_export.precision.int8_s8 import Int8ForTensorRT
from simmim_export.precision.measure import Record
from simmim_export.spec import Variant
from simmim_export.system.watch import Watch, unwatched

# A scale below this would lose more than 0.3 % in FP16, whose smallest number is 6e-8.
LEAST_SCALE = 1e-5
_PAIR = ("QuantizeLinear", "DequantizeLinear")


class Int8WithFp16(Int8ForTensorRT):
    """Requires what :class:`Int8ForTensorRT` and :class:`Fp16` require, and ensures what they ensure: that TensorRT's rules find
    nothing new, and that no value exceeds FP16 on the feeds."""

    variant = Variant.INT8_S8_FP16

    def __init__(
        self, feeds: Feeds, options: Options = Options(), *, record: Record | None = None, watch: Watch = unwatched
    ) -> None:
        super().__init__(feeds, options, record=record, watch=watch)
        self._half = Fp16(feeds)

    def requires(self, model: onnx.ModelProto) -> None:
        super().requires(model)
        self._half.requires(model)

    def call(self, model: onnx.ModelProto) -> onnx.ModelProto:
        islands = self._half.find(model)
        quantized = super().call(model)
        return halve(quantized, islands.keys() | _with_small_scales(quantized))

    def ensures(self, before: onnx.ModelProto, after: onnx.ModelProto) -> None:
        super().ensures(before, after)
        self._half.ensure_values(after)


def _with_small_scales(model: onnx.ModelProto) -> set[str]:
    """The products with a scale that FP16 would distort, each with all pairs at its inputs: they stay in FP32 together, because a
    cast between a pair and its product would keep the product from INT8."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    names: set[str] = set()
    for node in model.graph.node:
        pairs = [makers[name] for name in node.input if name in makers and makers[name].op_type == _PAIR[1]]
        if any((numpy_helper.to_array(constants[pair.input[1]]) < np.float32(LEAST_SCALE)).any() for pair in pairs):
            before = [makers[pair.input[0]] for pair in pairs if pair.input[0] in makers]
            names |= {each.name for each in (node, *pairs, *before) if each is node or each.op_type in _PAIR}
    return names
