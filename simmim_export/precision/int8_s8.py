"""The variant int8-s8 of a graph, for TensorRT: static symmetric ranges, and Q/DQ pairs where NVIDIA's own quantiser puts them.

Knows ONNX graphs and onnxruntime's quantiser. Must not know bundles, engines or what a feed means. requires: a graph of ours at
FP32 and real feeds of it. ensures: the same inputs, outputs and opset; every pair S8 with zero point 0, at the inputs of
convolutions and of products with constant weights, or on the shortcut into a residual Add; nothing in it that
:mod:`simmim_export.tensorrt_rules.lint` would refuse and did not refuse before; or :class:`GateFailed`.

Measured on MiniLM (64 sentences to calibrate, 1,200 others to judge; mean cosine to FP32, nearest neighbours kept):
naive ranges 0.984, 0.77; all products equalised 0.998, 0.93; all but the feed-forward's second 0.9994, 0.957. Those read what
GELU gives, a few values a thousand times the rest, and most of them lose too much at any alpha. So a product that loses more
than LIMIT in calibration stays float. Ranges are least and greatest: percentiles and least squares were no better (0.9994 at
best), and they need samples of one length. onnxruntime's quantiser is used because it takes a list of nodes; NNCF's transformer
preset comes to 0.9990, 0.95 and places pairs on more than that list.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from simmim_export.errors import DataError, GateFailed, UsageError
from simmim_export.precision import int8
from simmim_export.precision.int8 import Quantised
from simmim_export.precision.quantizer import quantize
from simmim_export.precision.smooth import (
    Activation,
    Feeds,
    by_activation,
    equalise,
    factors,
    matrix,
    observe,
    remove_unused,
    require_equal,
    run,
)
from simmim_export.system.telemetry import without_telemetry
from simmim_export.tensorrt_rules.lint import lint

VARIANT = "int8-s8"
# Of 0.5 to 1.0: the best mean cosine of MiniLM; 0.7 and 0.9 lose little.
ALPHA = 0.8
# The mean over rows of |error| / |row| in a product. On MiniLM all but the feed-forward's second lie between 0.010 and 0.026,
# and those at 0.12, 0.09, 0.09, 0.06, 0.028 and 0.013.
LIMIT = 0.03
# How many of the feeds judge that.
JUDGES = 16
# Below this many channels, or rows and columns of a matrix, an INT8 kernel wins nothing.
LEAST = 16


def to_int8_s8(
    source: Path, target: Path, feeds: Sequence[Mapping[str, np.ndarray]], keep_float: Collection[str] = ()
) -> Quantised:
    """Write the int8-s8 form of the graph ``source`` to ``target``. One with nothing to quantise is copied as it is.

    ``feeds``: inputs of that very graph, batch 1 each, real and different samples; 64 or so. ``keep_float``: nodes, by name,
    that are not quantised. Raise :class:`DataError` without feeds, :class:`UsageError` for a node that is not there.
    """
    if not feeds:
        raise DataError("no samples to measure ranges on", where=source, fix="give 64 or so real ones")
    before, model = onnx.load(source), onnx.load(source)
    missing = sorted(set(keep_float) - {node.name for node in model.graph.node})
    if missing:
        raise UsageError(f"there is no node {', '.join(missing)} to keep in float", fix="name nodes of the graph")
    convolutions = [node for node in convolutions_of(model) if node.name not in keep_float]
    products = [node for node in products_of(model) if node.name not in keep_float]
    seen = observe(model, feeds, by_activation(products)) if products else {}
    products = worthwhile(model, [node for node in products if seen[node.input[0]].rows > 1], seen, feeds)
    if not convolutions and not products:
        shutil.copyfile(source, target)
        return Quantised((), ())
    if products:
        equalise(model, products, seen, ALPHA)
        require_equal(before, model, feeds)
    names = Quantised(tuple(n.name for n in convolutions), tuple(n.name for n in products))
    sums = residuals(model, names.convolutions)
    _quantize(model, target, [*names.convolutions, *names.products, *sums], feeds)
    after = onnx.load(target)
    for name, branch in sums.items():
        _unpair(after.graph, name, branch)
    _keep_exact(after.graph, {*names.convolutions, *names.products, *sums})
    onnx.save(after, target)
    check(before, after)
    return names


def convolutions_of(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The convolutions with constant weights that are worth quantising: of enough channels, or the first."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    after: set[str] = set()
    found = []
    for node in model.graph.node:
        first = after.isdisjoint(node.input)
        if node.op_type == "Conv" or not first:
            after.update(node.output)
        weight = constants.get(node.input[1]) if node.op_type == "Conv" else None
        if weight is None or weight.data_type != onnx.TensorProto.FLOAT:
            continue
        groups = next((int(a.i) for a in node.attribute if a.name == "group"), 1)
        if first or min(weight.dims[0], weight.dims[1] * groups) >= LEAST:
            found.append(node)
    return found


def products_of(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The MatMuls and Gemms with a constant float matrix that is large enough."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        weight = constants.get(node.input[1]) if node.op_type in ("MatMul", "Gemm") else None
        if weight is None or weight.data_type != onnx.TensorProto.FLOAT or len(weight.dims) != 2:
            continue
        if min(weight.dims) >= LEAST and not any(a.name == "transA" and a.i for a in node.attribute):
            found.append(node)
    return found


def worthwhile(
    model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto], seen: Mapping[str, Activation], feeds: Feeds
) -> list[onnx.NodeProto]:
    """Those of ``nodes`` that lose no more than :data:`LIMIT` when they are equalised and quantised."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    groups = by_activation(nodes)
    lost: dict[str, list[np.ndarray]] = {node.name: [] for readers in groups.values() for node in readers}
    for tensors in run(model, feeds[:JUDGES], groups) if groups else ():
        for name, readers in groups.items():
            weights = [matrix(node, constants) for node in readers]
            scales = factors(seen[name].largest, weights, ALPHA)
            rows = tensors[name].reshape(-1, len(scales))
            rounded = _rounded(rows / scales, (seen[name].largest / scales).max())
            for node, weight in zip(readers, weights, strict=True):
                exact = rows @ weight
                scaled = weight * scales[:, None]
                error = rounded @ _rounded(scaled, np.abs(scaled).max(axis=0)) - exact
                norm = np.maximum(np.linalg.norm(exact, axis=1), np.finfo(np.float32).tiny)
                lost[node.name].append(np.linalg.norm(error, axis=1) / norm)
    good = {name for name, shares in lost.items() if np.concatenate(shares).mean() <= LIMIT}
    return [node for readers in groups.values() for node in readers if node.name in good]


