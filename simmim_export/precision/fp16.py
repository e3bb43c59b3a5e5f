"""The variant fp16 of a graph: FP16 throughout, but for islands of nodes whose numbers do not fit.

Knows ONNX graphs and :mod:`~simmim_export.precision.islands`. Must not know bundles, engines of ours, or what a feed means.
requires: a graph of ours at FP32, and real samples of its inputs. ensures: the same inputs and outputs (names, types,
shapes), no operator outside ONNX's own, every constant as rounding leaves it and finite, the weights of products and
convolutions in FP16, nothing beyond FP16's range on those samples; or :class:`GateFailed`.

The conversion itself is onnxruntime.transformers.float16: it comes with ONNX Runtime, imports no torch and keeps the nodes'
metadata. onnxconverter-common is what it was forked from, and one more package to install. It leaves a graph that
:func:`halve` has to mend.

A LayerNormalization takes its statistics in FP32 by ONNX's definition (stash_type 1), and its epsilon is an attribute, which
no conversion touches: it becomes an island only where its sum of squares would burden an engine that does otherwise.
Preprocessing needs no island: pixels to 255 are exact in FP16, and with it in FP32 one tower came nearer to PyTorch (3.8e-3
instead of 6.0e-3) and another did not (4.4e-3 instead of 3.9e-3).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from simmim_export.errors import DataError, GateFailed
from simmim_export.precision.islands import LARGEST, Feeds, Island, copy_of, find_islands, ranges
from simmim_export.system.telemetry import without_telemetry
from simmim_export.tensorrt_rules.graph import ONNX_DOMAINS, Graph, attribute

VARIANT = "fp16"
PRODUCTS = ("MatMul", "Gemm", "Conv")


@dataclass(frozen=True)
class Halved:
    """What became of a graph: the nodes that compute in FP32, in the graph's order."""

    islands: tuple[Island, ...]


def to_fp16(source: Path, target: Path, feeds: Feeds) -> Halved:
    """Write the FP16 form of the graph ``source`` to ``target``.

    ``feeds``: inputs of this very graph, one sample (batch 1) in each. Raise :class:`DataError` for none of them and
    :class:`GateFailed` if the result is not what this module promises; then nothing has been written.
    """
    before = onnx.load(source)
    require(before, feeds)
    islands = find_islands(before, feeds)
    names = [island.node for island in islands]
    after = halve(before, names)
    check(before, after, names)
    check_values(after, feeds)
    onnx.save(after, target)
    return Halved(islands)


def require(model: onnx.ModelProto, feeds: Feeds) -> None:
    """Raise unless ``model`` and ``feeds`` are something to start from: :class:`GateFailed`, or :class:`DataError`."""
    if not feeds:
        raise DataError("no samples to measure the ranges of FP16 on", fix="give at least one")
    names = [node.name for node in model.graph.node]
    if "" in names or len(set(names)) < len(names):
        raise GateFailed(
            "islands are known by name, and the graph has nodes without one of their own", fix="report this"
        )
    graph = Graph(model)
    if len(graph.nodes) > len(names) or any(node.op_type == "Constant" for node in graph.nodes):
        raise GateFailed("the graph has subgraphs, or constants that are no initialisers", fix="report this")
    if any(graph.dtype(name) == TensorProto.FLOAT16 for name in graph.names):
        raise GateFailed("the graph has FP16 tensors already", fix="start from the variant fp32")


def halve(model: onnx.ModelProto, islands: Collection[str] = ()) -> onnx.ModelProto:
    """``model`` in FP16, with the nodes named ``islands`` in FP32 and casts around them. ``model`` is not changed.

    What the converter leaves is mended here: a constant that an island shares would be rounded for it too, and one that the
    exporter lists among the values is taken for FP16 in any case; one beyond 65504 would be clipped, and one below 6e-8
    raised, without a word; between two islands, and between an island and an output, a number would pass through FP16; the
    casts stand at the end of the graph, which ONNX does not allow; and the outputs get what shapes could be inferred.
    """
    work = copy_of(model)
    _part_constants(work.graph, islands)
    constants = {tensor.name for tensor in work.graph.initializer}
    _keep_values(work.graph, lambda name: name not in constants)
    exact = {tensor.name: tensor for tensor in copy_of(work).graph.initializer}
    work = _converter()(work, keep_io_types=True, op_block_list=[], node_block_list=list(islands))
    for tensor in work.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(_round(numpy_helper.to_array(exact[tensor.name])), tensor.name))
    _join(work)
    _sort(work.graph)
    del work.graph.output[:]
    work.graph.output.extend(model.graph.output)
    return work


