"""The pass for the variant int8-s8, for TensorRT: static symmetric ranges, and Q/DQ pairs where NVIDIA's quantizer puts them.

A pair is a QuantizeLinear and a DequantizeLinear behind it. Pairs stand at the inputs of convolutions and of products with
constant weights, and on the shortcut into a residual Add.

Measured on MiniLM (64 sentences to calibrate, 1,200 others to judge; mean cosine to FP32, nearest neighbors kept):
plain ranges 0.984, 0.77; all products equalized 0.998, 0.93; all but the feed-forward's second 0.9994, 0.957. The last read the
results of GELU, in which a few values are a thousand times the rest, and most of them lose too much at any alpha. So a product
that loses more than LIMIT in calibration stays float. Ranges are the smallest and the largest value: percentiles and least
squares were no better (0.9994 at best), and they need samples of one length. ONNX Runtime's quantizer is used because it takes
a list of nodes; NNCF's transformer preset reaches 0.9990, 0.95 and puts pairs on more nodes than that list.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir

from simmim_export.errors import DataError, GateFailed
from simmim_export.precision.base import Feeds
from simmim_export.precision.int8_u8 import QuantizedPass
from simmim_export.precision.measure import Activation, observe, run
from simmim_export.precision.quantizer import quantize_static
from simmim_export.precision.smooth import by_activation, equalize, factors, matrix, require_equal
from simmim_export.precision.surgery import is_float_constant, remove_unused_constants
from simmim_export.precision.weights import is_large_matrix
from simmim_export.spec import Variant
from simmim_export.system.telemetry import without_telemetry
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
        graph = edited.graph
        convolutions = [node for node in convolutions_of(graph) if node.name not in self.options.keep_float]
        products = [node for node in products_of(graph) if node.name not in self.options.keep_float]
        if products:
            seen = observe(model, self.feeds, [str(activation.name) for activation in by_activation(products)])
            products = worthwhile(model, products, seen=seen, feeds=self.feeds)
        if not convolutions and not products:
            return model
        if products:
            equalize(graph, products, seen, ALPHA)
            require_equal(model, ir.to_proto(edited), self.feeds)
        computing = [str(node.name) for node in (*convolutions, *products)]
        branches = residuals(graph, [str(node.name) for node in convolutions])
        quantized = ir.from_proto(_quantize(ir.to_proto(edited), self.feeds, [*computing, *branches]))
        for node in quantized.graph:
            if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
                _remove_pairs(node, branch=branches.get(str(node.name)), quantized=node.name in {*computing, *branches})
        _remove_unread_pairs(quantized.graph)
        return ir.to_proto(quantized)

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
    losses: dict[ir.Node, list[np.ndarray]] = {node: [] for readers in groups.values() for node in readers}
    for tensors in run(model, feeds[:JUDGE_FEEDS], groups) if groups else ():
        for name, readers in groups.items():
            weights = [matrix(node) for node in readers]
            scales = factors(seen[name].largest, weights, ALPHA)
            rows = tensors[name].reshape(-1, len(scales))
            rounded = _rounded(rows / scales, (seen[name].largest / scales).max())
            for node, weight in zip(readers, weights, strict=True):
                exact = rows @ weight
                scaled = weight * scales[:, None]
                error = rounded @ _rounded(scaled, np.abs(scaled).max(axis=0)) - exact
                norm = np.maximum(np.linalg.norm(exact, axis=1), np.finfo(np.float32).tiny)
                losses[node].append(np.linalg.norm(error, axis=1) / norm)
    return [node for node, shares in losses.items() if np.concatenate(shares).mean() <= LIMIT]


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


def _quantize(model: onnx.ModelProto, feeds: Feeds, nodes: Sequence[str]) -> onnx.ModelProto:
    with without_telemetry("onnxruntime"):
        from onnxruntime.quantization import QuantFormat, QuantType

    kinds = ["Conv", "MatMul", "Gemm", "Add"]
    return quantize_static(
        model,
        feeds,
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=kinds,
        nodes_to_quantize=list(nodes),
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": kinds,
        },
    )


def _remove_pairs(node: ir.Node, *, branch: str | None, quantized: bool) -> None:
    """Let ``node`` read tensors directly where the quantizer put a pair between: all of them if it is not ``quantized`` (the
    quantizer gives its pair to every reader of a tensor), else the one called ``branch``, which a convolution makes."""
    for index, value in enumerate(node.inputs):
        source = _source_of_pair(value)
        if source is not None and (not quantized or source.name == branch):
            node.replace_input_with(index, source)


def _source_of_pair(value: ir.Value | None) -> ir.Value | None:
    """The tensor that a pair quantizes and gives back as ``value``; None if there is no pair."""
    for kind in ("DequantizeLinear", "QuantizeLinear"):
        node = None if value is None else value.producer()
        if node is None or node.op_type != kind:
            return None
        value = node.inputs[0]
    return value


def _remove_unread_pairs(graph: ir.Graph) -> None:
    for node in reversed(graph):
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and not node.outputs[0].uses():
            graph.remove(node, safe=True)
    remove_unused_constants(graph)