def residuals(model: onnx.ModelProto, convolutions: Collection[str]) -> dict[str, str]:
    """The Adds that a convolution of ``convolutions`` can compute along, by name, and which input is that convolution's.

    Of two convolutions it is the one further from the inputs: the other is the projection of the shortcut.
    """
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    reads = [name for node in graph.node for name in node.input] + [output.name for output in graph.output]
    producers = {name: node for node in graph.node for name in node.output}
    depth: dict[str, int] = {}
    found = {}
    for node in graph.node:
        depth |= dict.fromkeys(node.output, 1 + max((depth.get(name, 0) for name in node.input), default=0))
        if node.op_type != "Add" or not constants.isdisjoint(node.input):
            continue
        branches = [
            name
            for name in node.input
            if name in producers and producers[name].name in convolutions and reads.count(name) == 1
        ]
        if branches:
            found[node.name] = max(branches, key=lambda name: depth[name])
    return found


def check(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Raise :class:`GateFailed` unless ``after`` is what this module promises."""
    int8.check(before, after)
    opsets = [{entry.domain: entry.version for entry in model.opset_import} for model in (before, after)]
    if opsets[0].get("") != opsets[1].get(""):
        raise GateFailed(f"quantising changed the opset from {opsets[0]} to {opsets[1]}", fix="report this")
    known = set(lint(before))
    new = [str(finding) for finding in lint(after) if finding not in known]
    if new:
        raise GateFailed("TensorRT would not take the quantised graph:\n  " + "\n  ".join(new[:20]), fix="report this")


def _rounded(values: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """``values`` [M, K] as S8 would hold them, with the range ±``largest``, a number or one for each column."""
    step = np.where(largest > 0, largest, 1.0).astype(np.float32) / 127
    return np.clip(np.rint(values / step), -127, 127) * step


def _quantize(model: onnx.ModelProto, target: Path, nodes: Sequence[str], feeds: Feeds) -> None:
    with without_telemetry("onnxruntime"):
        from onnxruntime.quantization import QuantFormat, QuantType

    kinds = ["Conv", "MatMul", "Gemm", "Add"]
    quantize(
        model,
        target,
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


def _unpair(graph: onnx.GraphProto, name: str, branch: str) -> None:
    """Let the Add called ``name`` read the tensor ``branch``, without the pair that the quantiser put between them."""
    quantize = next(node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == branch)
    dequantize = next(node for node in graph.node if quantize.output[0] in node.input)
    add = next(node for node in graph.node if node.name == name)
    add.input[list(add.input).index(dequantize.output[0])] = branch
    graph.node.remove(dequantize)
    graph.node.remove(quantize)
    remove_unused(graph)


def _keep_exact(graph: onnx.GraphProto, quantised: Collection[str]) -> None:
    """Let nodes outside ``quantised`` read tensors as they were: the quantiser gives its pair to every reader of a tensor."""
    producers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.name in quantised or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        for index, name in enumerate(node.input):
            dequantize = producers.get(name)
            if dequantize is None or dequantize.op_type != "DequantizeLinear":
                continue
            quantize = producers.get(dequantize.input[0])
            if quantize is not None and quantize.op_type == "QuantizeLinear":
                node.input[index] = quantize.input[0]
