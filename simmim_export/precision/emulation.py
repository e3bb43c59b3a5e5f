"""Lower precisions on a processor without their kernels: graphs that compute the same numbers in FP32."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from simmim_export.precision.surgery import (
    append,
    array_of,
    constant,
    operator,
    redirect,
    remove_unused_constants,
    with_types,
)

_FLOAT, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The FP32 graph that computes what the FP16 graph ``model`` does: each FP16 tensor is rounded where it is made.

    ONNX Runtime's CPU provider cannot judge FP16. It lacks the kernels, computes in FP32, and removes the casts that it
    put between two nodes itself, so nothing in between is rounded and nothing overflows. It keeps a pair of casts that is in
    the graph. As in the kernels of GPUs, sums within an operator are FP32.
    """
    work = with_types(model)
    for value in work.graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype == _HALF:
            value.const_value = ir.tensor(array_of(value).astype(np.float32), name=value.name)
            value.dtype = _FLOAT
    for node in list(work.graph):
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == _HALF:
                wide = attribute.as_tensor().numpy().astype(np.float32)
                node.attributes[name] = ir.AttrTensor(name, ir.tensor(wide))
        for value in node.outputs:
            if value.dtype == _HALF:
                _round(value)
    return ir.to_proto(work)


def _round(value: ir.Value) -> None:
    """Cast ``value`` to FP16, unless its node does, and back. The result takes its name."""
    node, name = value.producer(), value.name
    casts = []
    if node is None or node.op_type != "Cast" or node.attributes.get_int("to") != int(_HALF):
        value.dtype = _FLOAT
        casts.append(operator("Cast", [value], f"{name}.half", to=int(_HALF)))
    casts.append(operator("Cast", [casts[0].outputs[0] if casts else value], f"{name}.back", to=int(_FLOAT)))
    append(value, casts, f"{name}.wide" if len(casts) > 1 else f"{name}.half")
    casts[-1].outputs[0].dtype = _FLOAT


def with_float_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The INT8 graph ``model`` with every weight as the FP32 numbers that its levels and scales stand for.

    Activations are rounded as before, but products are FP32. On x86 without VNNI, INT8 products of full range saturate in 16
    bits, so an engine there cannot show what such a graph computes elsewhere.
    """
    edited = ir.from_proto(model)
    graph = edited.graph
    for node in list(graph):
        inputs = [value for value in node.inputs if value is not None]
        if node.op_type != "DequantizeLinear" or any(value.const_value is None for value in inputs):
            continue
        (numbers,) = ReferenceEvaluator(ir.to_proto(node), opsets=dict(edited.opset_imports)).run(
            None, {str(value.name): array_of(value) for value in inputs}
        )
        output = node.outputs[0]
        redirect(output, [usage.node for usage in output.uses()], constant(graph, f"{output.name}.float", numbers))
        graph.remove(node, safe=True)
    remove_unused_constants(graph)
    return ir.to_proto(edited)
