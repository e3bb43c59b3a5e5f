"""Refuses an ONNX file that holds more than this project exports, without the onnx package.

A graph must be complete in itself, because a bundle's digests cover only the files that its manifest names. It may use only
operators that our exporter writes: control flow can run forever, and no other operator has been proven in any engine.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path

from simmim_export.bundle.onnx_reader import MAX_BYTES, GraphFile, Reader
from simmim_export.bundle.wire import Malformed
from simmim_export.errors import EXPORT_AGAIN, BundleError
from simmim_export.spec import GraphSpec, TensorSpec
from simmim_export.system.files import reading

# The operators of ONNX's standard domain that a graph may use: what the families need at any opset that --opset offers, and what
# the precision passes add. The exporter refuses a model that needs another operator, so whoever adds a family adds its
# operators here.
# fmt: off
OPERATORS = frozenset((
    "Abs", "Add", "Attention", "Cast", "Clip", "Concat", "Conv", "CumSum", "DequantizeLinear", "Div", "Equal", "Erf",
    "Expand", "Gather", "Gelu", "Gemm", "LayerNormalization", "LeakyRelu", "LogSoftmax", "MatMul", "Max", "MaxPool", "Mul",
    "Not", "Pad", "Pow", "QuantizeLinear", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceSum", "Relu", "Reshape", "Shape",
    "Sigmoid", "Slice", "Softmax", "Split", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze", "Where",
))
# fmt: on
# How many problems an error lists, and how many characters of each.
SHOWN, WIDTH = 10, 300


def check_graph_file(path: Path, spec: GraphSpec) -> None:
    """Raise :class:`BundleError` unless the ONNX file at ``path`` is a complete graph that computes ``spec``.

    It must parse to its last byte, keep no tensor in another file, use :data:`OPERATORS` only, and have the inputs and outputs
    of ``spec``.
    """
    graph = read_graph(path)
    problems = [
        *graph.problems,
        *(f"node {node!r} uses {operator}" for operator, node in graph.operators.items() if operator not in OPERATORS),
        *_differences("input", graph.inputs, spec.inputs),
        *_differences("output", graph.outputs, spec.outputs),
    ]
    if problems:
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        lines = [line if len(line) <= WIDTH else f"{line[:WIDTH]}..." for line in problems[:SHOWN]]
        what = f"the file of {spec.name} is not a graph that we export:\n  " + "\n  ".join([*lines, *more])
        raise BundleError(what, where=path, fix=EXPORT_AGAIN)


def read_graph(path: Path) -> GraphFile:
    """What the ONNX file at ``path`` declares.

    Raise :class:`BundleError` for a file that cannot be read, is not an ONNX model, is cut off, or is not written as our exporter
    writes it.
    """
    with reading(path, BundleError), path.open("rb") as stream:
        size = stream.seek(0, 2)
        if not 0 < size <= MAX_BYTES:
            what = f"not an ONNX graph: the file has {size:,} bytes, and a graph has 1 to {MAX_BYTES:,}"
            raise BundleError(what, where=path, fix=EXPORT_AGAIN)
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return Reader(data, size).model()
            except Malformed as error:
                raise BundleError(f"not an ONNX graph: {error}", where=path, fix=EXPORT_AGAIN) from None


def _differences(side: str, tensors: Sequence[TensorSpec], specs: Sequence[TensorSpec]) -> Iterator[str]:
    """One line for each way in which ``tensors``, the inputs or outputs (``side``) of a file, differ from ``specs``."""
    if [tensor.name for tensor in tensors] != [spec.name for spec in specs]:
        yield f"its {side}s are {[t.name for t in tensors]}, and the manifest says {[t.name for t in specs]}"
        return
    for tensor, spec in zip(tensors, specs, strict=True):
        if tensor.dtype != spec.dtype or _fixed(tensor) != _fixed(spec):
            shapes = f"{tensor.dtype} {list(tensor.shape)}, and the manifest says {spec.dtype} {list(spec.shape)}"
            yield f"{side} {spec.name!r} is {shapes}"


def _fixed(tensor: TensorSpec) -> list[int | None]:
    return [size if isinstance(size, int) else None for size in tensor.shape]
