"""Convolutions to INT8 with ranges measured on real images. Knows onnxruntime's quantiser; must not know bundles.

Activations are U8 and asymmetric, weights S8 and per channel: what CPU kernels take. Only convolutions are quantised: with
Add, Relu and MaxPool as well ONNX Runtime was slower (7.5 ms instead of 6.7 for ResNet-18) and OpenVINO hardly faster.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import onnx

from simmim_export.precision.quantizer import Feeds, quantize
from simmim_export.precision.weights import unshare


def quantize_convolutions(
    source: Path,
    target: Path,
    feeds: Feeds,
    keep_float: Collection[str] = (),
    reduce_range: bool = False,
) -> list[str]:
    """Write the quantised form of the graph ``source`` to ``target`` and return the names of the quantised convolutions.

    ``feeds``: inputs of the graph; the range of an activation is the least and the greatest over all of them. Nodes named
    in ``keep_float`` stay as they are. ``reduce_range`` keeps weights within 7 bits, for processors whose INT8 products
    are added up in saturating 16-bit sums (AVX2 and AVX-512 without VNNI).
    """
    from onnxruntime.quantization import QuantFormat, QuantType

    quantize(
        source,
        target,
        feeds,
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        nodes_to_exclude=list(keep_float),
        per_channel=True,
        reduce_range=reduce_range,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    model = onnx.load(target)
    unshare(model)
    onnx.save(model, target)
    return [n.name for n in model.graph.node if n.op_type == "Conv" and n.name not in keep_float]
