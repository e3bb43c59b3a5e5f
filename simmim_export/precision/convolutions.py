"""Convolutions to INT8 for CPUs, with ranges measured on real images.

Activations are U8 and asymmetric, weights S8 and per channel: this is what CPU kernels take. From the bytes of the image to the
last convolution, no tensor is float:

- The first convolution reads the bytes themselves (:mod:`simmim_export.precision.pixels`). If it cuts the image into patches, as
  in a Vision Transformer, it becomes a matrix product of bytes (:mod:`simmim_export.precision.patches`).
- The result of a convolution is rounded once, after its Relu. The range begins at zero, so rounding also does the work of the
  Relu, which is removed.
- An Add of two INT8 tensors and a MaxPool of one give INT8.
- A kernel that convolves U8 with S8 also rounds its result to 8 bits, with one range for the whole image. After the last
  convolution a few tokens would set that range, so it becomes a matrix product (:mod:`simmim_export.precision.projection`),
  whose kernel gives float.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from simmim_export.errors import DataError
from simmim_export.precision.base import Feeds
from simmim_export.precision.patches import is_patchwork, patches_to_product
from simmim_export.precision.pixels import read_bytes
from simmim_export.precision.projection import is_projection, to_product
from simmim_export.precision.ranges import Levels, measure, pair_of
from simmim_export.precision.rounding import nearest
from simmim_export.precision.surgery import array_of, constant, input_of, is_float_constant, redirect
from simmim_export.precision.weights import read_constant, scales_of

# The largest magnitude of a bias in INT32. The kernels add the sum of the products to it.
MOST_BIAS = 2**30


def quantizable(model: onnx.ModelProto) -> list[str]:
    """The names of the convolutions that another convolution follows, directly or not, and of those of pixels or channels to
    tokens."""
    # Tensors that lead to a later convolution, collected from the end of the graph.
    leading: set[ir.Value | None] = set()
    names = []
    for node in reversed(ir.from_proto(model).graph):
        leads = not leading.isdisjoint(node.outputs)
        convolves = node.op_type == "Conv" and is_float_constant(node.inputs[1])
        if convolves and (leads or is_projection(node) or is_patchwork(node)):
            names.append(str(node.name))
        if node.op_type == "Conv" or leads:
            leading.update(node.inputs)
    return names[::-1]


def quantize_convolutions(
    model: onnx.ModelProto, feeds: Feeds, *, names: Sequence[str], reduce_range: bool = False
) -> onnx.ModelProto:
    """``model`` with its convolutions ``names``, one or more of :func:`quantizable`, in INT8.

    Ranges of activations are measured on ``feeds``; see :mod:`simmim_export.precision.ranges`. ``reduce_range`` keeps weights
    within 7 bits, for processors that add up INT8 products in saturating 16-bit sums (AVX2 and AVX-512 without VNNI). Raise
    :class:`DataError` without feeds.
    """
    if not feeds:
        raise DataError("no images to measure ranges on", fix="give 8 or more real ones")
    edited = ir.from_proto(model)
    graph = edited.graph
    chosen = [node for node in graph if node.name in set(names)]
    patchworks = [node for node in chosen if is_patchwork(node)]
    projections = [node for node in chosen if is_projection(node) and node not in patchworks]
    convolutions = [node for node in chosen if node not in patchworks and node not in projections]
    products = [patches_to_product(graph, node) for node in patchworks]
    products += [to_product(graph, node) for node in projections]
    for node in convolutions:
        read_bytes(graph, node)
    rounded = _rounded(graph, convolutions, products=products)
    reads = {node: input_of(node, 0) for node in (*convolutions, *products)}
    names_of = [str(value.name) for value in (*rounded.values(), *reads.values())]
    measured = measure(ir.to_proto(edited), feeds, names_of)
    for value, source in rounded.items():
        _round(graph, value, measured[str(source.name)].levels)
    half = 63 if reduce_range else 127
    for node, value in reads.items():
        lower = _multiply if node.op_type == "MatMul" else _convolve
        lower(graph, node, half=half, means=measured[str(value.name)].means)
    RemoveUnusedNodesPass()(edited)
    return ir.to_proto(edited)


def _settled(value: ir.Value) -> ir.Value:
    """What the Relu makes of ``value``, if only a Relu reads it; else ``value``."""
    uses = list(value.uses())
    relu = uses[0].node if len(uses) == 1 and not value.is_graph_output() else None
    return relu.outputs[0] if relu is not None and relu.op_type == "Relu" else value


def _source(value: ir.Value) -> ir.Node | None:
    """The node that makes ``value``; if that is a Relu with no other reader of its input, the node before the Relu."""
    node = value.producer()
    if node is not None and node.op_type == "Relu" and node.inputs[0] is not None and _settled(node.inputs[0]) is value:
        return node.inputs[0].producer()
    return node


def _rounded(
    graph: ir.Graph, convolutions: Collection[ir.Node], *, products: Collection[ir.Node]
) -> dict[ir.Value, ir.Value]:
    """The tensors to round to INT8, each with the tensor whose range it takes: the results of ``convolutions``, what they and
    ``products`` read, and what an Add or a MaxPool makes of rounded tensors."""
    # Rounded before it is moved, so that INT8 is moved.
    read = {_unmoved(node.inputs[0]) for node in (*convolutions, *products)}
    rounded: dict[ir.Value, ir.Value] = {}
    for value in (*graph.inputs, *(node.outputs[0] for node in graph)):
        source = _source(value)
        if _settled(value) is not value or (source is not None and source.op_type == "DequantizeLinear"):
            continue
        if source is not None and source.op_type == "MaxPool" and source.inputs[0] in rounded:
            rounded[value] = rounded[source.inputs[0]]
        elif value in read or source in convolutions:
            rounded[value] = value
    return rounded


def _unmoved(value: ir.Value | None) -> ir.Value | None:
    """The tensor that ``value`` is a reshaped or transposed copy of, or ``value`` itself."""
    while value is not None and (node := value.producer()) is not None and node.op_type in ("Reshape", "Transpose"):
        value = node.inputs[0]
    return value


def _round(graph: ir.Graph, value: ir.Value, levels: Levels) -> None:
    """Let all readers of ``value`` read it rounded to ``levels``. Remove the Relu that makes it if rounding does its work."""
    readers = [usage.node for usage in value.uses()]
    node = value.producer()
    quantize, dequantize = pair_of(graph, value, levels)
    redirect(value, readers, dequantize.outputs[0])
    if node is None:
        graph.insert_before(graph[0], [quantize, dequantize])
        return
    graph.insert_after(node, [quantize, dequantize])
    if node.op_type == "Relu" and levels.zero == 0 and not value.is_graph_output():
        quantize.replace_input_with(0, node.inputs[0])
        graph.remove(node, safe=True)


def _convolve(graph: ir.Graph, node: ir.Node, *, half: int, means: np.ndarray) -> None:
    """Round weight and bias of the convolution ``node``, whose input is rounded and has the ``means`` [C] of channels."""
    weight = array_of(input_of(node, 1))
    rows = weight.reshape(len(weight), -1).T  # C/groups * kernel, out
    scales = scales_of(rows, half)
    bias = _bias(node)
    step = np.float64(_step(node))
    # A channel of almost no weights must not need a bias of more than 32 bits, nor a scale that float32 rounds to zero.
    least = np.maximum(np.abs(bias) / MOST_BIAS, np.finfo(np.float32).tiny) / step
    scales = np.maximum(scales, least.astype(np.float32))
    levels = nearest(rows, scales, half=half)
    # What rounding the weights adds to the mean of each output, the bias takes away (Nagel et al., 2019, section 4.2).
    lost = ((rows - levels * scales.astype(np.float64)).T.reshape(weight.shape)).sum(axis=(2, 3))
    groups = node.attributes.get_int("group", 1)
    by_group = np.repeat(means.reshape(groups, -1), len(weight) // groups, axis=0)
    bias += (lost * by_group).sum(axis=1)
    steps = (step * scales).astype(np.float32)
    node.resize_inputs(3)
    read_constant(graph, node, 1, levels=levels.T.reshape(weight.shape), scales=scales, axis=0)
    read_constant(graph, node, 2, levels=np.rint(bias / steps).astype(np.int32), scales=steps, axis=0, name="bias")


def _multiply(graph: ir.Graph, node: ir.Node, *, half: int, means: np.ndarray) -> None:
    """Round the matrix of the product ``node``, whose input is rounded and has the ``means`` [K] of channels."""
    matrix = array_of(input_of(node, 1))
    scales = scales_of(matrix, half)
    levels = nearest(matrix, scales, half=half)
    read_constant(graph, node, 1, levels=levels, scales=scales, axis=1)
    add = next(iter(node.outputs[0].uses())).node
    lost = means @ (matrix - levels * scales.astype(np.float64))
    bias = (array_of(input_of(add, 1)) + lost).astype(np.float32)
    add.replace_input_with(1, constant(graph, f"{node.name}.bias.corrected", bias))


def _bias(node: ir.Node) -> np.ndarray:
    """The bias of a convolution as float64 [out], zeros if it has none."""
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return array_of(node.inputs[2]).astype(np.float64)
    return np.zeros(len(array_of(input_of(node, 1))))


def _step(node: ir.Node) -> np.ndarray:
    """The scale of the levels that a convolution reads."""
    source = _unmoved(node.inputs[0])
    dequantize = None if source is None else source.producer()
    assert dequantize is not None and dequantize.op_type == "DequantizeLinear", node.name
    return array_of(input_of(dequantize, 1))
