"""Edits of a graph that several passes share, on ``onnx_ir``: it keeps track of who makes and who reads a tensor.

A model goes through ``onnx_ir`` without loss: exported FP32 graphs come back byte for byte, with the exporter's metadata, from
which :mod:`simmim_export.tensorrt_rules.groups` reads the PyTorch module of a node.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx import shape_inference


def with_types(model: onnx.ModelProto) -> ir.Model:
    """A copy of ``model`` in which every tensor has the type that shape inference finds. Outputs keep the shapes they declare."""
    typed = shape_inference.infer_shapes(model)
    del typed.graph.output[:]
    typed.graph.output.extend(model.graph.output)
    return ir.from_proto(typed)


def constant(graph: ir.Graph, name: str, array: np.ndarray | np.generic) -> ir.Value:
    """A new constant ``name`` of ``graph``, or the one that already has this name."""
    if name in graph.initializers:
        return graph.initializers[name]
    value = ir.val(name, const_value=ir.tensor(np.ascontiguousarray(array).reshape(np.shape(array)), name=name))
    graph.register_initializer(value)
    return value


def is_float_constant(value: ir.Value | None) -> bool:
    """Whether ``value`` is a constant in FP32."""
    return value is not None and value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT


def array_of(value: ir.Value) -> np.ndarray:
    """The numbers of a constant."""
    assert value.const_value is not None, value.name
    return value.const_value.numpy()


def input_of(node: ir.Node, index: int) -> ir.Value:
    """The input ``index`` of ``node``, which has it."""
    value = node.inputs[index]
    assert value is not None, f"{node.name} has no input {index}"
    return value


def maker(value: ir.Value | None) -> str:
    """The kind of the node that makes ``value``; "" for an input or a constant."""
    producer = None if value is None else value.producer()
    return "" if producer is None else producer.op_type


def only_reader(value: ir.Value, kind: str) -> ir.Node | None:
    """The node of ``kind`` that alone reads ``value``, unless the graph gives ``value``."""
    readers = [usage.node for usage in value.uses()]
    return readers[0] if len(readers) == 1 and readers[0].op_type == kind and not value.is_graph_output() else None


def operator(kind: str, inputs: Sequence[ir.Value | None], name: str, **attributes: int | Sequence[int]) -> ir.Node:
    """A node that is not in a graph yet. ``name`` is its own and that of its one output."""
    return ir.node(kind, inputs, attributes, name=name, outputs=[ir.val(name)])


def redirect(value: ir.Value, readers: Iterable[ir.Node], to: ir.Value) -> None:
    """Let ``readers`` read ``to`` wherever they read ``value``."""
    readers = set(readers)
    for usage in list(value.uses()):
        if usage.node in readers:
            usage.node.replace_input_with(usage.idx, to)


def append(value: ir.Value, nodes: Sequence[ir.Node], name: str) -> None:
    """Insert ``nodes``, a chain that starts at ``value``, after the node that makes ``value``.

    The result of the chain takes the name of ``value`` and its place among the outputs of the graph, and all others read that
    result from now on. ``value`` is called ``name`` instead.
    """
    graph, producer, end = value.graph, value.producer(), nodes[-1].outputs[0]
    assert isinstance(graph, ir.Graph) and producer is not None, value.name
    for usage in value.uses():
        if usage.node not in nodes:
            usage.node.replace_input_with(usage.idx, end)
    take_output(graph, value, end)
    graph.insert_after(producer, nodes)
    # Not end.type = value.type: the two would share one object, and a change of one type would change the other.
    if value.dtype is not None:
        end.dtype = value.dtype
    end.shape = value.shape
    value.name, end.name = name, value.name


def replace(graph: ir.Graph, value: ir.Value, replacement: ir.Value) -> None:
    """Let all readers of ``value`` and the outputs of ``graph`` take ``replacement``, which gets its name, type and shape."""
    for usage in list(value.uses()):
        usage.node.replace_input_with(usage.idx, replacement)
    take_output(graph, value, replacement)
    if value.dtype is not None:
        replacement.dtype = value.dtype
    replacement.shape = value.shape
    replacement.name, value.name = value.name, replacement.name


def take_output(graph: ir.Graph, value: ir.Value, replacement: ir.Value) -> None:
    """Let ``graph`` give ``replacement``, with the metadata of ``value``, wherever it gives ``value``."""
    for index, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[index] = replacement
            replacement.metadata_props.update(value.metadata_props)


def remove_unused_constants(graph: ir.Graph) -> None:
    """Remove the constants that no node reads and that are not outputs."""
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            del graph.initializers[name]
