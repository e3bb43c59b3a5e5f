"""Matrix products to INT8 for CPUs, with a range of its own for every token, computed while the graph runs.

x @ W becomes ((x / m) @ W) * m, where m [..., 1] is the largest magnitude of each token, or a tiny number for a token of zeros.
x / m lies in [-1, 1] for every input, so a QuantizeLinear with a constant scale takes it, and both CPU engines see the static U8
product of their fastest kernels: ONNX Runtime as MatMulIntegerToFloat, OpenVINO as an INT8 FullyConnected. This costs six small
operators for each activation. No row of a result depends on another row, so neither the rest of the batch nor padding matters.
Three things reduce the error:

- After a LayerNormalization a few channels are a hundred times the others (in every BERT), so they are equalized. Only this
  depends on samples; an input that is unlike them loses some levels and is never clipped.
- The results of GELU, SiLU and Relu are bounded below. They are shifted so that they begin at zero, and use all levels.
- Weights are rounded so that their errors cancel on real samples (:mod:`simmim_export.precision.rounding`).

`simmim-bench quantization` measures how well real weights survive this.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from simmim_export.errors import GateFailed
from simmim_export.precision.measure import Record
from simmim_export.precision.rounding import compensated, nearest
from simmim_export.precision.smooth import by_activation, equalize, matrix, require_equal
from simmim_export.precision.surgery import (
    append,
    array_of,
    constant,
    is_float_constant,
    maker,
    operator,
    remove_unused_constants,
)
from simmim_export.precision.weights import products, read_constant, scales_of
from simmim_export.system.watch import Watch, unwatched

# Of 0.4 to 0.8 this gave the best mean cosine, calibrated on sentences of the same kind and on eight captions of another kind.
ALPHA = 0.6
# How far below zero the results can be: those of GELU are at least -0.16997 if exact and -0.17004 if by tanh.
BOUNDED = {"Gelu": 0.1701, "Relu": 0.0}
# As far below zero are the results of x * sigmoid(x), at x = -1.2785. Those of x * sigmoid(c x), which is CLIP's fast GELU with
# c = 1.702, are the same divided by c.
SIGMOID_BOUND = 0.2785
# A token of zeros is divided by this.
TINY = np.float32(1e-30)


@dataclass(frozen=True)
class RoundedWeight:
    """A weight as ``levels`` int8 [K, N] times ``scales`` float32 [N]."""

    levels: np.ndarray
    scales: np.ndarray


def quantize_products(
    model: onnx.ModelProto,
    record: Record,
    *,
    half: int,
    keep_float: Collection[str] = (),
    watch: Watch = unwatched,
) -> onnx.ModelProto:
    """``model`` with all :func:`products` in INT8 except those named in ``keep_float``; ``model`` itself if that is none.

    ``record`` is of the FP32 graph that ``model`` comes from: ``model`` may have other nodes in INT8 already. Weights have the
    levels -half ... half. ``watch`` is told how many products are done.

    Raise :class:`DataError` if channels have to be equalized and the record has no feeds, and :class:`GateFailed` if a tensor is
    not finite on them. Without feeds, weights are rounded to the nearest level.
    """
    edited = ir.from_proto(model)
    chosen = [node for node in products(edited.graph) if node.name not in keep_float]
    if not chosen:
        return model
    sources = sources_of(record)
    groups = grouped(chosen, record)
    divided: dict[str, np.ndarray] = {}
    if behind_norms := [node for node in chosen if maker(node.inputs[0]) == "LayerNormalization"]:
        seen = record.activations(sources[str(node.name)] for node in behind_norms)
        divided = equalize(edited.graph, behind_norms, seen=seen, alpha=ALPHA)
        unequalized = record if model is record.model else Record(model, record.feeds)
        require_equal(unequalized, ir.to_proto(edited))
    rounded: dict[ir.Node, RoundedWeight] = {}
    for name, levels in rounded_weights(groups, record, divided=divided, half=half):
        rounded |= zip(groups[name], levels, strict=True)
        watch("product", len(rounded), len(chosen))
    for readers in by_activation(chosen).values():
        read_by_token(edited.graph, readers, [rounded[node] for node in readers])
    remove_unused_constants(edited.graph)
    return ir.to_proto(edited)


def sources_of(record: Record) -> dict[str, str]:
    """The tensor that each node of the FP32 graph of ``record`` reads first, by the name of the node."""
    return {node.name: node.input[0] for node in record.model.graph.node if node.input}


def grouped(chosen: Iterable[ir.Node], record: Record) -> dict[str, list[ir.Node]]:
    """``chosen``, nodes that the FP32 graph of ``record`` has too, by the tensor that they read there. Measures these tensors if
    the record has feeds."""
    sources = sources_of(record)
    groups: dict[str, list[ir.Node]] = defaultdict(list)
    for node in chosen:
        groups[sources[str(node.name)]].append(node)
    if record.feeds:
        record.prepare(groups)
    return groups


def rounded_weights(
    groups: Mapping[str, Sequence[ir.Node]],
    record: Record,
    *,
    half: int,
    divided: Mapping[str, np.ndarray],
) -> Iterator[tuple[str, list[RoundedWeight]]]:
    """The weights of each of ``groups``, the nodes that read a tensor, with its name. ``divided`` are the factors [K] by which
    equalizing has divided tensors since ``record`` measured them."""
    measured = record.moments(groups) if record.feeds else ((name, None) for name in groups)
    for name, moments in measured:
        weights = [matrix(node) for node in groups[name]]
        joined = np.concatenate(weights, axis=1)
        scales = scales_of(joined, half)
        if moments is None:
            levels = nearest(joined, scales, half=half)
        elif not np.isfinite(moments).all():
            fix = "check the samples, or leave --precision int8 out"
            raise GateFailed(f"{name} is not finite on the samples", fix=fix)
        else:
            if name in divided:
                moments = moments / divided[name] / divided[name][:, None]
            tokens = record.activations([name])[name].tokens
            levels = compensated(joined, scales, half=half, moments=moments, tokens=tokens)
        ends = np.cumsum([weight.shape[1] for weight in weights])[:-1]
        parts = zip(np.split(levels, ends, axis=1), np.split(scales, ends), strict=True)
        yield name, [RoundedWeight(*part) for part in parts]


def bound_of(activation: ir.Value) -> float | None:
    """How far below zero ``activation`` can be, by the nodes that make it; None if that is not known."""
    node = activation.producer()
    if node is None or node.op_type != "Mul":
        return BOUNDED.get(maker(activation))
    for value, gate in (node.inputs, node.inputs[::-1]):
        sigmoid = None if gate is None else gate.producer()
        if sigmoid is None or sigmoid.op_type != "Sigmoid":
            continue
        if sigmoid.inputs[0] is value:
            return SIGMOID_BOUND
        inner = sigmoid.inputs[0].producer() if sigmoid.inputs[0] is not None else None
        if inner is None or inner.op_type != "Mul":
            continue
        for other, factor in (inner.inputs, inner.inputs[::-1]):
            if other is value and factor is not None and is_float_constant(factor) and array_of(factor).size == 1:
                slope = float(array_of(factor).reshape(()))
                return SIGMOID_BOUND / slope if slope > 0 else None
    return None


def read_by_token(graph: ir.Graph, readers: Sequence[ir.Node], weights: Sequence[RoundedWeight]) -> None:
    """Let ``readers``, all of one activation, multiply it by their ``weights`` in INT8, with a range for each token."""
    activation = readers[0].inputs[0]
    assert activation is not None
    shift = bound_of(activation)
    signed = shift is None
    steps, middle = (127, 128) if signed else (255, 0)
    scale = constant(graph, f"token.scale.{steps}", np.float32(1 / steps))
    zero = constant(graph, f"token.zero.{middle}", np.uint8(middle))
    axis, tiny = constant(graph, "token.axis", np.array([-1])), constant(graph, "token.tiny", TINY)
    nodes: list[ir.Node] = []

    def add(kind: str, inputs: Sequence[ir.Value], suffix: str, **attributes: int) -> ir.Value:
        nodes.append(operator(kind, inputs, f"{activation.name}.{suffix}", **attributes))
        return nodes[-1].outputs[0]

    source = activation
    if shift:
        source = add("Add", [activation, constant(graph, f"token.shift.{shift}", np.float32(shift))], "shifted")
    size = add("Abs", [source], "size") if signed else source
    largest = add("Max", [add("ReduceMax", [size, axis], "range", keepdims=1), tiny], "largest")
    levels = add("QuantizeLinear", [add("Div", [source, largest], "unit"), scale, zero], "levels")
    unit = add("DequantizeLinear", [levels, scale, zero], "rounded")
    graph.insert_before(readers[0], nodes)
    for node, weight in zip(readers, weights, strict=True):
        _multiply(graph, node, weight, unit=unit, largest=largest, shift=shift or 0.0)


def _multiply(
    graph: ir.Graph, node: ir.Node, weight: RoundedWeight, *, unit: ir.Value, largest: ir.Value, shift: float
) -> None:
    """Let the MatMul ``node`` multiply ``unit`` by ``weight``, and undo range and shift after it."""
    name, output = f"{node.name}.weight", node.outputs[0]
    read_weight(graph, node, weight)
    node.replace_input_with(0, unit)
    after = [operator("Mul", [output, largest], f"{node.name}.scaled")]
    if shift:
        # Computed from the rounded weight, so that the shift cancels exactly.
        moved = -shift * (weight.levels.astype(np.float64) * weight.scales).sum(axis=0)
        offset = constant(graph, f"{name}.offset", moved.astype(np.float32))
        after.append(operator("Add", [after[0].outputs[0], offset], f"{node.name}.offset"))
    append(output, after, f"{output.name}.product")


def read_weight(graph: ir.Graph, node: ir.Node, weight: RoundedWeight) -> None:
    """Let the MatMul ``node`` read ``weight`` in INT8."""
    read_constant(graph, node, 1, levels=weight.levels, scales=weight.scales, axis=1)
