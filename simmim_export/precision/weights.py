"""Weights of matrix products in INT8: which are worth it, their scales, and constants that several nodes share."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from simmim_export.precision.surgery import array_of, constant, is_float_constant, operator

# Below this size of K or N an integer kernel wins nothing, and few levels decide a logit.
LEAST_SIZE = 32


def products(graph: ir.Graph) -> list[ir.Node]:
    """The MatMuls with a constant float matrix that is worth quantizing."""
    return [node for node in graph if node.op_type == "MatMul" and is_large_matrix(node.inputs[1], LEAST_SIZE)]


def is_large_matrix(value: ir.Value | None, least: int) -> bool:
    """Whether ``value`` is a constant FP32 matrix with ``least`` rows and columns or more."""
    if value is None or value.const_value is None or not is_float_constant(value):
        return False
    shape = value.const_value.shape.numpy()
    return len(shape) == 2 and min(shape) >= least


def scales_of(weight: np.ndarray, half: int) -> np.ndarray:
    """The scales of a weight [K, N] with the levels -half ... half, by the largest magnitude of each column: float32 [N].

    A column of zeros has the scale 1. No scale is below float32's least normal number, so that none is rounded to zero.
    """
    largest = np.abs(weight).max(axis=0)
    least = np.finfo(np.float32).tiny
    scales: np.ndarray = np.where(largest > 0, np.maximum(largest / half, least), 1.0).astype(np.float32)
    return scales


def read_constant(
    graph: ir.Graph,
    node: ir.Node,
    index: int,
    *,
    levels: np.ndarray,
    scales: np.ndarray,
    axis: int,
    name: str = "weight",
) -> None:
    """Let ``node`` read ``levels``, integers of any width, times ``scales`` along ``axis`` as its input ``index``. The constants
    are called after the node and ``name``."""
    name = f"{node.name}.{name}"
    arrays = {"int8" if levels.dtype == np.int8 else "levels": levels, "scale": scales}
    arrays["zero"] = np.zeros(len(scales), levels.dtype)
    inputs = [constant(graph, f"{name}.{what}", array) for what, array in arrays.items()]
    dequantize = operator("DequantizeLinear", inputs, name, axis=axis)
    graph.insert_before(node, dequantize)
    node.replace_input_with(index, dequantize.outputs[0])


def unshare(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with an INT8 constant of its own for every reader. ONNX Runtime rewrites such constants for the kernel of each
    reader, and cannot open a graph in which two of them read one ("Attempt to replace the existing tensor", 1.32)."""
    edited = ir.from_proto(model)
    graph, count = edited.graph, 0
    for dequantize in list(graph):
        if dequantize.op_type != "DequantizeLinear" or dequantize.inputs[0].const_value is None:
            continue
        for usage in list(dequantize.outputs[0].uses())[1:]:
            suffix, count = f".{count}", count + 1
            inputs = [
                value
                if value is None or value.const_value is None
                else constant(graph, f"{value.name}{suffix}", array_of(value))
                for value in dequantize.inputs
            ]
            copy = ir.Node(
                "",
                dequantize.op_type,
                inputs,
                dequantize.attributes.values(),
                name=f"{dequantize.name}{suffix}",
                metadata_props=dict(dequantize.metadata_props),
            )
            copy.outputs[0].name = f"{dequantize.outputs[0].name}{suffix}"
            graph.insert_after(dequantize, copy)
            usage.node.replace_input_with(usage.idx, copy.outputs[0])
    return ir.to_proto(edited)
