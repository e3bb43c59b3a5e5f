"""Makes a graph of ours of a foreign one: our names, our inputs, and only what its outputs need.

Pixels become uint8 [batch, height, width, 3], normalized inside the graph; ids and masks become int64. So the host cannot feed a
graph anything that it was not exported for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from simmim_export.errors import CheckpointError
from simmim_export.export.adopt.spec_file import FIX, GraphTable, ImageTable, InputTable, OutputTable, SpecFile
from simmim_export.precision.surgery import constant, operator
from simmim_export.spec import BATCH, Kind, TensorSpec

SEQUENCE = "sequence"
# Which axis of an image has the height, the width and the colors.
AXES = {"NCHW": (2, 3, 1), "NHWC": (1, 2, 3)}
_TYPES = {
    "image": (ir.DataType.FLOAT, ir.DataType.UINT8),
    "hidden": (ir.DataType.FLOAT, ir.DataType.INT64),
}
_NUMBERS = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.FLOAT, ir.DataType.BOOL)
DYNAMIC = (
    "export it again with a dynamic batch axis: torch.onnx.export(..., dynamo=True, "
    "dynamic_shapes=({0: torch.export.Dim('batch')},)), with one dict for each argument of the model"
)


class Wiring:
    """Rewires ``graph``, read from the file ``path``, as ``table`` says. ``given`` are the tensors of earlier graphs."""

    def __init__(
        self, graph: ir.Graph, table: GraphTable, *, spec: SpecFile, given: Mapping[str, TensorSpec], path: Path
    ) -> None:
        self._graph, self._table, self._spec, self._given, self._path = graph, table, spec, given, path
        self._new: list[ir.Node] = []
        self.inputs: list[TensorSpec] = []
        # The order of the axes of the pixels in the file.
        self.layout = "NCHW"
        self._ids: ir.Value | None = None
        self._mask: ir.Value | None = None

    def wire(self) -> None:
        """Rewire inputs and outputs. Raise :class:`CheckpointError` for whatever the file and the spec disagree about."""
        graph = self._graph
        _make_names_unique(graph)
        self._choose_outputs()
        foreign = {value.name: value for value in graph.inputs if value.name not in graph.initializers}
        self._require_named(foreign)
        tables = sorted(self._table.inputs, key=lambda one: one.kind == "zeros")  # they take the shape of the ids
        wired = [self._input(table, foreign[table.name]) for table in tables if table.name in foreign]
        first = graph[0]
        graph.insert_before(first, self._new)
        graph.inputs.clear()
        graph.inputs.extend(value for value in wired if value is not None)
        self._new = []
        outputs = [self._output(table, value) for table, value in zip(self._table.outputs, graph.outputs, strict=True)]
        graph.extend(self._new)
        graph.outputs.clear()
        graph.outputs.extend(outputs)
        self._rename()

    def _refuse(self, what: str, fix: str = FIX) -> CheckpointError:
        return CheckpointError(f"graph {self._table.name}: {what}", where=self._path, fix=fix)

    def _choose_outputs(self) -> None:
        """Keep the named outputs and what is behind them, and leave the rest out."""
        graph = self._graph
        foreign = {value.name: value for value in graph.outputs}
        wanted = [table.name for table in self._table.outputs]
        for name in wanted:
            if name not in foreign or wanted.count(name) > 1:
                what = (
                    f"the file has no output {name!r}" if name not in foreign else f"the output {name!r} is named twice"
                )
                raise self._refuse(f"{what}; it has {', '.join(map(repr, foreign))}")
            if foreign[name].producer() is None:
                raise self._refuse(f"the output {name!r} is an input or a constant: nothing computes it")
        keep_outputs(graph, wanted)

    def _require_named(self, foreign: Mapping[str | None, ir.Value]) -> None:
        named = [table.name for table in self._table.inputs]
        for name in named:
            if name not in foreign or named.count(name) > 1:
                what = (
                    f"the file has no input {name!r}" if name not in foreign else f"the input {name!r} is named twice"
                )
                raise self._refuse(f"{what}; it has {', '.join(map(repr, foreign))}")
            if not foreign[name].uses():
                raise self._refuse(f"its outputs do not depend on the input {name!r}: leave the input out")
        missing = [name for name, value in foreign.items() if value.uses() and name not in named]
        if missing:
            raise self._refuse(f"its outputs need the input {missing[0]!r}, which the spec does not name")

    # -- inputs --------------------------------------------------------------------------------------------------------

    def _input(self, table: InputTable, old: ir.Value) -> ir.Value | None:
        """The new input in place of ``old``; None for zeros, which the graph makes itself."""
        if old.dtype not in _TYPES.get(table.kind, _NUMBERS):
            raise self._refuse(f"the input {table.name!r} of kind {table.kind} is {old.dtype}")
        shape = self._shape(table, old)
        if table.kind == "zeros":
            if self._ids is None:
                raise self._refuse(f"the input {table.name!r} of kind zeros needs an input of kind token_ids")
            zero = constant(self._graph, "adopted.zero", np.int64(0))
            self._feed(old, self._then("Mul", [self._ids, zero], f"adopted.{table.name}"), ir.DataType.INT64)
            return None
        dtype = {"image": ir.DataType.UINT8, "hidden": old.dtype}.get(table.kind, ir.DataType.INT64)
        assert dtype is not None
        new = ir.val(f"adopted.new.{table.known_as}", type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self.inputs.append(TensorSpec(table.known_as, dtype.numpy().name, shape, Kind(table.kind)))
        if table.kind == "token_ids":
            self._ids = new
        elif table.kind == "text_mask":
            self._mask = new
        self._feed(old, self._pixels(new, old) if table.kind == "image" else new, dtype)
        return new

    def _shape(self, table: InputTable, old: ir.Value) -> tuple[int | str, ...]:
        """What the new input must be. Raise unless the file's own input can be that."""
        rank = {"image": 4, "hidden": None}.get(table.kind, 2)
        if table.kind == "hidden":
            if table.known_as not in self._given:
                have = ", ".join(map(repr, self._given)) or "none"
                raise self._refuse(f"no graph before it gives {table.known_as!r}; they give {have}")
            shape = self._given[table.known_as].shape
            rank = len(shape)
        sizes = [size if isinstance(size, int) else None for size in old.shape or [None] * (rank or 0)]
        if rank is not None and len(sizes) != rank:
            raise self._refuse(f"the input {table.name!r} of kind {table.kind} has {len(sizes)} axes, not {rank}")
        if sizes[0] is not None:
            raise self._refuse(f"the input {table.name!r} takes a batch of exactly {sizes[0]}", DYNAMIC)
        if table.kind == "image":
            image = self._image()
            height, width, colors = (sizes[axis] for axis in AXES[self._layout(old)])
            sides = (("colors", colors, 3), ("rows", height, image.height), ("columns", width, image.width))
            for what, size, wanted in sides:
                if size not in (None, wanted):
                    says = f"the input {table.name!r} takes {size} {what} in the layout {self._layout(old)}"
                    raise self._refuse(f"{says}, and the spec says {wanted}")
            return (BATCH, image.height, image.width, 3)
        if table.kind != "hidden":
            return (BATCH, SEQUENCE if sizes[1] is None else sizes[1])
        for size, own in zip(sizes, shape, strict=True):
            if size is not None and size != own:
                raise self._refuse(f"the input {table.name!r} is {sizes}, and {table.known_as!r} is {list(shape)}")
        return shape

    def _image(self) -> ImageTable:
        assert self._spec.image is not None  # read_spec checked it
        return self._spec.image

    def _layout(self, old: ir.Value) -> str:
        # Bytes come as pictures are stored.
        colors = None if old.shape is None else old.shape[3]
        return "NHWC" if old.dtype is ir.DataType.UINT8 and colors == 3 else self._image().layout

    def _pixels(self, new: ir.Value, old: ir.Value) -> ir.Value:
        """``new`` uint8 [batch, height, width, 3] as ``old`` takes it."""
        image, value = self._image(), new
        layout = self.layout = self._layout(old)

        def turned(pixels: ir.Value) -> ir.Value:
            return self._then("Transpose", [pixels], "adopted.pixels.transposed", perm=[0, 3, 1, 2])

        if old.dtype is ir.DataType.UINT8:
            return turned(value) if layout == "NCHW" else value
        if image.mean is None or image.std is None:
            what = "it takes pixels as floats, and the spec does not say how they are normalized"
            raise self._refuse(
                what, "add mean = [...] and std = [...] to [image], from the model's preprocessor_config.json"
            )
        # Cast first: TensorRT accepts bytes as a network input only if a Cast reads them directly.
        value = self._then("Cast", [value], "adopted.pixels.float", to=int(ir.DataType.FLOAT))
        value = turned(value) if layout == "NCHW" else value
        sides = (3, 1, 1) if layout == "NCHW" else (3,)
        mean = 255 * np.array(image.mean, np.float32).reshape(sides)
        scale = (1 / (255 * np.array(image.std))).astype(np.float32).reshape(sides)
        value = self._then("Sub", [value, constant(self._graph, "adopted.mean", mean)], "adopted.pixels.centered")
        return self._then("Mul", [value, constant(self._graph, "adopted.scale", scale)], "adopted.pixels.normalized")

    def _feed(self, old: ir.Value, new: ir.Value, dtype: ir.DataType) -> None:
        """Let the readers of ``old`` read ``new``, of type ``dtype`` unless it is an image, in the type that they expect."""
        cast: ir.Value | None = None
        for usage in list(old.uses()):
            # A lookup takes any whole numbers. Without a cast before it, the runtime sees which ids the table has.
            plain = usage.node.op_type == "Gather" and usage.idx == 1 and old.dtype is ir.DataType.INT32
            if plain or old.dtype is dtype or dtype is ir.DataType.UINT8:
                usage.node.replace_input_with(usage.idx, new)
                continue
            if cast is None:
                assert old.dtype is not None
                cast = self._then("Cast", [new], f"adopted.{old.name}.cast", to=int(old.dtype))
            usage.node.replace_input_with(usage.idx, cast)

    # -- outputs -------------------------------------------------------------------------------------------------------

    def _output(self, table: OutputTable, value: ir.Value) -> ir.Value:
        name = f"adopted.{table.known_as}"
        if value.dtype is not ir.DataType.FLOAT and (table.kind != "hidden" or value.dtype is not ir.DataType.INT64):
            raise self._refuse(f"the output {table.name!r} of kind {table.kind} is {value.dtype}, not float32")
        if table.pool != "none" and value.shape is not None and len(value.shape) != 3:
            what = (
                f"pool = {table.pool!r} needs [batch, tokens, channels], and {table.name!r} has {len(value.shape)} axes"
            )
            raise self._refuse(what)
        if table.pool == "first":
            one = constant(self._graph, "adopted.first", np.int64(0))
            value = self._then("Gather", [value, one], f"{name}.first", axis=1)
        elif table.pool == "mean":
            value = self._mean(value, name)
        if table.normalize:
            last, least = self._number("last", np.array([-1], np.int64)), self._number("least", np.float32(1e-12))
            length = self._then("ReduceL2", [value, last], f"{name}.length", keepdims=1)
            value = self._then("Div", [value, self._then("Max", [length, least], f"{name}.divisor")], f"{name}.unit")
        return value

    def _mean(self, value: ir.Value, name: str) -> ir.Value:
        """Over the tokens that the mask keeps, or over all if there is none."""
        tokens = self._number("tokens", np.array([1], np.int64))
        if self._mask is None:
            return self._then("ReduceMean", [value, tokens], f"{name}.mean", keepdims=0)
        last = self._number("last", np.array([-1], np.int64))
        mask = self._then("Cast", [self._mask], f"{name}.mask", to=int(ir.DataType.FLOAT))
        mask = self._then("Unsqueeze", [mask, last], f"{name}.weights")
        total = self._then(
            "ReduceSum", [self._then("Mul", [value, mask], f"{name}.kept"), tokens], f"{name}.sum", keepdims=0
        )
        count = self._then("ReduceSum", [mask, tokens], f"{name}.count", keepdims=0)
        return self._then("Div", [total, count], f"{name}.mean")

    def _number(self, name: str, array: np.ndarray | np.generic) -> ir.Value:
        return constant(self._graph, f"adopted.{name}", array)

    def _then(self, kind: str, inputs: list[ir.Value | None], name: str, **attributes: int | list[int]) -> ir.Value:
        node = operator(kind, inputs, name, **attributes)
        self._new.append(node)
        return node.outputs[0]

    # -- names ---------------------------------------------------------------------------------------------------------

    def _rename(self) -> None:
        """Give inputs and outputs the names of the spec, and keep those from every other tensor."""
        graph = self._graph
        names = [tensor.name for tensor in self.inputs] + [table.known_as for table in self._table.outputs]
        for name in names:
            if names.count(name) > 1:
                raise self._refuse(f'two tensors are called {name!r}: give one of them another name with as = "..."')
            if not name.isascii() or not all(char.isalnum() or char in "_.-" for char in name) or not name[0].isalnum():
                raise self._refuse(
                    f'the name {name[:80]!r} is not one that a bundle can have: give another with as = "..."'
                )
        values = [*graph.inputs, *graph.outputs]
        for value in _values(graph):
            if value.name in names and value not in values:
                _rename_value(graph, value, f"foreign.{value.name}")
        for value in values:
            _rename_value(graph, value, f"adopted.moved.{value.name}")
        for value, name in zip(values, names, strict=True):
            _rename_value(graph, value, name)


def keep_outputs(graph: ir.Graph, names: Sequence[str]) -> None:
    """Keep the outputs ``names``, in this order, with the nodes, constants and inputs that they need."""
    outputs = {value.name: value for value in graph.outputs}
    graph.outputs.clear()
    graph.outputs.extend(outputs[name] for name in names)
    needed, waiting = set[ir.Node](), [value.producer() for value in graph.outputs]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in needed:
            needed.add(node)
            waiting += [value.producer() for value in node.inputs if value is not None]
    graph.remove([node for node in graph if node not in needed], safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            del graph.initializers[name]


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]


def _rename_value(graph: ir.Graph, value: ir.Value, name: str) -> None:
    if value.name in graph.initializers and graph.initializers[value.name] is value:
        del graph.initializers[value.name]
        value.name = name
        graph.initializers[name] = value
    else:
        value.name = name


def _make_names_unique(graph: ir.Graph) -> None:
    """Name every node: passes choose nodes by name, and foreign files repeat names or have none."""
    seen: set[str] = set()
    for index, node in enumerate(graph):
        name = node.name or f"{node.op_type}_{index}"
        node.name = name if name not in seen else f"{name}_{index}"
        seen.add(node.name)
