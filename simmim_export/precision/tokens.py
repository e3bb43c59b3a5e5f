"""Matrix products to INT8 for CPUs, with a range of its own for every token, computed while the graph runs.

x @ W becomes ((x / m) @ W) * m, where m [..., 1] is the largest magnitude of each token, or a tiny number for a token of zeros.
x / m lies in [-1, 1] for every input, so a QuantizeLinear with a constant scale takes it, and both CPU engines see the static U8
product of their fastest kernels: ONNX Runtime as MatMulIntegerToFloat, OpenVINO as an INT8 FullyConnected. This costs six small
operators for each activation. No row of a result depends on another row, so neither the rest of the batch nor padding matters.
Three things reduce the error:

- Behind a LayerNormalization a few channels are a hundred times the others (in every BERT), so they are equalized. Only this
  depends on samples; an input that is unlike them loses some levels and is never clipped.
- The results of GELU and Relu are bounded below. They are shifted so that they begin at zero, and use all levels.
- Weights are rounded so that their errors cancel on real samples (:mod:`simmim_export.precision.rounding`).

`simmim-bench quantization` measures how well real weights survive this.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from simmim_export.errors import DataError, GateFailed
from simmim_export.precision.base import Feeds
from simmim_export.precision.measure import moments, observe
from simmim_export.precision.rounding import compensated, nearest
from simmim_export.precision.smooth import by_activation, equalize, matrix, require_equal
from simmim_export.precision.surgery import append, constant, operator, remove_unused_constants
from simmim_export.precision.weights import products, scales_of

# Of 0.4 to 0.8 this gave the best mean cosine, calibrated on sentences of the same kind and on eight captions of another kind.
ALPHA = 0.6
# How far below zero the results can be: those of GELU are at least -0.16997 if exact and -0.17004 if by tanh.
BOUNDED = {"Gelu": 0.1701, "Relu": 0.0}
# A token of zeros is divided by this.
TINY = np.float32(1e-30)


@dataclass(frozen=True)
class _Rounded:
    """A weight as ``levels`` int8 [K, N] times ``scales`` float32 [N]."""

    levels: np.ndarray
    scales: np.ndarray


def quantize_products(
    model: onnx.ModelProto, feeds: Feeds, *, keep_float: Collection[str] = (), half: int = 63
) -> onnx.ModelProto:
    """``model`` with all :func:`products` in INT8 except those named in ``keep_float``; ``model`` itself if that is none.

    Weights have the levels -half ... half. Raise :class:`DataError` if channels have to be equalized and there are no feeds,
    and :class:`GateFailed` if a tensor is not finite on the feeds. Without feeds, weights are rounded to the nearest level.
    """
    edited = ir.from_proto(model)
    chosen = [node for node in products(edited.graph) if node.name not in keep_float]
    if not chosen:
        return model
    behind_norms = [node for node in chosen if _maker(node.inputs[0]) == "LayerNormalization"]
    if behind_norms:
        if not feeds:
            raise DataError("no samples to measure channels on", fix="give 8 or more real ones")
        names = [str(activation.name) for activation in by_activation(behind_norms)]
        equalize(edited.graph, behind_norms, observe(model, feeds, names), ALPHA)
        require_equal(model, ir.to_proto(edited), feeds)
    rounded = _round(edited, chosen, feeds=feeds, half=half)
    for readers in by_activation(chosen).values():
        _quantize(edited.graph, readers, [rounded[str(node.name)] for node in readers])
    remove_unused_constants(edited.graph)
    return ir.to_proto(edited)


def _maker(value: ir.Value | None) -> str:
    producer = None if value is None else value.producer()
    return "" if producer is None else producer.op_type


def _round(model: ir.Model, nodes: Sequence[ir.Node], *, feeds: Feeds, half: int) -> dict[str, _Rounded]:
    """The weight of each of ``nodes`` by its name."""
    rounded: dict[str, _Rounded] = {}
    if not feeds:
        for node in nodes:
            weight = matrix(node)
            scales = scales_of(weight, half)
            rounded[str(node.name)] = _Rounded(nearest(weight, scales, half=half), scales)
        return rounded
    groups = {str(activation.name): readers for activation, readers in by_activation(nodes).items()}
    for name, moment, rows in moments(ir.to_proto(model), feeds, list(groups)):
        if not np.isfinite(moment).all():
            fix = "check the samples, or leave --precision int8 out"
            raise GateFailed(f"{name} is not finite on the samples", fix=fix)
        for node in groups[name]:
            weight = matrix(node)
            scales = scales_of(weight, half)
            rounded[str(node.name)] = _Rounded(
                compensated(weight, scales, half=half, moments=moment, tokens=rows), scales
            )
    return rounded


def _quantize(graph: ir.Graph, readers: Sequence[ir.Node], weights: Sequence[_Rounded]) -> None:
    """Let ``readers``, all of one activation, multiply it by their ``weights`` in INT8."""
    activation = readers[0].inputs[0]
    assert activation is not None
    shift = BOUNDED.get(_maker(activation))
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
    graph: ir.Graph, node: ir.Node, weight: _Rounded, *, unit: ir.Value, largest: ir.Value, shift: float
) -> None:
    """Let the MatMul ``node`` multiply ``unit`` by ``weight``, and undo range and shift behind it."""
    name, output = f"{node.name}.weight", node.outputs[0]
    inputs = [
        constant(graph, f"{name}.int8", weight.levels),
        constant(graph, f"{name}.scale", weight.scales),
        constant(graph, f"{name}.zero", np.zeros(len(weight.scales), np.int8)),
    ]
    dequantize = operator("DequantizeLinear", inputs, name, axis=1)
    graph.insert_before(node, dequantize)
    node.replace_input_with(0, unit)
    node.replace_input_with(1, dequantize.outputs[0])
    after = [operator("Mul", [output, largest], f"{node.name}.scaled")]
    if shift:
        # Computed from the rounded weight, so that the shift cancels exactly.
        moved = -shift * (weight.levels.astype(np.float64) * weight.scales).sum(axis=0)
        offset = constant(graph, f"{name}.offset", moved.astype(np.float32))
        after.append(operator("Add", [after[0].outputs[0], offset], f"{node.name}.offset"))
    append(output, after, f"{output.name}.product")
