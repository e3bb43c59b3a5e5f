"""Rewrites of a float graph that save CPU engines small operators. The graph still computes the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from simmim_export.precision.smooth import matrix
from simmim_export.precision.surgery import array_of, constant, is_float_constant, only_reader, operator, redirect

# The first opset that has Attention.
ATTENTION_OPSET = 23
# How a projection [batch, sequence, heads, channels] is turned before it is multiplied.
_QUERY, _KEY = (0, 2, 1, 3), (0, 2, 3, 1)
# The last two of four axes are swapped.
_SWAP = (0, 1, 3, 2)


def join_products(graph: ir.Graph, nodes: Sequence[ir.Node]) -> list[ir.Node]:
    """Replace ``nodes``, MatMuls that read the same tensor, by one MatMul, and return it in a list.

    Their weights and biases are concatenated along N, and a Split gives each reader its part. If any node has a reader other than
    one Add of a constant bias [N], or there is only one node, ``nodes`` are returned unchanged.
    """
    adds = [add for node in nodes if (add := _bias(node))]
    biases = [bias for add, node in zip(adds, nodes, strict=False) if (bias := _constant_of(add, node))]
    if len(nodes) < 2 or len(biases) < len(nodes):
        return list(nodes)
    name = f"{nodes[0].name}.joined"
    weights = [matrix(node) for node in nodes]
    parts = [ir.val(f"{name}.part.{index}") for index in range(len(nodes))]
    product = operator(
        "MatMul", [nodes[0].inputs[0], constant(graph, f"{name}.weight", np.concatenate(weights, 1))], name
    )
    shifts = constant(graph, f"{name}.bias", np.concatenate([array_of(bias) for bias in biases]))
    shifted = operator("Add", [product.outputs[0], shifts], f"{name}.shifted")
    sizes = constant(graph, f"{name}.sizes", np.array([weight.shape[1] for weight in weights]))
    split = ir.node("Split", [shifted.outputs[0], sizes], {"axis": -1}, name=f"{name}.parts", outputs=parts)
    graph.insert_before(nodes[0], [product, shifted, split])
    for node, add, part in zip(nodes, adds, parts, strict=True):
        output = add.outputs[0]
        redirect(output, [usage.node for usage in output.uses()], part)
        graph.remove([add, node], safe=True)
    return [product]


def _bias(node: ir.Node) -> ir.Node | None:
    """The Add that is the only reader of ``node``'s result; None if there is none, or if either result is an output of the
    graph."""
    output = node.outputs[0]
    add = only_reader(output, "Add")
    return None if add is None or add.outputs[0].is_graph_output() else add


def _constant_of(add: ir.Node, node: ir.Node) -> ir.Value | None:
    """The float constant [N] that ``add`` adds to the result [..., N] of the MatMul ``node``; None if there is none."""
    for value in add.inputs:
        if value is not None and is_float_constant(value) and array_of(value).shape == matrix(node).shape[1:]:
            return value
    return None


def fuse_attention(graph: ir.Graph) -> int:
    """Replace each attention pattern, from the projections to the joined heads, by ONNX's Attention. Return how many there were.

    The graph needs the types of its tensors (:func:`~simmim_export.precision.surgery.with_types`), and
    :data:`ATTENTION_OPSET`. Attention whose weights are read elsewhere stays as it is. Nodes that nothing reads any more stay in
    the graph.
    """
    masks: dict[tuple[str, str], ir.Value] = {}
    count = 0
    for softmax in [node for node in graph if node.op_type == "Softmax"]:
        parts = _Attention.read(softmax)
        if parts is None:
            continue
        inputs, nodes = [parts.query, parts.key, parts.value], list[ir.Node]()
        if parts.mask is not None:
            key = str(parts.mask.name), _length(parts.query)
            if key not in masks:
                nodes = _with_rows(graph, parts.mask, parts.query)
                masks[key] = nodes[-1].outputs[0]
            inputs.append(masks[key])
        attributes = {"q_num_heads": parts.heads, "kv_num_heads": parts.heads, "scale": parts.scale}
        output = ir.val(f"{softmax.name}.attention", shape=parts.output.shape, dtype=parts.output.dtype)
        nodes.append(ir.node("Attention", inputs, attributes, name=output.name, outputs=[output]))
        graph.insert_after(parts.last, nodes)
        redirect(parts.output, [usage.node for usage in parts.output.uses()], output)
        count += 1
    return count


class _Attention:
    """The tensors of one attention: projections [batch, sequence, heads x channels], a mask that is added to the scores or None,
    the scale of the scores, and the ``last`` node, which gives the ``output``."""

    def __init__(
        self, *, inputs: Sequence[ir.Value], mask: ir.Value | None, heads: int, scale: float, last: ir.Node
    ) -> None:
        self.query, self.key, self.value = inputs
        self.mask, self.heads, self.scale = mask, heads, scale
        self.last, self.output = last, last.outputs[0]

    @classmethod
    def read(cls, softmax: ir.Node) -> _Attention | None:
        """The attention whose weights ``softmax`` gives, or None if its nodes are not those that the exporter writes."""
        scores, mask = softmax.inputs[0], None
        if (add := _maker(scores, "Add")) is not None:
            scores, mask = add.inputs
            if _maker(scores, "MatMul") is None:
                scores, mask = mask, scores
        product, weighted = _maker(scores, "MatMul"), only_reader(softmax.outputs[0], "MatMul")
        joined = None if weighted is None else only_reader(weighted.outputs[0], "Transpose")
        last = None if joined is None else only_reader(joined.outputs[0], "Reshape")
        if product is None or weighted is None or joined is None or last is None or last.outputs[0].is_graph_output():
            return None
        if weighted.inputs[0] is not softmax.outputs[0] or tuple(joined.attributes["perm"].as_ints()) != _QUERY:
            return None
        sides = (product.inputs[0], _QUERY), (product.inputs[1], _KEY), (weighted.inputs[1], _QUERY)
        projections = [_projection(value, turned) for value, turned in sides]
        if any(each is None for each in projections) or len({each[1] for each in projections if each}) != 1:
            return None
        inputs, heads, scales = zip(*(each for each in projections if each), strict=True)
        if scales[2] != 1:
            return None
        return cls(inputs=inputs, mask=mask, heads=heads[0], scale=scales[0] * scales[1], last=last)


def _projection(value: ir.Value | None, turned: tuple[int, ...]) -> tuple[ir.Value, int, float] | None:
    """(the projection [batch, sequence, heads x channels], its heads, the factor) that ``value`` comes from by a Reshape,
    Transposes that amount to ``turned``, and products with constants. None if it does not."""
    order, scale = tuple(range(4)), 1.0
    while value is not None and (node := value.producer()) is not None:
        if node.op_type == "Transpose":
            perm = node.attributes["perm"].as_ints()
            if len(perm) != len(order):
                return None
            order, value = tuple(perm[axis] for axis in order), node.inputs[0]
        elif node.op_type == "Mul" and is_float_constant(node.inputs[1]) and array_of(node.inputs[1]).size == 1:
            scale, value = scale * float(array_of(node.inputs[1]).reshape(())), node.inputs[0]
        elif node.op_type == "Reshape" and (swapped := _swapped(node)) is not None:
            order, value = tuple(_SWAP[axis] for axis in order), swapped
        elif node.op_type == "Reshape":
            source, shape = node.inputs[0], value.shape
            if source is None or shape is None or len(shape) != 4 or order != turned or not isinstance(shape[2], int):
                return None
            if source.shape is None or len(source.shape) != 3:
                return None
            return source, shape[2], scale
        else:
            return None
    return None


def _swapped(last: ir.Node) -> ir.Value | None:
    """The tensor of four axes whose last two the Reshape ``last`` swaps, together with the nodes before it; None if it does not.

    PyTorch's exporter writes scaled_dot_product_attention like this: it joins the first two axes of the keys, swaps the others
    with a Transpose of three axes, and parts the first two again. All sizes come from the Shape of the keys.
    """
    swap = _maker(last.inputs[0], "Transpose")
    first = None if swap is None else _maker(swap.inputs[0], "Reshape")
    if swap is None or first is None or tuple(swap.attributes["perm"].as_ints()) != (0, 2, 1):
        return None
    source = first.inputs[0]
    joined, parted = (_maker(reshape.inputs[1], "Concat") for reshape in (first, last))
    if source is None or source.shape is None or len(source.shape) != 4 or joined is None or parted is None:
        return None
    if len(joined.inputs) != 3 or len(parted.inputs) != 3:
        return None
    all_others = joined.inputs[0]
    if all_others is None or all_others.const_value is None or array_of(all_others).tolist() != [-1]:
        return None
    sizes = [_sizes(value, source) for value in (*joined.inputs[1:], *parted.inputs)]
    return source if sizes == [[2], [3], [0, 1], [3], [2]] else None


def _sizes(value: ir.Value | None, source: ir.Value) -> list[int] | None:
    """Which axes of ``source``, which has four, the Slice of its Shape that makes ``value`` has the sizes of; None for others."""
    part = _maker(value, "Slice")
    shape = None if part is None else _maker(part.inputs[0], "Shape")
    if part is None or shape is None or shape.inputs[0] is not source or len(part.inputs) != 3:
        return None
    if shape.attributes.get_int("start", 0) or "end" in shape.attributes:
        return None
    ends = [end for end in part.inputs[1:] if end is not None and end.const_value is not None]
    return list(range(4))[slice(*(int(array_of(end).reshape(())) for end in ends))] if len(ends) == 2 else None


def _length(query: ir.Value) -> str:
    """A key that is equal for two queries that are known to have the same number of rows."""
    assert query.shape is not None
    size = query.shape[1]
    return str(size) if isinstance(size, int) or size.value is not None else str(query.name)


def _with_rows(graph: ir.Graph, mask: ir.Value, query: ir.Value) -> list[ir.Node]:
    """Nodes that give ``mask`` [.., 1, keys] a row for each row of ``query``, because ONNX Runtime 1.32 does not broadcast it."""
    name = f"{mask.name}.of.{query.name}"
    length = operator("Shape", [query], f"{name}.length", start=1, end=2)
    one = constant(graph, "mask.one", np.array([1]))
    shape = operator("Concat", [one, one, length.outputs[0], one], f"{name}.shape", axis=0)
    return [length, shape, operator("Expand", [mask, shape.outputs[0]], name)]


def _maker(value: ir.Value | None, kind: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == kind else None
