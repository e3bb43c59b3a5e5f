"""Reads the structure of an ONNX file without the onnx package, and refuses a file that holds more than we export.

A graph must be complete in itself, because a bundle's digests cover only the files that its manifest names. It may use only
operators that our exporter writes: control flow can run forever, and other operators have not been proven in any engine. The
file is mapped into memory and tensor values are skipped, so a graph of several hundred megabytes takes milliseconds.

Field numbers are from onnx.proto (IR version 13). Fields that our exporter does not write are errors; see wire.py.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from simmim_export.bundle.wire import BYTES, FOUR_BYTES, VARINT, Fields, Malformed, Wire, of
from simmim_export.errors import EXPORT_AGAIN, BundleError
from simmim_export.spec import GraphSpec, TensorSpec
from simmim_export.system.files import reading

# The operators of ONNX's standard domain that a graph of ours may use: what the trunks, fusions, interactions, heads and text
# encoders need at any opset that --opset offers, and what the precision passes add. The exporter refuses a model that needs
# another operator, so whoever adds a family adds its operators here.
# fmt: off
OPERATORS = frozenset((
    "Abs", "Add", "Cast", "Clip", "Concat", "Conv", "CumSum", "DequantizeLinear", "Div", "Equal", "Erf", "Expand", "Gather",
    "Gelu", "Gemm", "LayerNormalization", "LeakyRelu", "MatMul", "Max", "MaxPool", "Mul", "Not", "Pad", "Pow",
    "QuantizeLinear", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceSum", "Relu", "Reshape", "Shape", "Sigmoid", "Slice",
    "Softmax", "Split", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze", "Where",
))
# fmt: on
_STANDARD = ("", "ai.onnx")
# A message of protocol buffers has 2 GiB at most.
MAX_BYTES = 2**31 - 1
MAX_RANK = 64
# The largest number in an attribute. Engines do not check them all: OpenVINO 2026.4 crashes on a Transpose by an axis of 2**62.
MAX_NUMBER = 2**16
# The most nodes of a graph. The text encoder of MiniLM has 459 in INT8. OpenVINO takes minutes for a chain of 20,000, and crashes
# on one of 100,000.
MAX_NODES = 5000
# The opsets that --opset offers.
OPSETS = range(18, 25)
# How many lines an error has, of how many characters.
SHOWN, WIDTH = 10, 300

# TensorProto.DataType: the name in NumPy (or bfloat16) and the bytes of one value.
_TYPES: Mapping[int, tuple[str, int]] = {
    1: ("float32", 4),
    2: ("uint8", 1),
    3: ("int8", 1),
    4: ("uint16", 2),
    5: ("int16", 2),
    6: ("int32", 4),
    7: ("int64", 8),
    9: ("bool", 1),
    10: ("float16", 2),
    11: ("float64", 8),
    12: ("uint32", 4),
    13: ("uint64", 8),
    16: ("bfloat16", 2),
}


_MODEL = Fields(of(VARINT, 1, 5) | of(BYTES, 2, 3, 4, 6, 7), of(BYTES, 8, 14, 20, 25))
_GRAPH = Fields(of(BYTES, 2, 10), of(BYTES, 1, 5, 11, 12, 13, 15, 16))
_NODE = Fields(of(BYTES, 3, 4, 6, 7, 8), of(BYTES, 1, 2, 5, 9))
_ATTRIBUTE = Fields(
    of(BYTES, 1, 4, 5, 6, 13, 22) | of(FOUR_BYTES, 2) | of(VARINT, 3, 20),
    of(FOUR_BYTES, 7) | of(VARINT, 8) | of(BYTES, 9, 10, 11, 23),
)
_TENSOR = Fields(of(BYTES, 4, 5, 7, 8, 9, 10, 11, 12) | of(VARINT, 2, 14), of(VARINT, 1) | of(BYTES, 6, 13, 16))
_VALUE = Fields(of(BYTES, 1, 2, 3), of(BYTES, 4))
_TYPE = Fields(of(BYTES, 1, 6), {})
_TENSOR_TYPE = Fields(of(VARINT, 1) | of(BYTES, 2), {})
_SHAPE = Fields({}, of(BYTES, 1))
_DIMENSION = Fields(of(VARINT, 1) | of(BYTES, 2, 3), {})
_OPSET = Fields(of(BYTES, 1) | of(VARINT, 2), {})


@dataclass
class GraphFile:
    """What an ONNX file declares. ``operators`` maps each operator (``domain::name`` outside the standard domain) to the first
    node that uses it; a size of ``inputs`` and ``outputs`` that is not fixed is the axis' name, ``?`` without one; ``tables``
    maps each input that picks rows of a constant (token ids) to the number of its rows; ``strange`` says, one line each, what
    the file holds that no graph of ours does."""

    opset: int = 0
    operators: dict[str, str] = field(default_factory=dict)
    inputs: list[TensorSpec] = field(default_factory=list)
    outputs: list[TensorSpec] = field(default_factory=list)
    tables: dict[str, int] = field(default_factory=dict)
    strange: list[str] = field(default_factory=list)


def check_graph_file(path: Path, spec: GraphSpec) -> None:
    """Raise :class:`BundleError` unless the ONNX file at ``path`` is a complete graph of ours that computes ``spec``: it parses
    to its last byte, keeps no tensor in another file, uses :data:`OPERATORS` only, and takes and gives what ``spec`` says."""
    graph = read_graph(path)
    strange = [
        *graph.strange,
        *(f"node {node!r} uses {operator}" for operator, node in graph.operators.items() if operator not in OPERATORS),
        *_differences("input", graph.inputs, spec.inputs),
        *_differences("output", graph.outputs, spec.outputs),
    ]
    if strange:
        more = [f"and {len(strange) - SHOWN} more"] if len(strange) > SHOWN else []
        lines = [line if len(line) <= WIDTH else f"{line[:WIDTH]}..." for line in strange[:SHOWN]]
        what = f"the file of {spec.name} is not a graph that we export:\n  " + "\n  ".join([*lines, *more])
        raise BundleError(what, where=path, fix=EXPORT_AGAIN)


def read_graph(path: Path) -> GraphFile:
    """What the ONNX file at ``path`` declares. Raise :class:`BundleError` for a file that cannot be read, is not an ONNX model,
    is cut off, or is not written as our exporter writes it."""
    with reading(path, BundleError), path.open("rb") as stream:
        size = stream.seek(0, 2)
        if not 0 < size <= MAX_BYTES:
            what = f"not an ONNX graph: the file has {size:,} bytes, and a graph has 1 to {MAX_BYTES:,}"
            raise BundleError(what, where=path, fix=EXPORT_AGAIN)
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _Reader(data, size).model()
            except Malformed as error:
                raise BundleError(f"not an ONNX graph: {error}", where=path, fix=EXPORT_AGAIN) from None


def _differences(kind: str, have: list[TensorSpec], wanted: tuple[TensorSpec, ...]) -> Iterator[str]:
    """One line for each way in which the ``kind`` (inputs or outputs) of a file are not those of its graph."""
    if [tensor.name for tensor in have] != [tensor.name for tensor in wanted]:
        yield f"its {kind}s are {[t.name for t in have]}, and the manifest says {[t.name for t in wanted]}"
        return
    for tensor, spec in zip(have, wanted, strict=True):
        fixed = [size if isinstance(size, int) else None for size in tensor.shape]
        if tensor.dtype != spec.dtype or fixed != [size if isinstance(size, int) else None for size in spec.shape]:
            shapes = f"{tensor.dtype} {list(tensor.shape)}, and the manifest says {spec.dtype} {list(spec.shape)}"
            yield f"{kind} {spec.name!r} is {shapes}"


def _signed(varint: int) -> int:
    """The number whose two's complement in 64 bits is ``varint``, as negative numbers are written."""
    return varint - 2**64 if varint >= 2**63 else varint


