"""A model as the rules read it: who makes a tensor and who reads it, constants, known types and shapes; and a table of rules.

It works on ONNX's own messages and not on ``onnx_ir``, because the lint must also read graphs that are not valid, to say where.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

from simmim_export.tensorrt_rules.groups import module_of

ONNX_DOMAINS = ("", "ai.onnx")


class Graph:
    """A read-only view of ``model``, nodes of its subgraphs included.

    ``nodes`` are in order; ``inputs`` and ``outputs`` are names. ``producer`` is the node that makes a tensor; ``readers`` are
    those that read it, each with the index of that input. ``constants`` are initializers and the values of Constant nodes.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.name = model.graph.name
        self.opset = max((entry.version for entry in model.opset_import if entry.domain in ONNX_DOMAINS), default=0)
        graphs = list(_graphs(model.graph))
        self.nodes = [node for graph in graphs for node in graph.node]
        self.constants = {tensor.name: tensor for graph in graphs for tensor in graph.initializer}
        self.constants |= {node.output[0]: t for node in self.nodes if (t := _constant(node)) is not None}
        # Below IR version 4 every initializer is an input as well.
        self.inputs = {value.name for value in model.graph.input} - self.constants.keys()
        self.outputs = {value.name for value in model.graph.output}
        self.producer = {name: node for node in self.nodes for name in node.output if name}
        self.readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        for node in self.nodes:
            for position, name in enumerate(node.input):
                self.readers.setdefault(name, []).append((node, position))
        self._types = _types(model)
        for name, tensor in self.constants.items():
            self._types[name] = helper.make_tensor_type_proto(tensor.data_type, tensor.dims).tensor_type

    @property
    def names(self) -> list[str]:
        """Every tensor whose type is known. The order means nothing."""
        return list(self._types)

    def dtype(self, name: str) -> int:
        """The ``TensorProto`` type of the tensor ``name``; UNDEFINED if it is not known."""
        return self._types[name].elem_type if name in self._types else onnx.TensorProto.UNDEFINED

    def shape(self, name: str) -> list[int | None] | None:
        """The shape of ``name`` with None for a dynamic axis, or None if not even the rank is known."""
        known = self._types.get(name)
        if known is None or not known.HasField("shape"):
            return None
        return [d.dim_value if d.HasField("dim_value") else None for d in known.shape.dim]

    def value(self, name: str) -> np.ndarray | None:
        """The constant ``name``, or None if it is computed."""
        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def module(self, node: onnx.NodeProto) -> str:
        """The path of the PyTorch module that ``node`` was exported from; "" if the graph does not say.

        A QuantizeLinear or DequantizeLinear that a pass inserted belongs to the node that reads it.
        """
        while not (module := module_of(node)) and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            readers = self.readers.get(node.output[0])
            if not readers:
                break
            node = readers[0][0]
        return module


# A node that breaks a rule (or the name of a tensor that no node makes), and in which way.
Problems = Iterator[tuple[onnx.NodeProto | str, str]]
Check = Callable[[Graph], Problems]


class Rules:
    """Checks by the name of their rule. :meth:`add` decorates one: ``few_channels`` gets the name ``few-channels``, and the first
    line of its docstring says the rule in one sentence. :meth:`advise` adds a rule that is only advice: TensorRT accepts a
    graph that breaks it, but may run it more slowly. ``advice`` has the names of these rules."""

    def __init__(self) -> None:
        self.checks: dict[str, Check] = {}
        self.advice: set[str] = set()

    def add(self, check: Check) -> Check:
        """Add ``check``, a function of a graph that yields what breaks its rule."""
        self.checks[check.__name__.replace("_", "-")] = check
        return check

    def advise(self, check: Check) -> Check:
        """Add ``check`` as advice."""
        self.add(check)
        self.advice.add(next(reversed(self.checks)))
        return check

    def sentences(self) -> dict[str, str]:
        """Each rule in one sentence, by its name."""
        return {name: (check.__doc__ or "").partition("\n")[0] for name, check in self.checks.items()}


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """The value of the attribute ``name`` of ``node``, or ``default`` if it has none."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def label(node: onnx.NodeProto) -> str:
    """The name of ``node``, or of the first tensor that it makes if it has none."""
    return node.name or next(iter(node.output), node.op_type)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for part in node.attribute:
            for inner in [part.g] if part.HasField("g") else part.graphs:
                yield from _graphs(inner)


def _constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    if node.op_type != "Constant":
        return None
    tensor = attribute(node, "value")
    if tensor is not None:
        return tensor
    # No rule reads strings or sparse values.
    for name, dtype in (("value_float", np.float32), ("value_int", np.int64)):
        for value in (attribute(node, name), attribute(node, f"{name}s")):
            if value is not None:
                return numpy_helper.from_array(np.asarray(value, dtype))
    return None


def _types(model: onnx.ModelProto) -> dict[str, Any]:
    # Inference fails at an operator whose domain is not imported. The types that the graph itself declares remain.
    with contextlib.suppress(shape_inference.InferenceError):
        model = shape_inference.infer_shapes(model)  # a new model
    graphs = list(_graphs(model.graph))
    values = [value for g in graphs for part in (g.value_info, g.input, g.output) for value in part]
    return {value.name: value.type.tensor_type for value in values if value.type.HasField("tensor_type")}
