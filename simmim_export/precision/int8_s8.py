"""The pass for the variant int8-s8, for TensorRT: static symmetric ranges, and Q/DQ pairs where NVIDIA's quantizer puts them.

A pair is a QuantizeLinear and a DequantizeLinear after it. Pairs stand at the inputs of convolutions and of products with
constant weights, and on the shortcut into a residual Add.

Measured on MiniLM (64 sentences to calibrate, 1,200 others to judge; mean cosine to FP32, nearest neighbors kept):
plain ranges 0.984, 0.77; all products equalized 0.998, 0.93; all but the feed-forward's second 0.9994, 0.957. The last read the
results of GELU, in which a few values are a thousand times the rest, and most of them lose too much at any alpha. So a product
that loses more than LIMIT in calibration stays float. Ranges are the smallest and the largest value: percentiles and least
squares were no better (0.9994 at best), and they need samples of one length. NNCF's transformer preset reaches 0.9990, 0.95 and
puts pairs on more nodes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

import numpy as np
import onnx
import onnx_ir as ir

from simmim_export.errors import DataError, GateFailed
from simmim_export.precision.base import Feeds
from simmim_export.precision.int8_u8 import QuantizedPass
from simmim_export.precision.measure import Activation, run
from simmim_export.precision.rounding import nearest
from simmim_export.precision.smooth import by_activation, equalize, factors, matrix, require_equal, transposed
from simmim_export.precision.surgery import (
    array_of,
    constant,
    input_of,
    is_float_constant,
    operator,
    remove_unused_constants,
)
from simmim_export.precision.weights import is_large_matrix, read_constant, scales_of
from simmim_export.spec import Variant
from simmim_export.tensorrt_rules.lint import lint

# The best mean cosine of MiniLM among 0.5 to 1.0; 0.7 and 0.9 lose little.
ALPHA = 0.8
# The mean over rows of |error| / |row| in a product. On MiniLM all but the feed-forward's second lie between 0.010 and 0.026,
# and those at 0.12, 0.09, 0.09, 0.06, 0.028 and 0.013.
LIMIT = 0.03
# How many of the feeds judge that.
JUDGE_FEEDS = 16
# Below this many channels, or rows and columns of a matrix, an INT8 kernel wins nothing.
LEAST_SIZE = 16


class Int8ForTensorRT(QuantizedPass):
    """Requires an FP32 graph and real feeds, different samples, about 64. Ensures that TensorRT's rules
    (:mod:`simmim_export.tensorrt_rules.lint`) find nothing in the result that they did not find before."""

    variant = Variant.INT8_S8

    @classmethod
    def touched(cls, model: onnx.ModelProto) -> list[str]:
        graph = ir.from_proto(model).graph
        return [str(node.name) for node in (*convolutions_of(graph), *products_of(graph))]

    def requires(self, model: onnx.ModelProto) -> None:
        super().requires(model)
        if not self.feeds:
            raise DataError("no samples to measure ranges on", fix="give about 64 real ones")

    def call(self, model: onnx.ModelProto) -> onnx.ModelProto:
        edited = ir.from_proto(model)
        graph, record = edited.graph, self.record(model)
        convolutions = [node for node in convolutions_of(graph) if node.name not in self.options.keep_float]
        products = [node for node in products_of(graph) if node.name not in self.options.keep_float]
        branches = residuals(graph, [str(node.name) for node in convolutions])
        # Before equalizing inserts nodes: the tensor that each node reads, and the input of each that is quantized.
        quantized = dict.fromkeys((*convolutions, *products), 0) | {
            node: int(input_of(node, 0).name == branches[str(node.name)]) for node in graph if node.name in branches
        }
        sources = {node: str(input_of(node, index).name) for node, index in quantized.items()}
        if not quantized:
            return model
        seen = record.activations(sources.values())
        products = worthwhile(model, products, seen=seen, feeds=self.feeds)
        if not convolutions and not products:
            return model
        divided: dict[str, np.ndarray] = {}
        if products:
            divided = equalize(graph, products, seen=seen, alpha=ALPHA)
            require_equal(record, ir.to_proto(edited))
        for number, node in enumerate(computing := [*convolutions, *products]):
            self.watch("node", number + 1, len(computing))
            _quantize_weight(graph, node)
        for node in list(graph):
            if node in quantized and (node in computing or node.name in branches):
                largest = seen[sources[node]].largest
                if node in products:
                    largest = largest / divided[sources[node]]
                _quantize_input(graph, node, index=quantized[node], largest=float(largest.max()))
        remove_unused_constants(graph)
        return ir.to_proto(edited)

    def ensures(self, before: onnx.ModelProto, after: onnx.ModelProto) -> None:
        super().ensures(before, after)
        known = set(lint(before))
        new = [str(finding) for finding in lint(after) if finding not in known]
        if new:
            listed = "\n  ".join(new[:20])
            raise GateFailed(f"TensorRT would not take the quantized graph:\n  {listed}", fix="report this")


def convolutions_of(graph: ir.Graph) -> list[ir.Node]:
    """The convolutions with constant weights that are worth quantizing: those with enough channels, and the first."""
    after: set[ir.Value | None] = set()
    convolutions = []
    for node in graph:
        first = after.isdisjoint(node.inputs)
        if node.op_type == "Conv" or not first:
            after.update(node.outputs)
        if node.op_type != "Conv" or not is_float_constant(node.inputs[1]):
            continue
        outputs, inputs = node.inputs[1].const_value.shape.numpy()[:2]
        if first or min(outputs, inputs * node.attributes.get_int("group", 1)) >= LEAST_SIZE:
            convolutions.append(node)
    return convolutions


def products_of(graph: ir.Graph) -> list[ir.Node]:
    """The MatMuls and Gemms with a constant float matrix that is large enough."""
    return [
        node
        for node in graph
        if node.op_type in ("MatMul", "Gemm")
        and is_large_matrix(node.inputs[1], LEAST_SIZE)
        and not node.attributes.get_int("transA", 0)
    ]


def worthwhile(
    model: onnx.ModelProto, products: Iterable[ir.Node], *, seen: Mapping[str, Activation], feeds: Feeds
) -> list[ir.Node]:
    """The ``products`` of more than one row at a time that lose at most :data:`LIMIT` when they are equalized and quantized."""
    groups = {str(activation.name): readers for activation, readers in by_activation(products).items()}
    groups = {name: readers for name, readers in groups.items() if seen[name].rows > 1}
    samples: dict[str, list[np.ndarray]] = defaultdict(list)
    for tensors in run(model, feeds[:JUDGE_FEEDS], groups) if groups else ():
        for name, tensor in tensors.items():
            samples[name].append(tensor.reshape(-1, tensor.shape[-1]))
    chosen = []
    for name, readers in groups.items():
        weights = [matrix(node) for node in readers]
        scales = factors(seen[name].largest, weights, ALPHA)
        rows = np.concatenate(samples.pop(name))
        rounded = _rounded(rows / scales, (seen[name].largest / scales).max())
        for node, weight in zip(readers, weights, strict=True):
            exact = rows @ weight
            scaled = weight * scales[:, None]
            error = rounded @ _rounded(scaled, np.abs(scaled).max(axis=0)) - exact
            norm = np.maximum(np.linalg.norm(exact, axis=1), np.finfo(np.float32).tiny)
            if (np.linalg.norm(error, axis=1) / norm).mean() <= LIMIT:
                chosen.append(node)
    return chosen


def residuals(graph: ir.Graph, convolutions: Collection[str]) -> dict[str, str]:
    """The Adds that can be fused with one of ``convolutions``: the tensor that this convolution makes, by the name of the Add.

    If both inputs come from convolutions, it is the one further from the graph's inputs: the other one projects the shortcut.
    """
    depth: dict[ir.Value | None, int] = {}
    branches = {}
    for node in graph:
        depth |= dict.fromkeys(node.outputs, 1 + max((depth.get(value, 0) for value in node.inputs), default=0))
        if node.op_type != "Add" or any(value is None or value.is_initializer() for value in node.inputs):
            continue
        fusible = [value for value in node.inputs if value is not None and _is_read_once(value, convolutions)]
        if fusible:
            branches[str(node.name)] = str(max(fusible, key=depth.__getitem__).name)
    return branches


def _is_read_once(value: ir.Value, convolutions: Collection[str]) -> bool:
    """Whether one of ``convolutions`` makes ``value``, and one node reads it and nothing else does."""
    producer = value.producer()
    made = producer is not None and producer.name in convolutions
    return made and len(value.uses()) == 1 and not value.is_graph_output()


def _rounded(values: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """``values`` [M, K] rounded to S8 with the range ±``largest``, a number or one for each column."""
    step = np.where(largest > 0, largest, 1.0).astype(np.float32) / 127
    return np.clip(np.rint(values / step), -127, 127) * step


def _quantize_input(graph: ir.Graph, node: ir.Node, *, index: int, largest: float) -> None:
    """Let ``node`` read its input ``index`` through a pair with the range ±``largest``. Readers of one tensor share its pair."""
    value = input_of(node, index)
    pair = next((use.node for use in value.uses() if use.node.op_type == "QuantizeLinear"), None)
    if pair is None:
        name = str(value.name)
        step = np.float32(largest / 127)
        scale = constant(graph, f"{name}.scale", step if step >= np.finfo(np.float32).tiny else np.float32(1))
        zero = constant(graph, "symmetric.zero", np.int8(0))
        pair = operator("QuantizeLinear", [value, scale, zero], f"{name}.quantized")
        graph.insert_before(
            node, [pair, operator("DequantizeLinear", [pair.outputs[0], scale, zero], f"{name}.rounded")]
        )
    node.replace_input_with(index, pair.outputs[0].uses()[0].node.outputs[0])


def _quantize_weight(graph: ir.Graph, node: ir.Node) -> None:
    """Let ``node`` read its weight in INT8, with a scale for each output channel."""
    weight = array_of(input_of(node, 1))
    axis = 0 if node.op_type == "Conv" or transposed(node) else 1
    columns = np.moveaxis(weight, axis, -1)
    shape = columns.shape
    columns = columns.reshape(-1, shape[-1])
    scales = scales_of(columns, 127)
    levels = np.moveaxis(nearest(columns, scales, half=127).reshape(shape), -1, axis)
    read_constant(graph, node, 1, levels=levels, scales=scales, axis=axis)
