"""SmoothQuant (Xiao et al., 2022) on an ONNX graph: it moves what is hard to quantize from activations into weights.

The largest channel sets the range of a tensor, and in a transformer a few channels are a hundred times the others. So
channel j of the activation is divided by s_j, and row j of every weight that reads it is multiplied by s_j. The graph
still computes the same at FP32; :func:`require_equal` proves it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from simmim_export.errors import GateFailed
from simmim_export.precision.measure import Activation, Record, run
from simmim_export.precision.surgery import array_of, constant, input_of, operator, redirect, remove_unused_constants
from simmim_export.proof.parity import difference

# The largest scaled error between two graphs that compute the same.
EQUAL = 1e-4


def by_activation(nodes: Iterable[ir.Node]) -> dict[ir.Value, list[ir.Node]]:
    """``nodes`` by the activation that they read: those of one activation share its factors."""
    readers: dict[ir.Value, list[ir.Node]] = defaultdict(list)
    for node in nodes:
        readers[input_of(node, 0)].append(node)
    return readers


def matrix(node: ir.Node) -> np.ndarray:
    """The weight of a MatMul or Gemm as [K, N], whichever way it is stored."""
    weight = array_of(input_of(node, 1))
    return weight.T if transposed(node) else weight


def transposed(node: ir.Node) -> bool:
    """Whether ``node`` is a Gemm that stores its weight as [N, K]."""
    return node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0))


def factors(activation: np.ndarray, weights: Sequence[np.ndarray], alpha: float) -> np.ndarray:
    """s float32 [K] > 0, for the magnitudes [K] of an activation and the matrices [K, N] that it meets.

    s_j = activation_j ** alpha / weight_j ** (1 - alpha), where weight_j is the largest of row j of all; 1 where one is zero.
    Source: SmoothQuant, equation 4.
    """
    weight = np.max([np.abs(matrix).max(axis=1) for matrix in weights], axis=0)
    alive = (activation > 0) & (weight > 0)
    scales = np.where(alive, activation, 1.0) ** alpha / np.where(alive, weight, 1.0) ** (1 - alpha)
    # A channel that is nearly always zero must not get a factor with which float32 loses its weight.
    return np.clip(scales, 1e-4, 1e4).astype(np.float32)


def equalize(
    graph: ir.Graph, nodes: Iterable[ir.Node], *, seen: Mapping[str, Activation], alpha: float
) -> dict[str, np.ndarray]:
    """Divide the activation of each of ``nodes`` by its factors and multiply the weights, in place. Return the factors, float32
    [K], by the name of the activation that they divide.

    The division is folded into a LayerNormalization that nothing else reads. After other nodes a Mul is inserted, which an
    engine computes together with the QuantizeLinear that will follow.
    """
    divided = {}
    for activation, readers in by_activation(nodes).items():
        weights = [matrix(node) for node in readers]
        divided[str(activation.name)] = scales = factors(seen[str(activation.name)].largest, weights, alpha)
        for node, weight in zip(readers, weights, strict=True):
            scaled = weight * scales[:, None]
            # A new constant: other nodes may read the old one as well.
            new = constant(graph, f"{node.name}.smooth", scaled.T if transposed(node) else scaled)
            node.replace_input_with(1, new)
        norm = activation.producer()
        read_elsewhere = activation.is_graph_output() or len(activation.uses()) > len(readers)
        if norm is not None and norm.op_type == "LayerNormalization" and not read_elsewhere:
            _fold(graph, norm, scales)
        else:
            factor = constant(graph, f"{activation.name}.factor", 1 / scales)
            mul = operator("Mul", [activation, factor], f"{activation.name}.smooth")
            graph.insert_before(readers[0], mul)
            redirect(activation, readers, mul.outputs[0])
    remove_unused_constants(graph)
    return divided


def require_equal(before: Record, after: onnx.ModelProto) -> None:
    """Raise :class:`GateFailed` unless ``after`` computes what the graph of ``before`` does, at FP32."""
    old, names = before.outputs(), [output.name for output in after.graph.output]
    for exact, changed in zip(old, run(after, before.feeds[: len(old)], names), strict=True):
        for name, output in changed.items():
            error, _ = difference(output, exact[name])
            if not error <= EQUAL:
                raise GateFailed(f"equalizing changed {name} by {error:.1e}, more than {EQUAL:.0e}", fix="report this")


def _fold(graph: ir.Graph, norm: ir.Node, scales: np.ndarray) -> None:
    for index, value in enumerate(norm.inputs):
        if index and value is not None:
            name = f"{norm.name}.{('scale', 'bias')[index - 1]}.smooth"
            norm.replace_input_with(index, constant(graph, name, array_of(value) / scales))
