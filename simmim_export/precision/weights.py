"""Weights of matrix products to INT8, by blocks. Knows ONNX graphs; must not know engines or samples.

A weight [K, N] becomes S8 with one scale for every block of rows of every column, and a standard DequantizeLinear before its
MatMul. Both CPU engines take that as an integer product and quantise each token's activations as they go, by blocks of the
same axis: ONNX Runtime as MatMulNBits, OpenVINO as a compressed FullyConnected. So nothing is calibrated, a sample's result
does not depend on the others in its batch, and one channel that is a hundred times the others (every BERT has some) spoils its
own block alone. Per-tensor static ranges lose that: their best recipe kept 0.9975 of the cosine where this keeps 0.9992.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

# The largest that divides K is taken. Smaller blocks are more exact and slower: of 32, 64, 128 and 256 on MiniLM, 128 was
# the largest that kept 95 % of the nearest neighbours.
BLOCKS = (128, 64, 32, 16)
# Below this size of K or N an integer kernel wins nothing, and few levels decide a logit.
LEAST = 32
# The first opset whose DequantizeLinear has block_size.
OPSET = 21


def block_of(rows: int) -> int | None:
    """The block for a weight of ``rows`` rows, or None where no block divides it."""
    return next((block for block in BLOCKS if rows % block == 0), None)


def quantize_blocks(weight: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 [K, N] to int8 [K, N] in [-127, 127] and float32 scales [K / block, N], symmetric, by rounding to nearest.

    A block of zeros has the scale 1; no scale is below float32's least normal number, so that none is rounded to zero. -128
    is never used, so that the range is symmetric.
    """
    rows, columns = weight.shape
    blocks = weight.reshape(rows // block, block, columns)
    largest = np.abs(blocks).max(axis=1)
    least = np.finfo(np.float32).tiny
    scales = np.where(largest > 0, np.maximum(largest / 127, least), 1.0).astype(np.float32)
    levels = np.clip(np.rint(blocks / scales[:, None]), -127, 127).astype(np.int8)
    return levels.reshape(rows, columns), scales


def products(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The MatMuls with a constant float matrix that is worth quantising."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        weight = constants.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is None or weight.data_type != onnx.TensorProto.FLOAT or len(weight.dims) != 2:
            continue
        if min(weight.dims) >= LEAST and block_of(weight.dims[0]) is not None:
            found.append(node)
    return found


def quantize_weights(model: onnx.ModelProto) -> list[str]:
    """Quantise every one of :func:`products` in place, raise the opset to :data:`OPSET`, and return the nodes' names."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    chosen = products(model)
    if not chosen:
        return []
    made: dict[str, onnx.NodeProto] = {}
    for node in chosen:
        name = node.input[1]
        if name not in made:
            weight = numpy_helper.to_array(constants[name])
            block = block_of(len(weight))
            assert block is not None  # products() chose it
            levels, scales = quantize_blocks(weight, block)
            model.graph.initializer.append(numpy_helper.from_array(levels, f"{name}.int8"))
            model.graph.initializer.append(numpy_helper.from_array(scales, f"{name}.scale"))
            inputs, output = [f"{name}.int8", f"{name}.scale"], f"{name}.dequantized"
            made[name] = helper.make_node("DequantizeLinear", inputs, [output], name=output, axis=0, block_size=block)
        node.input[1] = f"{name}.dequantized"
    used = {name for node in model.graph.node for name in node.input}
    for name in made:
        if name not in used:
            model.graph.initializer.remove(constants[name])
    for node in reversed(made.values()):
        model.graph.node.insert(0, node)
    for opset in model.opset_import:
        if opset.domain == "":
            # Of the operators that our graphs hold, 21 changes the types that are allowed and nothing else.
            opset.version = max(opset.version, OPSET)
    return [node.name for node in chosen]
