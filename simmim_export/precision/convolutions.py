"""Convolutions to INT8 for CPUs, with ranges measured on real images.

Activations are U8 and asymmetric, weights S8 and per channel: this is what CPU kernels take. Only convolutions are quantized.
With Add, Relu and MaxPool as well, ONNX Runtime was slower (7.5 ms instead of 6.7 for ResNet-18) and OpenVINO hardly faster.

A kernel that adds up U8 x S8 also rounds its result to 8 bits, with one range for the whole image. That costs nothing if the
next node is a convolution, which reads 8 bits anyway; it does cost something behind the last one. In preset small that
convolution projects the trunk to tokens (0.5 % of all products). A few tokens at 100 set the range, a layer norm then divided
the others by 1.5, and this rounding alone brought their cosine to FP32 down to 0.9916 (weights and inputs: 0.99998). So the last
convolutions stay float.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from simmim_export.precision.base import Feeds
from simmim_export.precision.quantizer import quantize_static
from simmim_export.precision.weights import unshare
from simmim_export.system.telemetry import without_telemetry


def quantizable(model: onnx.ModelProto) -> list[str]:
    """The names of the convolutions that another convolution follows, directly or not."""
    # Tensors that lead to a later convolution, collected from the end of the graph.
    leading: set[str] = set()
    names = []
    for node in reversed(model.graph.node):
        leads = not leading.isdisjoint(node.output)
        if node.op_type == "Conv" and leads:
            names.append(node.name)
        if node.op_type == "Conv" or leads:
            leading.update(node.input)
    return names[::-1]


def quantize_convolutions(
    model: onnx.ModelProto, feeds: Feeds, *, names: Sequence[str], reduce_range: bool = False
) -> onnx.ModelProto:
    """``model`` with its convolutions ``names``, one or more of :func:`quantizable`, in INT8.

    The range of an activation is its smallest and its largest value over all ``feeds``. ``reduce_range`` keeps weights within
    7 bits, for processors that add up INT8 products in saturating 16-bit sums (AVX2 and AVX-512 without VNNI).
    """
    with without_telemetry("onnxruntime"):
        from onnxruntime.quantization import QuantFormat, QuantType

    quantized = quantize_static(
        model,
        feeds,
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        nodes_to_quantize=list(names),
        per_channel=True,
        reduce_range=reduce_range,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return unshare(quantized)