def _converter() -> Callable[..., onnx.ModelProto]:
    # Importing that package puts its own folder, with modules as common as "models" and "optimizer", on the path. The quantiser
    # needs it there when it is imported, which is too late once the path is as it was.
    path = list(sys.path)
    try:
        with without_telemetry("onnxruntime"):
            import onnxruntime.quantization  # noqa: F401
            from onnxruntime.transformers.float16 import convert_float_to_float16
    finally:
        sys.path[:] = path
    return convert_float_to_float16


def _round(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # what becomes infinite is for check() to say
        return array.astype(np.float16)


def _part_constants(graph: onnx.GraphProto, islands: Collection[str]) -> None:
    """Give the islands a constant of their own where they share one with a node outside."""
    outside = {name for node in graph.node if node.name not in islands for name in node.input}
    shared = {tensor.name: tensor for tensor in graph.initializer if tensor.name in outside}
    parted: set[str] = set()
    for node in graph.node:
        for index, name in enumerate(node.input):
            if node.name not in islands or name not in shared or shared[name].data_type != TensorProto.FLOAT:
                continue
            node.input[index] = f"{name}.fp32"
            if name not in parted:
                parted.add(name)
                graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(shared[name]), f"{name}.fp32"))


def _casts(node: onnx.NodeProto | None, dtype: int) -> bool:
    return node is not None and node.op_type == "Cast" and attribute(node, "to") == dtype


def _join(model: onnx.ModelProto) -> None:
    """Take away each pair of casts from FP32 to FP16 and back, and what nothing reads any more."""
    seen, graph = Graph(model), model.graph
    inner: dict[str, str] = {}
    outer: dict[str, str] = {}
    for node in list(graph.node):
        first = seen.producer.get(node.input[0]) if _casts(node, TensorProto.FLOAT) else None
        if first is None or not _casts(first, TensorProto.FLOAT16) or seen.dtype(first.input[0]) != TensorProto.FLOAT:
            continue
        origin, result = first.input[0], node.output[0]
        if result not in seen.outputs:
            inner[result] = origin
        elif origin not in seen.inputs:
            outer[origin] = result
        else:
            continue
        graph.node.remove(node)
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [outer.get(inner.get(name, name), inner.get(name, name)) for name in names]
    _remove_unread(graph)


def _remove_unread(graph: onnx.GraphProto) -> None:
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    for node in list(graph.node):
        if _casts(node, TensorProto.FLOAT16) and node.output[0] not in read:
            graph.node.remove(node)
    present = {name for node in graph.node for name in (*node.input, *node.output)}
    _keep_values(graph, lambda name: name in present)


def _keep_values(graph: onnx.GraphProto, kept: Callable[[str], bool]) -> None:
    for value in [value for value in graph.value_info if not kept(value.name)]:
        graph.value_info.remove(value)


def _sort(graph: onnx.GraphProto) -> None:
    """Every node behind those that it reads, and else in the order that they have."""
    producer = {name: node for node in graph.node for name in node.output}
    placed: dict[str, onnx.NodeProto] = {}

    def place(node: onnx.NodeProto) -> None:
        if node.name not in placed:
            for name in node.input:
                if name in producer:
                    place(producer[name])
            placed[node.name] = node

    # Only casts are out of place, so that place() never goes deep.
    for node in graph.node:
        place(node)
    nodes = list(placed.values())
    del graph.node[:]
    graph.node.extend(nodes)


def check(before: onnx.ModelProto, after: onnx.ModelProto, islands: Collection[str] = ()) -> None:
    """Raise :class:`GateFailed` unless ``after`` is what this module promises of the graph itself."""
    onnx.checker.check_model(after, full_check=True)
    for side in ("input", "output"):
        was, now = ([_signature(value) for value in getattr(model.graph, side)] for model in (before, after))
        if was != now:
            raise GateFailed(f"halving changed the {side}s from {was} to {now}", fix="report this")
    foreign = {node.op_type for node in after.graph.node if node.domain not in ONNX_DOMAINS}
    if foreign:
        raise GateFailed(f"operators outside ONNX: {sorted(foreign)}", fix="report this")
    exact = {tensor.name: tensor for tensor in before.graph.initializer}
    constants = {tensor.name: tensor for tensor in after.graph.initializer}
    for name, tensor in constants.items():
        if tensor.data_type != TensorProto.FLOAT16:
            continue
        half = numpy_helper.to_array(tensor)
        if not np.isfinite(half).all():
            raise GateFailed(f"the constant {name} is beyond FP16's range", fix="leave its nodes in FP32")
        if name not in exact or not np.array_equal(half, _round(numpy_helper.to_array(exact[name]))):
            raise GateFailed(f"the constant {name} is not what rounding makes of it", fix="report this")
    for node in after.graph.node:
        weight = constants.get(node.input[1]) if node.op_type in PRODUCTS else None
        if weight is not None and weight.data_type != TensorProto.FLOAT16 and node.name not in islands:
            raise GateFailed(f"the weight {weight.name} of {node.name} is not in FP16", fix="report this")


def _signature(value: onnx.ValueInfoProto) -> tuple[str, str, tuple[int | str, ...]]:
    tensor = value.type.tensor_type
    shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim)
    return value.name, helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, shape


def check_values(after: onnx.ModelProto, feeds: Feeds) -> None:
    """Raise :class:`GateFailed` naming what is infinite, NaN or beyond 65504 when the FP16 graph runs on ``feeds``."""
    graph = Graph(after)
    largest = ranges(rounded(after), feeds)
    halves = [name for name in largest if graph.dtype(name) == TensorProto.FLOAT16]
    beyond = [f"{name}: {largest[name]}" for name in halves if not largest[name] <= LARGEST]
    beyond += [f"{name}: {largest[name]}" for name in graph.outputs & largest.keys() if not np.isfinite(largest[name])]
    if beyond:
        shown = "\n  ".join(beyond[:5])
        raise GateFailed(f"{len(beyond)} tensors do not fit FP16 on real inputs:\n  {shown}", fix="leave it in FP32")


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The FP32 graph that computes what the FP16 graph ``model`` does: each FP16 tensor is rounded where it is made.

    ONNX Runtime's CPU provider is no judge of FP16: lacking the kernels it computes in FP32, and takes the casts that it
    put between two nodes away again, so that nothing in between is rounded and nothing overflows. A pair of casts that
    is in the graph it leaves alone. As in the kernels of GPUs, sums within an operator are FP32.
    """
    seen, work = Graph(model), copy_of(model)
    graph = work.graph
    for tensor in graph.initializer:
        _widen(tensor)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        for part in node.attribute:
            if part.HasField("t"):
                _widen(part.t)
        nodes.append(node)
        for index, name in enumerate(node.output):
            if seen.dtype(name) == TensorProto.FLOAT16:
                nodes += _rounding(node, index)
    nodes = [_own(node) for node in nodes]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return work


def _own(node: onnx.NodeProto) -> onnx.NodeProto:
    # A message that is still part of a list does not outlive the list.
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _rounding(node: onnx.NodeProto, index: int) -> Iterator[onnx.NodeProto]:
    """The casts of an output of ``node`` to FP16 and back, under the output's own name."""
    name = node.output[index]
    node.output[index] = half = f"{name}.half"
    if not _casts(node, TensorProto.FLOAT16):
        node.output[index] = f"{name}.wide"
        yield helper.make_node("Cast", [node.output[index]], [half], name=f"{half}.cast", to=TensorProto.FLOAT16)
    yield helper.make_node("Cast", [half], [name], name=f"{name}.cast", to=TensorProto.FLOAT)


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT16:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
