"""Convolutions to INT8 with ranges measured on real images. Knows onnxruntime's quantiser; must not know bundles.

Activations are U8 and asymmetric, weights S8 and per channel: what CPU kernels take. Only convolutions are quantised: with
Add, Relu and MaxPool as well ONNX Runtime was slower (7.5 ms instead of 6.7 for ResNet-18) and OpenVINO hardly faster.

A kernel that adds up U8 x S8 also rounds its result to 8 bits, by one range for the whole image. The next convolution reads
no more than that anyway; what follows the last one does. Preset small projects its trunk to tokens there (0.5 % of all
products): the range was set by a few tokens at 100, a layer norm then divided the others by 1.5, and their cosine to FP32 was
0.9916 by that rounding alone (weights and inputs: 0.99998). So the last convolutions stay float.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx

from simmim_export.precision.quantizer import Feeds, quantize
from simmim_export.precision.weights import unshare
from simmim_export.system.telemetry import without_telemetry


def quantisable(model: onnx.ModelProto) -> list[str]:
    """The names of the convolutions after which another follows."""
    # Tensors from which a later convolution is reached, collected from the end.
    read: set[str] = set()
    found = []
    for node in reversed(model.graph.node):
        reaches = not read.isdisjoint(node.output)
        if node.op_type == "Conv" and reaches:
            found.append(node.name)
        if node.op_type == "Conv" or reaches:
            read.update(node.input)
    return found[::-1]


def quantize_convolutions(
    source: Path,
    target: Path,
    feeds: Feeds,
    names: Sequence[str],
    reduce_range: bool = False,
) -> None:
    """Write the graph ``source`` to ``target`` with its convolutions ``names``, one or more of the :func:`quantisable`, in INT8.

    ``feeds``: inputs of the graph; the range of an activation is the least and the greatest over all of them.
    ``reduce_range`` keeps weights within 7 bits, for processors whose INT8 products are added up in saturating 16-bit sums
    (AVX2 and AVX-512 without VNNI).
    """
    with without_telemetry("onnxruntime"):
        from onnxruntime.quantization import QuantFormat, QuantType

    quantize(
        source,
        target,
        feeds,
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        nodes_to_quantize=list(names),
        per_channel=True,
        reduce_range=reduce_range,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    model = onnx.load(target)
    unshare(model)
    onnx.save(model, target)