class _Reader:
    """Walks one model. A span is a pair of offsets; messages are nested as deep as the methods below, and no deeper."""

    def __init__(self, data: mmap.mmap, size: int) -> None:
        self._wire, self._size = Wire(data), size
        self._graph = GraphFile()
        # The rows of every constant; and of each Gather along axis 0, the constant and the indices.
        self._rows: dict[str, int] = {}
        self._gathers: list[tuple[str, str]] = []
        # Every name that was given a value. Engines disagree about which of two values of one name counts.
        self._defined: set[str] = set()
        self._nodes = 0

    # -- the messages of ONNX ------------------------------------------------------------------------------------------

    def model(self) -> GraphFile:
        """The whole file."""
        graphs = 0
        for number, start, end in self._wire.fields(0, self._size, _MODEL):
            if number == 7:
                graphs += 1
                self._read_graph(start, end)
            elif number == 8:
                self._read_opset(start, end)
            elif number == 20:
                self._graph.strange.append("it holds a graph for training")
            elif number == 25:
                self._graph.strange.append("it holds a function, which can hide operators")
        if not graphs or not self._graph.opset:
            raise Malformed("it has no graph" if not graphs else "it has no opset of the standard domain")
        if self._graph.opset not in OPSETS:
            self._graph.strange.append(f"it has opset {self._graph.opset}, and we export {OPSETS[0]} to {OPSETS[-1]}")
        inputs = {tensor.name for tensor in self._graph.inputs}
        for table, indices in self._gathers:
            if table in self._rows and indices in inputs:
                rows = self._rows[table]
                self._graph.tables[indices] = min(rows, self._graph.tables.get(indices, rows))
        return self._graph

    def _read_opset(self, start: int, end: int) -> None:
        domain, version = "", 0
        for number, at, to in self._wire.fields(start, end, _OPSET):
            if number == 1:
                domain = self._wire.text(at, to)
            else:
                version = at
        if domain in _STANDARD:
            if self._graph.opset:
                raise Malformed("two opsets of the standard domain")
            self._graph.opset = version

    def _read_graph(self, start: int, end: int) -> None:
        for number, at, to in self._wire.fields(start, end, _GRAPH):
            if number == 1:
                self._read_node(at, to)
            elif number == 5:
                self._read_tensor(at, to, "")
            elif number == 11:
                self._graph.inputs.append(self._read_value(at, to))
                self._define(self._graph.inputs[-1].name)
            elif number == 12:
                self._graph.outputs.append(self._read_value(at, to))
            elif number == 15:
                self._graph.strange.append("it holds a sparse tensor")

    def _define(self, name: str) -> None:
        if name and name in self._defined:
            self._graph.strange.append(f"{name!r} is given a value twice")
        self._defined.add(name)

    def _read_node(self, start: int, end: int) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise Malformed(f"more than {MAX_NODES:,} nodes")
        name = operator = domain = ""
        inputs, attributes = list[tuple[int, int]](), list[tuple[int, int]]()
        for number, at, to in self._wire.fields(start, end, _NODE):
            if number == 1:
                inputs.append((at, to))
            elif number == 2:
                self._define(self._wire.text(at, to))
            elif number == 3:
                name = self._wire.text(at, to)
            elif number == 4:
                operator = self._wire.text(at, to)
            elif number == 7:
                domain = self._wire.text(at, to)
            elif number == 5:
                attributes.append((at, to))
        kind = operator if domain in _STANDARD else f"{domain}::{operator}"
        self._graph.operators.setdefault(kind, name)
        node = f"node {name!r} ({kind})"
        numbers = [self._read_attribute(at, to, node) for at, to in attributes]
        axes = [axis for _, several in numbers for axis in several]
        if kind == "Transpose" and sorted(axes) != list(range(len(axes))):
            self._graph.strange.append(f"{node} has the axes {axes}, which are not a permutation")
        if kind == "Gather" and len(inputs) == 2 and not any(single for single, _ in numbers):
            self._gathers.append((self._wire.text(*inputs[0]), self._wire.text(*inputs[1])))

    def _read_attribute(self, start: int, end: int, node: str) -> tuple[int, list[int]]:
        """The attribute's number (0 without one) and its list of numbers: axes, types, sizes of a kernel."""
        single, several = 0, list[int]()
        for number, at, to in self._wire.fields(start, end, _ATTRIBUTE):
            if number == 3:
                single = _signed(at)
            elif number == 8:
                several += [_signed(value) for value in ([at] if not to else self._packed(at, to))]
            elif number in (5, 10):
                self._read_tensor(at, to, f" of {node}")
            elif number in (6, 11):
                self._graph.strange.append(f"{node} holds a graph of its own")
            elif number in (22, 23):
                self._graph.strange.append(f"{node} holds a sparse tensor")
        if any(abs(value) > MAX_NUMBER for value in (single, *several)):
            self._graph.strange.append(f"{node} has a number beyond {MAX_NUMBER:,} among its attributes")
        return single, several

    def _read_tensor(self, start: int, end: int, owner: str) -> None:
        name, sizes, kind, raw, elsewhere = "", list[int](), 0, None, False
        for number, at, to in self._wire.fields(start, end, _TENSOR):
            if number == 1:
                sizes += [at] if not to else self._packed(at, to)
            elif number == 2:
                kind = at
            elif number == 8:
                name = self._wire.text(at, to)
            elif number == 9:
                raw = to - at
            elif number == 13 or (number == 14 and at):
                elsewhere = True
        if not owner:
            self._define(name)
        if elsewhere:
            self._graph.strange.append(f"tensor {name!r}{owner} lies in another file, which no digest covers")
            return
        if kind not in _TYPES:
            self._graph.strange.append(f"tensor {name!r}{owner} has the type {kind}, which we do not export")
            return
        if len(sizes) > MAX_RANK or any(size > MAX_BYTES for size in sizes):
            raise Malformed(f"tensor {name!r}{owner} has the shape {sizes[:4]}...")
        # An engine may set memory aside for what a tensor claims before it reads what is there. Values that are not raw take a
        # byte or more each.
        count = prod(sizes)
        if (raw is None and count > end - start) or (raw is not None and raw != count * _TYPES[kind][1]):
            raise Malformed(f"tensor {name!r}{owner} claims {count:,} values, and has others")
        if not owner and sizes:
            self._rows[name] = sizes[0]

    def _packed(self, at: int, end: int) -> list[int]:
        values = list[int]()
        while at < end and len(values) <= MAX_RANK:
            value, at = self._wire.varint(at, end)
            values.append(value)
        return values

    def _read_value(self, start: int, end: int) -> TensorSpec:
        name, kind, shape = "", 0, tuple[int | str, ...]()
        for number, at, to in self._wire.fields(start, end, _VALUE):
            if number == 1:
                name = self._wire.text(at, to)
            elif number == 2:
                kind, shape = self._read_type(at, to)
        return TensorSpec(name, _TYPES.get(kind, (f"type {kind}", 0))[0], shape)

    def _read_type(self, start: int, end: int) -> tuple[int, tuple[int | str, ...]]:
        kind, shape = 0, list[int | str]()
        for number, at, to in self._wire.fields(start, end, _TYPE):
            if number == 1:
                for inner, begin, stop in self._wire.fields(at, to, _TENSOR_TYPE):
                    if inner == 1:
                        kind = begin
                    else:
                        shape = [self._read_dimension(b, e) for _, b, e in self._wire.fields(begin, stop, _SHAPE)]
        return kind, tuple(shape)

    def _read_dimension(self, start: int, end: int) -> int | str:
        sizes = list[int | str]()
        for number, at, to in self._wire.fields(start, end, _DIMENSION):
            if number != 3:
                sizes.append(at if number == 1 else self._wire.text(at, to))
        if len(sizes) > 1:
            raise Malformed(f"a size that is both a number and a name at byte {start}")
        return sizes[0] if sizes and sizes[0] != "" else "?"
