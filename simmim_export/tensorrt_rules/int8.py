"""TensorRT's rules for INT8: what a Q/DQ pair must be, and where NVIDIA's own quantizer puts one.

Q is QuantizeLinear, DQ is DequantizeLinear. TensorRT refuses a wrong pair. A pair in a wrong place costs a conversion to INT8 and
back, and keeps TensorRT from fusing the nodes around it. Covered are opsets, types, zero points, scales, the shape of a pair, its
place, and products and convolutions that are too small to gain. Not covered: INT4, FP4 and FP8, which have rules of their own.

Some rules are advice: the parser and the builder of TensorRT for RTX 1.7 take a graph that breaks them, and give its products
INT8 kernels all the same.

Sources, short in the rules: "types" is the page "Working with Quantized Types", "explicit" the page "Explicit Quantization" and
"placement" the section "Q/DQ Layer-Placement Recommendations" of NVIDIA's TensorRT documentation; "modelopt" is graph_utils.py of
NVIDIA's TensorRT Model Optimizer (modelopt.onnx.quantization); "operators.md" is docs/operators.md of onnx-tensorrt.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto

from simmim_export.tensorrt_rules.graph import Graph, Problems, Rules, attribute, label

INT8_RULES = Rules()

COMPUTING = ("Conv", "Gemm", "MatMul")
# Formats with rules of their own: weights by blocks in 4 bits, FP8.
OTHER_FORMATS = (TensorProto.INT4, TensorProto.FLOAT4E2M1, TensorProto.FLOAT8E4M3FN)
LEAST_SIZE = 16
LEAST_CHANNELS = 16


def quantized_tensors(graph: Graph) -> set[str]:
    """The names of all tensors that a Q makes or a DQ reads, and of their zero points."""
    pairs = [node for node in graph.nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    names = {name for node in pairs for name in node.input[2:]}
    names |= {node.output[0] for node in pairs if node.op_type == "QuantizeLinear"}
    return names | {node.input[0] for node in pairs if node.op_type == "DequantizeLinear"}


def _format(graph: Graph, node: onnx.NodeProto) -> int:
    """The type that a Q quantizes to or a DQ reads."""
    if len(node.input) > 2 and node.input[2]:
        return graph.dtype(node.input[2])
    if node.op_type == "DequantizeLinear":
        return graph.dtype(node.input[0])
    # ONNX's own default.
    return attribute(node, "output_dtype", 0) or TensorProto.UINT8


def _nodes(graph: Graph, *kinds: str) -> Iterator[onnx.NodeProto]:
    """Every Q and DQ, or those of ``kinds``, except for formats with rules of their own."""
    for node in graph.nodes:
        if (
            node.op_type in (kinds or ("QuantizeLinear", "DequantizeLinear"))
            and _format(graph, node) not in OTHER_FORMATS
        ):
            yield node


def _dequantize(graph: Graph, name: str) -> onnx.NodeProto | None:
    """The DQ that makes the tensor ``name``, or None."""
    node = graph.producer.get(name)
    judged = node is not None and node.op_type == "DequantizeLinear" and _format(graph, node) not in OTHER_FORMATS
    return node if judged else None


def _origin(graph: Graph, node: onnx.NodeProto) -> str:
    """The tensor that a pair quantizes, from its Q or its DQ; the INT8 constant itself for a weight stored in INT8."""
    before = graph.producer.get(node.input[0])
    return before.input[0] if before is not None and before.op_type == "QuantizeLinear" else node.input[0]


def _readers(graph: Graph, node: onnx.NodeProto) -> list[tuple[onnx.NodeProto, int]]:
    """The nodes that compute with a pair, and at which input, from its Q or its DQ."""
    readers = graph.readers.get(node.output[0], [])
    if node.op_type == "DequantizeLinear":
        return readers
    return [reader for dq, _ in readers for reader in graph.readers.get(dq.output[0], [])]


def _by_channel(graph: Graph, node: onnx.NodeProto) -> bool:
    # A vector of one scale is a scale for all.
    return any(size != 1 for size in graph.shape(node.input[1]) or [])


def _is_bias(graph: Graph, dq: onnx.NodeProto, reader: onnx.NodeProto, position: int) -> bool:
    # torch exports the bias of a Linear on more than two axes as an Add of its own.
    if reader.op_type == "Add":
        return _origin(graph, dq) in graph.constants
    return reader.op_type in ("Conv", "Gemm") and position == 2


def _quantized_inputs(graph: Graph, node: onnx.NodeProto) -> int:
    """How many of the two operands of a computing node, or of an Add, come from a DQ."""
    return sum(_dequantize(graph, name) is not None for name in node.input[:2])


@INT8_RULES.add
def scale_opset(graph: Graph) -> Problems:
    """Scales by channel need opset 13, and scales in fp16 need opset 19.

    Source: explicit, "ONNX Support"; ONNX itself: QuantizeLinear 13 and 19.
    """
    for node in _nodes(graph):
        if graph.opset < 13 and _by_channel(graph, node):
            yield node, f"has scales by channel at opset {graph.opset}"
        if graph.opset < 19 and graph.dtype(node.input[1]) == TensorProto.FLOAT16:
            yield node, f"has a scale in fp16 at opset {graph.opset}"


@INT8_RULES.add
def zero_point(graph: Graph) -> Problems:
    """A quantized type is INT8, and its zero point a constant 0.

    Source: types (symmetric quantization to signed INT8); operators.md, rows QuantizeLinear and DequantizeLinear.
    """
    for node in _nodes(graph):
        readers = _readers(graph, node)
        if readers and all(_is_bias(graph, node, *reader) for reader in readers):
            continue  # the rule bias reports a bias in INT32
        kind = _format(graph, node)
        if kind != TensorProto.INT8:
            yield node, f"quantizes to {TensorProto.DataType.Name(kind)}"
        elif len(node.input) > 2 and node.input[2]:
            zero = graph.value(node.input[2])
            if zero is None:
                yield node, f"takes its zero point from {node.input[2]}, which is computed"
            elif zero.any():
                yield node, f"has the zero point {zero[zero != 0].flat[0]}"


@INT8_RULES.add
def scale(graph: Graph) -> Problems:
    """A scale is constant, finite and positive.

    Source: operators.md, rows QuantizeLinear and DequantizeLinear.
    """
    for node in _nodes(graph):
        scales = graph.value(node.input[1])
        if scales is None:
            yield node, f"takes its scale from {node.input[1]}, which is computed"
        elif not ((scales > 0) & np.isfinite(scales)).all():
            yield node, f"has the scale {scales[~((scales > 0) & np.isfinite(scales))].flat[0]:.6g}"


@INT8_RULES.advise
def int8_blocks(graph: Graph) -> Problems:
    """INT8 has no blocks: TensorRT takes scales by block for FP4 and INT4 weights only.

    Source: types, granularity of scales.
    """
    for node in _nodes(graph):
        if size := attribute(node, "block_size", 0):
            yield node, f"has one scale for {size} values of an axis"


@INT8_RULES.add
def per_channel(graph: Graph) -> Problems:
    """Scales by channel are for weights, on the axis of the output channels.

    Source: types, granularity of scales.
    """
    for node in _nodes(graph):
        if not _by_channel(graph, node) or attribute(node, "block_size", 0):
            continue
        weight = graph.shape(_origin(graph, node)) if _origin(graph, node) in graph.constants else None
        if not weight:
            yield node, "has scales by channel for an activation"
            continue
        axis = attribute(node, "axis", 1) % len(weight)
        for reader, position in _readers(graph, node):
            wanted = _channel_axis(reader, position, len(weight))
            if wanted is not None and wanted != axis:
                where = f"on axis {axis} of the weight of {label(reader)}"
                yield node, f"has scales {where}; its output channels are axis {wanted}"


def _channel_axis(node: onnx.NodeProto, position: int, rank: int) -> int | None:
    """The axis of a weight, read at ``position``, that becomes an axis of the output; None if the rule does not apply."""
    if node.op_type == "Conv":
        return 0 if position == 1 else None
    if node.op_type == "Gemm":
        return {0: attribute(node, "transA", 0), 1: 1 - attribute(node, "transB", 0)}.get(position)
    return max(rank - 2 + position, 0) if node.op_type == "MatMul" else None


@INT8_RULES.advise
def pair(graph: Graph) -> Problems:
    """A Q is read by DQs only, and a DQ reads the output of a Q or a constant.

    Source: explicit, quantized weights.
    """
    for node in _nodes(graph, "QuantizeLinear"):
        readers = [reader.op_type for reader, _ in graph.readers.get(node.output[0], [])]
        other = next((kind for kind in readers if kind != "DequantizeLinear"), None)
        if node.output[0] in graph.outputs or not readers:
            yield node, "is a Q with no DQ after it"
        elif other is not None:
            yield node, f"is a Q read by {other}"
    for node in _nodes(graph, "DequantizeLinear"):
        before = graph.producer.get(node.input[0])
        if node.input[0] not in graph.constants and (before is None or before.op_type != "QuantizeLinear"):
            yield node, "is a DQ of an activation with no Q before it"


@INT8_RULES.add
def placement(graph: Graph) -> Problems:
    """A DQ feeds a Conv, Gemm or MatMul, or the shortcut of a residual Add, and nothing else.

    Source: the places where modelopt puts pairs by default.
    """
    for node in _nodes(graph, "DequantizeLinear"):
        for reader, _ in graph.readers.get(node.output[0], []):
            if reader.op_type not in (*COMPUTING, "Add"):
                yield reader, f"is a {reader.op_type} that reads the DQ {label(node)}"


@INT8_RULES.advise
def quantized_output(graph: Graph) -> Problems:
    """A graph output does not come from a pair: dequantized tensors are computed with.

    Source: placement (by default, outputs of weighted operations are not quantized).
    """
    for node in _nodes(graph, "DequantizeLinear"):
        if node.output[0] in graph.outputs:
            yield node, f"is a DQ that makes the output {node.output[0]}"
        elif node.output[0] not in graph.readers:
            yield node, "is a DQ that nothing reads"


@INT8_RULES.add
def bias(graph: Graph) -> Problems:
    """A bias is not quantized.

    Source: the places where modelopt puts pairs by default.
    """
    for node in _nodes(graph, "DequantizeLinear"):
        for reader, position in graph.readers.get(node.output[0], []):
            if _is_bias(graph, node, reader, position):
                yield reader, f"has its bias from the DQ {label(node)}"


@INT8_RULES.advise
def residual(graph: Graph) -> Problems:
    """Only the shortcut of a residual Add is quantized, and a Conv computes the other input.

    Source: placement (the residual input in skip connections); modelopt, build_non_residual_input_map.
    """
    # The Conv, a BatchNormalization after it, the Add and a Relu become one kernel, which takes the shortcut in INT8. A pair on
    # the branch of the Conv would cut that kernel in two; without a Conv there is no such kernel.
    for node in graph.nodes:
        if node.op_type != "Add":
            continue
        dequantized = [dq for name in node.input if (dq := _dequantize(graph, name)) is not None]
        if any(_origin(graph, dq) in graph.constants for dq in dequantized):
            continue  # the rule bias reports it
        if len(dequantized) == 2:
            yield node, "has both inputs quantized"
        elif dequantized:
            branch = next(graph.producer.get(name) for name in node.input if _dequantize(graph, name) is None)
            if branch is not None and branch.op_type == "BatchNormalization":
                branch = graph.producer.get(branch.input[0])
            if branch is None or branch.op_type != "Conv":
                yield node, "has a quantized input, and no Conv computes the other"


@INT8_RULES.add
def both_inputs(graph: Graph) -> Problems:
    """A Conv, Gemm or MatMul has both operands quantized, or neither.

    Source: placement (all inputs of weighted operations are quantized).
    """
    for node in graph.nodes:
        if node.op_type in COMPUTING and _quantized_inputs(graph, node) == 1:
            yield node, f"is a {node.op_type} with one operand in INT8 and one in float"


@INT8_RULES.advise
def small_product(graph: Graph) -> Problems:
    """A quantized MatMul or Gemm has M and N above 1, and K and N of 16 or more, if they are known.

    Source: modelopt, find_nodes_from_matmul_to_exclude for M and N above 1. 16 is the depth of an INT8 product on Tensor Cores.
    """
    for node in graph.nodes:
        if node.op_type in ("Gemm", "MatMul") and _quantized_inputs(graph, node):
            m, k, n = _product(graph, node)
            if m == 1 or any(size is not None and size < LEAST_SIZE for size in (k, n)):
                sizes = ", ".join(
                    f"{name} = {'dynamic' if s is None else s}" for name, s in zip("MKN", (m, k, n), strict=True)
                )
                yield node, f"is a {node.op_type} of {sizes}"


def _product(graph: Graph, node: onnx.NodeProto) -> tuple[int | None, int | None, int | None]:
    """M, K and N of [M, K] x [K, N], None if one is not known. Leading axes are a batch; a vector counts as M or N = 1."""
    left, right = (graph.shape(name) for name in node.input[:2])
    left = [None, None] if left is None else [1, *left][-2:]
    right = [None, None] if right is None else [*right, 1][:2] if len(right) == 1 else right[-2:]
    if attribute(node, "transA", 0):
        left.reverse()
    if attribute(node, "transB", 0):
        right.reverse()
    return left[0], left[1] if left[1] is not None else right[0], right[1]


@INT8_RULES.advise
def few_channels(graph: Graph) -> Problems:
    """A quantized Conv has 16 input channels or more, unless it is the first.

    Source: modelopt, find_nodes_from_convs_to_exclude, which lets a few more configurations through.
    """
    # The first is a Conv that no other Conv comes before: each of two towers in one graph has its own.
    after: set[str] = set()
    for node in graph.nodes:
        if node.op_type == "Conv" and node.input[0] in after and _quantized_inputs(graph, node):
            weight = graph.shape(node.input[1])
            channels = None if weight is None or weight[1] is None else weight[1] * attribute(node, "group", 1)
            if channels is not None and channels < LEAST_CHANNELS:
                yield node, f"is a Conv of {channels} input channels"
        if node.op_type == "Conv" or not after.isdisjoint(node.input):
            after.update(node.output)
