"""Rewrites a foreign graph with the operators that our bundles hold (bundle/onnx_file.py).

Each rule replaces one node by an equivalent of operators that every engine runs. What no rule knows is refused by name. Nothing
here is trusted: the result is compared with the original file (:mod:`.canaries`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
from onnxscript import optimizer

from simmim_export.bundle.onnx_file import OPERATORS
from simmim_export.bundle.schema import MAX_TOKENS
from simmim_export.precision.surgery import constant, operator, replace

# The nodes that replace one, in order; the last gives its output. None if the rule does not fit this node.
Replacement: TypeAlias = list[ir.Node] | None
Rule: TypeAlias = Callable[[ir.Graph, ir.Node, str], Replacement]
# A small constant can make any of these huge. They stay in the graph.
_GROWING = frozenset(("ConstantOfShape", "Expand", "Range", "Resize", "Tile", "Pad", "EyeLike", "OneHot", "Loop", "If"))
_MOST_FOLDED = 1 << 16


def lower(model: ir.Model) -> None:
    """Fold constants and rewrite every node that is not in :data:`OPERATORS` and that a rule knows.

    Raises whatever onnx_ir and onnxscript raise on a malformed graph.
    """
    graph = model.graph
    for node in graph:
        for value in node.outputs:
            value.shape = None  # it may belong to other sizes of the inputs
    optimizer.optimize_ir(model, input_size_limit=_MOST_FOLDED, should_fold=_may_fold, inline=False)
    for node in list(graph):
        if node.op_type in OPERATORS:
            continue
        rule = _RULES.get(node.op_type)
        nodes = None if rule is None else rule(graph, node, node.name or node.outputs[0].name or node.op_type)
        if nodes is None:
            continue
        graph.insert_before(node, nodes)
        replace(graph, node.outputs[0], nodes[-1].outputs[0])
        graph.remove(node, safe=True)


def unknown_operators(graph: ir.Graph) -> list[str]:
    """One line for each kind of node that no bundle may hold, with the first node of that kind."""
    first: dict[str, str] = {}
    for node in graph:
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
            first.setdefault(node.op_type, str(node.name))
    return [f"{kind} (node {name!r})" for kind, name in first.items()]


def _may_fold(node: ir.Node) -> bool | None:
    return False if node.op_type in _GROWING else None


def _known(value: ir.Value | None) -> np.ndarray | None:
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _of(node: ir.Node, index: int = 0) -> ir.Value:
    value = node.inputs[index]
    if value is None:
        raise ValueError(f"{node.op_type} {node.name!r} lacks its input {index}")
    return value


def _identity(graph: ir.Graph, node: ir.Node, name: str) -> Replacement:
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return None  # the mask of a Dropout
    source = _of(node)
    if node.outputs[0].is_graph_output():
        # Outputs keep a node of their own.
        if source.shape is None:
            return None
        # 0 keeps an axis.
        return [operator("Reshape", [source, _size(graph, name, [0] * len(source.shape))], f"{name}.same")]
    for usage in list(node.outputs[0].uses()):
        usage.node.replace_input_with(usage.idx, source)
    graph.remove(node, safe=True)
    return None


def _size(graph: ir.Graph, name: str, sizes: Sequence[int]) -> ir.Value:
    return constant(graph, f"{name}.sizes", np.array(sizes, np.int64))


def _constant(graph: ir.Graph, node: ir.Node, name: str) -> Replacement:
    attribute = next(iter(node.attributes.values()))
    if attribute.name == "value":
        array = attribute.as_tensor().numpy()
    elif attribute.name in ("value_float", "value_floats"):
        array = np.array(attribute.value, np.float32)
    elif attribute.name in ("value_int", "value_ints"):
        array = np.array(attribute.value, np.int64)
    else:
        return None
    value = constant(graph, f"{name}.value", array)
    for usage in list(node.outputs[0].uses()):
        usage.node.replace_input_with(usage.idx, value)
    if not node.outputs[0].is_graph_output():
        graph.remove(node, safe=True)
    return None


def _flatten(graph: ir.Graph, node: ir.Node, name: str) -> Replacement:
    if node.attributes.get_int("axis", 1) != 1:
        return None
    return [operator("Reshape", [_of(node), _size(graph, name, [0, -1])], f"{name}.flat")]


def _average(graph: ir.Graph, node: ir.Node, name: str) -> Replacement:
    shape = _of(node).shape
    if shape is None or len(shape) != 4:
        return None
    axes = constant(graph, f"{name}.axes", np.array([2, 3], np.int64))
    return [operator("ReduceMean", [_of(node), axes], f"{name}.mean", keepdims=1)]


def _scalar(kind: str, number: float, *, first: bool = False) -> Rule:
    """A rule: ``kind`` of the input and a number, or with ``first`` of the number and the input. For float32 only."""

    def rule(graph: ir.Graph, node: ir.Node, name: str) -> Replacement:
        source = _of(node)
        if source.dtype not in (None, ir.DataType.FLOAT):
            return None
        value = constant(graph, f"{name}.number", np.float32(number))
        return [operator(kind, [value, source] if first else [source, value], f"{name}.{kind.lower()}")]

    return rule


def _filled(graph: ir.Graph, node: ir.Node, name: str) -> Replacement:
    attribute = node.attributes.get("value")
    number = np.zeros(1, np.float32) if attribute is None else attribute.as_tensor().numpy()
    return [operator("Expand", [constant(graph, f"{name}.value", number.reshape(())), _of(node)], f"{name}.filled")]


def _range(graph: ir.Graph, node: ir.Node, name: str) -> Replacement:
    """0, 1, 2, ... up to a size: the beginning of a constant."""
    start, limit, step = _of(node, 0), _of(node, 1), _of(node, 2)
    first, by = _known(start), _known(step)
    if first is None or by is None or first != 0 or by != 1 or first.dtype != np.int64:
        return None
    numbers = constant(graph, "adopted.numbers", np.arange(MAX_TOKENS, dtype=np.int64))
    zero, one = (constant(graph, f"adopted.{n}", np.array([n], np.int64)) for n in (0, 1))
    count = operator("Reshape", [limit, one], f"{name}.count")
    return [count, operator("Slice", [numbers, zero, count.outputs[0]], f"{name}.range")]


def _batch_norm(graph: ir.Graph, node: ir.Node, name: str) -> Replacement:
    arrays = [_known(value) for value in node.inputs[1:5]]
    shape = _of(node).shape
    if len(arrays) != 4 or any(array is None for array in arrays) or len(node.outputs) > 1:
        return None
    if shape is None or len(shape) != 4:
        return None
    scale, bias, mean, variance = (np.asarray(array, np.float64) for array in arrays)
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    factor = scale / np.sqrt(variance + epsilon)
    values = {"factor": factor, "shift": bias - mean * factor}
    convolution = _of(node).producer()
    if convolution is not None and convolution.op_type == "Conv" and len(_of(node).uses()) == 1:
        weight, old = _known(convolution.inputs[1]), convolution.inputs[2] if len(convolution.inputs) > 2 else None
        offset = np.zeros(len(factor)) if old is None else _known(old)
        if weight is not None and offset is not None:
            # Jacob et al., 2018, section 3.2: so that quantizers see the weights that are used.
            folded = (weight * factor.reshape(-1, 1, 1, 1)).astype(np.float32)
            inputs = [
                _of(convolution, 0),
                constant(graph, f"{name}.weight", folded),
                constant(graph, f"{name}.bias", (values["shift"] + offset * factor).astype(np.float32)),
            ]
            both = ir.node("Conv", inputs, list(convolution.attributes.values()), name=f"{name}.conv")
            both.outputs[0].name = f"{name}.conv"
            return [both]
    factors, shifts = (
        constant(graph, f"{name}.{key}", array.astype(np.float32).reshape(-1, 1, 1)) for key, array in values.items()
    )
    product = operator("Mul", [_of(node), factors], f"{name}.scaled")
    return [product, operator("Add", [product.outputs[0], shifts], f"{name}.shifted")]


def _less(swapped: bool) -> Rule:
    """A rule for Less, or with ``swapped`` for Greater, of whole numbers: is the difference above 0?"""

    def rule(graph: ir.Graph, node: ir.Node, name: str) -> Replacement:
        small, large = (_of(node, 1), _of(node, 0)) if swapped else (_of(node, 0), _of(node, 1))
        if ir.DataType.INT64 not in (small.dtype, large.dtype):
            return None
        difference = operator("Sub", [large, small], f"{name}.difference")
        above = operator("Max", [difference.outputs[0], constant(graph, "adopted.none", np.int64(0))], f"{name}.above")
        return [difference, above, operator("Cast", [above.outputs[0]], f"{name}.bool", to=int(ir.DataType.BOOL))]

    return rule


def _and(graph: ir.Graph, node: ir.Node, name: str) -> Replacement:
    nodes = [operator("Cast", [_of(node, i)], f"{name}.number{i}", to=int(ir.DataType.INT64)) for i in range(2)]
    both = operator("Mul", [one.outputs[0] for one in nodes], f"{name}.both")
    return [*nodes, both, operator("Cast", [both.outputs[0]], f"{name}.bool", to=int(ir.DataType.BOOL))]


def _not(kind: str, name: str, inputs: list[ir.Value]) -> list[ir.Node]:
    inner = operator(kind, inputs, f"{name}.inner")
    return [inner, operator("Not", [inner.outputs[0]], f"{name}.not")]


def _is_nan(graph: ir.Graph, node: ir.Node, name: str) -> Replacement:
    """NaN alone does not equal itself (IEEE 754)."""
    return _not("Equal", name, [_of(node), _of(node)])


def _not_less(swapped: bool) -> Rule:
    """A rule for GreaterOrEqual, or with ``swapped`` for LessOrEqual, of whole numbers."""

    def rule(graph: ir.Graph, node: ir.Node, name: str) -> Replacement:
        nodes = _less(swapped)(graph, node, name)
        return None if nodes is None else [*nodes, operator("Not", [nodes[-1].outputs[0]], f"{name}.not")]

    return rule


def _gather_nd(graph: ir.Graph, node: ir.Node, name: str) -> Replacement:
    """Parts of [rows, columns, ...] by pairs: a lookup at row * columns + column. Masks are built so, and texts pooled."""
    data, indices = _of(node, 0), _of(node, 1)
    if node.attributes.get_int("batch_dims", 0) or data.shape is None or len(data.shape) < 2:
        return None
    if indices.shape is None or indices.shape[-1] != 2:
        return None
    one, last = (constant(graph, f"adopted.{key}", np.array([n], np.int64)) for key, n in (("1", 1), ("last", -1)))
    columns = operator("Shape", [data], f"{name}.columns", start=1, end=2)
    steps = operator("Concat", [columns.outputs[0], one], f"{name}.steps", axis=0)
    offsets = operator("Mul", [indices, steps.outputs[0]], f"{name}.offsets")
    place = operator("ReduceSum", [offsets.outputs[0], last], f"{name}.place", keepdims=0)
    rest = operator("Shape", [data], f"{name}.rest", start=2)
    sizes = operator("Concat", [last, rest.outputs[0]], f"{name}.sizes", axis=0)
    flat = operator("Reshape", [data, sizes.outputs[0]], f"{name}.flat")
    value = operator("Gather", [flat.outputs[0], place.outputs[0]], f"{name}.value", axis=0)
    return [columns, steps, offsets, place, rest, sizes, flat, value]


def _arg_max(graph: ir.Graph, node: ir.Node, name: str) -> Replacement:
    """The place of the first of the largest values: what is equal to the largest, has none of those before it."""
    axis, source = node.attributes.get_int("axis", 0), _of(node)
    if node.attributes.get_int("select_last_index", 0):
        return None
    along = constant(graph, f"{name}.axis", np.array([axis], np.int64))
    one, zero = (constant(graph, f"adopted.{value:.0f}.float", np.float32(value)) for value in (1, 0))
    nodes: list[ir.Node] = []

    def then(kind: str, inputs: list[ir.Value], key: str, **attributes: int) -> ir.Value:
        nodes.append(operator(kind, inputs, f"{name}.{key}", **attributes))
        return nodes[-1].outputs[0]

    def number(value: ir.Value, key: str) -> ir.Value:
        return then("Cast", [value], key, to=int(ir.DataType.FLOAT))

    largest = then("ReduceMax", [source, along], "largest", keepdims=1)
    hit = number(then("Equal", [source, largest], "equal"), "hit")
    count = then("CumSum", [hit, along], "count")
    first = then("Mul", [hit, number(then("Equal", [count, one], "once"), "one")], "first")
    ones = then("Add", [then("Mul", [hit, zero], "none"), one], "ones")
    places = then("Sub", [then("CumSum", [ones, along], "from1"), one], "from0")
    keep = node.attributes.get_int("keepdims", 1)
    place = then("ReduceSum", [then("Mul", [first, places], "place"), along], "sum", keepdims=keep)
    then("Cast", [place], "index", to=int(ir.DataType.INT64))
    return nodes


_RULES: Mapping[str, Rule] = {
    "Constant": _constant,
    "Identity": _identity,
    "Dropout": _identity,
    "Flatten": _flatten,
    "GlobalAveragePool": _average,
    "Sqrt": _scalar("Pow", 0.5),
    "Neg": _scalar("Mul", -1.0),
    "Reciprocal": _scalar("Div", 1.0, first=True),
    "ConstantOfShape": _filled,
    "Range": _range,
    "BatchNormalization": _batch_norm,
    "Less": _less(swapped=False),
    "Greater": _less(swapped=True),
    "And": _and,
    "ArgMax": _arg_max,
    "GreaterOrEqual": _not_less(swapped=False),
    "LessOrEqual": _not_less(swapped=True),
    "IsNaN": _is_nan,
    "GatherND": _gather_nd,
}
