"""Weights of matrix products in INT8: which are worth it, and their scales. Knows ONNX graphs; must not know activations."""

from __future__ import annotations

import numpy as np
import onnx

# Below this size of K or N an integer kernel wins nothing, and few levels decide a logit.
LEAST = 32


def scales_of(weight: np.ndarray, half: int) -> np.ndarray:
    """float32 [N] for a weight [K, N] of levels -half ... half, symmetric, by the largest of each column.

    A column of zeros has the scale 1; no scale is below float32's least normal number, so that none is rounded to zero.
    """
    largest = np.abs(weight).max(axis=0)
    least = np.finfo(np.float32).tiny
    return np.where(largest > 0, np.maximum(largest / half, least), 1.0).astype(np.float32)


def unshare(model: onnx.ModelProto) -> None:
    """Give every reader of an INT8 constant a copy of its own, in place. ONNX Runtime rewrites such constants for the kernel of
    each reader, and cannot open a graph in which two of them read one ("Attempt to replace the existing tensor", 1.32)."""
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    whole = {n.output[0]: n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants}
    taken = set[str]()
    copies: list[onnx.NodeProto] = []
    for reader in graph.node:
        for place, name in enumerate(reader.input):
            if name not in whole:
                continue
            if name not in taken:
                taken.add(name)
                continue
            copy = onnx.NodeProto()
            copy.CopyFrom(whole[name])
            own = f".{len(copies)}"
            for index, constant in enumerate(copy.input):
                if constant in constants:
                    tensor = graph.initializer.add()
                    tensor.CopyFrom(constants[constant])
                    tensor.name = copy.input[index] = constant + own
            copy.name, copy.output[0] = copy.name + own, name + own
            reader.input[place] = copy.output[0]
            copies.append(copy)
    for copy in reversed(copies):
        graph.node.insert(0, copy)


def products(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The MatMuls with a constant float matrix that is worth quantising."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        weight = constants.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is None or weight.data_type != onnx.TensorProto.FLOAT or len(weight.dims) != 2:
            continue
        if min(weight.dims) >= LEAST:
            found.append(node)
    return found
