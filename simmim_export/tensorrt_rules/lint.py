"""Whether TensorRT takes a graph: what its ONNX parser refuses or restricts, before a device with a GPU is at hand.

Knows the parser's rules; those of INT8 are in lint_int8. Must not know which graphs a model has, bundles or engines. Every rule
is read off the graph alone, so a finding comes with the node and the PyTorch module to change, and no engine is built.
Sources: docs/operators.md of onnx-tensorrt for TensorRT 10.15 and the documentation of TensorRT's data types.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from simmim_export.errors import GateFailed
from simmim_export.tensorrt_rules.graph import ONNX_DOMAINS, Graph, Problems, Rule, Rules, attribute, label
from simmim_export.tensorrt_rules.int8 import INT8_RULES, quantised_tensors

NEWEST_OPSET = 24
SHOWN = 20
LARGEST_HALF = 65504
# TensorRT's limit is on K itself, whatever the length of the axis.
TOPK_LIMIT = 3840
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)  # DOUBLE has a rule of its own

UNSUPPORTED_FAMILIES = ("Bitwise", "Optional", "QLinear", "Sequence", "String")
# fmt: off
UNSUPPORTED = frozenset((
    "AffineGrid", "Bernoulli", "BitShift", "CenterCropPad", "Col2Im", "Compress", "ConcatFromSequence", "ConvInteger",
    "DFT", "Det", "DynamicQuantizeLinear", "ImageDecoder", "MatMulInteger", "MaxRoiPool", "MaxUnpool",
    "MelWeightMatrix", "Multinomial", "NegativeLogLikelihoodLoss", "RegexFullMatch", "SoftmaxCrossEntropyLoss",
    "SplitToSequence", "TfIdfVectorizer", "Unique",
))
# fmt: on


@dataclass(frozen=True)
class Finding:
    """``node`` breaks ``rule``, in the way that ``what`` says; ``module`` is the PyTorch module it was exported from, or ""."""

    rule: str
    node: str
    module: str
    what: str

    def __str__(self) -> str:
        place = f"{self.node} ({self.module})" if self.module else self.node
        return f"{self.rule}: {place}: {self.what}"


PARSER_RULES = Rules()


@PARSER_RULES.add(f"The parser reads opset {NEWEST_OPSET} at most.")
def opset(graph: Graph) -> Problems:
    if graph.opset > NEWEST_OPSET:
        yield graph.name, f"is of opset {graph.opset}"


@PARSER_RULES.add("Every operator is ONNX's own and one that the parser supports.")
def operator(graph: Graph) -> Problems:
    for node in graph.nodes:
        if node.domain not in ONNX_DOMAINS:
            yield node, f"is {node.op_type} of {node.domain}"
        elif node.op_type in UNSUPPORTED or node.op_type.startswith(UNSUPPORTED_FAMILIES):
            yield node, f"is {node.op_type}, which TensorRT does not support"


@PARSER_RULES.add(
    "There is no NonZero: the shape of its output depends on the data, and nothing can be planned for it."
)
def nonzero(graph: Graph) -> Problems:
    yield from ((node, "is a NonZero") for node in graph.nodes if node.op_type == "NonZero")


@PARSER_RULES.add("There is no Attention operator: parsers before TensorRT 10.14 do not know it.")
def attention(graph: Graph) -> Problems:
    for node in graph.nodes:
        if node.op_type == "Attention" and node.domain in ONNX_DOMAINS:
            yield node, "is an Attention"


@PARSER_RULES.add("The axes of Squeeze and Unsqueeze are constant.")
def squeeze_axes(graph: Graph) -> Problems:
    for node in graph.nodes:
        if node.op_type not in ("Squeeze", "Unsqueeze") or attribute(node, "axes") is not None:
            continue
        if len(node.input) > 1 and node.input[1]:
            if node.input[1] not in graph.constants:
                yield node, f"takes its axes from {node.input[1]}, which is computed"
        elif None in (graph.shape(node.input[0]) or [None]):
            # Without axes every axis of length 1 goes, which is as good as a constant where all lengths are known.
            yield node, "has no axes and an input of unknown shape"


@PARSER_RULES.add("The axes of every Reduce operator are constant.")
def reduce_axes(graph: Graph) -> Problems:
    for node in graph.nodes:
        axes = node.input[1] if node.op_type.startswith("Reduce") and len(node.input) > 1 else ""
        if axes and axes not in graph.constants:
            yield node, f"takes its axes from {axes}, which is computed"


@PARSER_RULES.add("ScatterND replaces: its reduction is none.")
def scatter_reduction(graph: Graph) -> Problems:
    for node in graph.nodes:
        reduction = attribute(node, "reduction", b"none").decode() if node.op_type == "ScatterND" else "none"
        if reduction != "none":
            yield node, f"reduces by {reduction}"


@PARSER_RULES.add("Only the first output of LayerNormalization is used.")
def layernorm_outputs(graph: Graph) -> Problems:
    for node in graph.nodes:
        if node.op_type == "LayerNormalization":
            used = [name for name in node.output[1:] if name in graph.readers or name in graph.outputs]
            if used:
                yield node, f"gives its mean or deviation as {', '.join(used)}"


@PARSER_RULES.add(f"K of TopK is constant and less than {TOPK_LIMIT}.")
def topk(graph: Graph) -> Problems:
    for node in graph.nodes:
        if node.op_type == "TopK" and len(node.input) > 1:  # before opset 10 K was an attribute
            count = graph.value(node.input[1])
            if count is None:
                yield node, f"takes K from {node.input[1]}, which is computed"
            elif count.max() >= TOPK_LIMIT:
                yield node, f"has K = {count.max()}"


@PARSER_RULES.add("No tensor is DOUBLE: TensorRT computes it as FLOAT.")
def double(graph: Graph) -> Problems:
    for name in graph.names:
        if graph.dtype(name) == TensorProto.DOUBLE:
            yield graph.producer.get(name, name), f"{name} is DOUBLE"


@PARSER_RULES.add("UINT8 is the type of a network input that is cast at once, and of nothing else.")
def uint8(graph: Graph) -> Problems:
    # Not even data movement takes it: a Transpose before the Cast fails (NVIDIA/TensorRT issue 3985). UINT8 as a quantised
    # type is refused by the rule zero-point, and is no second finding here.
    quantised = quantised_tensors(graph)
    for node in graph.nodes:
        made, read = (
            [name for name in names if name not in quantised and graph.dtype(name) == TensorProto.UINT8]
            for names in (node.output, node.input)
        )
        if made:
            yield node, f"is a {node.op_type} that makes {made[0]} in UINT8"
        elif read and node.op_type != "Cast":
            yield node, f"is a {node.op_type} that reads {read[0]} in UINT8"


@PARSER_RULES.add(f"In a graph with fp16 no floating-point constant, a mask included, is beyond ±{LARGEST_HALF}.")
def fp16_range(graph: Graph) -> Problems:
    # FP32 constants too: a mask of -3.4e38 may meet a Cast further on, and an FP32 island has no use for such numbers.
    if not any(graph.dtype(name) == TensorProto.FLOAT16 for name in graph.names):
        return
    tensors = dict(graph.constants)
    for node in graph.nodes:
        if node.op_type == "ConstantOfShape" and (fill := attribute(node, "value")) is not None:
            tensors[node.output[0]] = fill
    for name, tensor in tensors.items():
        if tensor.data_type not in FLOATS:
            continue
        array = numpy_helper.to_array(tensor).astype(np.float32, copy=False)
        beyond = array[~(np.abs(array) <= LARGEST_HALF)]
        if beyond.size:
            yield graph.producer.get(name, name), f"{name} holds {beyond.flat[0]:.6g}"


_TABLE: Mapping[str, Rule] = PARSER_RULES.table | INT8_RULES.table
RULES: Mapping[str, str] = {name: rule.sentence for name, rule in _TABLE.items()}


def lint(model: onnx.ModelProto) -> list[Finding]:
    """Everything in ``model`` that breaks one of :data:`RULES`, rule by rule. The model is not changed."""
    graph = Graph(model)
    found = []
    for name, rule in _TABLE.items():
        for place, what in rule.check(graph):
            node, module = (place, "") if isinstance(place, str) else (label(place), graph.module(place))
            found.append(Finding(name, node, module, what))
    return found


def require(model: onnx.ModelProto, where: object) -> None:
    """Raise :class:`GateFailed` that names up to 20 findings of :func:`lint`; ``where`` is the graph or file they are in."""
    found = lint(model)
    if not found:
        return
    lines = [str(finding) for finding in found[:SHOWN]]
    if len(found) > SHOWN:
        lines.append(f"and {len(found) - SHOWN} more")
    what = "TensorRT would refuse this graph, change what it computes, or run it slowly:\n  " + "\n  ".join(lines)
    raise GateFailed(what, where=where, fix="change the module that is named, or leave its node in float")
