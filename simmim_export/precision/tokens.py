"""Matrix products to INT8 with a range for every token, found as it comes.

Knows ONNX graphs, and measures channels on feeds. Must not know engines or what a feed means. requires: a graph at FP32 and
real feeds of it. ensures: no operator outside ONNX's own; no row of a result depends on another row, so neither on what else
is in the batch nor on padding; or :class:`GateFailed`.

x @ W becomes ((x / m) @ W) * m, where m [..., 1] is the largest magnitude of each token, or zero's neighbour. What is
multiplied then lies in [-1, 1] whatever comes, so it takes a QuantizeLinear with a constant scale, and both CPU engines see
the static U8 product that their fastest kernels take: ONNX Runtime as MatMulIntegerToFloat, OpenVINO as an INT8
FullyConnected. It costs six small operators a product. Three things make the levels go further:

- Behind a LayerNormalization a few channels are a hundred times the others (in every BERT): they are equalised. Samples
  decide that alone; one that is unlike them loses some levels and is never clipped.
- What a GELU or Relu gives is bounded below: it is shifted to begin at zero, and all levels are above.
- Weights are rounded so that on real samples their errors cancel (:mod:`simmim_export.precision.rounding`).

`simmim-bench quantization` measures what that keeps of real weights; README.md has its table.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from simmim_export.errors import DataError, GateFailed
from simmim_export.precision.rounding import compensated, nearest
from simmim_export.precision.smooth import (
    Feeds,
    by_activation,
    equalise,
    matrix,
    moments,
    observe,
    remove_unused,
    require_equal,
)
from simmim_export.precision.weights import products, scales_of

# Of 0.4 to 0.8 the best mean cosine, with sentences of the same kind as with eight captions of another.
ALPHA = 0.6
# The least that each can give: of GELU, exact -0.16997 and by tanh -0.17004.
BOUNDED = {"Gelu": 0.1701, "Relu": 0.0}
# A token of zeros is divided by this.
TINY = np.float32(1e-30)


def quantize_products(
    model: onnx.ModelProto, feeds: Feeds, keep_float: Collection[str] = (), half: int = 63
) -> list[str]:
    """Quantise every one of :func:`products` but those named in ``keep_float``, in place, and return the nodes' names.

    ``half``: weights are -half ... half steps of their scale. Raise :class:`DataError` where channels are to be equalised and
    there are no feeds, :class:`GateFailed` where a tensor is not finite on them. Without feeds weights are rounded to nearest.
    """
    chosen = [node for node in products(model) if node.name not in keep_float]
    _equalise(model, chosen, feeds)
    rounded = _round(model, chosen, feeds, half)
    producers = {name: node.op_type for node in model.graph.node for name in node.output}
    for name, readers in by_activation(chosen).items():
        _quantise(model.graph, name, readers, BOUNDED.get(producers.get(name, "")), rounded)
    remove_unused(model.graph)
    return [node.name for node in chosen]


def _equalise(model: onnx.ModelProto, chosen: Sequence[onnx.NodeProto], feeds: Feeds) -> None:
    normed = {name for node in model.graph.node if node.op_type == "LayerNormalization" for name in node.output[:1]}
    behind = [node for node in chosen if node.input[0] in normed]
    if not behind:
        return
    if not feeds:
        raise DataError("no samples to measure channels on", fix="give 8 or more real ones")
    before = onnx.ModelProto()
    before.CopyFrom(model)
    equalise(model, behind, observe(model, feeds, by_activation(behind)), ALPHA)
    require_equal(before, model, feeds)


def _round(
    model: onnx.ModelProto, chosen: Sequence[onnx.NodeProto], feeds: Feeds, half: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The weight of each of ``chosen`` by name, as levels int8 [K, N] and scales float32 [N]."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    groups, found = by_activation(chosen), dict[str, tuple[np.ndarray, np.ndarray]]()
    if not feeds:
        weights = {node.name: matrix(node, constants) for node in chosen}
        return {name: (nearest(w, scales_of(w, half), half), scales_of(w, half)) for name, w in weights.items()}
    for name, seen, rows in moments(model, feeds, list(groups)):
        if not np.isfinite(seen).all():
            raise GateFailed(
                f"{name} is not finite on the samples", fix="check the samples, or leave --precision int8 out"
            )
        for node in groups[name]:
            weight = matrix(node, constants)
            scales = scales_of(weight, half)
            found[node.name] = compensated(weight, scales, half, seen, rows), scales
    return found


def _quantise(
    graph: onnx.GraphProto,
    name: str,
    readers: Sequence[onnx.NodeProto],
    shift: float | None,
    rounded: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> None:
    """Let ``readers`` multiply the tensor ``name`` in INT8, by their weights as they were ``rounded``.

    ``shift`` plus the tensor is nowhere below zero; None where it has no bound.
    """
    symmetric = shift is None
    steps, middle = (127, 128) if symmetric else (255, 0)
    scale = _constant(graph, f"token.scale.{steps}", np.float32(1 / steps))
    zero = _constant(graph, f"token.zero.{middle}", np.uint8(middle))
    axis, tiny = _constant(graph, "token.axis", np.array([-1])), _constant(graph, "token.tiny", TINY)
    made: list[onnx.NodeProto] = []

    def make(kind: str, inputs: Sequence[str], suffix: str, **attributes: int) -> str:
        output = f"{name}.{suffix}"
        made.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    source = name
    if shift:
        source = make("Add", [name, _constant(graph, f"token.shift.{shift}", np.float32(shift))], "shifted")
    size = make("Abs", [source], "size") if symmetric else source
    largest = make("Max", [make("ReduceMax", [size, axis], "range", keepdims=1), tiny], "largest")
    levelled = make("QuantizeLinear", [make("Div", [source, largest], "unit"), scale, zero], "levels")
    back = make("DequantizeLinear", [levelled, scale, zero], "rounded")
    _insert(graph, readers[0], made, before=True)
    for node in readers:
        _multiply(graph, node, *rounded[node.name], back, largest, shift or 0.0)


def _multiply(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    levels: np.ndarray,
    scales: np.ndarray,
    rounded: str,
    largest: str,
    shift: float,
) -> None:
    """Let the MatMul ``node`` read ``rounded`` and its weight in ``levels``, and undo range and shift behind it."""
    output, own = node.output[0], f"{node.name}.weight"
    inputs = [
        _constant(graph, f"{own}.int8", levels),
        _constant(graph, f"{own}.scale", scales),
        _constant(graph, f"{own}.zero", np.zeros(len(scales), np.int8)),
    ]
    dequantize = helper.make_node("DequantizeLinear", inputs, [own], name=own, axis=1)
    node.input[:] = [rounded, own]
    node.output[0] = f"{output}.product"
    scaled = f"{output}.scaled" if shift else output
    after = [helper.make_node("Mul", [node.output[0], largest], [scaled], name=f"{node.name}.scaled")]
    if shift:
        # Of the weights as they are multiplied, so that the shift cancels exactly.
        moved = -shift * (levels.astype(np.float64) * scales).sum(axis=0)
        offset = _constant(graph, f"{own}.offset", moved.astype(np.float32))
        after.append(helper.make_node("Add", [scaled, offset], [output], name=f"{node.name}.offset"))
    _insert(graph, node, [dequantize], before=True)
    _insert(graph, node, after, before=False)


def _constant(graph: onnx.GraphProto, name: str, value: np.ndarray | np.generic) -> str:
    if all(tensor.name != name for tensor in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def _insert(graph: onnx.GraphProto, node: onnx.NodeProto, others: Sequence[onnx.NodeProto], before: bool) -> None:
    place = next(index for index, known in enumerate(graph.node) if known.output[:1] == node.output[:1])
    for index, other in enumerate(others):
        graph.node.insert(place + (0 if before else 1) + index, other)
