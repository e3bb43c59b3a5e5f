"""Weights of matrix products in INT8: which are worth it, and their levels. Knows ONNX graphs; must not know activations."""

from __future__ import annotations

import numpy as np
import onnx

# Below this size of K or N an integer kernel wins nothing, and few levels decide a logit.
LEAST = 32
# Symmetric, so -128 is never used.
LEVELS = 127


def quantize_columns(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 [K, N] to int8 [K, N] in [-127, 127] and float32 scales [N], symmetric, by rounding to nearest.

    A column of zeros has the scale 1; no scale is below float32's least normal number, so that none is rounded to zero.
    """
    largest = np.abs(weight).max(axis=0)
    least = np.finfo(np.float32).tiny
    scales = np.where(largest > 0, np.maximum(largest / LEVELS, least), 1.0).astype(np.float32)
    return np.clip(np.rint(weight / scales), -LEVELS, LEVELS).astype(np.int8), scales


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
