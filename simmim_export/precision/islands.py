"""Which nodes of a graph must stay in FP32: ranges measured on real inputs, beside what FP16 can hold.

Knows ONNX graphs, and runs them in ONNX Runtime to measure. Must not know how a graph is converted, or what a feed means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from simmim_export.precision.quantizer import Feeds
from simmim_export.system.host import available_threads
from simmim_export.system.telemetry import without_telemetry
from simmim_export.tensorrt_rules.graph import Graph, attribute

LARGEST = float(np.finfo(np.float16).max)
# Below this nothing is left of a number.
LEAST = float(np.finfo(np.float16).smallest_subnormal)
# The samples are few: another input reaches further, and so does a sum on the way to its result. The range of FP16 is not
# used to its end but to a half of it.
MARGIN = 2

# What an operator adds up on the way to its result, which may be beyond FP16 where the result is not.
SUMS: Mapping[str, str] = {
    "LayerNormalization": "ReduceSumSquare",
    "RMSNormalization": "ReduceSumSquare",
    "ReduceL2": "ReduceSumSquare",
    "ReduceMean": "ReduceL1",
}
NORMALISATIONS = ("LayerNormalization", "RMSNormalization")
# An epsilon keeps a later division from zero. It has done so at the first division, or product with a reciprocal; until
# then it passes through these.
GUARDED = ("Add", "Sub", "Max", "Min", "Clip", "Sqrt", "Pow", "Reciprocal", "Log", "Expand", "Identity")
GUARD_ENDS = ("Div", "Mul")


@dataclass(frozen=True)
class Island:
    """A node left in FP32: its name, the PyTorch module it is from, the largest magnitude seen at or in it, and why."""

    node: str
    module: str
    largest: float
    reason: str


def ranges(model: onnx.ModelProto, feeds: Feeds) -> dict[str, float]:
    """The largest magnitude of every FP32 tensor of ``model``: constants, inputs, and all that the nodes give for ``feeds``.

    Infinite or NaN where a tensor is. One feed's tensors are held at a time, and of them only the maxima are kept.
    """
    graph = Graph(model)
    floats = [name for name in graph.names if graph.dtype(name) == TensorProto.FLOAT]
    found = {name: _magnitude(graph.value(name)) for name in floats if name in graph.constants}
    made = [name for name in floats if name in graph.producer]
    run = _runner(model, made)
    for feed in feeds:
        seen = zip(made, run(feed), strict=True)
        given = ((name, feed[name]) for name in floats if name in graph.inputs)
        for name, array in (*given, *seen):
            found[name] = float(np.maximum(found.get(name, 0.0), _magnitude(array)))
    return found


def _runner(model: onnx.ModelProto, names: Sequence[str]) -> Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]:
    """A function from one feed to the tensors ``names`` of ``model``, outputs or not."""
    with without_telemetry("onnxruntime"):
        import onnxruntime

    wider = copy_of(model)
    present = {value.name for value in model.graph.output}
    wider.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_threads()
    options.log_severity_level = 3
    # A node that was fused into another is not the one to be measured.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(wider.SerializeToString(), options, providers=["CPUExecutionProvider"])
    wanted = [value.name for value in session.get_inputs()]
    return lambda feed: session.run(list(names), {name: feed[name] for name in wanted})


def _magnitude(array: np.ndarray | None) -> float:
    return 0.0 if array is None or not array.size else float(np.abs(array).max())


def find_islands(model: onnx.ModelProto, feeds: Feeds) -> tuple[Island, ...]:
    """The nodes of ``model`` that must stay in FP32, in its order."""
    graph = Graph(model)
    probed, sums = _probe(model, graph)
    largest = ranges(probed, feeds)
    found: dict[str, Island] = {}

    def add(node: onnx.NodeProto, reason: str) -> None:
        seen = [largest[name] for name in (*_floats(graph, node), sums.get(node.name)) if name in largest]
        found.setdefault(node.name, Island(node.name, graph.module(node), max(seen, default=0.0), reason))

    for node in graph.nodes:
        for name in _floats(graph, node):
            least = _least(graph, node, name, largest)
            if largest[name] > LARGEST / MARGIN:
                add(node, f"{name} reaches {largest[name]:.3g}")
            elif 0 < least < LEAST:
                add(node, f"{name}, {least:.1e}, would be zero")
                for reader in _guarded(graph, node):
                    add(reader, f"divides, or leads to a division, by what {name} keeps from zero")
        if node.name in sums and largest[sums[node.name]] > LARGEST / MARGIN:
            add(node, f"adds up to {largest[sums[node.name]]:.3g} inside")
        if not _has_fp16(node, graph.opset):
            add(node, f"ONNX has no FP16 form of {node.op_type}")
    return tuple(found[node.name] for node in graph.nodes if node.name in found)


def _floats(graph: Graph, node: onnx.NodeProto) -> list[str]:
    return [name for name in (*node.input, *node.output) if graph.dtype(name) == TensorProto.FLOAT]


def _least(graph: Graph, node: onnx.NodeProto, name: str, largest: Mapping[str, float]) -> float:
    """The magnitude that must survive of a tensor for ``node`` to make sense.

    One number of many may go: 1e-9 in a weight, a bias or a position is nothing beside the others. In a constant divisor
    none may; elsewhere not all.
    """
    value = graph.value(name)
    if value is None or node.op_type != "Div" or name != node.input[1] or not value.any():
        return largest[name]
    return float(np.abs(value[value != 0]).min())


def _guarded(graph: Graph, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """What reads the result of ``node`` up to the first division, that included."""
    for name in node.output:
        for reader, _ in graph.readers.get(name, []):
            if reader.op_type in GUARDED:
                yield reader
                yield from _guarded(graph, reader)
            elif reader.op_type in GUARD_ENDS:
                yield reader


def _probe(model: onnx.ModelProto, graph: Graph) -> tuple[onnx.ModelProto, dict[str, str]]:
    """``model`` with a node beside each of SUMS that adds up what it adds up, and the name of that sum for each node."""
    probed, sums = copy_of(model), {}
    for node in graph.nodes:
        if node.op_type not in SUMS or graph.dtype(node.input[0]) != TensorProto.FLOAT:
            continue
        inputs, kept = list(node.input), [part for part in node.attribute if part.name != "keepdims"]
        if node.op_type in NORMALISATIONS:
            shape = graph.shape(node.input[0])
            if shape is None:
                continue
            axes = np.arange(len(shape))[attribute(node, "axis", -1) :]
            inputs, kept = [node.input[0], f"{node.name}.axes"], []
            probed.graph.initializer.append(numpy_helper.from_array(axes, inputs[1]))
        sums[node.name] = f"{node.name}.sum"
        probe = helper.make_node(SUMS[node.op_type], inputs, [sums[node.name]], name=sums[node.name])
        probe.attribute.extend(kept)
        probed.graph.node.append(probe)
    return probed, sums


def _has_fp16(node: onnx.NodeProto, opset: int) -> bool:
    """Whether ONNX allows FP16 where it allows FP32, for every input and output that ``node`` has."""
    schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    allowed = {part.type_param_str: part.allowed_type_strs for part in schema.type_constraints}
    formal = [*schema.inputs[: len(node.input)], *schema.outputs[: len(node.output)]]
    types = [allowed.get(part.type_str, ()) for part in formal]
    return all("tensor(float16)" in some for some in types if "tensor(float)" in some)


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that shares nothing with ``model``."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy
