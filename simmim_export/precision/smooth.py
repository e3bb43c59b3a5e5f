"""SmoothQuant (Xiao et al., 2022) on an ONNX graph: what makes activations hard to quantise moves into the weights.

Knows ONNX graphs, and runs them in ONNX Runtime to measure. Must not know quantisers, bundles or what a feed means.
requires: products of an activation and a constant matrix. ensures: the same graph at FP32, or :class:`GateFailed`.

A range per tensor is set by the largest channel, and in a transformer a few channels are a hundred times the others. So
channel j of the activation is divided by s_j, and row j of every weight that reads it is multiplied by s_j.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from simmim_export.errors import GateFailed
from simmim_export.precision.quantizer import Feeds
from simmim_export.proof.parity import difference
from simmim_export.system.host import available_threads
from simmim_export.system.telemetry import without_telemetry

EQUAL = 1e-4
# How many of the feeds show that a graph still computes the same. One would do: an error in the algebra is in every value.
SHOWN = 4
# Bytes of second moments: those of base's whole text tower are four times as many.
HELD = 1 << 28


@dataclass(frozen=True)
class Activation:
    """What was seen of a tensor [..., M, K]: the greatest M (1 where it has no such axis), and ``largest`` float32 [K], the
    magnitude of every channel."""

    rows: int
    largest: np.ndarray


def run(model: onnx.ModelProto, feeds: Feeds, names: Iterable[str]) -> Iterator[dict[str, np.ndarray]]:
    """The tensors ``names`` of ``model``, outputs or not, for each of ``feeds``."""
    with without_telemetry("onnxruntime"):
        import onnxruntime

    names = list(names)
    wider = onnx.ModelProto()
    wider.CopyFrom(model)
    present = {output.name for output in model.graph.output}
    wider.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(wider.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for feed in feeds:
        yield dict(zip(names, session.run(names, dict(feed)), strict=True))


def observe(model: onnx.ModelProto, feeds: Feeds, names: Iterable[str]) -> dict[str, Activation]:
    """An :class:`Activation` for each tensor of ``names``, over all ``feeds``."""
    found: dict[str, Activation] = {}
    for tensors in run(model, feeds, names):
        for name, tensor in tensors.items():
            channels = tensor.shape[-1]
            largest = np.abs(tensor.reshape(-1, channels)).max(axis=0)
            seen = found.get(name, Activation(1, np.zeros(channels, np.float32)))
            rows = tensor.shape[-2] if tensor.ndim > 1 else 1
            found[name] = Activation(max(seen.rows, rows), np.maximum(seen.largest, largest))
    return found


def moments(model: onnx.ModelProto, feeds: Feeds, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray, int]]:
    """For each tensor [.., K] of ``names`` over all ``feeds``: its name, the sum of x^T x over its rows x as float64 [K, K], and
    how many rows there were. No more than :data:`HELD` bytes of sums are held at a time, and the graph is run again for others.
    """
    waiting = list(names)
    while waiting:
        sums: dict[str, np.ndarray] = {}
        rows: Counter[str] = Counter()
        for tensors in run(model, feeds, waiting):
            for name, tensor in tensors.items():
                if name not in sums and sum(held.nbytes for held in sums.values()) >= HELD:
                    continue
                x = tensor.reshape(-1, tensor.shape[-1])
                sums[name] = sums.get(name, 0.0) + (x.T @ x).astype(np.float64)
                rows[name] += len(x)
        for name, found in sums.items():
            yield name, found, rows[name]
        waiting = [name for name in waiting if name not in sums]


def by_activation(nodes: Iterable[onnx.NodeProto]) -> dict[str, list[onnx.NodeProto]]:
    """``nodes`` by the activation that they read: those of one activation share its factors."""
    groups: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in nodes:
        groups[node.input[0]].append(node)
    return groups


def matrix(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> np.ndarray:
    """The weight of a MatMul or Gemm as [K, N], whichever way it is stored."""
    weight = numpy_helper.to_array(constants[node.input[1]])
    return weight.T if transposed(node) else weight


def transposed(node: onnx.NodeProto) -> bool:
    """Whether ``node`` is a Gemm that stores its weight as [N, K]."""
    return node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute)


def factors(activation: np.ndarray, weights: Sequence[np.ndarray], alpha: float) -> np.ndarray:
    """s float32 [K] > 0, for the magnitudes [K] of an activation and the matrices [K, N] that it meets.

    s_j = activation_j ** alpha / weight_j ** (1 - alpha), where weight_j is the largest of row j of all; 1 where one is zero.
    """
    weight = np.max([np.abs(matrix).max(axis=1) for matrix in weights], axis=0)
    alive = (activation > 0) & (weight > 0)
    scales = np.where(alive, activation, 1.0) ** alpha / np.where(alive, weight, 1.0) ** (1 - alpha)
    # A channel that hardly ever speaks must not become so loud that float32 loses its weight.
    return np.clip(scales, 1e-4, 1e4).astype(np.float32)


def equalise(
    model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto], seen: Mapping[str, Activation], alpha: float
) -> None:
    """Divide the activation of each of ``nodes`` (of ``model``, in place) by its factors, and multiply the weights.

    The division is folded into a LayerNormalization that nothing else reads; before others a Mul is inserted, which an
    engine computes together with the QuantizeLinear that will follow.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    for name, readers in by_activation(nodes).items():
        weights = [matrix(node, constants) for node in readers]
        scales = factors(seen[name].largest, weights, alpha)
        for node, weight in zip(readers, weights, strict=True):
            scaled = weight * scales[:, None]
            # A new constant: the old one may belong to other nodes as well.
            node.input[1] = _constant(graph, f"{node.name}.smooth", scaled.T if transposed(node) else scaled)
        producer = producers.get(name)
        if producer is not None and producer.op_type == "LayerNormalization" and _reads(graph, name) == len(readers):
            _fold(graph, producer, constants, scales)
        else:
            _multiply(graph, name, readers, scales)
    remove_unused(graph)


