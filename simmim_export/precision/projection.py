"""The convolution that projects an image to tokens, as the matrix product that it is.

A 1x1 convolution whose result [b, C, H, W] becomes rows [b, H * W, C] multiplies each of these rows by one matrix. CPU kernels
round the result of an INT8 convolution to 8 bits, with one range for the whole image; that of an INT8 product stays float. In
preset small, a few tokens with values near 100 set the range; a layer norm later divides all others by about 1.5. This rounding
alone lowered their cosine to FP32 to 0.9916. Rounding only weights and inputs gave 0.99998.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from simmim_export.precision.surgery import (
    array_of,
    constant,
    input_of,
    is_float_constant,
    only_reader,
    operator,
    replace,
)


def is_projection(node: ir.Node) -> bool:
    """Whether ``node`` is a 1x1 convolution with constant weights whose result becomes rows of channels."""
    if node.op_type != "Conv" or not all(is_float_constant(value) for value in node.inputs[1:]):
        return False
    plain = (
        array_of(input_of(node, 1)).shape[2:] == (1, 1)
        and node.attributes.get_int("group", 1) == 1
        and set(node.attributes.get_ints("strides", (1, 1))) == {1}
        and not any(node.attributes.get_ints("pads", ()))
        and node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    )
    return plain and rows_of(node) is not None


def rows_of(node: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """The Reshape to [b, C, n] and the Transpose to [b, n, C] after a convolution; None if something else is there."""
    reshape = only_reader(node.outputs[0], "Reshape")
    if reshape is None or input_of(reshape, 1).const_value is None:
        return None
    shape = array_of(input_of(reshape, 1))
    if len(shape) != 3 or 0 in shape or shape[1] != array_of(input_of(node, 1)).shape[0]:
        return None
    transpose = only_reader(reshape.outputs[0], "Transpose")
    is_swap = transpose is not None and list(transpose.attributes.get_ints("perm", ())) == [0, 2, 1]
    return (reshape, transpose) if transpose is not None and is_swap else None


def to_product(graph: ir.Graph, node: ir.Node) -> ir.Node:
    """Replace the projection ``node`` by a MatMul of its name and an Add of its bias, and return the MatMul. The graph
    computes the same."""
    rows = rows_of(node)
    assert rows is not None, node.name
    reshape, transpose = rows
    weight = array_of(input_of(node, 1))[:, :, 0, 0]  # C K
    first, _, count = array_of(input_of(reshape, 1))
    last = operator("Transpose", [node.inputs[0]], f"{node.name}.last", perm=[0, 2, 3, 1])
    shape = constant(
        graph, f"{node.name}.shape", array_of(input_of(reshape, 1)).dtype.type([first, count, weight.shape[1]])
    )
    flat = operator("Reshape", [last.outputs[0], shape], f"{node.name}.rows")
    matrix = constant(graph, f"{node.name}.matrix", weight.T)
    product = ir.node(
        "MatMul",
        [flat.outputs[0], matrix],
        name=node.name,
        metadata_props=dict(node.metadata_props),
        outputs=[ir.val(f"{node.name}.product")],
    )
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        bias = constant(graph, f"{node.name}.bias", np.zeros(len(weight), np.float32))
    biased = operator("Add", [product.outputs[0], bias], f"{node.name}.biased")
    graph.insert_before(node, [last, flat, product, biased])
    replace(graph, transpose.outputs[0], biased.outputs[0])
    graph.remove([transpose, reshape, node], safe=True)
    return product
