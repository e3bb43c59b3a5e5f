"""Which nodes of a graph must stay in FP32: ranges measured on real inputs, compared with what FP16 can hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from simmim_export.precision.base import Feeds
from simmim_export.precision.measure import run
from simmim_export.tensorrt_rules.graph import Graph, attribute

LARGEST = float(np.finfo(np.float16).max)
# A smaller number becomes zero.
LEAST = float(np.finfo(np.float16).smallest_subnormal)
# The samples are few: another input may reach further, and so may a sum on the way to its result. So only the half of FP16's
# range is used.
MARGIN = 2

# What an operator adds up on the way to its result. The sum may be beyond FP16 even if the result is not.
SUMS: Mapping[str, str] = {
    "LayerNormalization": "ReduceSumSquare",
    "RMSNormalization": "ReduceSumSquare",
    "ReduceL2": "ReduceSumSquare",
    "ReduceMean": "ReduceL1",
}
NORMALIZATIONS = ("LayerNormalization", "RMSNormalization")
# An epsilon keeps the divisor of a later division from being zero. Its work is done at the first division, or product with a
# reciprocal; until then it passes through these operators.
GUARDED = ("Add", "Sub", "Max", "Min", "Clip", "Sqrt", "Pow", "Reciprocal", "Log", "Expand", "Identity")
GUARD_ENDS = ("Div", "Mul")


def ranges(model: onnx.ModelProto, feeds: Feeds) -> dict[str, float]:
    """The largest magnitude of every FP32 tensor of ``model``: constants, inputs, and all that the nodes give for ``feeds``.

    It is infinite or NaN if the tensor is. The tensors of one feed are held at a time, and only their maxima are kept.
    """
    graph = Graph(model)
    floats = [name for name in graph.names if graph.dtype(name) == TensorProto.FLOAT]
    largest = {name: _magnitude(graph.value(name)) for name in floats if name in graph.constants}
    made, given = ([name for name in floats if name in names] for names in (graph.producer, graph.inputs))
    for feed, tensors in zip(feeds, run(model, feeds, made, optimized=False), strict=True):
        for name, array in (*((name, feed[name]) for name in given), *tensors.items()):
            largest[name] = float(np.maximum(largest.get(name, 0.0), _magnitude(array)))
    return largest


def _magnitude(array: np.ndarray | None) -> float:
    return 0.0 if array is None or not array.size else float(np.abs(array).max())


def find_islands(model: onnx.ModelProto, feeds: Feeds) -> dict[str, str]:
    """The nodes of ``model`` that must stay in FP32, in its order: the reason by the name of the node."""
    graph = Graph(model)
    probed, sums = _probe(model, graph)
    largest = ranges(probed, feeds)
    reasons: dict[str, str] = {}

    def add(node: onnx.NodeProto, reason: str) -> None:
        reasons.setdefault(node.name, reason)

    for node in graph.nodes:
        for name in _floats(graph, node):
            least = _least(graph, node, name=name, largest=largest)
            if largest[name] > LARGEST / MARGIN:
                add(node, f"{name} reaches {largest[name]:.3g}")
            elif 0 < least < LEAST:
                add(node, f"{name}, {least:.1e}, would be zero")
                for reader in _guarded(graph, node):
                    add(reader, f"divides, or leads to a division, by a value that {name} keeps from zero")
        if node.name in sums and largest[sums[node.name]] > LARGEST / MARGIN:
            add(node, f"adds up to {largest[sums[node.name]]:.3g} inside")
        if not _has_fp16(node, graph.opset):
            add(node, f"ONNX has no FP16 form of {node.op_type}")
    return {node.name: reasons[node.name] for node in graph.nodes if node.name in reasons}


def _floats(graph: Graph, node: onnx.NodeProto) -> list[str]:
    return [name for name in (*node.input, *node.output) if graph.dtype(name) == TensorProto.FLOAT]


def _least(graph: Graph, node: onnx.NodeProto, *, name: str, largest: Mapping[str, float]) -> float:
    """The magnitude of the tensor ``name`` that must not become zero for ``node`` to make sense.

    Some numbers of a tensor may become zero: 1e-9 in a weight, a bias or a position is nothing beside the others. All of them
    may not, and in a constant divisor none may.
    """
    value = graph.value(name)
    if value is None or node.op_type != "Div" or name != node.input[1] or not value.any():
        return largest[name]
    return float(np.abs(value[value != 0]).min())


def _guarded(graph: Graph, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """The nodes that read the result of ``node``, directly or not, up to and including the first division."""
    for name in node.output:
        for reader, _ in graph.readers.get(name, []):
            if reader.op_type in GUARDED:
                yield reader
                yield from _guarded(graph, reader)
            elif reader.op_type in GUARD_ENDS:
                yield reader


def _probe(model: onnx.ModelProto, graph: Graph) -> tuple[onnx.ModelProto, dict[str, str]]:
    """``model`` with a new node beside each node of :data:`SUMS` that gives the sum which that node takes inside, and the name
    of the sum by the name of the node."""
    probed, sums = onnx.ModelProto(), {}
    probed.CopyFrom(model)
    for node in graph.nodes:
        if node.op_type not in SUMS or graph.dtype(node.input[0]) != TensorProto.FLOAT:
            continue
        inputs, attributes = list(node.input), [part for part in node.attribute if part.name != "keepdims"]
        if node.op_type in NORMALIZATIONS:
            shape = graph.shape(node.input[0])
            if shape is None:
                continue
            axes = np.arange(len(shape))[attribute(node, "axis", -1) :]
            inputs, attributes = [node.input[0], f"{node.name}.axes"], []
            probed.graph.initializer.append(numpy_helper.from_array(axes, inputs[1]))
        sums[node.name] = f"{node.name}.sum"
        probe = helper.make_node(SUMS[node.op_type], inputs, [sums[node.name]], name=sums[node.name])
        probe.attribute.extend(attributes)
        probed.graph.node.append(probe)
    return probed, sums


def _has_fp16(node: onnx.NodeProto, opset: int) -> bool:
    """Whether ONNX allows FP16 wherever it allows FP32, for every input and output that ``node`` has."""
    schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    allowed = {part.type_param_str: part.allowed_type_strs for part in schema.type_constraints}
    formal = [*schema.inputs[: len(node.input)], *schema.outputs[: len(node.output)]]
    types = [allowed.get(part.type_str, ()) for part in formal]
    return all("tensor(float16)" in kinds for kinds in types if "tensor(float)" in kinds)
