"""Reads what an ONNX file declares: inputs, outputs, operators and the rows of its tables.

The file is mapped into memory and the values of tensors are skipped, so a graph of several hundred megabytes takes
milliseconds. Field numbers are from onnx.proto (IR version 13). A field that our exporter does not write is an error (wire.py).
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from simmim_export.bundle.wire import BYTES, FOUR_BYTES, VARINT, Fields, Malformed, Wire, of
from simmim_export.spec import TensorSpec

_STANDARD = ("", "ai.onnx")
# A protobuf message has at most 2 GiB.
MAX_BYTES = 2**31 - 1
MAX_RANK = 64
# The largest number in an attribute. Engines do not check all of them: OpenVINO 2026.4 crashes on a Transpose by axis 2**62.
MAX_NUMBER = 2**16
# The most nodes of a graph. The text encoder of MiniLM has 459 in INT8. OpenVINO takes minutes for a chain of 20,000 nodes and
# crashes on one of 100,000.
MAX_NODES = 5000
# The opsets that --opset offers.
OPSETS = range(18, 25)

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

# The messages of onnx.proto. Each has fields that may appear once, and fields that may appear any number of times.
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
    """What an ONNX file declares.

    ``operators`` maps each operator (``domain::name`` outside the standard domain) to the first node that uses it. In the shapes
    of ``inputs`` and ``outputs``, a size that is not fixed is the name of its axis, or ``?``. ``tables`` maps each input that
    picks rows of a constant, for example token ids, to the number of rows. ``problems`` lists, one line each, what the file
    holds and no graph of ours does.
    """

    opset: int = 0
    operators: dict[str, str] = field(default_factory=dict)
    inputs: list[TensorSpec] = field(default_factory=list)
    outputs: list[TensorSpec] = field(default_factory=list)
    tables: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def _signed(varint: int) -> int:
    """The number that ``varint`` encodes: protobuf writes negative numbers as two's complement in 64 bits."""
    return varint - 2**64 if varint >= 2**63 else varint