def require_equal(before: onnx.ModelProto, after: onnx.ModelProto, feeds: Feeds) -> None:
    """Raise :class:`GateFailed` unless both compute the same at FP32."""
    names = [output.name for output in before.graph.output]
    for old, new in zip(run(before, feeds[:SHOWN], names), run(after, feeds[:SHOWN], names), strict=True):
        for name in names:
            error, _ = difference(new[name], old[name])
            if not error <= EQUAL:
                raise GateFailed(f"equalising changed {name} by {error:.1e}, more than {EQUAL:.0e}", fix="report this")


def remove_unused(graph: onnx.GraphProto) -> None:
    """Remove the constants that no node reads."""
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    unused = [tensor for tensor in graph.initializer if tensor.name not in used]
    names = {tensor.name for tensor in unused}
    for tensor in unused:
        graph.initializer.remove(tensor)
    for value in [value for value in graph.value_info if value.name in names]:
        graph.value_info.remove(value)


def _reads(graph: onnx.GraphProto, name: str) -> int:
    # As many as there are inputs that read it; an output of the graph counts as one.
    inside = sum(list(node.input).count(name) for node in graph.node)
    return inside + sum(output.name == name for output in graph.output)


def _constant(graph: onnx.GraphProto, name: str, value: np.ndarray) -> str:
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name))
    return name


def _fold(graph: onnx.GraphProto, norm: onnx.NodeProto, constants: Mapping, scales: np.ndarray) -> None:
    for index, name in enumerate(list(norm.input)[1:3], 1):
        value = numpy_helper.to_array(constants[name]) / scales
        norm.input[index] = _constant(graph, f"{norm.name}.{('scale', 'bias')[index - 1]}.smooth", value)


def _multiply(graph: onnx.GraphProto, name: str, readers: list[onnx.NodeProto], scales: np.ndarray) -> None:
    factor = _constant(graph, f"{name}.factor", 1 / scales)
    node = helper.make_node("Mul", [name, factor], [f"{name}.smooth"], name=f"{name}.smooth")
    for reader in readers:
        reader.input[0] = node.output[0]
    position = min(index for index, other in enumerate(graph.node) if other in readers)
    graph.node.insert(position, node)
