"""Counts the operations of a graph's products, and the bytes of its weights, inputs and outputs.

Shapes come from ONNX's shape inference with every axis at a given size. Nothing is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx
import onnx_ir as ir
from onnxscript.optimizer import fold_constants

from simmim_export.errors import DataError, UsageError
from simmim_export.spec import SHARED_BATCH
from simmim_export.tensorrt_rules.graph import ONNX_DOMAINS

# Products, by the positions of the left factor and of the weights among a node's inputs.
_PRODUCTS: Mapping[str, tuple[int, int]] = {
    "MatMul": (0, 1),
    "MatMulInteger": (0, 1),
    "QLinearMatMul": (0, 3),
    "Gemm": (0, 1),
    "Conv": (0, 1),
    "ConvInteger": (0, 1),
    "QLinearConv": (0, 3),
}
# Operators that multiply in a way that is not counted here. Our exporter writes none of them.
_UNCOUNTED = frozenset({"ConvTranspose", "Einsum", "GRU", "If", "LSTM", "Loop", "RNN", "Scan"})
_FIX = "report this"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one run of a graph costs at least.

    ``flops`` counts two operations, a multiplication and an addition, for each pair that a product multiplies. ``weights`` are
    the bytes of all constants that the run reads: all of a matrix, and of a table only the rows that it looks up. ``values`` are
    the bytes of the graph's inputs and outputs. What passes between nodes is not counted, because it can stay in a cache.
    """

    flops: int
    weights: int
    values: int


def count(path: Path, sizes: Mapping[str, int]) -> Cost:
    """The cost of one run of the ONNX graph at ``path`` with its dynamic axes at ``sizes`` (by name).

    Raise :class:`UsageError` for an axis without a size, and :class:`DataError` for a graph with operators whose products are
    not counted, or whose shapes cannot be inferred.
    """
    model = onnx.load(path)
    _fix_sizes(model, sizes, path=path)
    # Shapes that were stored for symbolic sizes would hide those for these sizes.
    del model.graph.value_info[:]
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    graph = ir.from_proto(model)
    # Inference alone does not follow shapes that are computed in the graph. Once their nodes are constants, it does.
    fold_constants(graph, onnx_shape_inference=True)
    flops = 0
    rows: dict[str, int] = {}
    for node in graph.graph:
        if node.domain not in ONNX_DOMAINS or node.op_type in _UNCOUNTED:
            raise DataError(
                f"node {node.name!r} ({node.op_type}) has products that are not counted", where=path, fix=_FIX
            )
        if node.op_type in _PRODUCTS:
            flops += _product(node, path)
        elif node.op_type == "Attention":
            flops += _attention(node, path)
        elif node.op_type == "Gather" and not node.attributes.get_int("axis", 0):
            table, indices = node.inputs
            if table is not None and table.name in constants:
                rows[table.name] = rows.get(table.name, 0) + prod(_shape(indices, path))
    weights = sum(_bytes(tensor, rows.get(name)) for name, tensor in constants.items())
    return Cost(
        flops=flops, weights=weights, values=sum(_size(v, path) for v in (*graph.graph.inputs, *graph.graph.outputs))
    )


def _fix_sizes(model: onnx.ModelProto, sizes: Mapping[str, int], *, path: Path) -> None:
    """Give every named axis of the inputs its size, and drop the shapes of the outputs, which are inferred anew. A shared input
    has a single row: the least that the graph can read."""
    sizes = {SHARED_BATCH: 1, **sizes}
    for value in model.graph.input:
        for dimension in value.type.tensor_type.shape.dim:
            if name := dimension.dim_param:
                if name not in sizes:
                    raise UsageError(
                        f"no size for the axis {name!r} of {value.name}", where=path, fix=f"give a size of {name}"
                    )
                dimension.ClearField("dim_param")
                dimension.dim_value = sizes[name]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")


def _product(node: ir.Node, path: Path) -> int:
    """Two operations for each element of the output and each element that its sum runs over."""
    left, weights = (_shape(node.inputs[position], path) for position in _PRODUCTS[node.op_type])
    if "Conv" in node.op_type:
        summed = prod(weights[1:])  # input channels of a group x kernel
    elif node.op_type == "Gemm" and node.attributes.get_int("transA", 0):
        summed = left[0]
    else:
        summed = left[-1]
    return 2 * prod(_shape(node.outputs[0], path)) * summed


def _attention(node: ir.Node, path: Path) -> int:
    """The products of queries with keys, and of their softmax with values. In both, heads and channels may be one axis or two."""
    queries, keys, output = (_shape(value, path) for value in (*node.inputs[:2], node.outputs[0]))
    return 2 * (prod(queries) + prod(output)) * keys[-2]


def _shape(value: ir.Value | None, path: Path) -> list[int]:
    """The sizes of ``value``; raise :class:`DataError` if one of them is not known."""
    sizes = [] if value is None or value.shape is None else [size for size in value.shape if isinstance(size, int)]
    if value is None or value.shape is None or len(sizes) != len(value.shape):
        name = "a missing input" if value is None else repr(value.name)
        raise DataError(f"the shape of {name} cannot be inferred", where=path, fix=_FIX)
    return sizes


def _size(value: ir.Value, path: Path) -> int:
    """The bytes of ``value``."""
    if value.dtype is None:
        raise DataError(f"the type of {value.name!r} cannot be inferred", where=path, fix=_FIX)
    return round(prod(_shape(value, path)) * value.dtype.itemsize)


def _bytes(tensor: onnx.TensorProto, rows: int | None) -> int:
    """The bytes of a constant, or of so many of its ``rows``, but at most of all."""
    whole = round(prod(tensor.dims) * ir.DataType(tensor.data_type).itemsize)
    return whole if rows is None or not tensor.dims[0] else min(whole, whole // tensor.dims[0] * rows)
