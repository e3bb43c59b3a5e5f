"""A graph from FP32 to FP16, with chosen nodes left in FP32 and casts between the two.

ONNX Runtime has a converter (``onnxruntime.transformers.float16``), and it is not used. It rounds constants that FP32 nodes share
with others, clips a constant beyond 65504 and raises one below 6e-8 without a word, sends numbers between two FP32 nodes
through FP16, and puts casts in an order that ONNX does not allow. Mending its result took more code than this module.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
import onnx_ir as ir

from simmim_export.precision.surgery import array_of, constant, operator, redirect, take_output, with_types

_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
# Attributes that name the type of an operator's result.
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")


def to_half(array: np.ndarray) -> np.ndarray:
    """``array`` rounded to float16; what is beyond its range becomes infinite."""
    with np.errstate(over="ignore"):
        return array.astype(np.float16)


def halve(model: onnx.ModelProto, islands: Collection[str] = ()) -> onnx.ModelProto:
    """``model`` in FP16, with the nodes named ``islands`` in FP32 and casts around them. ``model`` itself is not changed.

    Inputs and outputs keep their types. An island reads its constants in FP32. A number passes from island to island, from an
    input to an island, and from an island to an output without being rounded.
    """
    work = with_types(model)
    graph, opset = work.graph, work.opset_imports[""]
    wide = [node for node in graph if node.name in islands]
    floats = [value for value in graph.initializers.values() if value.const_value.dtype == _FLOAT]
    for value in floats:
        _halve_constant(graph, value, _wide_readers(value, wide, opset))
    floats = [value for value in graph.inputs if value.dtype == _FLOAT]
    floats += [value for node in wide for value in node.outputs if value.dtype == _FLOAT]
    for value in floats:
        _cast_for_narrow_readers(graph, value, _wide_readers(value, wide, opset))
    for node in list(graph):
        if node in wide:
            continue
        _halve_attributes(node)
        for value in node.outputs:
            if value.dtype == _FLOAT:
                _halve_value(graph, value, _wide_readers(value, wide, opset))
    return ir.to_proto(work)


def _wide_readers(value: ir.Value, wide: Collection[ir.Node], opset: int) -> list[ir.Node]:
    """The nodes that read ``value`` in FP32: islands, and operators that take nothing else at that input."""
    return [
        usage.node for usage in value.uses() if usage.node in wide or _is_always_float(usage.node, usage.idx, opset)
    ]


def _is_always_float(node: ir.Node, index: int, opset: int) -> bool:
    """Whether ONNX fixes this input to FP32, as it does the scales of a Resize."""
    formal = onnx.defs.get_schema(node.op_type, opset, node.domain).inputs
    return formal[min(index, len(formal) - 1)].type_str == "tensor(float)"


def _halve_constant(graph: ir.Graph, value: ir.Value, wide: Collection[ir.Node]) -> None:
    array = array_of(value)
    if wide:
        if not value.is_graph_output() and all(usage.node in wide for usage in value.uses()):
            return
        redirect(value, wide, constant(graph, f"{value.name}.fp32", array))
    value.const_value = ir.tensor(to_half(array), name=value.name)
    value.dtype = _HALF


def _cast_for_narrow_readers(graph: ir.Graph, value: ir.Value, wide: Collection[ir.Node]) -> None:
    narrow = [usage.node for usage in value.uses() if usage.node not in wide]
    if narrow:
        cast = _cast(value, f"{value.name}.fp16", _HALF)
        redirect(value, narrow, cast.outputs[0])
        _insert(graph, value, cast)


def _halve_value(graph: ir.Graph, value: ir.Value, wide: Collection[ir.Node]) -> None:
    """Make ``value`` FP16, and cast it back for ``wide`` readers and where it is an output of the graph."""
    value.dtype = _HALF
    if value.is_graph_output():
        name, value.name = value.name, f"{value.name}.fp16"
        cast = _cast(value, str(name), _FLOAT)
        take_output(graph, value, cast.outputs[0])
    elif wide:
        cast = _cast(value, f"{value.name}.fp32", _FLOAT)
    else:
        return
    redirect(value, wide, cast.outputs[0])
    _insert(graph, value, cast)


def _cast(value: ir.Value, name: str, dtype: ir.DataType) -> ir.Node:
    cast = operator("Cast", [value], name, to=int(dtype))
    cast.name = f"{name}.cast"
    cast.outputs[0].dtype, cast.outputs[0].shape = dtype, value.shape
    return cast


def _insert(graph: ir.Graph, value: ir.Value, cast: ir.Node) -> None:
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], cast)
    else:
        graph.insert_after(producer, cast)


def _halve_attributes(node: ir.Node) -> None:
    for name, attribute in list(node.attributes.items()):
        if name in _TYPE_ATTRIBUTES and attribute.value == int(_FLOAT):
            node.attributes[name] = ir.AttrInt64(name, int(_HALF))
        elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == _FLOAT:
            node.attributes[name] = ir.AttrTensor(name, ir.tensor(to_half(attribute.as_tensor().numpy())))