class Reader:
    """Reads one model. A span is a pair of offsets. Messages are nested as deep as the methods below, and no deeper."""

    def __init__(self, data: mmap.mmap, size: int) -> None:
        self._wire, self._size = Wire(data), size
        self._graph = GraphFile()
        # The number of rows of every constant; and for each Gather along axis 0, the names of the constant and of the indices.
        self._rows: dict[str, int] = {}
        self._gathers: list[tuple[str, str]] = []
        # Every name that has a value. If a name has two, engines disagree about which one counts.
        self._defined: set[str] = set()
        self._nodes = 0

    def model(self) -> GraphFile:
        """Read the whole file. Raise :class:`Malformed` if it is not a model."""
        graphs = 0
        for number, start, end in self._wire.fields(0, self._size, _MODEL):
            if number == 7:  # graph
                graphs += 1
                self._read_graph(start, end)
            elif number == 8:  # opset_import
                self._read_opset(start, end)
            elif number == 20:  # training_info
                self._report("it holds a graph for training")
            elif number == 25:  # functions
                self._report("it holds a function, which can hide operators")
        if not graphs or not self._graph.opset:
            raise Malformed("it has no graph" if not graphs else "it has no opset of the standard domain")
        if self._graph.opset not in OPSETS:
            self._report(f"it has opset {self._graph.opset}, and we export {OPSETS[0]} to {OPSETS[-1]}")
        inputs = {tensor.name for tensor in self._graph.inputs}
        for table, indices in self._gathers:
            if table in self._rows and indices in inputs:
                rows = self._rows[table]
                self._graph.tables[indices] = min(rows, self._graph.tables.get(indices, rows))
        return self._graph

    def _report(self, problem: str) -> None:
        self._graph.problems.append(problem)

    def _read_opset(self, start: int, end: int) -> None:
        domain, version = "", 0
        for number, at, to in self._wire.fields(start, end, _OPSET):
            if number == 1:  # domain
                domain = self._wire.text(at, to)
            else:  # version
                version = at
        if domain in _STANDARD:
            if self._graph.opset:
                raise Malformed("two opsets of the standard domain")
            self._graph.opset = version

    def _read_graph(self, start: int, end: int) -> None:
        for number, at, to in self._wire.fields(start, end, _GRAPH):
            if number == 1:  # node
                self._read_node(at, to)
            elif number == 5:  # initializer
                self._read_tensor(at, to, "")
            elif number == 11:  # input
                self._graph.inputs.append(self._read_value(at, to))
                self._define(self._graph.inputs[-1].name)
            elif number == 12:  # output
                self._graph.outputs.append(self._read_value(at, to))
            elif number == 15:  # sparse_initializer
                self._report("it holds a sparse tensor")

    def _define(self, name: str) -> None:
        if name and name in self._defined:
            self._report(f"{name!r} is given a value twice")
        self._defined.add(name)

    def _read_node(self, start: int, end: int) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise Malformed(f"more than {MAX_NODES:,} nodes")
        name = op_type = domain = ""
        inputs, attributes = list[tuple[int, int]](), list[tuple[int, int]]()
        for number, at, to in self._wire.fields(start, end, _NODE):
            if number == 1:  # input
                inputs.append((at, to))
            elif number == 2:  # output
                self._define(self._wire.text(at, to))
            elif number == 3:  # name
                name = self._wire.text(at, to)
            elif number == 4:  # op_type
                op_type = self._wire.text(at, to)
            elif number == 5:  # attribute
                attributes.append((at, to))
            elif number == 7:  # domain
                domain = self._wire.text(at, to)
        operator = op_type if domain in _STANDARD else f"{domain}::{op_type}"
        self._graph.operators.setdefault(operator, name)
        node = f"node {name!r} ({operator})"
        values = [self._read_attribute(at, to, node) for at, to in attributes]
        if operator == "Transpose":
            axes = [axis for _, numbers in values for axis in numbers]
            if sorted(axes) != list(range(len(axes))):
                self._report(f"{node} has the axes {axes}, which are not a permutation")
        if operator == "Gather" and len(inputs) == 2 and not any(axis for axis, _ in values):
            self._gathers.append((self._wire.text(*inputs[0]), self._wire.text(*inputs[1])))

    def _read_attribute(self, start: int, end: int, node: str) -> tuple[int, list[int]]:
        """The attribute's one number (0 without one) and its list of numbers, for example axes or the sizes of a kernel."""
        one, several = 0, list[int]()
        for number, at, to in self._wire.fields(start, end, _ATTRIBUTE):
            if number == 3:  # i
                one = _signed(at)
            elif number == 8:  # ints
                several += [_signed(value) for value in ([at] if not to else self._packed(at, to))]
            elif number in (5, 10):  # t, tensors
                self._read_tensor(at, to, f" of {node}")
            elif number in (6, 11):  # g, graphs
                self._report(f"{node} holds a graph of its own")
            elif number in (22, 23):  # sparse_tensor, sparse_tensors
                self._report(f"{node} holds a sparse tensor")
        if any(abs(value) > MAX_NUMBER for value in (one, *several)):
            self._report(f"{node} has a number beyond {MAX_NUMBER:,} among its attributes")
        return one, several

    def _read_tensor(self, start: int, end: int, owner: str) -> None:
        """A constant of the graph, or with ``owner`` (" of node ...") one in an attribute."""
        name, sizes, data_type, raw, elsewhere = "", list[int](), 0, None, False
        for number, at, to in self._wire.fields(start, end, _TENSOR):
            if number == 1:  # dims
                sizes += [at] if not to else self._packed(at, to)
            elif number == 2:  # data_type
                data_type = at
            elif number == 8:  # name
                name = self._wire.text(at, to)
            elif number == 9:  # raw_data
                raw = to - at
            elif number == 13 or (number == 14 and at):  # external_data, data_location
                elsewhere = True
        if not owner:
            self._define(name)
        if elsewhere:
            self._report(f"tensor {name!r}{owner} lies in another file, which no digest covers")
            return
        if data_type not in _TYPES:
            self._report(f"tensor {name!r}{owner} has the type {data_type}, which we do not export")
            return
        if len(sizes) > MAX_RANK or any(size > MAX_BYTES for size in sizes):
            raise Malformed(f"tensor {name!r}{owner} has the shape {sizes[:4]}...")
        # An engine may allocate what a tensor claims before it reads what is there. Values that are not raw take a byte or more
        # each.
        count = prod(sizes)
        if (raw is None and count > end - start) or (raw is not None and raw != count * _TYPES[data_type][1]):
            raise Malformed(f"tensor {name!r}{owner} claims {count:,} values and has another number of them")
        if not owner and sizes:
            self._rows[name] = sizes[0]

    def _packed(self, at: int, end: int) -> list[int]:
        values = list[int]()
        while at < end and len(values) <= MAX_RANK:
            value, at = self._wire.varint(at, end)
            values.append(value)
        return values

    def _read_value(self, start: int, end: int) -> TensorSpec:
        name, dtype, shape = "", "type 0", tuple[int | str, ...]()
        for number, at, to in self._wire.fields(start, end, _VALUE):
            if number == 1:  # name
                name = self._wire.text(at, to)
            elif number == 2:  # type
                dtype, shape = self._read_type(at, to)
        return TensorSpec(name, dtype, shape)

    def _read_type(self, start: int, end: int) -> tuple[str, tuple[int | str, ...]]:
        elem_type, shape = 0, list[int | str]()
        for number, at, to in self._wire.fields(start, end, _TYPE):
            if number != 1:  # only tensor_type is a tensor
                continue
            for inner, begin, stop in self._wire.fields(at, to, _TENSOR_TYPE):
                if inner == 1:  # elem_type
                    elem_type = begin
                else:  # shape
                    shape = [self._read_dimension(b, e) for _, b, e in self._wire.fields(begin, stop, _SHAPE)]
        return _TYPES.get(elem_type, (f"type {elem_type}", 0))[0], tuple(shape)

    def _read_dimension(self, start: int, end: int) -> int | str:
        sizes = list[int | str]()
        for number, at, to in self._wire.fields(start, end, _DIMENSION):
            if number == 1:  # dim_value
                sizes.append(at)
            elif number == 2:  # dim_param
                sizes.append(self._wire.text(at, to))
        if len(sizes) > 1:
            raise Malformed(f"a size that is both a number and a name at byte {start}")
        return sizes[0] if sizes and sizes[0] != "" else "?"
