"""A model as a lint reads it: who makes a tensor, who reads it, what is constant, which types and shapes are known.

Knows ONNX graphs and how a table of rules is written. Must not know what any rule says, or TensorRT.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

from simmim_export.tensorrt_rules.groups import module_of

ONNX_DOMAINS = ("", "ai.onnx")


class Graph:
    """A read-only view of ``model``, nodes of its subgraphs included.

    ``nodes`` in order; ``inputs`` and ``outputs`` of the network by name; ``producer`` of a tensor; ``readers`` of a
    tensor, each with the position at which it reads; ``constants``, initialisers and Constant nodes alike.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.name = model.graph.name
        self.opset = max((entry.version for entry in model.opset_import if entry.domain in ONNX_DOMAINS), default=0)
        graphs = list(_graphs(model.graph))
        self.nodes = [node for graph in graphs for node in graph.node]
        self.constants = {tensor.name: tensor for graph in graphs for tensor in graph.initializer}
        self.constants |= {node.output[0]: t for node in self.nodes if (t := _constant(node)) is not None}
        # Below IR version 4 every initialiser is an input as well.
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
        """Every tensor whose type is known, in no order that means anything."""
        return list(self._types)

    def dtype(self, name: str) -> int:
        """The ``TensorProto`` type of the tensor ``name``, UNDEFINED where it is not known."""
        return self._types[name].elem_type if name in self._types else onnx.TensorProto.UNDEFINED

    def shape(self, name: str) -> list[int | None] | None:
        """The shape of ``name`` with None for a dynamic axis, or None where not even the rank is known."""
        known = self._types.get(name)
        if known is None or not known.HasField("shape"):
            return None
        return [d.dim_value if d.HasField("dim_value") else None for d in known.shape.dim]

    def value(self, name: str) -> np.ndarray | None:
        """The constant ``name``, or None for what is computed."""
        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def module(self, node: onnx.NodeProto) -> str:
        """The path of the PyTorch module that ``node`` was exported from, "" where the graph does not say.

        A Q or DQ that a pass inserted has none of its own: it belongs to what reads it.
        """
        while not (found := module_of(node)) and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            readers = self.readers.get(node.output[0])
            if not readers:
                break
            node = readers[0][0]
        return found


# What a rule says of a node (or of a tensor, by its name, that no node makes).
Problems = Iterator[tuple[onnx.NodeProto | str, str]]


@dataclass(frozen=True)
class Rule:
    """``sentence`` says the rule; ``check`` yields what breaks it."""

    sentence: str
    check: Callable[[Graph], Problems]


@dataclass(frozen=True)
class Rules:
    """Rules by name. :meth:`add` decorates the function of one; ``few_channels`` gets the name ``few-channels``."""

    table: dict[str, Rule] = field(default_factory=dict)

    def add(self, sentence: str) -> Callable[[Callable[[Graph], Problems]], Callable[[Graph], Problems]]:
        def register(check: Callable[[Graph], Problems]) -> Callable[[Graph], Problems]:
            self.table[check.__name__.replace("_", "-")] = Rule(sentence, check)
            return check

        return register


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """The value of an attribute of ``node``, or ``default`` where it has none."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def label(node: onnx.NodeProto) -> str:
    """The name of ``node``; for one without a name, that of the first tensor that it makes."""
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
    # Strings and sparse values are left: no rule reads them.
    for name, dtype in (("value_float", np.float32), ("value_int", np.int64)):
        for found in (attribute(node, name), attribute(node, f"{name}s")):
            if found is not None:
                return numpy_helper.from_array(np.asarray(found, dtype))
    return None


def _types(model: onnx.ModelProto) -> dict[str, Any]:
    # Inference stops at an operator whose domain is not imported; what the graph says of its own tensors is left then.
    with contextlib.suppress(shape_inference.InferenceError):
        model = shape_inference.infer_shapes(model)  # a new model: the one given is not changed
    graphs = list(_graphs(model.graph))
    values = [value for g in graphs for part in (g.value_info, g.input, g.output) for value in part]
    return {value.name: value.type.tensor_type for value in values if value.type.HasField("tensor_type")}
