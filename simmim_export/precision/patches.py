"""The convolution that cuts an image into the patches of a Vision Transformer, as the matrix product of bytes that it is.

Its kernel is as large as its stride, so each pixel belongs to one patch. The bytes are moved before they are dequantized: a patch
is a row of bytes, with one scale and the zero point 0. So the activation is not rounded at all, and the result stays float.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from simmim_export.precision.pixels import Pixels, find_pixels
from simmim_export.precision.projection import rows_of
from simmim_export.precision.surgery import array_of, constant, input_of, is_float_constant, operator, replace


def is_patchwork(node: ir.Node) -> bool:
    """Whether ``node`` is a convolution of whole pixels into patches that become rows of channels."""
    return _read(node) is not None


def _read(node: ir.Node) -> Pixels | None:
    if node.op_type != "Conv" or not all(is_float_constant(value) for value in node.inputs[1:]):
        return None
    shape = array_of(input_of(node, 1)).shape
    plain = (
        len(shape) == 4
        and list(node.attributes.get_ints("strides", (1, 1))) == list(shape[2:])
        and set(node.attributes.get_ints("dilations", (1, 1))) == {1}
        and not any(node.attributes.get_ints("pads", ()))
        and node.attributes.get_int("group", 1) == 1
        and node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    )
    pixels = find_pixels(node.inputs[0], shape[1]) if plain and rows_of(node) is not None else None
    if pixels is None or not pixels.factor.any():
        return None
    _, height, width, channels = pixels.bytes.shape
    whole = int(height) % shape[2] == 0 and int(width) % shape[3] == 0 and channels == shape[1]
    return pixels if whole else None


def patches_to_product(graph: ir.Graph, node: ir.Node) -> ir.Node:
    """Replace ``node``, a patchwork, by a MatMul of its name and an Add of its bias, and return the MatMul. The graph still
    computes the same."""
    pixels, rows = _read(node), rows_of(node)
    assert pixels is not None and rows is not None, node.name
    reshape, transpose = rows
    weight = array_of(input_of(node, 1)).astype(np.float64)  # out C kh kw
    outputs, channels, high, wide = weight.shape
    _, height, width, _ = pixels.bytes.shape
    down, across = int(height) // high, int(width) // wide
    scale = np.float32(np.abs(pixels.factor).mean())
    name = str(node.name)

    def reshaped(value: ir.Value, suffix: str, *sizes: int) -> ir.Node:
        shape = constant(graph, f"{name}.{suffix}.shape", np.array([-1, *sizes]))
        return operator("Reshape", [value, shape], f"{name}.{suffix}")

    parts = reshaped(pixels.bytes, "parts", down, high, across, wide * channels)
    turned = operator("Transpose", [parts.outputs[0]], f"{name}.turned", perm=[0, 1, 3, 2, 4])
    flat = reshaped(turned.outputs[0], "rows", down * across, high * wide * channels)
    levels = [constant(graph, f"{name}.bytes.scale", scale), constant(graph, f"{name}.bytes.zero", np.uint8(0))]
    dequantize = operator("DequantizeLinear", [flat.outputs[0], *levels], f"{name}.bytes")
    folded = (weight * (pixels.factor / scale)[:, None, None]).transpose(2, 3, 1, 0).reshape(-1, outputs)
    product = ir.node(
        "MatMul",
        [dequantize.outputs[0], constant(graph, f"{name}.matrix", folded.astype(np.float32))],
        name=node.name,
        metadata_props=dict(node.metadata_props),
        outputs=[ir.val(f"{name}.product")],
    )
    bias = np.einsum("ocij,c->o", weight, pixels.summand)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias += array_of(node.inputs[2])
    summand = constant(graph, f"{name}.folded.bias", bias.astype(np.float32))
    biased = operator("Add", [product.outputs[0], summand], f"{name}.biased")
    graph.insert_before(node, [parts, turned, flat, dequantize, product, biased])
    replace(graph, transpose.outputs[0], biased.outputs[0])
    graph.remove([transpose, reshape, node], safe=True)
    return product
